"""The loop of production: choose skills, have the task carried out, learn from what came of it."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from letta_gym.errors import BackendError, ConfigError, DecisionError, LearnerError
from letta_gym.feedback.decision import Decision, DecisionLog, Waiting
from letta_gym.feedback.learner import Experience, Learner
from letta_gym.feedback.outcome import Outcome
from letta_gym.letta.grading import Grader, grader_of
from letta_gym.letta.reward import RewardConfig, with_feedback
from letta_gym.letta.rollout import Rollout
from letta_gym.library.embeddings import VectorSpace
from letta_gym.library.skills import Skill, SkillLibrary
from letta_gym.library.tasks import Task
from letta_gym.selection.choice import Selection
from letta_gym.selection.policy import Policy
from letta_gym.selection.runtime import SkillSelector

KEPT = 10_000
"""Decisions that an executor keeps for training and for feedback that comes later."""


class Performer(Protocol):
    """Carries rollouts out: a live backend, or :class:`letta_gym.letta.mock_letta.MockLetta`."""

    def run(self, rollouts: Sequence[Rollout]) -> list[Outcome]:
        """The outcome of each, in the same order."""
        ...

    async def run_async(self, rollouts: Sequence[Rollout]) -> list[Outcome]:
        """The same, for callers with an event loop."""
        ...


@dataclass(frozen=True, slots=True)
class Execution:
    """What came of one task.

    Attributes:
        decision_id: for feedback that comes later.
        success: graded result in [0, 1]; None where nobody could grade it.
        response: the agent's answer.
        skills: those that the agent really used.
        chosen: those that it was given.
        reward: sum of the reward's parts; None without a grade.
        tokens: tokens of the skills used.
        latency: seconds that the agent took.
        outcome: everything else that is known.
    """

    decision_id: str
    success: float | None
    response: str
    skills: tuple[Skill, ...]
    chosen: tuple[Skill, ...]
    reward: float | None
    tokens: float
    latency: float
    outcome: Outcome


class TaskExecutor:
    """Chooses skills for tasks, has them carried out, and learns.

    Outcomes enter the selector's memory at once, those without a grade when a person's feedback
    comes. Nothing is learned from an infrastructure failure.

    Args:
        selector: chooses. Its log, if it has one, gets every decision.
        backend: carries out.
        library: where the skills come from; must be the selector's. None takes that.
        learner: improves the policy in :meth:`train`.
        grader: of tasks that bring none; by default the backend's.
        reward: weights, for feedback that comes later; by default the backend's.

    Raises:
        ConfigError: the library is another one than the selector's.
    """

    def __init__(
        self,
        selector: SkillSelector,
        backend: Performer,
        library: SkillLibrary | None = None,
        learner: Learner | None = None,
        *,
        grader: Grader | None = None,
        reward: RewardConfig | None = None,
    ) -> None:
        if library is not None and library is not selector.shelf.library:
            raise ConfigError(
                "the executor's library must be the one that the selector chooses from; pass "
                "selector.shelf.library, or leave it out"
            )
        self.selector, self.backend, self.learner = selector, backend, learner
        self.grader = getattr(backend, "grader", None) if grader is None else grader
        of_backend = getattr(getattr(backend, "config", backend), "reward", None)
        self.reward: RewardConfig = reward or of_backend or RewardConfig()
        self._write_back: Callable[[Outcome], None] | None = getattr(backend, "write_back", None)
        self._decisions = _Decisions(selector.log)
        selector.log = self._decisions
        self._outcomes: OrderedDict[str, Outcome] = OrderedDict()
        self._unlearned: dict[str, None] = {}  # in order

    def execute(
        self,
        task: str,
        *,
        k: int = 3,
        token_budget: float | None = None,
        explore: bool = False,
        metadata: Mapping[str, Any] | None = None,
    ) -> Execution:
        """Choose skills for ``task``, have it carried out, and learn from the outcome.

        Args:
            task: the text.
            k, token_budget, explore: see :meth:`SkillSelector.select`.
            metadata: what a task of a suite would bring, such as "expected" or "grader".

        Raises:
            BackendError: the infrastructure failed; nothing was learned.
        """
        selection, rollout = self._chosen(task, k, token_budget, explore, metadata)
        return self._settled(selection, self.backend.run([rollout])[0])

    async def execute_async(
        self,
        task: str,
        *,
        k: int = 3,
        token_budget: float | None = None,
        explore: bool = False,
        metadata: Mapping[str, Any] | None = None,
    ) -> Execution:
        """:meth:`execute` for callers with an event loop; several may run side by side."""
        selection, rollout = self._chosen(task, k, token_budget, explore, metadata)
        outcomes = await self.backend.run_async([rollout])
        return self._settled(selection, outcomes[0])

    def feedback(self, decision_id: str, feedback: float) -> Outcome:
        """A person's judgement in [-1, 1] of a task done earlier; returns the outcome with it.

        Where nobody graded the task it is the grade, and enters the memory now. A live backend with
        ``feedback`` on writes the reward to Letta.

        Raises:
            DecisionError: the decision is unknown or too long ago.
            ConfigError: the feedback is out of range.
        """
        outcome = self._judged(decision_id, feedback)
        if self._write_back is not None:
            self._write_back(outcome)
        return outcome

    async def feedback_async(self, decision_id: str, feedback: float) -> Outcome:
        """:meth:`feedback` for callers with an event loop."""
        outcome = self._judged(decision_id, feedback)
        if self._write_back is not None:
            await asyncio.to_thread(self._write_back, outcome)
        return outcome

    def _judged(self, decision_id: str, feedback: float) -> Outcome:
        before = self._outcomes.get(decision_id)
        if before is None:
            raise DecisionError(
                f"no decision {decision_id!r} is among the last {KEPT:,} of this executor"
            )
        outcome = self._outcomes[decision_id] = with_feedback(before, feedback, self.reward)
        if outcome.evidence and not before.evidence:
            self.selector.record(decision_id, outcome)
        self._unlearned[decision_id] = None
        return outcome

    def train(self) -> object:
        """Let the learner learn from what was seen since the last time; returns its result.

        Raises:
            LearnerError: the executor has no learner.
        """
        learner, seen = self._lesson()
        return self._learned(seen, learner.learn(seen))

    async def train_async(self) -> object:
        """:meth:`train` for callers with an event loop: the learner works in a thread of its own.

        Tasks may be carried out meanwhile, with the policy as it was; they come the next time.
        """
        learner, seen = self._lesson()
        return self._learned(seen, await asyncio.to_thread(learner.learn, seen))

    def _lesson(self) -> tuple[Learner, list[Experience]]:
        if self.learner is None:
            raise LearnerError(
                "this executor has no learner; pass learner=..., an object with "
                "learn(experiences). Evidence needs none: it counts from the next choice on"
            )
        return self.learner, [
            Experience(self._decisions.made[decision_id], self._outcomes[decision_id])
            for decision_id in self._unlearned
            if self._outcomes[decision_id].evidence
        ]

    def _learned(self, seen: Sequence[Experience], result: object) -> object:
        for one in seen:  # feedback that came meanwhile is for the next time
            if self._outcomes.get(one.decision.id) is one.outcome:
                self._unlearned.pop(one.decision.id, None)
        if isinstance(result, Policy):
            self.selector.policy = result
        return result

    def _chosen(
        self,
        task: str,
        k: int,
        token_budget: float | None,
        explore: bool,
        metadata: Mapping[str, Any] | None,
    ) -> tuple[Selection, Rollout]:
        known = Task("task", task, metadata=metadata or {})
        grader = grader_of(known, self.grader)
        k = min(k, self.selector.policy.max_skills)
        selection = self.selector.select(task, k, token_budget, explore)
        return selection, Rollout(task, selection.skills, grader, known.metadata)

    def _settled(self, selection: Selection, outcome: Outcome) -> Execution:
        decision_id = selection.decision_id
        if outcome.response is None:
            self.selector.record(decision_id, outcome)
            self._decisions.made.pop(decision_id, None)
            raise BackendError(f"the task could not be carried out: {outcome.error}")
        if outcome.evidence:  # the others wait for a person's feedback
            self.selector.record(decision_id, outcome)
            self._unlearned[decision_id] = None
        self._outcomes[decision_id] = outcome
        if len(self._outcomes) > KEPT:
            oldest, _ = self._outcomes.popitem(last=False)
            self._unlearned.pop(oldest, None)
            self._decisions.made.pop(oldest, None)
        chosen = tuple(skill.id for skill in selection.skills)
        used = chosen if outcome.loaded is None else outcome.loaded
        return Execution(
            decision_id=decision_id,
            success=outcome.success,
            response=outcome.response,
            skills=tuple(skill for skill in selection.skills if skill.id in used),
            chosen=selection.skills,
            reward=outcome.reward,
            tokens=outcome.tokens or 0.0,
            latency=outcome.latency or 0.0,
            outcome=outcome,
        )


class _Decisions:
    """A decision log that keeps what an executor trains on, and hands on to another log."""

    def __init__(self, inner: DecisionLog | None) -> None:
        self._inner = inner
        self.made: dict[str, Decision] = {}

    def begin(self, space: VectorSpace) -> None:
        if self._inner is not None:
            self._inner.begin(space)

    def decided(self, decision: Decision) -> None:
        if self._inner is not None:
            self._inner.decided(decision)
        self.made[decision.id] = decision

    def waiting(self, decision_id: str) -> Waiting:
        if self._inner is None:
            raise DecisionError(f"no decision {decision_id!r} waits for an outcome")
        return self._inner.waiting(decision_id)

    def recorded(self, decision_id: str, outcome: Outcome) -> bool:
        return self._inner is None or self._inner.recorded(decision_id, outcome)
