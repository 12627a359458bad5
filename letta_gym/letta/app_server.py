"""Letta Code's App Server as a child process: started, checked, replaced, ended without a trace.

Everything that it writes (settings, conversations, the folders of its rollouts) lies in a
throw-away home that goes with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from letta_gym.errors import BackendError
from letta_gym.letta.code_home import Home
from letta_gym.letta.code_wire import PROTOCOL_VERSION, Message, Wire
from letta_gym.letta.failures import InfrastructureError

_LISTENING = re.compile(r"ws://[\w.]+:\d+")


class AppServer:
    """A running App Server; make one with :meth:`start`.

    Attributes:
        home: where it lives.
        wire: the connection to it.
        served: rollouts that were begun.
        running: rollouts that are not over.
        retired: whether it takes no more rollouts, and ends with the last that runs.
        ended: whether its end was begun.
    """

    def __init__(self, home: Home, process: subprocess.Popen[bytes], wire: Wire) -> None:
        self.home, self.wire, self._process = home, wire, process
        self.served = self.running = 0
        self.retired = self.ended = False

    @classmethod
    async def start(cls, executable: Path, home: Home, timeout: float) -> AppServer:
        """Start Letta Code in ``home`` and wait until it answers.

        Args:
            executable: the ``letta`` command.
            home: where it lives; it is removed when the start fails.
            timeout: seconds.

        Raises:
            BackendError: it did not come up, or speaks another version of the protocol.
        """
        token = secrets.token_urlsafe(32)
        log, secret = home.folder / "app-server.log", home.folder / "token"
        secret.touch(0o600)
        secret.write_text(token)
        arguments = ["server", "--listen", "--ws-auth", "capability-token"]
        with log.open("wb") as output:
            process = subprocess.Popen(
                [str(executable), *arguments, "--ws-token-file", str(secret)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=home.folder,
                env=home.environment,
                start_new_session=True,  # so that what the agent started goes with it
            )
        try:
            wire = await _reach(process, log, token, time.monotonic() + timeout)
        except BaseException:
            _end(process)
            home.remove()
            raise
        return cls(home, process, wire)

    @property
    def alive(self) -> bool:
        """Whether it still answers."""
        return self._process.poll() is None and not self.wire.closed

    async def models(self, timeout: float) -> tuple[str, ...]:
        """Handles of the models that it can reach.

        Raises:
            InfrastructureError: it does not answer.
        """
        answer = await self.wire.request("list_models", timeout, force=True)
        return tuple(str(entry.get("handle")) for entry in answer.get("entries") or [])

    async def stop(self) -> None:
        """End the process with all that it started, and remove its home."""
        with contextlib.suppress(Exception):  # it ends whatever the connection says
            await self.wire.close()
        await asyncio.to_thread(_end, self._process)
        self.home.remove()


async def _reach(process: subprocess.Popen[bytes], log: Path, token: str, until: float) -> Wire:
    """Poll until the server answers with a version of the protocol that is known."""
    problem = "it never said where it listens"
    while (left := until - time.monotonic()) > 0:
        if process.poll() is not None:
            raise BackendError(f"Letta Code ended with code {process.returncode}: {_tail(log)}")
        found = _LISTENING.search(log.read_text(encoding="utf-8", errors="replace"))
        if found is not None:
            try:
                wire = await Wire.connect(found[0], token, left)
            except InfrastructureError as error:
                problem = str(error)
            else:
                return await _checked(wire, max(until - time.monotonic(), 0.1))
        await asyncio.sleep(0.02)
    raise BackendError(f"Letta Code's App Server did not come up: {problem}: {_tail(log)}")


async def _checked(wire: Wire, timeout: float) -> Wire:
    try:
        info: Message = await wire.request("app_server_info", timeout)
    except BaseException:
        await wire.close()
        raise
    version = info.get("protocol_version")
    if version != PROTOCOL_VERSION:
        await wire.close()
        raise BackendError(
            f"Letta Code {info.get('letta_code_version')} speaks version {version!r} of the App "
            f"Server's protocol, and letta-gym version {PROTOCOL_VERSION}; install one that fits: "
            "pip install --no-deps letta==0.34.12"
        )
    return wire


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the whole process group: kindly, then by force."""
    for sign, patience in ((signal.SIGTERM, 3.0), (signal.SIGKILL, 3.0)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, sign)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)
            break
    with contextlib.suppress(ProcessLookupError):  # what it started and left behind
        os.killpg(process.pid, signal.SIGKILL)


def _tail(log: Path) -> str:
    text = log.read_text(encoding="utf-8", errors="replace").strip()
    return text[-500:] or "it said nothing"


class Fleet:
    """The App Server in use. Its memory grows with every rollout, so another takes over in time.

    Args:
        start: starts an App Server.
        recycle_after: rollouts of one server.
    """

    def __init__(self, start: Callable[[], Awaitable[AppServer]], recycle_after: int) -> None:
        self._start, self._recycle_after = start, recycle_after
        self._current: AppServer | None = None
        self._starting = asyncio.Lock()
        self._stopping: set[asyncio.Task[None]] = set()

    async def acquire(self) -> AppServer:
        """A server for one rollout; hand it back with :meth:`release`.

        Raises:
            BackendError: none could be started.
        """
        async with self._starting:
            server = self._current
            if server is None or server.retired or not server.alive:
                if server is not None:
                    self.retire(server)
                server = self._current = await self._start()
        server.served += 1
        server.running += 1
        server.retired = server.retired or server.served >= self._recycle_after
        return server

    def release(self, server: AppServer) -> None:
        """The rollout is over; the last one of a retired server ends it."""
        server.running -= 1
        if server.retired:
            self.retire(server)

    def retire(self, server: AppServer) -> None:
        """Give the server no more rollouts; it ends when none runs."""
        server.retired = True
        if not server.running and not server.ended:
            server.ended = True
            task = asyncio.create_task(server.stop())
            self._stopping.add(task)
            task.add_done_callback(self._stopping.discard)

    async def close(self) -> None:
        """End every server."""
        if self._current is not None:
            self._current.running = 0
            self.retire(self._current)
        await asyncio.gather(*self._stopping)
