"""The learner for the executor: what it learns from, when, and that the policy gets better."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from agents.log_config import SetLearningConfig
from agents.policy_learner import PolicyLearner
from letta_gym.errors import ConfigError
from letta_gym.feedback.learner import Learner
from letta_gym.feedback.outcome import Outcome
from letta_gym.letta.executor import TaskExecutor
from letta_gym.letta.rollout import Rollout
from letta_gym.selection import bilinear
from letta_gym.selection.exploration import ExplorationConfig, Explorer
from letta_gym.selection.policy import Policy
from letta_gym.selection.runtime import SkillSelector
from tests.test_runtime import EMBEDDER, D, library, policy

TEXT = "draw a map"
CONFIG = SetLearningConfig(min_decisions=100, learning_rate=0.01, rounds=15)


class Workshop:
    """A backend in which the third skill helps, and every skill costs."""

    def run(self, rollouts: Sequence[Rollout]) -> list[Outcome]:
        return [self._outcome([skill.id for skill in one.skills]) for one in rollouts]

    async def run_async(self, rollouts: Sequence[Rollout]) -> list[Outcome]:
        return self.run(rollouts)

    def _outcome(self, chosen: list[str]) -> Outcome:
        success = 0.4 + 0.6 * ("skill-3" in chosen)
        parts = {"success": success, "tokens": -0.15 * len(chosen)}
        return Outcome(success, tuple(chosen), 10.0, reward_parts=parts, response="done")


def loose() -> Policy:
    """A policy that knows nothing: its scores hardly differ."""
    start = policy()
    return replace(start, weights={n: w * np.float32(0.05) for n, w in start.weights.items()})


def executor(config: SetLearningConfig = CONFIG) -> tuple[TaskExecutor, PolicyLearner]:
    start = loose()
    explorer = Explorer(ExplorationConfig(epsilon=0.3, daily_budget=10**9))
    selector = SkillSelector.load(
        start, library(), embedder=EMBEDDER, rng=np.random.default_rng(0), explorer=explorer
    )
    learner = PolicyLearner(start, config)
    return TaskExecutor(selector, Workshop(), learner=learner), learner


def chance(made: Policy) -> float:
    """Probability with which a policy chooses just the skill that helps, without any outcome."""
    selector = SkillSelector.load(made, library(), embedder=EMBEDDER, rng=np.random.default_rng(0))
    choices = (selector.select(TEXT, k=2, explore=True).skills for _ in range(200))
    return sum([skill.id for skill in chosen] == ["skill-3"] for chosen in choices) / 200


def test_the_executor_chooses_better_for_what_the_learner_learned() -> None:
    running, learner = executor()
    before = chance(learner.policy)
    learned = []
    for _ in range(4):
        for _ in range(100):
            running.execute(TEXT, k=2, explore=True)
        learned.append(running.train())

    assert chance(learner.policy) > before + 0.3
    assert running.selector.policy is learner.policy is learned[-1]
    assert len({made.digest for made in learned if isinstance(made, Policy)}) == 4
    assert len(learner.metrics) == 15
    assert learner.metrics[-1]["log/snips"] == pytest.approx(0.85, abs=0.02)  # the best set's


def test_decisions_wait_until_there_are_enough_and_are_learned_from_once() -> None:
    running, learner = executor(SetLearningConfig(min_decisions=10, rounds=1))
    first = [running.execute(TEXT, explore=True).decision_id for _ in range(8)]
    assert running.train() is None
    assert running.selector.policy.digest == learner.policy.digest
    for _ in range(5):
        running.execute(TEXT)  # not sampled: nothing says how likely it was
    assert running.train() is None
    assert learner.waiting == 8
    running.feedback(first[0], 1.0)  # the same decision once more
    assert running.train() is None
    assert learner.waiting == 8

    for _ in range(2):
        running.execute(TEXT, explore=True)
    assert running.train() is running.selector.policy
    assert learner.waiting == 0


def test_tasks_go_on_while_it_learns_and_are_learned_from_the_next_time() -> None:
    running, learner = executor(SetLearningConfig(min_decisions=10, rounds=2))

    async def main() -> tuple[object, object]:
        for _ in range(10):
            await running.execute_async(TEXT, explore=True)
        training = asyncio.create_task(running.train_async())
        await asyncio.sleep(0)  # it has taken its lesson
        for _ in range(10):
            await running.execute_async(TEXT, explore=True)
        return await training, await running.train_async()

    first, second = asyncio.run(main())
    assert isinstance(first, Policy)
    assert isinstance(second, Policy)
    assert running.selector.policy is second is learner.policy


def test_a_policy_whose_vectors_no_decision_holds_is_refused() -> None:
    start = policy()
    more = bilinear.initial(np.random.default_rng(0), 2, D)
    single = {name: array.astype(np.float32) for name, array in more.items()}

    with pytest.raises(ConfigError, match="bilinear"):
        PolicyLearner(replace(start, weights={**start.weights, **single}))


def test_it_is_a_learner() -> None:
    learner: Learner = PolicyLearner(policy())

    assert learner.learn([]) is None
