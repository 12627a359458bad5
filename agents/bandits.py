"""Linear bandits on the mock: one model for all skills or one for each, by bound or by sampling."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from agents.actor_critic import Observation
from agents.baselines import Choice, Scene, cut, learn
from agents.opponents import Ridge
from letta_gym.envs.glue import Driver, Step
from letta_gym.selection import subset
from letta_gym.selection.observation import CONTEXT, FEATURES

Floats = NDArray[np.float64]
Int = NDArray[np.int64]
Rule: TypeAlias = Callable[[Ridge, Floats], Floats]
"""Score of the rows (B, M, F) of B decisions by one model, shape (B, M)."""

WIDTH = len(FEATURES) + len(CONTEXT) + 1


def expectation(model: Ridge, rows: Floats) -> Floats:
    """The expected reward."""
    return model.bound(rows, 0.0)


def upper_bound(alpha: float) -> Rule:
    """LinUCB (Li et al., 2010): the expected reward and ``alpha`` of its standard errors."""
    return lambda model, rows: model.bound(rows, alpha)


def sampled(width: float, rng: np.random.Generator) -> Rule:
    """Thompson sampling (Agrawal and Goyal, 2013): one draw of the weights for each decision.

    Weights are normal around their estimate, with ``width`` squared times the inverse Gram matrix
    as covariance.
    """

    def score(model: Ridge, rows: Floats) -> Floats:
        noise = rng.standard_normal((len(rows), rows.shape[-1]))
        weights = model.weights + width * noise @ np.linalg.cholesky(model.inverse).T
        drawn: Floats = np.einsum("bmf,bf->bm", rows, weights)
        return drawn

    return score


class LinearBandit:
    """Loads the slot with the best score, or none; learns by ridge regression of the reward.

    It sees what the policy sees: the features of a slot and the context. Choosing nothing has a
    model of its own, on the context.

    Args:
        name: of the agent.
        explore: scores while ``exploring``; else it is the expectation that counts.
        skills: size of the library for one model each, or None for one model of all skills.
    """

    slots = "evidence"

    def __init__(self, name: str, explore: Rule, skills: int | None = None) -> None:
        self.name, self.exploring = name, False
        self._explore = explore
        self._models = [Ridge(WIDTH) for _ in range(skills or 1)]
        self._nothing = Ridge(len(CONTEXT) + 1)

    def act(self, obs: Observation, driver: Scene) -> Choice:
        """The slot with the best score, unless nothing scores better."""
        rule = self._explore if self.exploring else expectation
        rows, models = _rows(obs), self._which(driver.slot_skills())
        score = np.full(models.shape, -np.inf)
        free = obs["action_mask"].astype(bool)
        if len(self._models) == 1:
            score = np.where(free, rule(self._models[0], rows), -np.inf)
        else:  # models are independent, so draws of one decision are too
            for model in np.unique(models[free]):
                at = free & (models == model)
                score[at] = rule(self._models[model], rows[at][:, None])[:, 0]
        context = _with_one(obs["context"])
        nothing = rule(self._nothing, context[:, None])[:, 0]
        k = driver.config.max_skills
        levels = np.where(np.arange(k) < 1, nothing[:, None] + 1e-12, np.inf)
        return cut(score, levels, k)

    def observe(self, obs: Observation, step: Step, driver: Scene) -> None:
        """Credit the reward to the skills that were loaded, or to none where none was."""
        on = np.zeros(step.picks.shape, bool)
        on[:, : step.outcomes.loaded.shape[1]] = step.outcomes.loaded
        row, which = np.nonzero(on & (step.picks >= 0))
        slot, reward = step.picks[row, which], step.reward.astype(np.float64)
        used, models = _rows(obs)[row, slot], self._which(driver.slot_skills())[row, slot]
        for model in np.unique(models):
            at = models == model
            self._models[model].add(used[at], reward[row[at]])
        alone = ~on.any(1)
        self._nothing.add(_with_one(obs["context"][alone]), reward[alone])

    def _which(self, skills: Int) -> Int:
        return np.zeros_like(skills) if len(self._models) == 1 else skills


@dataclass(frozen=True, slots=True)
class Kind:
    """A bandit by its two choices: how it explores, and whether each skill has its own model."""

    explore: Callable[[float, np.random.Generator], Rule]
    per_skill: bool


BANDITS: Mapping[str, Kind] = {
    "linucb": Kind(lambda spread, rng: upper_bound(spread), False),
    "linucb_per_skill": Kind(lambda spread, rng: upper_bound(spread), True),
    "thompson": Kind(sampled, False),
    "thompson_per_skill": Kind(sampled, True),
}


def bandit(name: str, skills: int, rng: np.random.Generator, spread: float = 0.3) -> LinearBandit:
    """The bandit ``name`` of :data:`BANDITS` for a library of ``skills``, before any outcome.

    It explores as if its errors were ``spread`` times the standard errors of rewards with the
    standard deviation 1.
    """
    kind = BANDITS[name]
    return LinearBandit(name, kind.explore(spread, rng), skills if kind.per_skill else None)


def study(agent: LinearBandit, driver: Driver) -> None:
    """Let ``agent`` explore the sessions of ``driver`` up to their horizon and learn from them."""
    agent.exploring = True
    for _ in range(driver.config.horizon):
        obs = driver.observe()
        picks = agent.act(obs, driver).picks
        learn(agent, obs, driver.step(subset.to_mask(picks, driver.config.candidates)), driver)
    agent.exploring = False


def _rows(obs: Mapping[str, Any]) -> Floats:
    """Features, context and one of each slot, (B, M, F)."""
    features, context = obs["features"], obs["context"]
    wide = np.broadcast_to(context[:, None], (*features.shape[:2], context.shape[-1]))
    return _with_one(np.concatenate([features, wide], -1))


def _with_one(rows: NDArray[np.float32]) -> Floats:
    return np.concatenate([rows, np.ones((*rows.shape[:-1], 1))], -1, dtype=np.float64)
