"""A person's own ``letta`` command, run with only the chosen skills."""

from __future__ import annotations

import itertools
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from letta_gym.errors import ConfigError
from letta_gym.letta.folders import deliver, skill_folders
from letta_gym.library.skills import SKILL_FILE, Skill

_OURS = ("--skills", "--skill-sources")


def prompt_of(command: Sequence[str]) -> str:
    """The prompt in a ``letta -p PROMPT`` command.

    Raises:
        ConfigError: there is none.
    """
    for flag, word in itertools.pairwise(command):
        if flag in ("-p", "--prompt") and not word.startswith("-"):
            return word
    raise ConfigError(
        'the command has no prompt after -p; put it there, letta -p "...", or give it with --task. '
        "For an interactive session there is: letta-gym hook install"
    )


def check(command: Sequence[str], project: Path) -> None:
    """Check that the command can be narrowed.

    Letta Code shows the skills of the working folder besides those of ``--skills``.

    Raises:
        ConfigError: it chooses its own skills, or the working folder has skills of its own.
    """
    given = [word for word in command if word.split("=")[0] in _OURS]
    if given:
        raise ConfigError(f"the command chooses skills itself, with {given[0]}; leave that out")
    for folder in skill_folders(project)[:2]:
        names = sorted(path.parent.name for path in folder.glob(f"*/{SKILL_FILE}"))
        if names:
            raise ConfigError(
                f"Letta Code would show the skills of {folder} as well ({', '.join(names[:5])}); "
                "run it in another folder, or move them to where --skills reads them"
            )


def run(command: Sequence[str], skills: Sequence[Skill]) -> int:
    """Run the command so that it sees ``skills`` and no others; returns its exit code.

    A command that a signal ended has the code 128 plus its number, as in a shell.

    Raises:
        ConfigError: there is no such command.
    """
    with tempfile.TemporaryDirectory(prefix="letta-gym-skills-") as scratch:
        folder = Path(scratch) / "skills"
        folder.mkdir()
        deliver(skills, folder)
        with _Signals() as signals:
            try:
                child = subprocess.Popen(_narrowed(command, folder))
            except OSError as error:
                raise ConfigError(f"cannot run {command[0]!r}: {error.strerror}") from error
            signals.go_to(child)
            code = child.wait()
    return 128 - code if code < 0 else code


def _narrowed(command: Sequence[str], folder: Path) -> list[str]:
    """The command with our options, before what follows ``--`` if anything does."""
    end = command.index("--") if "--" in command else len(command)
    options = ["--skills", str(folder), "--skill-sources", "project"]
    return [*command[:end], *options, *command[end:]]


class _Signals:
    """Hands signals on to a child, those too that come before there is one.

    An interrupt of the terminal reaches the child by itself, and it alone decides to end.
    """

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._early: list[int] = []
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGTERM, signal.SIGHUP):
            self._before[number] = signal.signal(number, self._take)
        self._before[signal.SIGINT] = signal.signal(signal.SIGINT, lambda *_: None)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def go_to(self, child: subprocess.Popen[bytes]) -> None:
        """Hand on to ``child`` from now on."""
        self._child = child
        for number in self._early:
            child.send_signal(number)

    def _take(self, number: int, _: object) -> None:
        if self._child is None:
            self._early.append(number)
        else:
            self._child.send_signal(number)
