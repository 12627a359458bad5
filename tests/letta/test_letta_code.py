"""A real Letta Code, whose model is the stub: what was chosen decides what it can do."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

import train
from letta_gym.letta import code_home, narrowed, run_folder
from letta_gym.letta.code import CodeConfig, code_backend
from letta_gym.letta.code_home import Home, openai_compatible, sweep
from letta_gym.letta.grading import ExactGrader
from letta_gym.letta.live import LiveBackend
from letta_gym.letta.rollout import Rollout
from letta_gym.library.skills import Skill
from tests.look_alikes import make_look_alikes
from tests.small_suite import write_suite
from tests.stub_llm import MODEL, Call, StubLLM

ROOT = Path(__file__).parent.parent.parent
LETTA = ROOT / ".letta-code" / "bin" / "letta"


@pytest.fixture(scope="module")
def stub() -> Iterator[StubLLM]:
    with StubLLM() as running:
        yield running


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(code_home, "MEMORY", tmp_path / "none")
    return tmp_path


def skill(family: str, code: str | None = None) -> Skill:
    does = f"answer {code}" if code else "nothing of use"
    return Skill(family, family, f"how to do {family}", f"PROCEDURE {family}: {does}")


def ask(family: str, *skills: Skill, code: str = "none", more: str = "go") -> Rollout:
    return Rollout(f"TASK {family}: {more}", skills, ExactGrader(expected=f"ANSWER {code}"))


def backend(stub: StubLLM, **fields: Any) -> LiveBackend:
    usual: dict[str, Any] = {
        "model": MODEL,
        "base_url": stub.url,
        "executable": LETTA,
        "transport": "app-server",
    }
    usual |= {"concurrency": 8, "retries": {"attempts": 1}}
    return code_backend(CodeConfig.model_validate(usual | fields))


def processes_in(folder: Path) -> list[int]:
    """Processes that work below ``folder``."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cwd"):
        try:
            inside = Path(os.readlink(entry)).is_relative_to(folder)
        except OSError:
            continue
        if inside:
            found.append(int(entry.parent.name))
    return found


def test_48_rollouts_8_at_once_are_graded_as_their_skills_allow(
    stub: StubLLM, scratch: Path
) -> None:
    families = [f"family{i}" for i in range(48)]
    rollouts, expected = [], []
    for i, family in enumerate(families):
        right, other = skill(family, f"CODE-{i}"), skill(f"other{i}", "WRONG")
        chosen = ((right,), (other, right), (other,), ())[i % 4]
        rollouts.append(ask(family, *chosen, code=f"CODE-{i}"))
        expected.append(float(right in chosen))
    before = len(stub.requests)

    with backend(stub) as letta:
        outcomes = letta.run(rollouts)

    assert [outcome.error for outcome in outcomes] == [None] * 48
    assert [outcome.success for outcome in outcomes] == expected
    assert sum(expected) == 24
    for family, outcome, wanted in zip(families, outcomes, expected, strict=True):
        assert outcome.loaded == ((family,) if wanted else ())
        assert outcome.steps == 1 + wanted
        assert outcome.usage is not None
        assert outcome.usage > 0
    for request in stub.requests[before:]:
        numbers = set(re.findall(r"\b(?:family|other)(\d+)", str(request["messages"])))
        assert len(numbers) == 1, "a prompt holds the skills of another rollout"
    assert list(scratch.glob("letta-gym-*")) == []
    assert processes_in(scratch) == []


@pytest.mark.parametrize("transport", ["app-server", "cli"])
def test_a_skill_that_was_not_chosen_is_refused(
    stub: StubLLM, monkeypatch: pytest.MonkeyPatch, transport: str
) -> None:
    _install_globally(monkeypatch, "gamma", "PROCEDURE gamma: answer STOLEN")
    with backend(stub, transport=transport) as letta:
        (outcome,) = letta.run([ask("gamma", skill("beta"), more="use gamma")])

    assert outcome.response == "I do not know how to do gamma."
    assert (outcome.loaded, outcome.tool_errors, outcome.evidence) == ((), 1, True)


