"""The offline mock as an agent for any text: judged by the nearest tasks of a suite."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from letta_gym.errors import ConfigError, SuiteError
from letta_gym.feedback.evidence import EvidenceConfig, kernel
from letta_gym.feedback.outcome import Outcome
from letta_gym.letta.draws import Layout
from letta_gym.letta.mock import MockConfig, MockWorld
from letta_gym.letta.reward import RewardConfig, priced
from letta_gym.letta.rollout import Rollout
from letta_gym.library.embeddings import Embedder, check_same_model, default_embedder
from letta_gym.library.suite import Suite

Float = NDArray[np.float32]

NEAREST = 5
"""Tasks of the suite that a text is judged by."""

_MOST_SKILLS = 64  # of one task


class MockLetta:
    """One hidden world of :mod:`letta_gym.letta.mock`, which judges any task.

    The chance of success is that of the nearest tasks of the suite, weighted by their similarity.
    Skills that the suite lacks neither help nor harm. Outcomes have the source "simulation".

    Args:
        suite: the tasks, with vectors.
        embedder: of texts that are no task of the suite; by default whichever is installed, when
            it is first needed.
        config: constants of the mock.
        reward: weights of the reward.
        seed: of the hidden world and of every outcome.

    Raises:
        SuiteError: the suite has no vectors.
    """

    def __init__(
        self,
        suite: Suite,
        *,
        embedder: Embedder | None = None,
        config: MockConfig | None = None,
        reward: RewardConfig | None = None,
        seed: int = 0,
    ) -> None:
        if suite.vectors is None:
            raise SuiteError(
                f"the suite {suite.name!r} has no vectors; make them with: letta-gym embed FOLDER"
            )
        self.suite, self._vectors, self._embedder = suite, suite.vectors, embedder
        self.reward = RewardConfig() if reward is None else reward
        self._task = {task.text: i for i, task in enumerate(suite.tasks)}
        self._rng = np.random.default_rng(seed)
        self._world = self._new_world(MockConfig() if config is None else config)

    def _new_world(self, config: MockConfig) -> MockWorld:
        library, tasks = self.suite.library, self.suite.tasks
        relevant = np.zeros((len(tasks), len(library)), bool)
        for t, task in enumerate(tasks):
            relevant[t, [library.index(skill_id) for skill_id in task.relevant]] = True
        topic = np.where(relevant.any(1), relevant.argmax(1), -1)
        tokens = np.array([skill.tokens for skill in library], np.float32)
        world = MockWorld(
            config, relevant, topic, np.arange(len(library)), tokens, 1, 1, _MOST_SKILLS
        )
        draws = Layout(world.world_sizes() | world.step_sizes()).draw([self._rng])
        world.reset(np.zeros(1, np.int64), draws, np.zeros((1, len(library)), bool))
        return world

    def run(self, rollouts: Sequence[Rollout]) -> list[Outcome]:
        """What comes of each rollout, in the same order.

        Raises:
            MissingExtraError: a text has to be embedded and no embedder is installed.
            EmbeddingError: the embedder is of another model than the suite's vectors.
        """
        return [self.carry_out(rollout) for rollout in rollouts]

    async def run_async(self, rollouts: Sequence[Rollout]) -> list[Outcome]:
        """:meth:`run`; nothing is waited for."""
        return self.run(rollouts)

    def carry_out(self, rollout: Rollout, vector: Float | None = None) -> Outcome:
        """What comes of one rollout; ``vector`` (D,) is that of its text, where it is known.

        Raises:
            ConfigError: more skills than any task may have.
            MissingExtraError, EmbeddingError: as :meth:`run`.
        """
        start, world = time.perf_counter(), self._world
        if len(rollout.skills) > _MOST_SKILLS:
            raise ConfigError(
                f"a task of the mock takes at most {_MOST_SKILLS} skills; got {len(rollout.skills)}"
            )
        tasks, weights = self._nearest(rollout.text, vector)
        chance = world.load_probability(np.ones(len(rollout.skills), bool))
        on = self._rng.random(len(rollout.skills)) < chance
        loaded = [skill for skill, used in zip(rollout.skills, on.tolist(), strict=True) if used]
        library = self.suite.library
        known = np.array([library.index(s.id) for s in loaded if s.id in library], np.int64)
        each = world.success_probability(
            np.zeros(len(tasks), np.int64),
            tasks,
            np.broadcast_to(known, (len(tasks), len(known))),
            np.ones((len(tasks), len(known)), np.float32),
        )
        success = world.graded(np.array([weights @ each], np.float32), self._rng.random(1))
        outcome = Outcome(
            success=float(success[0]),
            loaded=tuple(skill.id for skill in loaded),
            tokens=sum(skill.tokens for skill in loaded),
            source="simulation",
            latency=time.perf_counter() - start,
            stop_reason="end_turn",
            response=f"Simulated: nothing was done. Judged as the task: {self._said(tasks)}",
        )
        return priced(outcome, self.reward)

    def _said(self, tasks: NDArray[np.int64]) -> str:
        """The text of the nearest of ``tasks``."""
        return self.suite.tasks[int(tasks[0])].text

    def _nearest(self, text: str, vector: Float | None = None) -> tuple[NDArray[np.int64], Float]:
        """The nearest tasks of the suite, and their weights, which sum to 1; a known one alone."""
        if text in self._task:
            return np.array([self._task[text]]), np.ones(1, np.float32)
        at = self._embed(text) if vector is None else vector
        similarity = self._vectors.tasks.matrix @ at
        tasks = np.argsort(-similarity, kind="stable")[:NEAREST]
        weights = kernel(similarity[tasks] - similarity[tasks[0]] + 1, EvidenceConfig().bandwidth)
        return tasks, weights / weights.sum()

    def _embed(self, text: str) -> Float:
        if self._embedder is None:
            self._embedder = default_embedder()
        check_same_model(self._vectors.identity, self._vectors.probes, self._embedder)
        row: Float = self._embedder.encode([text])[0]
        return row
