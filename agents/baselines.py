"""Opponents of the learned policy, from doing nothing to knowing everything."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from agents.actor_critic import Observation
from letta_gym.envs.glue import Driver
from letta_gym.selection import network, subset
from letta_gym.selection.network import Weights
from letta_gym.selection.observation import FEATURE

Floats = NDArray[Any]
Picks = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Choice:
    """What an agent does with B decisions.

    Attributes:
        picks: slots to load, best first, -1 padded, shape (B, k).
        ranking: all slots, best first, whether or not they are loaded, shape (B, M).
    """

    picks: Picks
    ranking: Picks


class Agent(Protocol):
    """Chooses slots; ``slots`` says how its environment ranks candidates into slots."""

    name: str
    slots: str

    def act(self, obs: Observation, driver: Driver) -> Choice:
        """Choose for every session of ``driver``; only oracles look beyond ``obs``."""
        ...


class NoSkills:
    """Never loads anything."""

    name, slots = "none", "evidence"

    def act(self, obs: Observation, driver: Driver) -> Choice:
        """The empty set."""
        mask = obs["action_mask"]
        ranking = np.broadcast_to(np.arange(mask.shape[1]), mask.shape)
        return Choice(np.full((len(mask), driver.config.max_skills), -1), ranking)


class Random:
    """Loads a random number of random skills."""

    name, slots = "random", "evidence"

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng

    def act(self, obs: Observation, driver: Driver) -> Choice:
        """A uniform order, cut at a uniform length."""
        k = driver.config.max_skills
        draw = np.where(obs["action_mask"], self._rng.random(obs["action_mask"].shape), -1)
        length = self._rng.integers(0, k + 1, len(draw))
        return cut(draw, np.where(np.arange(k) < length[:, None], -0.5, np.inf), k)


class Threshold:
    """Loads at most ``k`` skills whose score reaches a level.

    Args:
        name: of the agent.
        slots: how its environment fills the slots.
        score: the score of each slot, from the features (B, M, F) to (B, M).
        level: least score of a skill that is loaded.
        k: most skills.
    """

    def __init__(
        self, name: str, slots: str, score: Callable[[Floats], Floats], level: float, k: int
    ) -> None:
        self.name, self.slots = name, slots
        self.score, self.level, self.k = score, level, k

    def act(self, obs: Observation, driver: Driver) -> Choice:
        """The best ``k`` that reach the level."""
        score = np.where(obs["action_mask"], self.score(obs["features"]), -np.inf)
        levels = np.where(np.arange(driver.config.max_skills) < self.k, self.level, np.inf)
        return cut(score, levels, driver.config.max_skills)


def cosine(f: Floats) -> Floats:
    """Cosine of task and skill."""
    return f[..., FEATURE["dense"]] / 4


def hybrid(f: Floats) -> Floats:
    """Fused retrieval score."""
    return f[..., FEATURE["retrieval"]] / 4


def evidence(f: Floats) -> Floats:
    """Closed form less the cost: what the untrained policy ranks by."""
    return (f[..., FEATURE["closed_form"]] - f[..., FEATURE["cost"]]) / 8


class Learned:
    """A trained network, acting greedily."""

    name, slots = "learned", "evidence"

    def __init__(self, weights: Weights) -> None:
        self.weights = weights

    def act(self, obs: Observation, driver: Driver) -> Choice:
        """The most likely picks."""
        mask = obs["action_mask"].astype(bool)
        logits, _, _ = network.forward(self.weights, obs["features"], obs["context"], mask)
        picks = subset.greedy(logits, driver.config.max_skills)
        return Choice(picks, np.argsort(-logits[:, :-1], 1, kind="stable"))


class Informed:
    """Knows every skill's hidden quality, but not which skill a task is made for.

    It takes the fit of a skill for the chance that the task is made for it, and the average success
    without skills for that of the task.
    """

    name, slots = "informed", "evidence"

    def __init__(self, level: float = 0.0) -> None:
        self.level = level

    def act(self, obs: Observation, driver: Driver) -> Choice:
        """Skills by expected gain."""
        s, c = driver.sessions, driver.config
        rows = np.arange(s.count)[:, None]
        skills = s.slot_skills()
        load = c.mock.load_probability
        alone = c.evidence.prior_alone
        gain = s.world.gain[rows, skills] * load * np.mean(c.mock.gain_per_task)
        harm = s.world.harm[rows, skills] * load
        fitting = (1 - (1 - alone) * (1 - gain)) * (1 - harm) - alone
        beside = -alone * load * np.mean(c.mock.mismatch_harm)
        fit = obs["features"][..., FEATURE["fit"]]
        cost = obs["features"][..., FEATURE["cost"]] / 8 * load
        value = np.where(obs["action_mask"], fit * fitting + (1 - fit) * beside - cost, -np.inf)
        return cut(value, np.where(np.arange(c.max_skills) < 1, self.level, np.inf), c.max_skills)


class Oracle:
    """Knows the hidden draws: the best set among the slots for this task alone.

    Only skills made for the task can help, so the best set is empty, one slot, or two of the four
    best single ones.
    """

    name, slots = "oracle", "evidence"

    def act(self, obs: Observation, driver: Driver) -> Choice:
        """The set of the largest expected reward."""
        mask, k = obs["action_mask"], driver.config.max_skills
        single = np.stack(
            [expected(driver, obs, _set(len(mask), k, slot)) for slot in range(mask.shape[1])], 1
        )
        ranking = np.argsort(-single, 1, kind="stable")
        best = np.full((len(mask), k), -1)
        value = expected(driver, obs, best)
        sets = [_set(len(mask), k, ranking[:, i]) for i in range(min(4, mask.shape[1]))]
        if k > 1:
            pairs = [(i, j) for j in range(len(sets)) for i in range(j)]
            sets += [_set(len(mask), k, ranking[:, i], ranking[:, j]) for i, j in pairs]
        for candidate in sets:
            gained = expected(driver, obs, candidate)
            best = np.where((gained > value)[:, None], candidate, best)
            value = np.maximum(value, gained)
        return Choice(best, ranking)


def expected(driver: Driver, obs: Observation, picks: Picks) -> NDArray[np.float64]:
    """True expected reward of loading ``picks`` (B, k); -inf where one of them is masked."""
    s, world = driver.sessions, driver.sessions.world
    rows, chosen = np.arange(s.count), picks >= 0
    slots = np.maximum(picks, 0)
    skills = np.take_along_axis(s.slot_skills(), slots, 1)
    chance = world.load_probability(chosen)
    success = world.success_probability(rows, s.task, skills, chance)
    cost = (world.tokens[skills] * chance).sum(1) * driver.config.token_price / 1000
    allowed = np.take_along_axis(obs["action_mask"], slots, 1) | ~chosen
    return np.where(allowed.astype(bool).all(1), success.astype(np.float64) - cost, -np.inf)


def cut(score: NDArray[np.floating], levels: NDArray[np.floating], k: int) -> Choice:
    """Slots by falling ``score`` (B, M), the i-th picked while it reaches ``levels[i]``."""
    ranking = np.argsort(-score, 1, kind="stable")
    top = np.take_along_axis(score, ranking[:, :k], 1)
    picks = np.where(top >= levels, ranking[:, :k], -1)
    return Choice(picks, ranking)


def _set(rows: int, k: int, *slots: int | Picks) -> Picks:
    picks = np.full((rows, k), -1)
    for position, slot in enumerate(slots):
        picks[:, position] = slot
    return picks
