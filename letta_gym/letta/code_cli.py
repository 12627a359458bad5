"""Letta Code by its command line: one process for one rollout."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from pathlib import Path

from letta_gym.letta.code_home import Home
from letta_gym.letta.conversation import Terms
from letta_gym.letta.failures import Deadline, InfrastructureError, Kind
from letta_gym.letta.turn import MAX_STEPS, Turn

_LINE = 1 << 26  # bytes, the longest line that is read


def arguments(terms: Terms, skills: Path) -> list[str]:
    """Options of ``letta`` for one rollout whose skills lie in ``skills``; the task comes by stdin.

    The command is told not to keep an agent, to show nothing but these skills, and to print each
    message as one line of JSON.
    """
    options = ["-p", "--ephemeral", "--backend", "local", "--output-format", "stream-json"]
    options += ["--model", terms.model, "--system-custom", terms.system]
    options += ["--skills", str(skills), "--skill-sources", "project"]
    options += ["--permission-mode", terms.permissions, "--reflection-trigger", "off"]
    options += ["--no-mods", "--no-system-info-reminder"]
    if terms.tools is not None:
        options += ["--tools", ",".join(terms.tools)]
    return options


async def ask(
    executable: Path,
    terms: Terms,
    home: Home,
    folder: Path,
    text: str,
    limits: tuple[Deadline, int],
) -> Turn:
    """Run the command in ``folder`` and read its turn.

    Args:
        executable: the ``letta`` command.
        terms: what the agent gets.
        home: a home of its own.
        folder: where it runs; its ``.skills`` are the skills of the rollout.
        text: the task.
        limits: when it must be over, and the most model calls it may make.

    Raises:
        InfrastructureError: the command failed, or said nothing that can be read.
    """
    deadline, max_steps = limits
    log = home.folder / "letta.log"
    with log.open("wb") as errors:
        process = await asyncio.create_subprocess_exec(
            str(executable),
            *arguments(terms, folder / ".skills"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
            cwd=folder,
            env=dict(home.environment),
            limit=_LINE,
            start_new_session=True,
        )
    try:
        async with asyncio.timeout(deadline.left):
            turn = await _read(process, text, max_steps)
            if turn.stop_reason != MAX_STEPS:
                await process.wait()
    except TimeoutError as error:
        raise InfrastructureError(
            Kind.TIMEOUT, "the letta command did not end in time", may_have_run=True
        ) from error
    finally:
        with contextlib.suppress(ProcessLookupError):  # with all that the agent started
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
    if turn.stop_reason is None:
        said = log.read_text(encoding="utf-8", errors="replace").strip()[-500:]
        raise InfrastructureError(
            Kind.SERVER,
            f"the letta command ended with code {process.returncode}: {said}",
            may_have_run=True,
        )
    return turn


async def _read(process: asyncio.subprocess.Process, text: str, max_steps: int) -> Turn:
    assert process.stdin is not None
    assert process.stdout is not None
    turn = Turn()
    with contextlib.suppress(ConnectionError):  # why it hung up is told by its exit
        process.stdin.write(text.encode())
        await process.stdin.drain()
        process.stdin.close()
    async for line in process.stdout:
        try:
            message = json.loads(line)
        except ValueError:
            continue  # a warning among the messages
        if isinstance(message, dict):
            turn.feed(message)
        if turn.wants_more and turn.steps >= max_steps:
            turn.stop_reason = MAX_STEPS
            break
    return turn
