"""Letta Code as an agent, against a stand-in for the command that misbehaves as the task says."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import yaml

from letta_gym import config as configuration
from letta_gym.errors import BackendError, ConfigError
from letta_gym.feedback.outcome import Outcome
from letta_gym.letta import code_home
from letta_gym.letta.app_server import AppServer
from letta_gym.letta.code import EXECUTABLE_VARIABLE, CodeConfig, code_backend, find_executable
from letta_gym.letta.code_home import Home, Root, sweep
from letta_gym.letta.grading import ContainsGrader
from letta_gym.letta.live import LiveConfig
from letta_gym.letta.rollout import Rollout
from letta_gym.library.skills import Skill
from tests.look_alikes import make_look_alikes
from tests.small_suite import write_suite
from tests.stub_llm import MODEL, StubLLM

FAKE = Path(__file__).parent / "fake_letta_code.py"
SKILLS = tuple(Skill(name, name, f"does {name}", f"How to {name}.") for name in ("cut", "dye"))


@pytest.fixture(scope="module")
def stub() -> Iterator[StubLLM]:
    with StubLLM() as running:
        yield running


@pytest.fixture(autouse=True)
def _scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(code_home, "MEMORY", tmp_path / "none")


def command(folder: Path, *options: str) -> Path:
    """The stand-in as an executable that gets ``options`` before its arguments."""
    path = folder / "letta"
    words = " ".join(shlex.quote(word) for word in (sys.executable, str(FAKE), *options))
    path.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
    path.chmod(0o755)
    return path


def settings(stub: StubLLM, letta: Path, **fields: Any) -> CodeConfig:
    usual: dict[str, Any] = {"model": MODEL, "base_url": stub.url, "executable": letta}

    usual |= {"concurrency": 8, "deadline": 20.0, "retries": {"attempts": 1}}
    return CodeConfig.model_validate(usual | fields)


def task(text: str, *skills: Skill) -> Rollout:
    return Rollout(text, skills or SKILLS, ContainsGrader(expected="ANSWER"))


def run(config: CodeConfig, *texts: str) -> list[Outcome]:
    with code_backend(config) as backend:
        return backend.run([task(text) for text in texts])


def leftovers() -> list[str]:
    return [path.name for path in Path(tempfile.gettempdir()).glob("letta-gym-code-*")]


# --- what goes well -------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", ["app-server", "cli"])
def test_a_rollout_sees_its_skills_and_reports_the_loaded_one(
    stub: StubLLM, tmp_path: Path, transport: str
) -> None:
    config = settings(stub, command(tmp_path), transport=transport)

    (outcome,) = run(config, "Cut it.")

    assert (outcome.response, outcome.success) == ("ANSWER cut, dye", 1.0)
    assert (outcome.loaded, outcome.tokens) == (("cut",), SKILLS[0].tokens)
    assert (outcome.steps, outcome.usage, outcome.stop_reason) == (2, 200, "end_turn")
    assert leftovers() == []


@pytest.mark.parametrize("transport", ["app-server", "cli"])
def test_preloaded_skills_are_not_listed_and_count_as_loaded(
    stub: StubLLM, tmp_path: Path, transport: str
) -> None:
    config = settings(stub, command(tmp_path), transport=transport, present="preloaded")

    (outcome,) = run(config, "Cut it.")

    assert outcome.response == "ANSWER alone"
    assert outcome.loaded == ("cut", "dye")


def test_rollouts_at_the_same_time_see_each_their_own_skills(stub: StubLLM, tmp_path: Path) -> None:
    skills = [Skill(f"s{i}", f"s{i}", "does", "x") for i in range(12)]
    with code_backend(settings(stub, command(tmp_path))) as backend:
        outcomes = backend.run([task("Go.", skill) for skill in skills])

    assert [o.response for o in outcomes] == [f"ANSWER {skill.id}" for skill in skills]
    assert [o.loaded for o in outcomes] == [(skill.id,) for skill in skills]


def test_a_server_is_replaced_before_it_grows(
    stub: StubLLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[AppServer] = []
    start = AppServer.start

    async def noted(*arguments: Any) -> AppServer:
        started.append(await start(*arguments))
        return started[-1]

    monkeypatch.setattr(AppServer, "start", noted)
    config = settings(stub, command(tmp_path), recycle_after=3)

    outcomes = run(config, *["Cut it."] * 6)

    assert [o.success for o in outcomes] == [1.0] * 6
    assert [server.served for server in started] == [3, 3, 1]  # the start counts as one
    assert not any(server.alive or server.home.folder.exists() for server in started)


def test_a_turn_that_loops_is_stopped_and_graded_as_it_is(stub: StubLLM, tmp_path: Path) -> None:
    for transport in ("app-server", "cli"):
        config = settings(stub, command(tmp_path), transport=transport, max_steps=5)

        (outcome,) = run(config, "FAKE loop")

        assert (outcome.stop_reason, outcome.success, outcome.evidence) == ("max_steps", 0.0, True)
        assert outcome.steps is not None
        assert 5 <= outcome.steps < 50
        assert outcome.error is None


def test_the_environment_of_a_real_letta_plays_with_it(stub: StubLLM, tmp_path: Path) -> None:
    suite = make_look_alikes(families=1, alike=2, tasks=8)
    folder = write_suite(tmp_path / "suite", suite)
    code = settings(stub, command(tmp_path)).model_dump()
    env = gymnasium.make(
        "letta_gym/SkillSelection-v0",
        suite=str(folder),
        max_skills=1,
        horizon=2,
        backend="code",
        code=code,
    )

    env.reset(seed=0)
    action = np.array([1, 0], np.int8)
    _, reward, _, _, info = env.step(action)
    env.close()

    outcome = info["outcome"]
    assert outcome["response"].startswith("ANSWER family0-")
    assert outcome["success"] == 0
    assert reward == pytest.approx(-0.004)  # a wrong answer, and 100 tokens
    assert leftovers() == []


# --- what fails is no evidence --------------------------------------------------------------------


@pytest.mark.parametrize("transport", ["app-server", "cli"])
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("foreign", "elsewhere"),
        ("error", "the model is gone"),
        ("crash", "went away|it crashed"),
    ],
)
def test_a_faulty_rollout_is_no_evidence_and_says_why(
    stub: StubLLM, tmp_path: Path, transport: str, fault: str, said: str
) -> None:
    config = settings(stub, command(tmp_path), transport=transport)

    (outcome,) = run(config, f"FAKE {fault}")

    assert (outcome.evidence, outcome.success, outcome.may_have_run) == (False, None, True)
    assert outcome.error is not None
    assert any(words in outcome.error for words in said.split("|"))
    assert leftovers() == []


def test_a_server_that_talks_nonsense_is_replaced(stub: StubLLM, tmp_path: Path) -> None:
    with code_backend(settings(stub, command(tmp_path))) as backend:
        (broken,) = backend.run([task("FAKE garbage")])
        (after,) = backend.run([task("Cut it.")])

    assert not broken.evidence
    assert after.success == 1.0


def test_the_deadline_holds_and_the_turn_is_aborted(stub: StubLLM, tmp_path: Path) -> None:
    with code_backend(settings(stub, command(tmp_path), deadline=1.0)) as backend:
        started = time.monotonic()
        (outcome,) = backend.run([task("FAKE hang")])
        took = time.monotonic() - started

    assert 0.9 < took < 2.5
    assert (outcome.evidence, outcome.may_have_run) == (False, True)
    assert leftovers() == []


def test_a_turn_that_does_not_end_costs_its_server(
    stub: StubLLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("letta_gym.letta.code.GRACE", 0.3)
    with (
        caplog.at_level(logging.WARNING),
        code_backend(settings(stub, command(tmp_path), deadline=1.0)) as backend,
    ):
        backend.run([task("FAKE stuck")])
        until = time.monotonic() + 10
        while "does not end" not in caplog.text and time.monotonic() < until:
            time.sleep(0.02)
        assert "does not end" in caplog.text

    with code_backend(settings(stub, command(tmp_path))) as backend:
        assert backend.run([task("Cut it.")])[0].success == 1.0


def test_the_command_line_stands_in_for_an_app_server_that_cannot_be_used(
    stub: StubLLM, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = settings(stub, command(tmp_path, "--protocol", "2"))

    with caplog.at_level(logging.WARNING):
        (outcome,) = run(config, "Cut it.")

    assert outcome.success == 1.0
    assert "version 2" in caplog.text
    assert leftovers() == []


# --- what fails at the start ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [(("--protocol", "2"), "speaks version 2"), (("--deaf",), "did not come up")],
)
def test_an_app_server_that_does_not_fit_is_refused(
    stub: StubLLM, tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    fields = {"transport": "app-server", "start_timeout": 2.0}

    with pytest.raises(BackendError, match=said):
        code_backend(settings(stub, command(tmp_path, *options), **fields))

    assert leftovers() == []


def test_a_command_that_ends_at_once_is_quoted(stub: StubLLM, tmp_path: Path) -> None:
    broken = tmp_path / "letta"
    broken.write_text("#!/bin/sh\necho no such option: --listen; exit 2\n")
    broken.chmod(0o755)

    with pytest.raises(BackendError, match=r"code 2: no such option"):
        code_backend(settings(stub, broken, transport="app-server"))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"model": "no-such-model"}, f"it has {MODEL}"),
        ({"base_url": "http://127.0.0.1:9/v1"}, "does not answer"),
        ({"executable": Path("/no/such/letta")}, "pip install --no-deps letta=="),
        ({"base_url": None, "providers": Path("/no/such/file")}, "letta connect"),
    ],
)
def test_a_wrong_setting_fails_at_once_with_the_remedy(
    stub: StubLLM, tmp_path: Path, fields: dict[str, Any], said: str
) -> None:
    started = time.monotonic()

    with pytest.raises(ConfigError, match=said):
        code_backend(settings(stub, command(tmp_path), **fields))

    assert time.monotonic() - started < 5
    assert leftovers() == []


def test_a_model_that_letta_code_does_not_know_is_refused(stub: StubLLM, tmp_path: Path) -> None:
    providers = tmp_path / "auth.json"
    providers.write_text("{}")
    fields = {"base_url": None, "providers": providers, "model": "anthropic/none"}

    with pytest.raises(ConfigError, match="knows no model 'anthropic/none'"):
        code_backend(settings(stub, command(tmp_path), **fields))


def test_models_come_from_one_source() -> None:
    with pytest.raises(ConfigError, match="either base_url or providers"):
        configuration.resolve(CodeConfig, {"model": "m"})


def test_the_command_is_found_by_path_by_variable_or_on_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one, other = command(tmp_path / "a"), command(tmp_path / "b")
    monkeypatch.delenv(EXECUTABLE_VARIABLE, raising=False)
    monkeypatch.setenv("PATH", f"{one.parent}:{os.environ['PATH']}")

    assert find_executable() == one
    monkeypatch.setenv(EXECUTABLE_VARIABLE, str(other))
    assert find_executable() == other
    assert find_executable(one) == one


def test_every_key_is_documented_with_its_default() -> None:
    page = (FAKE.parent.parent / "docs" / "letta-code.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \|(.*?)\|", page, re.M)
    known = CodeConfig(model="m", base_url="http://x").model_dump(mode="json")
    given = {name: yaml.safe_load(default) for name, default in rows if default.strip()}

    assert {name for name, _ in rows} == set(CodeConfig.model_fields) - set(LiveConfig.model_fields)
    assert {"max_steps", "present", "permissions"} <= set(given)
    assert given == {name: known[name] for name in given}


# --- homes ----------------------------------------------------------------------------------------


def test_the_agent_sees_none_of_our_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LETTA_GYM_MODEL_KEY", "secret")
    monkeypatch.setenv("EXTRA", "wanted")

    home = Home.make(tmp_path / "home", b"{}", ["EXTRA"])

    assert "LETTA_GYM_MODEL_KEY" not in home.environment
    assert home.environment["EXTRA"] == "wanted"
    assert home.environment["HOME"].startswith(str(tmp_path))
    files = [path for path in home.folder.rglob("*") if path.is_file()]
    assert files
    assert [path for path in files if path.stat().st_mode & 0o077] == []


def test_the_sweep_removes_what_killed_processes_left_and_nothing_else(tmp_path: Path) -> None:
    ours = Root()
    program = f"import tempfile; tempfile.tempdir = {str(tmp_path)!r}\n" + (
        "from letta_gym.letta import code_home; import os, pathlib\n"
        f"code_home.MEMORY = pathlib.Path({str(tmp_path / 'none')!r})\n"
        "print(code_home.Root().folder, flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, check=False
    )
    dead, other = Path(done.stdout.strip()), tmp_path / "letta-gym-code-notes"
    other.mkdir()
    link = tmp_path / "letta-gym-code-link"
    link.symlink_to(dead)

    assert dead.is_dir()
    assert sweep() == [dead]
    assert not dead.exists()
    assert ours.folder.is_dir()
    assert other.is_dir()
    assert link.is_symlink()
    ours.remove()
    assert not ours.folder.exists()
    assert sweep() == []


def test_homes_lie_in_memory_where_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = tmp_path / "memory"
    memory.mkdir()
    monkeypatch.setattr(code_home, "MEMORY", memory)
    roots = [Root()]
    monkeypatch.setattr(code_home, "_ROOM", 1 << 60)
    roots.append(Root())

    assert [root.folder.parent for root in roots] == [memory, tmp_path]
    for root in roots:
        root.remove()


def test_the_process_group_goes_with_its_server(stub: StubLLM, tmp_path: Path) -> None:
    async def start_and_stop() -> int:
        home = Home.make(tmp_path / "home", b"{}")
        server = await AppServer.start(command(tmp_path), home, 10.0)
        pid = server._process.pid
        os.killpg(pid, 0)
        await server.stop()
        return pid

    pid = asyncio.run(start_and_stop())

    with pytest.raises(ProcessLookupError):
        os.killpg(pid, 0)
    assert not (tmp_path / "home").exists()
