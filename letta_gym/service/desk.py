"""An agent's desk: the skills that it may choose from, what it learned, and who chooses."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from letta_gym.errors import DecisionError, StoreError
from letta_gym.feedback.memory import OutcomeMemory
from letta_gym.feedback.outcome import Outcome
from letta_gym.library.skills import SkillLibrary
from letta_gym.library.vectors import Float
from letta_gym.selection.exploration import ExplorationConfig, Explorer
from letta_gym.selection.policy import Policy
from letta_gym.selection.runtime import Selection, SkillSelector
from letta_gym.selection.shelf import Shelf
from letta_gym.service.embedding import SkillVectors
from letta_gym.service.journal import Journal, JournalLog
from letta_gym.service.problems import ApiError
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


class Desk:
    """Chooses for one agent. Choices are made on the event loop; what takes long is prepared beside
    it, and takes its place in one step.

    Args:
        agent: for whom.
        terms: what all desks share.
        policy: who chooses.

    Attributes:
        offers: the skills that the agent may choose from, by id.
    """

    def __init__(self, agent: Viewer, terms: Terms, policy: Policy) -> None:
        self.agent, self._terms = agent, terms
        self.store_log: StoreLog = terms.store.log(agent, terms.log)
        self._log = JournalLog(terms.journal, self.store_log)
        self._rng = np.random.default_rng([terms.seed, agent.id])
        self.offers: Mapping[str, Offer] = terms.store.offers.seen_by(agent)
        self.policy, self.memory = policy, OutcomeMemory(policy.dimension, policy.evidence)
        terms.store.restore(self.memory, agent)
        limit = terms.exploration.daily_budget
        self._budget = terms.store.budget(agent, limit, waits=False)
        self._budget.renew()
        self._renewal: asyncio.Task[None] | None = None
        self._selector = self._arranged(policy, self.offers, self.memory)

    @property
    def tokens_offered(self) -> int:
        """Tokens of all the skills that the agent may choose from."""
        return sum(offer.skill.tokens for offer in self.offers.values())

    def select(
        self,
        text: str,
        vector: Float,
        k: int | None,
        token_budget: float | None,
        explore: bool,
        available: Collection[str] | None,
    ) -> Selection:
        """Choose; see :meth:`SkillSelector.select`. Await :meth:`kept` before telling anybody.

        Raises:
            ApiError: the agent has no skill to choose from.
            ConfigError: an argument out of range.
        """
        selector = self._selector
        if selector is None:
            raise ApiError(
                409,
                f"the agent {self.agent.name!r} has no skill to choose from; POST one to /skills",
            )
        k = min(3, selector.policy.max_skills) if k is None else k
        if explore and self._renewal is None and self._budget.low:
            self._renewal = asyncio.create_task(self._renew())
        return selector.select(text, k, token_budget, explore, vector, available)

    async def kept(self, decision_id: str) -> None:
        """Return once the decision is on the database."""
        await self._log.kept(decision_id)

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
        if new and self._selector is not None:
            self._log.recall(decision_id, waiting)
            self._selector.record(decision_id, outcome)
        return new

    def is_outdated(self) -> bool:
        """Whether other skills are offered now than those that are chosen from."""
        return self._terms.store.offers.seen_by(self.agent) != self.offers

    def arranged(self, policy: Policy) -> Arrangement:
        """Prepare for ``policy`` and the skills that are offered now; takes long."""
        offers = self._terms.store.offers.seen_by(self.agent)
        memory = None
        if (policy.dimension, policy.evidence) != (self.memory.dimension, self.memory.config):
            memory = OutcomeMemory(policy.dimension, policy.evidence)
            self._terms.store.restore(memory, self.agent)
        if memory is None:
            return Arrangement(policy, offers, None, self._arranged(policy, offers, self.memory))
        return Arrangement(policy, offers, memory, self._arranged(policy, offers, memory))

    def take(self, arrangement: Arrangement) -> None:
        """From the next choice on, choose as was prepared; on the event loop."""
        self.policy, self.offers = arrangement.policy, arrangement.offers
        if arrangement.memory is not None:
            self.memory = arrangement.memory
        self._selector = arrangement.selector

    async def _renew(self) -> None:
        try:
            await asyncio.to_thread(self._budget.renew)
        except StoreError as error:
            log.warning("the budget of exploration could not be renewed: %s", error)
        finally:
            self._renewal = None

    def _arranged(
        self, policy: Policy, offers: Mapping[str, Offer], memory: OutcomeMemory
    ) -> SkillSelector | None:
        if not offers:
            return None
        library = SkillLibrary(offer.skill for offer in offers.values())
        shelf = Shelf(library, policy, self._terms.vectors.of(tuple(library)))
        explorer = Explorer(self._terms.exploration, self._budget)
        selector = SkillSelector(policy, shelf, memory, self._rng, self._log, explorer)
        selector.max_pending = 0  # what waits for its outcome is asked of the store: see record()
        return selector


@dataclass(frozen=True, eq=False, slots=True)
class Arrangement:
    """What a desk changes to: the memory is None where the one at hand goes on."""

    policy: Policy
    offers: Mapping[str, Offer]
    memory: OutcomeMemory | None
    selector: SkillSelector | None