def test_a_skill_that_slips_by_is_marked_and_no_evidence(
    stub: StubLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    _install_globally(monkeypatch, "gamma", "PROCEDURE gamma: answer STOLEN")
    monkeypatch.setattr(run_folder, "_write_hook", lambda *_: None)
    with backend(stub) as letta:
        (outcome,) = letta.run([ask("gamma", skill("beta"), more="use gamma", code="STOLEN")])

    assert (outcome.evidence, outcome.success) == (False, None)
    assert "gamma" in str(outcome.error)


def test_the_command_line_gives_the_same_outcomes_as_the_app_server(stub: StubLLM) -> None:
    rollouts = [
        ask("alpha", skill("alpha", "A"), code="A"),
        ask("alpha", skill("beta", "B"), code="A"),
        ask("alpha", code="A"),
        ask("alpha", skill("alpha", "A"), code="A", more="FAULT status 400"),
    ]
    with backend(stub) as letta:
        warm = letta.run(rollouts)
    with backend(stub, transport="cli") as letta:
        cold = letta.run(rollouts)

    assert [outcome.success for outcome in warm] == [1.0, 0.0, 0.0, None]
    for one, other in zip(warm, cold, strict=True):
        assert (one.success, one.response, one.loaded) == (
            *(other.success, other.response),
            other.loaded,
        )
        assert (one.steps, one.stop_reason, one.evidence) == (
            *(other.steps, other.stop_reason),
            other.evidence,
        )


@pytest.mark.parametrize("transport", ["app-server", "cli"])
def test_preloaded_bodies_stand_in_the_prompt(stub: StubLLM, transport: str) -> None:
    with backend(stub, present="preloaded", transport=transport) as letta:
        (outcome,) = letta.run([ask("alpha", skill("beta"), skill("alpha", "A"), code="A")])

    assert (outcome.success, outcome.steps) == (1.0, 1)
    assert outcome.loaded == ("beta", "alpha")


def test_the_agent_has_only_the_tools_that_are_named(stub: StubLLM) -> None:
    with backend(stub, tools=["Skill"]) as letta:
        (outcome,) = letta.run([ask("alpha", skill("alpha", "A"), code="A")])

    tools = stub.requests[-1]["tools"]
    assert outcome.success == 1.0
    assert [tool["function"]["name"] for tool in tools] == ["Skill"]


@pytest.mark.parametrize("transport", ["app-server", "cli"])
@pytest.mark.parametrize(("permissions", "allowed"), [("standard", False), ("unrestricted", True)])
def test_a_command_runs_only_where_the_permissions_allow_it(
    stub: StubLLM,
    scratch: Path,
    monkeypatch: pytest.MonkeyPatch,
    transport: str,
    permissions: str,
    allowed: bool,
) -> None:
    command = {"command": f"touch {scratch}/made", "description": "make a file"}

    def touch(messages: Sequence[Mapping[str, Any]], tools: frozenset[str]) -> Call | str:
        assert "Bash" in tools
        return "ANSWER done" if messages[-1]["role"] == "tool" else Call("Bash", command)

    monkeypatch.setattr("tests.stub_llm.decide", touch)
    with backend(stub, transport=transport, permissions=permissions) as letta:
        (outcome,) = letta.run([ask("alpha", code="done")])

    assert (outcome.success, outcome.tool_errors) == (1.0, int(not allowed))
    assert (scratch / "made").exists() == allowed


def test_a_turn_is_stopped_after_its_steps(stub: StubLLM) -> None:
    with backend(stub, max_steps=1) as letta:
        (outcome,) = letta.run([ask("alpha", skill("alpha", "A"), code="A")])

    assert (outcome.steps, outcome.stop_reason, outcome.success) == (1, "max_steps", 0.0)


def test_a_slow_model_costs_one_rollout_and_no_more(stub: StubLLM) -> None:
    with backend(stub, deadline=4.0) as letta:
        letta.run([ask("warm", skill("warm", "W"))])
        started = time.monotonic()
        slow, quick = letta.run(
            [
                ask("alpha", skill("alpha", "A"), code="A", more="FAULT sleep 8"),
                ask("beta", skill("beta", "B"), code="B"),
            ]
        )
        took = time.monotonic() - started

    assert 3.9 < took < 6
    assert (slow.evidence, slow.may_have_run) == (False, True)
    assert quick.success == 1.0


def test_servers_are_replaced_in_mid_batch(stub: StubLLM, scratch: Path) -> None:
    rollouts = [ask(f"f{i}", skill(f"f{i}", f"C{i}"), code=f"C{i}") for i in range(12)]
    with backend(stub, recycle_after=5) as letta:
        outcomes = letta.run(rollouts)

    assert [outcome.success for outcome in outcomes] == [1.0] * 12
    assert processes_in(scratch) == []


def test_letta_code_ends_with_a_process_that_is_killed(stub: StubLLM, scratch: Path) -> None:
    program = (
        "import pathlib, sys, tempfile, time; tempfile.tempdir = sys.argv[1]\n"
        "from letta_gym.letta import code_home; code_home.MEMORY = pathlib.Path('/none')\n"
        "from letta_gym.letta.code import CodeConfig, code_backend\n"
        "config = CodeConfig(model=sys.argv[2], base_url=sys.argv[3], executable=sys.argv[4])\n"
        "backend = code_backend(config)\n"
        "print('ready', flush=True); time.sleep(60)"
    )
    arguments = [sys.executable, "-c", program, str(scratch), MODEL, stub.url, str(LETTA)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert processes_in(scratch)
        process.send_signal(signal.SIGKILL)

    deadline = time.monotonic() + 15
    while processes_in(scratch) and time.monotonic() < deadline:
        time.sleep(0.1)

    assert processes_in(scratch) == []
    assert len(sweep()) == 1
    assert list(scratch.glob("letta-gym-*")) == []


def test_training_on_it_learns_which_look_alike_works(stub: StubLLM, scratch: Path) -> None:
    suite = make_look_alikes(families=2, alike=3, tasks=60, seed=3)
    settings = {
        "kind": "letta",
        "suite": {"path": str(write_suite(scratch / "suite", suite))},
        "env": {"max_skills": 1, "candidates": 0, "backend": "code"},
        "code": {"base_url": stub.url, "model": MODEL, "executable": str(LETTA), "concurrency": 8},
        "policy": {"hidden": 4},
        "train": {"steps": 96, "ppo": {"num_envs": 8, "num_steps": 4, "gamma": 0.0}},
        "evaluate": {"tasks": 16},
    }
    config = scratch / "letta-code.yaml"
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")

    assert train.main([f"--config={config}", f"--run-dir={scratch / 'run'}"]) == 0

    summary = json.loads((scratch / "run" / "summary.json").read_text(encoding="utf-8"))
    agents = summary["evaluation"]["agents"]
    success = {name: each["success"]["mean"] for name, each in agents.items()}
    assert success["oracle"] == 1
    assert success["learned"] >= 0.9
    assert success["retrieval"] <= 0.6
    assert list(scratch.glob("letta-gym-*")) == []


def test_a_persons_own_command_sees_only_the_chosen_skills(
    stub: StubLLM, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Home.make(scratch / "home", openai_compatible(stub.url, "none"))
    _write_skill(scratch / "home" / "home" / ".letta" / "skills", "gamma")
    for name, value in home.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(home.runs)
    prompt = "TASK alpha: go"
    command = [str(LETTA), "-p", prompt, "--ephemeral", "--backend", "local"]
    before = len(stub.requests)

    code = narrowed.run([*command, "-m", f"openai-compatible/{MODEL}"], [skill("alpha", "A")])

    assert code == 0
    first, *_, last = [str(request["messages"]) for request in stub.requests[before:]]
    listed = first.split("<available_skills>")[1].split("</available_skills>")[0]
    assert listed.count("`alpha`") == 1
    assert "gamma" not in listed
    assert listed.count("- `") == 1
    assert "PROCEDURE alpha: answer A" in last


def _write_skill(folder: Path, name: str, body: str = "x") -> None:
    path = folder / name / "SKILL.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"---\nname: {name}\ndescription: does {name}\n---\n\n{body}\n")


def _install_globally(monkeypatch: pytest.MonkeyPatch, name: str, body: str) -> None:
    """Put a skill into the home of every Letta Code that is started."""
    make = run_folder.lay_out

    def with_global_skill(folder: Path, skills: Any) -> dict[str, str]:
        _write_skill(folder.parent.parent / "home" / ".letta" / "skills", name, body)
        return make(folder, skills)

    monkeypatch.setattr("letta_gym.letta.code.lay_out", with_global_skill)
