"""A person's own command with only the chosen skills."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from letta_gym.errors import ConfigError
from letta_gym.letta.narrowed import check, prompt_of, run
from letta_gym.library.skills import Skill

SKILLS = [Skill(name, name, f"does {name}", f"How to {name}.") for name in ("cut", "dye")]


def noting(folder: Path, code: int = 0) -> list[str]:
    """A command that notes its arguments and the skills it sees, and ends with ``code``."""
    program = (
        "import json, os, sys; at = sys.argv.index('--skills') + 1\n"
        "seen = sorted(os.listdir(sys.argv[at]))\n"
        f"open({str(folder / 'noted')!r}, 'w').write(json.dumps([sys.argv[1:], seen]))\n"
        f"sys.exit({code})"
    )
    return [sys.executable, "-c", program]


@pytest.mark.parametrize("code", [0, 1, 2, 7])
def test_the_command_sees_the_chosen_skills_and_its_code_comes_back(
    tmp_path: Path, code: int
) -> None:
    assert run([*noting(tmp_path, code), "-p", "Cut it."], SKILLS) == code

    arguments, seen = json.loads((tmp_path / "noted").read_text())
    folder = arguments[3]
    assert arguments == ["-p", "Cut it.", "--skills", folder, "--skill-sources", "project"]
    assert seen == ["cut", "dye"]
    assert not Path(folder).exists()


def test_what_follows_two_dashes_stays_last(tmp_path: Path) -> None:
    run([*noting(tmp_path), "-p", "--", "-x"], [])

    arguments, seen = json.loads((tmp_path / "noted").read_text())
    assert arguments[-2:] == ["--", "-x"]
    assert seen == []


def test_a_command_that_a_signal_ended_has_the_code_of_a_shell() -> None:
    assert run(["sh", "-c", "kill -9 $$"], []) == 128 + 9


def test_a_missing_command_is_an_error() -> None:
    with pytest.raises(ConfigError, match="no-such-command"):
        run(["no-such-command"], [])


def test_a_signal_reaches_the_command_and_nothing_is_left(tmp_path: Path) -> None:
    child = "trap 'echo got it; exit 5' TERM; echo ready; while :; do sleep 0.05; done"
    program = (
        f"import sys, tempfile; tempfile.tempdir = {str(tmp_path)!r}\n"
        "from letta_gym.letta.narrowed import run\n"
        f"sys.exit(run(['sh', '-c', {child!r}], []))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "got it\n"

    assert process.returncode == 5
    assert list(tmp_path.iterdir()) == []


def test_the_handlers_of_signals_are_put_back() -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]

    run(["true"], [])

    assert [signal.getsignal(number) for number in numbers] == before


def test_the_prompt_follows_its_flag() -> None:
    assert prompt_of(["letta", "--model", "m", "-p", "Cut it.", "--yolo"]) == "Cut it."
    assert prompt_of(["letta", "--prompt", "Cut it."]) == "Cut it."


@pytest.mark.parametrize("command", [["letta"], ["letta", "-p"], ["letta", "-p", "--yolo"]])
def test_a_command_without_a_prompt_is_an_error(command: list[str]) -> None:
    with pytest.raises(ConfigError, match="--task"):
        prompt_of(command)


@pytest.mark.parametrize("option", ["--skills", "--skill-sources=all"])
def test_a_command_that_chooses_skills_itself_is_refused(tmp_path: Path, option: str) -> None:
    with pytest.raises(ConfigError, match="itself"):
        check(["letta", "-p", "Cut it.", option, "x"], tmp_path)


@pytest.mark.parametrize("place", [".skills", ".agents/skills"])
def test_a_project_whose_skills_would_be_shown_too_is_refused(tmp_path: Path, place: str) -> None:
    check(["letta", "-p", "Cut it."], tmp_path)
    path = tmp_path / place / "own" / "SKILL.md"
    path.parent.mkdir(parents=True)
    path.touch()

    with pytest.raises(ConfigError, match=r"own.*another folder"):
        check(["letta", "-p", "Cut it."], tmp_path)
