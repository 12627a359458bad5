"""Opponents on labelled suites: learners over the same evidence, and one that knows every label."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from agents import baselines
from agents.actor_critic import Observation
from agents.baselines import Choice, Learned, Scene, Threshold, cut
from letta_gym.envs.glue import Step
from letta_gym.envs.replay import ReplayDriver
from letta_gym.selection import bilinear, network, subset
from letta_gym.selection.network import Weights
from letta_gym.selection.observation import CONTEXT, FEATURE, FEATURES

Floats = NDArray[np.float64]


@runtime_checkable
class Explorer(Protocol):
    """An agent that tries things out while ``exploring`` is true."""

    exploring: bool


def lexical(f: NDArray[Any]) -> NDArray[Any]:
    """TF-IDF cosine of the task with name, description and body of the skill."""
    return f[..., FEATURE["lexical"]] / 4


class Sampled(Learned):
    """A trained network that explores by its own distribution, with optimism.

    While it explores, a skill with n outcomes so far is taken to gain optimism / sqrt(1 + n) more
    than the network says, as far as the weight of the closed form makes logits of gains. The draw
    is from the distribution of these logits, so its probability is known exactly.

    Args:
        weights: of the network.
        rng: draws.
        optimism: in units of expected gain; above 0 it counts outcomes in a memory of a driver of
            replay.
    """

    def __init__(self, weights: Weights, rng: np.random.Generator, optimism: float = 0.0) -> None:
        super().__init__(weights)
        self.exploring, self.optimism, self._rng = False, optimism, rng

    def act(self, obs: Observation, driver: Scene) -> Choice:
        """The most likely picks, or while exploring a draw of them."""
        choice = super().act(obs, driver)
        if not self.exploring:
            return choice
        mask = obs["action_mask"].astype(bool)
        logits, _, _ = network.forward(self.weights, obs["features"], obs["context"], mask)
        if bilinear.rank(self.weights):
            bilinear.add(self.weights, logits, (obs["task"], obs["skills"]))
        if self.optimism:
            logits[:, :-1] += self._bonus(driver)
        return Choice(subset.sample(logits, driver.config.max_skills, self._rng), choice.ranking)

    def _bonus(self, driver: Scene) -> NDArray[np.float32]:
        """Logits that each slot gains by optimism, shape (B, M)."""
        assert isinstance(driver, ReplayDriver)
        tried = driver.sessions.memory.tried(driver.pool.keys[1:])
        per_gain = 8 * float(self.weights["score_linear"][FEATURE["closed_form"]])
        bonus = self.optimism * per_gain / np.sqrt(1 + tried)
        return bonus.astype(np.float32)[driver.slot_skills()]


class Ridge:
    """Ridge regression of rewards on F numbers, updated batch by batch.

    Attributes:
        inverse: of the regularised Gram matrix, shape (F, F).
        weights: shape (F,).
    """

    def __init__(self, width: int, strength: float = 1.0) -> None:
        self._gram = strength * np.eye(width)
        self._moment = np.zeros(width)
        self._solve()

    def add(self, rows: Floats, rewards: Floats) -> None:
        """Learn from ``rows`` (n, F) and their ``rewards`` (n,)."""
        self._gram += rows.T @ rows
        self._moment += rows.T @ rewards
        self._solve()

    def bound(self, rows: Floats, alpha: float) -> Floats:
        """Expected reward and ``alpha`` of its standard errors, of rows (..., F), shape (...)."""
        spread = np.sqrt(np.maximum(((rows @ self.inverse) * rows).sum(-1), 0))
        bound: Floats = rows @ self.weights + alpha * spread
        return bound

    def _solve(self) -> None:
        self.inverse = np.linalg.inv(self._gram)
        self.weights = self.inverse @ self._moment


class LinUCB:
    """LinUCB (Li et al., 2010) on the features of a slot, one linear model for all skills.

    Choosing nothing has a model of its own, on the context.
    """

    name, slots = "linucb", "evidence"

    def __init__(self, alpha: float) -> None:
        self.alpha, self.exploring = alpha, False
        self._skill, self._nothing = Ridge(len(FEATURES) + 1), Ridge(len(CONTEXT) + 1)

    def act(self, obs: Observation, driver: Scene) -> Choice:
        """Slots by upper confidence bound, or outside of exploration by expectation."""
        alpha = self.alpha if self.exploring else 0.0
        score = self._skill.bound(_with_one(obs["features"]), alpha)
        nothing = self._nothing.bound(_with_one(obs["context"]), alpha)
        score = np.where(obs["action_mask"], score, -np.inf)
        k = driver.config.max_skills
        return cut(score, np.broadcast_to(nothing[:, None] + 1e-12, (len(score), k)), k)

    def observe(self, obs: Observation, step: Step, driver: Scene) -> None:
        """Credit the reward to the skills that were loaded, or to having chosen none."""
        on = np.zeros(step.picks.shape, bool)
        on[:, : step.outcomes.loaded.shape[1]] = step.outcomes.loaded
        row, which = np.nonzero(on & (step.picks >= 0))
        reward = step.reward.astype(np.float64)
        used = obs["features"][row, step.picks[row, which]]
        self._skill.add(_with_one(used), reward[row])
        empty = (step.picks < 0).all(1)
        self._nothing.add(_with_one(obs["context"][empty]), reward[empty])


def _with_one(rows: NDArray[np.float32]) -> Floats:
    return np.concatenate([rows, np.ones((*rows.shape[:-1], 1))], -1, dtype=np.float64)


class Neighbours(Threshold):
    """Votes of the nearest outcomes: successes for their skill, failures against it.

    A skill that none of them is of has its retrieval score, scaled to below any vote for.
    """

    def __init__(self, count: int) -> None:
        super().__init__("knn", "evidence", baselines.hybrid, -np.inf, 1)
        self.count = count

    def rate(self, obs: Observation, driver: Scene) -> NDArray[Any]:
        """Votes for each slot's skill, shape (B, M)."""
        assert isinstance(driver, ReplayDriver)
        mine = np.take_along_axis(self.votes(driver), driver.slot_skills(), 1)
        return mine + 0.01 * baselines.hybrid(obs["features"])

    def votes(self, driver: ReplayDriver) -> Floats:
        """Votes for every skill of the library, shape (B, N)."""
        s = driver.sessions
        entries = s.memory.entries()
        votes = np.zeros((len(s.task), len(driver.pool.ids) + 1))
        if not len(entries.key):
            return votes[:, :-1]
        place = {key: i - 1 for i, key in enumerate(driver.pool.keys)}
        skill = np.array([place[key] for key in entries.keys])[entries.key]
        return _vote(
            driver.pool.task_vectors[s.task] @ entries.vectors.T,
            skill,
            2 * entries.success - 1,
            self.count,
            votes,
        )


