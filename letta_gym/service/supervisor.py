"""The supervisor of one training run: a process of its own, with the trainer as its child.

It outlives the service that started it. While it lives it renews the lease of the run, passes the
metrics on into the store, and stops the trainer when the run is cancelled; at the end it makes the
policy known as a candidate. Started by :mod:`letta_gym.service.training` as ``python -m
letta_gym.service.supervisor ORDER``, with the URL of the store in the environment.
"""

from __future__ import annotations

import ctypes
import fcntl
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import IO

from letta_gym.errors import LettaGymError, StoreError
from letta_gym.library.suite import BUNDLED, VECTORS_FILE
from letta_gym.library.vectors import SuiteVectors
from letta_gym.service.config import BaselineConfig
from letta_gym.service.curves import EventFiles
from letta_gym.service.registry import Registry
from letta_gym.service.supervision import LOCK, LOG, POLICY, Order
from letta_gym.store.jobs import CANCELLED, FAILED, FINISHED, Word
from letta_gym.store.store import STORE_VARIABLE, Store

_INTERRUPTED = 130  # exit code of train.py after Ctrl-C
_PR_SET_PDEATHSIG = 1
_TAIL = 4_000  # bytes of the log in which the reason of a failure is sought
_LAST_TRIES = 30  # heartbeats in which the store may come back to hear how the run ended

log = logging.getLogger(__name__)


class Supervisor:
    """Sees one run through.

    Args:
        order: what to do.
        store: where the run is kept.
    """

    def __init__(self, order: Order, store: Store) -> None:
        self._order, self._store = order, store
        self._terminated = False

    def run(self) -> None:
        """Train to the end, whatever that is, and say in the store how it ended."""
        signal.signal(signal.SIGTERM, self._terminate)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is meant for the service
        order = self._order
        if self._beat() == "leave":
            log.warning("the run %d is somebody else's by now", order.run)
            return
        with (order.folder / LOCK).open("w") as lock, (order.folder / LOG).open("ab") as said:
            if not self._locked(lock):
                error = "the trainer of an earlier attempt is still at work in the run's folder"
                self._end(FAILED, error=f"{error}; resume the run when it has ended")
                return
            begun = said.tell()
            trainer = self._started(lock, said)
            word = self._watched(trainer)
        if word != "leave":
            self._close(trainer.returncode, word, begun)

    # --- the trainer ------------------------------------------------------------------------------

    def _started(self, lock: IO[str], said: IO[bytes]) -> subprocess.Popen[bytes]:
        order = self._order
        # The child keeps the lock open: as long as it lives, no other one works in its folder.
        return subprocess.Popen(
            order.command,
            cwd=order.cwd,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            pass_fds=[lock.fileno()],
            preexec_fn=_child(order.nice),
        )

    def _watched(self, trainer: subprocess.Popen[bytes]) -> Word:
        """Wait for the trainer to end; returns the last word on the run."""
        order, events = self._order, EventFiles(self._order.folder)
        word: Word = "go on"
        stopped: float | None = None
        while True:
            try:
                trainer.wait(order.heartbeat)
                ended = True
            except subprocess.TimeoutExpired:
                ended = False
            self._record(events)
            word = self._beat()
            if ended:
                return word
            if word == "go on":
                continue
            if stopped is None:
                stopped = time.monotonic()
                trainer.send_signal(signal.SIGINT)
            elif time.monotonic() - stopped > order.patience:
                trainer.kill()

    def _close(self, code: int, word: Word, begun: int) -> None:
        if code == 0:
            self._finish()
        elif word == "stop" or code == _INTERRUPTED:
            asked = word == "stop" and not self._terminated
            self._end(CANCELLED, error=None if asked else "it was stopped from outside; resume it")
        elif code < 0:
            name = signal.Signals(-code).name
            self._end(FAILED, error=f"the trainer was ended by {name}; resume the run")
        else:
            self._end(FAILED, error=self._reason(code, begun))

    def _finish(self) -> None:
        order = self._order
        try:
            space = SuiteVectors.load(BUNDLED / VECTORS_FILE)
            registry = Registry(self._store.policies, order.policies, space, BaselineConfig())
            added = registry.add((order.folder / POLICY).read_bytes(), actor=order.actor)
        except (LettaGymError, OSError) as error:
            self._end(FAILED, error=f"it was trained, but its policy cannot be taken: {error}")
            return
        self._end(FINISHED, digest=added.digest)

    def _reason(self, code: int, begun: int) -> str:
        """Why the trainer failed, in its own words."""
        with (self._order.folder / LOG).open("rb") as file:
            file.seek(max(begun, file.seek(0, os.SEEK_END) - _TAIL))
            said = file.read().decode(errors="replace").strip()
        _, found, message = said.rpartition("train.py: ")
        if found:
            return message
        last = said.splitlines()[-1] if said else "it said nothing"
        return f"the trainer ended with {code}: {last}"

    # --- the store --------------------------------------------------------------------------------

    def _beat(self) -> Word:
        order = self._order
        try:
            word = self._store.jobs.beat(order.run, order.holder, order.lease)
        except StoreError as error:
            log.warning("no sign of life could be given: %s", error)
            word = "go on"
        return "stop" if self._terminated and word == "go on" else word

    def _record(self, events: EventFiles) -> None:
        try:
            events.pass_on(lambda points: self._store.jobs.record(self._order.run, points))
        except StoreError as error:
            log.warning("metrics wait for the store: %s", error)

    def _end(self, state: str, *, digest: str | None = None, error: str | None = None) -> None:
        order = self._order
        for _ in range(_LAST_TRIES):
            try:
                self._store.jobs.end(
                    order.run, order.holder, state, policy_digest=digest, error=error
                )
                return
            except StoreError as problem:
                log.warning("the end waits for the store: %s", problem)
                time.sleep(order.heartbeat)

    # --- others -----------------------------------------------------------------------------------

    def _locked(self, lock: IO[str]) -> bool:
        """Take the folder; one that was killed together with its supervisor needs a moment."""
        deadline = time.monotonic() + self._order.lease
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                if time.monotonic() > deadline or self._beat() != "go on":
                    return False
                time.sleep(min(self._order.heartbeat, 0.5))

    def _terminate(self, number: int, frame: FrameType | None) -> None:
        self._terminated = True


def _child(nice: int) -> Callable[[], None]:
    """What the trainer does before it becomes ``train.py``."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None

    def prepare() -> None:
        # A service that was started in the background hands down that Ctrl-C is ignored.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.nice(nice)
        if libc is not None:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    return prepare


def main(arguments: list[str]) -> int:
    """Supervise what the one argument describes; returns the exit code."""
    logging.basicConfig(format="%(asctime)s supervisor: %(message)s")
    order = Order.model_validate_json(arguments[0])
    try:
        with Store(os.environ[STORE_VARIABLE]) as store:
            Supervisor(order, store).run()
    except LettaGymError as error:
        log.error("%s", error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
