"""Opponents of the learned policy, from doing nothing to knowing everything."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from agents.actor_critic import Observation
from letta_gym.envs.glue import Driver, Step
from letta_gym.selection import bilinear, network, subset
from letta_gym.selection.network import Weights
from letta_gym.selection.observation import FEATURE
from letta_gym.selection.opening import Opening

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


class Terms(Protocol):
    """What decisions cost and how large they may be; token prices are per 1,000 tokens."""

    @property
    def max_skills(self) -> int:
        """k, most skills of one choice."""
        ...

    @property
    def candidates(self) -> int:
        """M, slots of one decision."""
        ...

    @property
    def token_price(self) -> float:
        """Reward that 1,000 tokens of skills cost."""
        ...


class Scene(Protocol):
    """What every agent may know of whoever drives its environment."""

    @property
    def config(self) -> Terms:
        """Sizes and prices."""
        ...

    def slot_skills(self) -> Picks:
        """Which skill of the library is in each slot of the decisions at hand, shape (B, M)."""
        ...


SceneT_contra = TypeVar("SceneT_contra", bound=Scene, contravariant=True)


class Agent(Protocol[SceneT_contra]):
    """Chooses slots; ``slots`` says how its environment ranks candidates into slots.

    Most agents play in any :class:`Scene`; oracles know one kind of environment from within.
    """

    name: str
    slots: str

    def act(self, obs: Observation, driver: SceneT_contra) -> Choice:
        """Choose for every session of ``driver``; only oracles look beyond ``obs``."""
        ...


@runtime_checkable
class Online(Protocol):
    """What an agent has, too, that learns from its outcomes while it plays."""

    def observe(self, obs: Observation, step: Step, driver: Scene) -> None:
        """Learn from what a choice for ``obs`` led to.

        It is called after every step, before the next observation: ``driver.slot_skills()`` still
        is that of ``obs``. Only what ``step`` says of the picks carried out may be used.
        """
        ...


def learn(agent: object, obs: Observation, step: Step, driver: Scene) -> None:
    """Tell ``agent`` what its choice led to, if it wants to know."""
    if isinstance(agent, Online):
        agent.observe(obs, step, driver)


class NoSkills:
    """Never loads anything."""

    name, slots = "none", "evidence"

    def act(self, obs: Observation, driver: Scene) -> Choice:
        """The empty set."""
        mask = obs["action_mask"]
        ranking = np.broadcast_to(np.arange(mask.shape[1]), mask.shape)
        return Choice(np.full((len(mask), driver.config.max_skills), -1), ranking)


class Random:
    """Loads a random number of random skills."""

    name, slots = "random", "evidence"

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng

    def act(self, obs: Observation, driver: Scene) -> Choice:
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

    def act(self, obs: Observation, driver: Scene) -> Choice:
        """The best ``k`` that reach the level."""
        score = np.where(obs["action_mask"], self.rate(obs, driver), -np.inf)
        levels = np.where(np.arange(driver.config.max_skills) < self.k, self.level, np.inf)
        return cut(score, levels, driver.config.max_skills)

    def rate(self, obs: Observation, driver: Scene) -> Floats:
        """Score of each slot, shape (B, M)."""
        return self.score(obs["features"])


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
    """A trained network, acting greedily.

    With an ``opening`` as it is served: then that decides on STOP while there are few outcomes.
    """

    name, slots = "learned", "evidence"

    def __init__(self, weights: Weights, opening: Opening | None = None, alike: float = 0) -> None:
        self.weights, self.opening, self.alike = weights, opening, alike

    def act(self, obs: Observation, driver: Scene) -> Choice:
        """The most likely picks."""
        mask = obs["action_mask"].astype(bool)
        logits, _, _ = network.forward(self.weights, obs["features"], obs["context"], mask)
        if bilinear.rank(self.weights):
            bilinear.add(self.weights, logits, (obs["task"], obs["skills"]))
        if self.opening is not None:
            self.opening.settle(logits, obs["context"], self.alike)
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

    Beside a skill that is worth less than its cost alone, no other is worth more, and only skills
    made for the task are worth anything. So the best set consists of the best few single slots.

    It is myopic: it spends the budget as if this task were the last. With a ``surcharge`` on every
    1,000 tokens it saves them for tasks that gain more; of such fixed prices one is the best.
    """

    slots = "evidence"
    few = 4

    def __init__(self, name: str = "oracle", surcharge: float = 0.0) -> None:
        self.name, self.surcharge = name, surcharge

    def act(self, obs: Observation, driver: Driver) -> Choice:
        """The set of the largest expected reward; of equal ones the smallest."""
        (batch, m), k = obs["action_mask"].shape, driver.config.max_skills
        singles = np.broadcast_to(np.arange(m)[:, None, None], (m, batch, 1))
        alone = expected(driver, obs, _padded(singles, k), self.surcharge)
        ranking = np.argsort(-alone.T, 1, kind="stable")
        top = range(min(self.few, m))
        members = [list(c) for size in range(k + 1) for c in combinations(top, size)]
        sets = np.stack([_padded(ranking[:, which], k) for which in members])
        best = expected(driver, obs, sets, self.surcharge).argmax(0)
        return Choice(sets[best, np.arange(batch)], ranking)


def expected(
    driver: Driver, obs: Observation, picks: Picks, surcharge: float = 0.0
) -> NDArray[np.float64]:
    """True expected reward of loading ``picks`` (..., B, k), shape (..., B).

    ``surcharge`` is added to the price of 1,000 tokens. The reward is -inf for a set that would not
    be carried out: with a masked slot, or beyond the budget.
    """
    s, world = driver.sessions, driver.sessions.world
    rows, chosen, slots = np.arange(s.count), picks >= 0, np.maximum(picks, 0)
    skills = s.slot_skills()[rows[:, None], slots]
    chance = world.load_probability(chosen)
    success = world.success_probability(rows, s.task, skills, chance).astype(np.float64)
    tokens = world.tokens[skills]
    cost = (tokens * chance).sum(-1) * (driver.config.token_price + surcharge) / 1000
    free = (obs["action_mask"][rows[:, None], slots] == 1) | ~chosen
    carried_out = free.all(-1) & ((tokens * chosen).sum(-1) <= s.tokens_left)
    return np.where(carried_out, success - cost, -np.inf)


def cut(score: NDArray[np.floating], levels: NDArray[np.floating], k: int) -> Choice:
    """Slots by falling ``score`` (B, M), the i-th picked while it reaches ``levels[i]``."""
    ranking = np.argsort(-score, 1, kind="stable")
    top = np.take_along_axis(score, ranking[:, :k], 1)
    picks = np.where(top >= levels, ranking[:, :k], -1)
    return Choice(picks, ranking)


def _padded(slots: Picks, k: int) -> Picks:
    """Picks (..., n) with -1 up to the length k."""
    picks = np.full((*slots.shape[:-1], k), -1)
    picks[..., : slots.shape[-1]] = slots
    return picks
