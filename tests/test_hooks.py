"""Hooks in a person's own sessions: settings, client, server, and the choice for each prompt."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from letta_gym.errors import ConfigError
from letta_gym.letta import hook_client, hook_server, hook_settings
from letta_gym.letta.folders import deliver, ours
from letta_gym.letta.hook_server import Narrowing
from letta_gym.letta.hook_settings import Place, install, is_installed, uninstall
from letta_gym.library.skills import Skill
from tests.test_runtime import library, selector

SKILLS = list(library())
SERVE = ["/bin/false"]
THEIRS = {"type": "command", "command": "theirs"}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    project = tmp_path / "project"
    project.mkdir()
    found = Place.of(project)
    yield found
    hook_settings.stop_server(found)
    found.lock.unlink(missing_ok=True)


def content(folder: Path) -> dict[str, bytes | None]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def their_skill(place: Place, name: str = "theirs") -> Path:
    path = place.skills / name / "SKILL.md"
    path.parent.mkdir(parents=True)
    path.write_text(f"---\nname: {name}\ndescription: does {name}\n---\n\nTheir own.\n")
    return path


# --- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "before",
    [
        None,
        "",
        "{}",
        '{"model": "opus", "permissions": {"allow": ["Bash"]}}',
        json.dumps({"hooks": {"disabled": False, "Stop": [{"hooks": [THEIRS]}]}}, indent="\t"),
        '{\n    "hooks": {"PreToolUse": [{"matcher": "Skill", "hooks": []}]},\n    "é": 1\n}\n\n',
    ],
)
def test_uninstalling_leaves_the_project_as_it_was(place: Place, before: str | None) -> None:
    if before is not None:
        place.settings.parent.mkdir()
        place.settings.write_text(before, encoding="utf-8")
    project = content(place.project)

    install(place, SERVE, SKILLS)
    assert is_installed(place)
    assert len(ours(place.skills)) == len(SKILLS)
    install(place, SERVE, SKILLS)
    assert uninstall(place)

    assert content(place.project) == project
    assert not uninstall(place)


def test_the_hooks_are_those_that_letta_code_asks_for(place: Place) -> None:
    install(place, SERVE, SKILLS)
    install(place, SERVE, SKILLS)

    hooks = json.loads(place.settings.read_text())["hooks"]
    assert set(hooks) == {"UserPromptSubmit", "PreToolUse", "PostToolUse", "Stop"}
    for event, entries in hooks.items():
        (entry,) = entries
        assert entry.get("matcher") == ("Skill" if "Tool" in event else None)
        (hook,) = entry["hooks"]
        assert (hook["type"], hook["timeout"], hook["quiet"]) == ("command", 300, True)


def test_what_the_user_changed_meanwhile_stays(place: Place) -> None:
    install(place, SERVE, SKILLS)
    settings = json.loads(place.settings.read_text())
    settings["model"] = "opus"
    settings["hooks"]["Stop"].append({"hooks": [THEIRS]})
    place.settings.write_text(json.dumps(settings))

    uninstall(place)

    rest = json.loads(place.settings.read_text())
    assert rest == {"hooks": {"Stop": [{"hooks": [THEIRS]}]}, "model": "opus"}


@pytest.mark.parametrize("text", ["{", "[]", '{"hooks": []}', '{"hooks": {"Stop": {}}}'])
def test_settings_that_cannot_be_read_are_left_alone(place: Place, text: str) -> None:
    place.settings.parent.mkdir()
    place.settings.write_text(text)

    with pytest.raises(ConfigError, match=r"settings\.local\.json"):
        install(place, SERVE, SKILLS)

    assert content(place.project) == {".letta": None, ".letta/settings.local.json": text.encode()}


def test_their_skills_are_never_touched(place: Place) -> None:
    path = their_skill(place, SKILLS[0].name)
    before = path.read_bytes()

    delivery = install(place, SERVE, SKILLS)
    assert set(delivery.refused) == {SKILLS[0].id}
    uninstall(place)

    assert path.read_bytes() == before
    assert [entry.name for entry in place.skills.iterdir()] == [SKILLS[0].name]


def test_skills_delivered_by_somebody_else_stay(place: Place) -> None:
    deliver([Skill("other", "other", "does other", "x")], place.skills)

    install(place, SERVE, SKILLS)
    uninstall(place)

    assert ours(place.skills) == ("other",)


def test_a_project_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no project folder"):
        Place.of(tmp_path / "none")


# --- the choice -----------------------------------------------------------------------------------


def event(kind: str, **fields: Any) -> dict[str, Any]:
    return {"event_type": kind, "working_directory": "/", **fields}


def prompt(text: str, **fields: Any) -> dict[str, Any]:
    return event("UserPromptSubmit", **{"prompt": text, "is_command": False} | fields)


def skill_call(kind: str, name: str, **fields: Any) -> dict[str, Any]:
    return event(kind, tool_name="Skill", tool_input={"skill": name}, **fields)


@pytest.fixture
def narrowing(place: Place) -> Narrowing:
    deliver(SKILLS, place.skills)
    return Narrowing(selector(), place.skills, place.decisions, k=1)


def decisions(place: Place) -> list[dict[str, Any]]:
    return [json.loads(line) for line in place.decisions.read_text().splitlines()]


def test_each_prompt_sees_what_was_chosen_for_it(narrowing: Narrowing, place: Place) -> None:
    their_skill(place)
    wanted = selector().select("translate a letter", 1).skills[0].id
    other = selector().select("mend a test", 1).skills[0].id
    assert wanted != other

    assert narrowing.handle(prompt("translate a letter")).allowed
    assert ours(place.skills) == (wanted,)
    narrowing.handle(prompt("mend a test"))
    assert ours(place.skills) == (other,)
    assert (place.skills / "theirs").is_dir()


def test_a_command_of_the_terminal_changes_nothing(narrowing: Narrowing, place: Place) -> None:
    narrowing.handle(prompt("/model", is_command=True))

    assert len(ours(place.skills)) == len(SKILLS)


def test_only_our_skills_that_were_not_chosen_are_refused(narrowing: Narrowing) -> None:
    assert narrowing.handle(skill_call("PreToolUse", SKILLS[0].name)).allowed
    narrowing.handle(prompt("translate a letter"))
    chosen = selector().select("translate a letter", 1).skills[0].name
    left = next(skill.name for skill in SKILLS if skill.name != chosen)

    refused = narrowing.handle(skill_call("PreToolUse", left))
    assert not refused.allowed
    assert chosen in refused.reason
    assert narrowing.handle(skill_call("PreToolUse", chosen)).allowed
    assert narrowing.handle(skill_call("PreToolUse", "bundled-elsewhere")).allowed
    assert narrowing.handle(event("PreToolUse", tool_name="Bash", tool_input={})).allowed


def test_what_was_chosen_loaded_and_refused_is_recorded(narrowing: Narrowing, place: Place) -> None:
    narrowing.handle(prompt("translate a letter"))
    chosen = selector().select("translate a letter", 1).skills[0].name
    left = next(skill.name for skill in SKILLS if skill.name != chosen)
    narrowing.handle(skill_call("PreToolUse", left))
    for status in ("error", "success", "success"):
        narrowing.handle(skill_call("PostToolUse", chosen, tool_result={"status": status}))
    narrowing.handle(event("Stop", stop_reason="end_turn"))
    narrowing.handle(prompt("mend a test"))
    narrowing.handle(prompt("mend a test"))

    first, second = decisions(place)
    assert (first["prompt"], first["skills"]) == ("translate a letter", [chosen])
    assert (first["loaded"], first["refused"]) == ([chosen], [left])
    assert (first["stop_reason"], first["policy_digest"]) == ("end_turn", "d" * 64)
    assert (second["loaded"], second["stop_reason"]) == ([], None)


# --- client and server ----------------------------------------------------------------------------


def hooked(place: Place, message: dict[str, Any]) -> tuple[int, str, float]:
    """Exit code, what it says, and how long it took, as Letta Code would run it."""
    command = [sys.executable, "-I", "-S", hook_client.__file__]
    started = time.monotonic()
    done = subprocess.run(
        [*command, str(place.socket), str(place.command)],
        input=json.dumps(message),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == ""
    return done.returncode, done.stderr, time.monotonic() - started


@pytest.fixture
def served(narrowing: Narrowing, place: Place) -> Iterator[None]:
    thread = threading.Thread(target=hook_server.serve, args=(narrowing, place.socket, 30.0))
    thread.start()
    _until(place.socket.exists)
    yield
    assert hook_settings.stop_server(place)
    thread.join(10)
    assert not thread.is_alive()
    assert not place.socket.exists()
    assert narrowing._open is None  # what was open is recorded


@pytest.mark.usefixtures("served")
def test_an_event_reaches_the_server_and_its_verdict_comes_back(place: Place) -> None:
    assert hooked(place, prompt("translate a letter"))[:2] == (0, "")
    (chosen,) = ours(place.skills)
    left = next(skill.name for skill in SKILLS if skill.name != chosen)

    code, said, _ = hooked(place, skill_call("PreToolUse", left))

    assert (code, said) == (2, f"Refused. Skills chosen for this prompt: {chosen}.")
    assert hooked(place, skill_call("PreToolUse", chosen))[:2] == (0, "")


@pytest.mark.usefixtures("served")
def test_a_server_survives_nonsense_and_there_is_only_one(
    narrowing: Narrowing, place: Place
) -> None:
    for nonsense in (b"no JSON", b"[]", b'{"event_type": "UserPromptSubmit", "prompt": 1}', b""):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(place.socket))
            connection.sendall(nonsense)
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(100) == b"0"

    assert not hook_server.serve(narrowing, place.socket, 1.0)
    assert place.socket.exists()


def test_an_idle_server_ends(narrowing: Narrowing, place: Place) -> None:
    assert hook_server.serve(narrowing, place.socket, 0.05)
    assert not place.socket.exists()


def test_without_a_server_the_session_goes_on_and_one_is_started(
    place: Place, tmp_path: Path
) -> None:
    install(place, ["/bin/sh", "-c", f"echo started > {tmp_path}/sign; sleep 2"], SKILLS)

    code, said, took = hooked(place, prompt("translate a letter"))

    assert (code, said) == (0, "")
    assert took < 1.5  # it does not wait for what it started
    _until((tmp_path / "sign").exists)
    assert len(ours(place.skills)) == len(SKILLS)


@pytest.mark.parametrize("command", [["/no/such/command"], None])
def test_a_server_that_cannot_be_started_does_not_matter(
    place: Place, command: list[str] | None
) -> None:
    if command is not None:
        install(place, command, SKILLS)

    assert hooked(place, prompt("translate a letter"))[:2] == (0, "")


def test_a_server_that_does_not_answer_in_time_does_not_matter(place: Place) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(place.socket))
        silent.listen()

        code, said, took = hooked(place, prompt("translate a letter"))

    place.socket.unlink()
    assert (code, said) == (0, "")
    assert hook_client.LIMIT / 2 < took < 2


def test_the_client_imports_nothing_slow() -> None:
    program = (
        "import runpy, sys; sys.argv = ['hook', '/none', '/none']\n"
        "import os; os._exit = lambda code: None\n"
        f"runpy.run_path({hook_client.__file__!r}, run_name='__main__')\n"
        "print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program],
        input="{}",
        capture_output=True,
        text=True,
        check=True,
    )

    slow = {"asyncio", "json", "numpy", "letta_gym", "subprocess", "typing_extensions"}
    assert set(done.stdout.split()) & slow == set()


def _until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)
