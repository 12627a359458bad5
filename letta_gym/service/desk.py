"""An agent's desk: the skills that it may choose from, what it learned, and who chooses."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from letta_gym.errors import DecisionError, StoreError
from letta_gym.feedback.memory import OutcomeMemory
from letta_gym.feedback.outcome import Outcome
from letta_gym.library.skills import SkillLibrary
from letta_gym.library.vectors import Float
from letta_gym.selection.choice import Selection
from letta_gym.selection.exploration import ExplorationConfig, Explorer
from letta_gym.selection.policy import Policy
from letta_gym.selection.runtime import SkillSelector
from letta_gym.selection.session import Query
from letta_gym.selection.shelf import Shelf
from letta_gym.service.embedding import SkillVectors
from letta_gym.service.journal import Journal, JournalLog
from letta_gym.service.lineup import Lineup
from letta_gym.service.problems import ApiError
from letta_gym.service.shadow import Shadows
from letta_gym.store.log import LogConfig, StoreLog
from letta_gym.store.models import Viewer
from letta_gym.store.offers import Offer
from letta_gym.store.store import Store

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Terms:
    """What all desks of a service share."""

    store: Store
    journal: Journal
    log: LogConfig
    vectors: SkillVectors
    seed: int
    exploration: ExplorationConfig
    shadows: Shadows


class Ask(NamedTuple):
    """What is asked of a desk; see :meth:`SkillSelector.select`.

    ``k``: None for what is usual with the policy.
    """

    text: str
    vector: Float
    k: int | None = None
    token_budget: float | None = None
    explore: bool = False
    available: Collection[str] | None = None


class Seat(NamedTuple):
    """A policy at a desk: what chooses by it, and where its decisions go."""

    selector: SkillSelector
    log: JournalLog

    def query(self, ask: Ask) -> Query:
        """As it is put to the selector."""
        k = self.selector.policy.usual_skills if ask.k is None else ask.k
        return Query(ask.text, k, ask.token_budget, ask.explore, ask.vector, ask.available)

    def choose(self, queries: Sequence[Query]) -> list[Selection | Exception]:
        """Choose for all at once; who asks for what cannot be does not spoil it for the others."""
        try:
            return [*self.selector.select_many(queries)]
        except Exception as error:
            if len(queries) == 1:
                return [error]
            return [answer for query in queries for answer in self.choose([query])]


Asked = tuple[Ask, "asyncio.Future[tuple[Selection, Seat]]"]
"""What was asked, and where its answer goes."""


class Desk:
    """Chooses for one agent. Choices are made on the event loop; what takes long is prepared beside
    it, and takes its place in one step.

    Args:
        agent: for whom.
        terms: what all desks share.
        lineup: who chooses.

    Attributes:
        offers: the skills that the agent may choose from, by id.
    """

    def __init__(self, agent: Viewer, terms: Terms, lineup: Lineup) -> None:
        self.agent, self._terms = agent, terms
        self.store_log: StoreLog = terms.store.log(agent, terms.log)
        self._rng = np.random.default_rng([terms.seed, agent.id])
        self._budget = terms.store.budget(agent, terms.exploration.daily_budget, waits=False)
        self._budget.renew()
        self._renewal: asyncio.Task[None] | None = None
        self._asked: list[Asked] = []
        self._now = Arrangement(lineup, {}, (), None, None, None)
        self._now = self.arranged(lineup)

    @property
    def offers(self) -> Mapping[str, Offer]:
        """The skills that the agent may choose from, by id."""
        return self._now.offers

    @property
    def tokens_offered(self) -> int:
        """Tokens of all the skills that the agent may choose from."""
        return sum(offer.skill.tokens for offer in self.offers.values())

    async def select(self, ask: Ask) -> Selection:
        """Choose, and return once the decision is on the database.

        Whoever asks in the same turn of the event loop is served in one go, which takes a fraction
        of the time.

        Raises:
            ApiError: the agent has no skill to choose from.
            ConfigError: an argument out of range.
        """
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[tuple[Selection, Seat]] = loop.create_future()
        if not self._asked:
            loop.call_soon(self._choose)
        self._asked.append((ask, answer))
        selection, seat = await answer
        await seat.log.kept(selection.decision_id)
        return selection

    def _choose(self) -> None:
        """Choose for all that were asked."""
        asked = [one for one in self._asked if not one[1].done()]  # the others have gone
        self._asked, now = [], self._now
        if any(ask.explore for ask, _ in asked) and self._renewal is None and self._budget.low:
            self._renewal = asyncio.create_task(self._renew())
        for seat, mine in self._seated(now, asked):
            queries = [seat.query(ask) for ask, _ in mine]
            for query, (_, answer), made in zip(queries, mine, seat.choose(queries), strict=True):
                if isinstance(made, Exception):
                    answer.set_exception(made)
                    continue
                answer.set_result((made, seat))
                if now.shadow is not None:
                    self._terms.shadows.put(now.shadow.selector, now.shadow.log, query, made)

    def _seated(
        self, now: Arrangement, asked: Sequence[Asked]
    ) -> Sequence[tuple[Seat, Sequence[Asked]]]:
        """Who chooses for whom."""
        if now.active is None:
            said = f"the agent {self.agent.name!r} has no skill to choose from; POST one to /skills"
            for _, answer in asked:
                answer.set_exception(ApiError(409, said))
            return ()
        parts = [(now.active, asked)]
        if now.canary is not None:
            by_canary = self._rng.random(len(asked)) < now.lineup.share
            parts = [
                (seat, [one for one, canary in zip(asked, by_canary, strict=True) if canary == its])
                for seat, its in ((now.active, False), (now.canary, True))
            ]
        return [(seat, part) for seat, part in parts if part]

    async def close(self) -> None:
        """Give back what is left of the budget of exploration."""
        if self._renewal is not None:
            await self._renewal
        await asyncio.to_thread(self._budget.close)

    async def record(self, decision_id: str, outcome: Outcome) -> bool:
        """Keep an outcome and learn from it; False when this very outcome was kept before.

        Raises:
            ApiError: 404, the agent never made this decision.
            DecisionError: the decision is expired or settled.
            ConfigError: the outcome names a skill that was not chosen.
        """
        try:
            waiting = await asyncio.to_thread(self.store_log.waiting, decision_id)
        except DecisionError as error:
            raise ApiError(404, str(error)) from error
        new = await asyncio.to_thread(self.store_log.recorded, decision_id, outcome)
        for seat in self._now.learners() if new else ():
            seat.log.recall(decision_id, waiting)
            seat.selector.record(decision_id, outcome)
        return new

    def is_outdated(self) -> bool:
        """Whether other skills are offered now than those that are chosen from."""
        return self._terms.store.offers.seen_by(self.agent) != self.offers

    def arranged(self, lineup: Lineup) -> Arrangement:
        """Prepare for ``lineup`` and the skills that are offered now; takes long."""
        offers = self._terms.store.offers.seen_by(self.agent)
        memories = list(self._now.memories)
        seats: list[Seat | None] = []
        for mode, policy in (
            ("active", lineup.active),
            ("canary", lineup.canary),
            ("shadow", lineup.shadow),
        ):
            if policy is None or not offers:
                seats.append(None)
            else:
                seats.append(self._seat(policy, mode, offers, memories))
        used = [one for one in memories if any(s and s.selector.memory is one for s in seats)]
        return Arrangement(lineup, offers, tuple(used or memories), *seats)

    def take(self, arrangement: Arrangement) -> None:
        """From the next choice on, choose as was prepared; on the event loop."""
        self._now = arrangement

    async def _renew(self) -> None:
        try:
            await asyncio.to_thread(self._budget.renew)
        except StoreError as error:
            log.warning("the budget of exploration could not be renewed: %s", error)
        finally:
            self._renewal = None

    def _seat(
        self,
        policy: Policy,
        mode: str,
        offers: Mapping[str, Offer],
        memories: list[OutcomeMemory],
    ) -> Seat:
        """A seat for ``policy``; a memory that it needs and nobody has is added to ``memories``."""
        terms = self._terms
        wanted = policy.dimension, policy.evidence
        memory = next((m for m in memories if (m.dimension, m.config) == wanted), None)
        if memory is None:
            memory = OutcomeMemory(policy.dimension, policy.evidence)
            terms.store.restore(memory, self.agent)
            memories.append(memory)
        library = SkillLibrary(offer.skill for offer in offers.values())
        shelf = Shelf(library, policy, terms.vectors.of(tuple(library)))
        kept = JournalLog(terms.journal, terms.store.log(self.agent, terms.log, mode=mode))
        explorer = Explorer(terms.exploration, self._budget)
        selector = SkillSelector(policy, shelf, memory, self._rng, kept, explorer)
        selector.max_pending = 0  # what waits for its outcome is asked of the store: see record()
        return Seat(selector, kept)


@dataclass(frozen=True, eq=False, slots=True)
class Arrangement:
    """What a desk chooses by: the skills on offer, what was learned, and who sits where."""

    lineup: Lineup
    offers: Mapping[str, Offer]
    memories: tuple[OutcomeMemory, ...]
    active: Seat | None
    canary: Seat | None
    shadow: Seat | None

    def learners(self) -> Sequence[Seat]:
        """One seat for each memory, so that each learns once."""
        seats = [seat for seat in (self.active, self.canary, self.shadow) if seat is not None]
        of = {id(seat.selector.memory): seat for seat in reversed(seats)}
        return [*of.values()]
