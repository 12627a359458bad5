"""The journal: decisions on their way into the store, many in one transaction.

The event loop makes choices and must never wait for a disk. So a decision is noted, and the route
that answers waits until its transaction is over: what was acknowledged is on the database.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor

from letta_gym.errors import DecisionError
from letta_gym.feedback.decision import Decision, Waiting
from letta_gym.feedback.outcome import Outcome
from letta_gym.library.embeddings import VectorSpace
from letta_gym.store.log import StoreLog

Entry = tuple[StoreLog, Decision]
Write = Callable[[Sequence[Entry]], None]


class Journal:
    """Writes what was noted, in batches; used on one event loop.

    Args:
        write: writes entries in one transaction.
        executor: where ``write`` runs; of one thread, so that batches follow each other.
        told: called with the size of every batch.
    """

    def __init__(
        self, write: Write, executor: Executor, told: Callable[[int], object] = lambda size: None
    ) -> None:
        self._write, self._executor, self._told = write, executor, told
        self._noted: list[tuple[Entry, asyncio.Future[None]]] = []
        self._writer: asyncio.Task[None] | None = None

    def note(self, log: StoreLog, decision: Decision) -> asyncio.Future[None]:
        """Note a decision; the future is done when it is on the database."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._noted.append(((log, decision), future))
        if self._writer is None:
            self._writer = asyncio.create_task(self._write_all())
        return future

    async def close(self) -> None:
        """Wait until everything is written."""
        while self._writer is not None:
            await asyncio.wait([self._writer])

    async def _write_all(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._noted:
                batch, self._noted = self._noted, []
                entries = [entry for entry, _ in batch]
                try:
                    await loop.run_in_executor(self._executor, self._write, entries)
                except Exception as error:
                    _settle(batch, error)
                else:
                    _settle(batch, None)
                self._told(len(batch))
        finally:
            self._writer = None


def _settle(batch: Sequence[tuple[Entry, asyncio.Future[None]]], error: Exception | None) -> None:
    for _, future in batch:
        if future.done():  # whoever waited has gone
            continue
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)


class JournalLog:
    """The :class:`~letta_gym.feedback.decision.DecisionLog` of one agent's selector.

    Decisions go to the journal, and outcomes are on the database before the selector hears of them
    (see :meth:`letta_gym.service.desk.Desk.record`).
    """

    def __init__(self, journal: Journal, log: StoreLog) -> None:
        self._journal, self._log = journal, log
        self._kept: dict[str, asyncio.Future[None]] = {}
        self._recalled: dict[str, Waiting] = {}

    def begin(self, space: VectorSpace) -> None:
        """Ask the store; called beside the event loop."""
        self._log.begin(space)

    def decided(self, decision: Decision) -> None:
        """Note the decision; :meth:`kept` waits for it."""
        self._kept[decision.id] = self._journal.note(self._log, decision)

    async def kept(self, decision_id: str) -> None:
        """Return once the decision is on the database."""
        await self._kept.pop(decision_id)

    def recall(self, decision_id: str, waiting: Waiting) -> None:
        """Hand over what the store knows of a decision, for :meth:`waiting`."""
        self._recalled[decision_id] = waiting

    def waiting(self, decision_id: str) -> Waiting:
        """What was handed over."""
        try:
            return self._recalled[decision_id]
        except KeyError:
            raise DecisionError(f"nothing was recalled of the decision {decision_id!r}") from None

    def recorded(self, decision_id: str, outcome: Outcome) -> bool:
        """True: the outcome is on the database already, and for the first time."""
        self._recalled.pop(decision_id, None)
        return True
