"""Keeps what the hooks decide in a log, in the background: no prompt ever waits for a database."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from typing import Self

from letta_gym.feedback.decision import Decision, DecisionLog, Waiting
from letta_gym.feedback.outcome import Outcome
from letta_gym.library.embeddings import VectorSpace

_MOST = 10_000  # writes that wait; what comes on top of them is lost to the log
_LAST_WRITES = 10.0  # seconds that they get at the end

log = logging.getLogger(__name__)


class Recorder:
    """A decision log that hands on to another one, in order, in a thread of its own.

    What the other cannot keep is lost to it, and the program's log says so; nothing is ever raised
    to whoever decides. A context manager: at its end what waits is written.

    Args:
        inner: the log that keeps.
    """

    def __init__(self, inner: DecisionLog) -> None:
        self._inner = inner
        self._waiting: queue.Queue[Callable[[], object] | None] = queue.Queue(_MOST)
        self._thread = threading.Thread(target=self._write, name="hook record", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._waiting.put(None, timeout=_LAST_WRITES)
            self._thread.join(_LAST_WRITES)
        except queue.Full:
            log.error("the store takes nothing; %d writes are given up", self._waiting.qsize())

    def begin(self, space: VectorSpace) -> None:
        """Ask the other log at once, before any session waits for an answer."""
        self._inner.begin(space)

    def decided(self, decision: Decision) -> None:
        """Keep a decision, soon."""
        self._later(lambda: self._inner.decided(decision))

    def waiting(self, decision_id: str) -> Waiting:
        """A decision of an earlier server, asked of the other log at once."""
        return self._inner.waiting(decision_id)

    def recorded(self, decision_id: str, outcome: Outcome) -> bool:
        """Keep an outcome, soon; it is taken to be new."""
        self._later(lambda: self._inner.recorded(decision_id, outcome))
        return True

    def _later(self, write: Callable[[], object]) -> None:
        try:
            self._waiting.put_nowait(write)
        except queue.Full:
            log.error("the store is behind by %d writes; this one is left out", _MOST)

    def _write(self) -> None:
        while (write := self._waiting.get()) is not None:
            try:
                write()
            except Exception:  # whatever a database may raise; the session goes on
                log.exception("the store did not keep a decision or an outcome")