class Labelled(Neighbours):
    """A reference that no bandit can reach: the neighbours among all tasks, with all their labels.

    It sees every label of each task that was asked so far.
    """

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.name = "labelled_knn"
        self._tasks: set[int] = set()

    def observe(self, obs: Observation, step: Step, driver: Scene) -> None:
        """Note the tasks: their labels are known from now on."""
        assert isinstance(driver, ReplayDriver)
        self._tasks |= set(driver.sessions.done.tolist())

    def votes(self, driver: ReplayDriver) -> Floats:
        """See :meth:`Neighbours.votes`."""
        s, n = driver.sessions, len(driver.pool.ids)
        tasks = np.array(sorted(self._tasks), np.int64)
        votes = np.zeros((len(s.task), n + 1))
        if not len(tasks):
            return votes[:, :-1]
        at, skill = np.nonzero(s.labels.relevant[tasks])
        near = driver.pool.task_vectors[s.task] @ driver.pool.task_vectors[tasks[at]].T
        return _vote(near, skill, np.ones(len(skill), np.float32), self.count, votes)


def _vote(
    near: NDArray[np.float32],
    skill: NDArray[np.int64],
    weight: NDArray[np.float32],
    count: int,
    votes: Floats,
) -> Floats:
    """Add the ``count`` nearest entries' similarity x weight to their skills' votes, (B, N)."""
    count = min(count, near.shape[1])
    nearest = np.argpartition(-near, count - 1, 1)[:, :count]
    rows = np.arange(len(near))[:, None]
    np.add.at(votes, (rows, skill[nearest]), near[rows, nearest] * weight[nearest])
    return votes[:, :-1] / count
