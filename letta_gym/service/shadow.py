"""Choices in the shadow: made beside those that are carried out, in what time they leave.

A choice that was answered is put into a queue, and the policy in the shadow makes it once more. It
takes at most a tenth of the time of the event loop: after each of its choices it rests nine times
as long. What does not fit into the queue meanwhile is left out, so that under load the shadow
chooses for a sample, and nobody waits for it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from letta_gym.errors import LettaGymError
from letta_gym.selection.choice import Selection
from letta_gym.selection.runtime import SkillSelector
from letta_gym.selection.session import Query

log = logging.getLogger(__name__)

_TIME = 0.1  # most of the event loop's time
_WAITING = 64  # choices in the queue
_LONGEST_REST = 1.0  # seconds; one slow choice says little of the next


class Kept(Protocol):
    """Waits until a decision is on the database; see :class:`JournalLog`."""

    async def kept(self, decision_id: str) -> None:
        """Return once it is."""
        ...


@dataclass(slots=True)
class Agreement:
    """How often a policy in the shadow chose, and the same skills; ``left_out`` were not tried."""

    choices: int = 0
    same: int = 0
    left_out: int = 0


class Shadows:
    """Makes choices in the shadow, one after the other; used on one event loop.

    Args:
        clock: gives the time in seconds, to measure how long a choice takes.

    Attributes:
        found: by the digest of the policy, since the start of the process.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._queue: deque[tuple[SkillSelector, Kept, Query, frozenset[str]]] = deque()
        self._worker: asyncio.Task[None] | None = None
        self.found: dict[str, Agreement] = {}

    def put(self, selector: SkillSelector, log: Kept, query: Query, made: Selection) -> None:
        """Let ``selector``, which writes to ``log``, choose when there is time.

        Args:
            query: what was asked, with the task's vector.
            made: what was carried out.
        """
        if len(self._queue) >= _WAITING:
            self._of(selector).left_out += 1
            return
        carried_out = frozenset(skill.id for skill in made.skills)
        self._queue.append((selector, log, query, carried_out))
        if self._worker is None:
            self._worker = asyncio.create_task(self._work())

    async def close(self) -> None:
        """Leave out what waits, and let the choice at hand end."""
        self._queue.clear()
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.gather(self._worker, return_exceptions=True)

    async def _work(self) -> None:
        try:
            while self._queue:
                selector, kept, query, carried_out = self._queue.popleft()
                await asyncio.sleep(0)  # whoever is ready goes first
                await self._choose(selector, kept, query, carried_out)
        finally:
            self._worker = None

    async def _choose(
        self, selector: SkillSelector, kept: Kept, query: Query, carried_out: frozenset[str]
    ) -> None:
        start = self._clock()
        try:
            chosen = _chosen(selector, query)
            rest = (self._clock() - start) * (1 / _TIME - 1)
            await kept.kept(chosen.decision_id)
        except LettaGymError as error:
            log.warning("no choice in the shadow: %s", error)
            self._of(selector).left_out += 1
            return
        found = self._of(selector)
        found.choices += 1
        found.same += {skill.id for skill in chosen.skills} == carried_out
        await asyncio.sleep(min(rest, _LONGEST_REST))

    def _of(self, selector: SkillSelector) -> Agreement:
        return self.found.setdefault(selector.policy.digest, Agreement())


def _chosen(selector: SkillSelector, query: Query) -> Selection:
    k = min(query.k, selector.policy.max_skills)
    return selector.select_many([query._replace(k=k, explore=False)])[0]
