"""Exploration in production: careful, within a budget, and with exact probabilities.

A set is drawn from a mixture: mostly the policy's own distribution, sometimes any set alike
(``epsilon``), sometimes one skill that was never tried (``untried``), the rather the better it
scores. Then, rarely, one of the chosen skills is held out at random (``hold_rate``, or
``hold_fresh`` where one of them is new or changed), so that its effect can be measured. The
probability of the set that is carried out adds up every way in which it may come about: for a set S
of n skills,

    P(S) = (1 - h(S)) Q(S) + sum over j outside of S of h(S + j) / (n + 1) Q(S + j)

with Q the mixture and h(S) the rate of hold-outs of a set, 0 for the empty one.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from letta_gym.config import Section
from letta_gym.selection import subset

Float = NDArray[np.float32]
Double = NDArray[np.float64]
Int = NDArray[np.int64]
Bool = NDArray[np.bool_]

_DAY = 86_400.0


class ExplorationConfig(Section):
    """How much a selector explores; it does so only where it is asked to.

    ``epsilon``: share of the choices in which any set is drawn alike.
    ``untried``: share of the choices in which one skill that was never tried is drawn.
    ``hold_rate``: share of the choices in which one of the chosen skills is held out.
    ``hold_fresh``: the same of the choices with a fresh skill; null for no other rate. A skill that
    is always loaded where it fits seems to add what its tasks give away: only the same tasks
    without it tell, and of a new or changed skill there are none.
    ``fresh``: outcomes, weighted by fit, below which a skill is fresh.
    ``daily_budget``: choices within 24 hours that may differ from the best one; when they are used
    up, the best set is chosen.
    """

    epsilon: float = Field(default=0.02, ge=0, le=1)
    untried: float = Field(default=0.02, ge=0, le=1)
    hold_rate: float = Field(default=0.015, ge=0, lt=1)
    hold_fresh: float | None = Field(default=None, ge=0, lt=1)
    fresh: float = Field(default=15.0, ge=0)
    daily_budget: int = Field(default=500, ge=0)

    @model_validator(mode="after")
    def _leave_a_part_to_the_policy(self) -> ExplorationConfig:
        if not self.epsilon + self.untried < 1:
            raise ValueError(
                "epsilon + untried must stay below 1, the rest is the policy's; "
                f"got {self.epsilon} + {self.untried}"
            )
        return self

    def held(self, fresh: Bool) -> Double:
        """Rate of hold-outs of sets with a fresh skill, where ``fresh`` is true, and without."""
        rate = self.hold_rate if self.hold_fresh is None else self.hold_fresh
        rates: Double = np.where(fresh, rate, self.hold_rate)
        return rates


class Draw(NamedTuple):
    """A drawn set.

    Attributes:
        picks: slots to be carried out, shape (1, k), padded with -1.
        log_propensity: log-probability of that set; 0 where nothing was left to chance.
        explored: whether chance had a part in it.
        hold_rate: probability with which one of the chosen was to be held out.
        held_out: slot of the one that was, or nothing.
    """

    picks: Int
    log_propensity: float
    explored: bool
    hold_rate: float = 0.0
    held_out: tuple[int, ...] = ()


class Budget(Protocol):
    """How many choices of one agent may differ from the best one."""

    @property
    def left(self) -> int:
        """How many more may now."""
        ...

    def spend(self) -> None:
        """One did."""
        ...


class DailyBudget:
    """A budget for each 24 hours, of one process.

    Args:
        limit: choices within 24 hours.
        clock: gives the time in seconds.
    """

    def __init__(self, limit: int, clock: Callable[[], float] = time.time) -> None:
        self._limit, self._clock = limit, clock
        self._spent: deque[float] = deque()

    @property
    def left(self) -> int:
        """How many more choices may differ from the best one now."""
        now = self._clock()
        while self._spent and self._spent[0] <= now - _DAY:
            self._spent.popleft()
        return max(self._limit - len(self._spent), 0)

    def spend(self) -> None:
        """Count one."""
        self._spent.append(self._clock())


class Explorer:
    """Draws sets for one agent, and the best one when the budget is used up.

    Args:
        config: how much.
        budget: by default ``daily_budget`` of this process;
            :meth:`letta_gym.store.store.Store.budget` is one of all processes.
    """

    def __init__(
        self, config: ExplorationConfig | None = None, budget: Budget | None = None
    ) -> None:
        self.config = config or ExplorationConfig()
        self.budget = DailyBudget(self.config.daily_budget) if budget is None else budget

    def draw(self, logits: Double, k: int, outcomes: Float, rng: np.random.Generator) -> Draw:
        """Draw a set.

        Args:
            logits: of the M slots, -inf where masked, and of stopping, shape (1, M + 1).
            k: most skills.
            outcomes: of each slot's skill, weighted by fit; 0 where it was never tried, shape (M,).
            rng: source of chance.
        """
        best = subset.greedy(logits, k)
        if not self.budget.left:
            return Draw(best, 0.0, explored=False)
        chosen = self._choose(logits, k, _untried(logits, outcomes), rng)
        rate = float(_rates(chosen, outcomes, self.config)[0])
        picks, held_out = _hold_out(chosen, rate, rng)
        log_propensity = set_log_prob(logits, picks, outcomes, self.config)
        if set(picks[0].tolist()) != set(best[0].tolist()):
            self.budget.spend()
        return Draw(picks, log_propensity, True, rate, held_out)

    def _choose(self, logits: Double, k: int, new: Int, rng: np.random.Generator) -> Int:
        part = rng.random()
        if part < self.config.epsilon:
            return subset.sample(_flat(logits), k, rng)
        if part < self.config.epsilon + self.config.untried and len(new):
            picks = np.full((1, k), subset.NO_PICK)
            picks[0, 0] = rng.choice(new, p=_softmax(logits[0, new]))
            return picks
        return subset.sample(logits, k, rng)


def set_log_prob(logits: Double, picks: Int, outcomes: Float, config: ExplorationConfig) -> float:
    """Log-probability with which :meth:`Explorer.draw` carries out the set ``picks`` (1, k).

    Args:
        logits: shape (1, M + 1).
        picks: slots, -1 where there is none, shape (1, k).
        outcomes: of each slot's skill, weighted by fit, shape (M,).
        config: how much is explored.
    """
    k, members = picks.shape[1], picks[0][picks[0] >= 0]
    size, ways = len(members), [picks[0]]
    if size < k:
        free = np.flatnonzero(np.isfinite(logits[0, :-1]))
        for slot in np.setdiff1d(free, members):
            way = np.full(k, subset.NO_PICK)
            way[: size + 1] = *members, slot
            ways.append(way)
    every = np.stack(ways)
    shares = _rates(every, outcomes, config) / (size + 1)
    shares[0] = 1 - shares[0] * (size + 1)
    chosen = _chosen_log_prob(logits, every, _untried(logits, outcomes), config)
    with np.errstate(divide="ignore"):  # without hold-outs the other ways have the logarithm -inf
        total: float = np.logaddexp.reduce(np.log(shares) + chosen)
    return float(total)


def _untried(logits: Double, outcomes: Float) -> Int:
    """Slots, not masked, whose skill was never tried."""
    return np.flatnonzero((outcomes == 0) & np.isfinite(logits[0, :-1]))


def _rates(picks: Int, outcomes: Float, config: ExplorationConfig) -> Double:
    """Rate of hold-outs of each set of ``picks`` (B, k), shape (B,); 0 for the empty set."""
    fresh = np.append(outcomes < config.fresh, False)  # NO_PICK is the last one
    some_fresh: Bool = np.logical_or.reduce(fresh[picks], axis=1)
    return config.held(some_fresh) * (picks >= 0).any(axis=1)


def _hold_out(chosen: Int, rate: float, rng: np.random.Generator) -> tuple[Int, tuple[int, ...]]:
    at = np.flatnonzero(chosen[0] >= 0)
    if rng.random() >= rate:
        return chosen, ()
    which = rng.choice(at)
    picks = chosen.copy()
    picks[0, which] = subset.NO_PICK
    return picks, (int(chosen[0, which]),)


def _chosen_log_prob(logits: Double, picks: Int, untried: Int, config: ExplorationConfig) -> Double:
    """Log-probability of drawing each set of ``picks`` (B, k), before hold-outs, shape (B,)."""
    rows = np.repeat(logits, len(picks), axis=0)
    new = config.untried if len(untried) else 0.0
    alone = (picks >= 0).sum(axis=1) == 1
    tried = np.zeros(logits.shape[1])  # with what probability each skill is, if one is
    tried[untried] = _softmax(logits[0, untried])
    singles = alone * tried[picks.max(axis=1)]
    with np.errstate(divide="ignore"):  # a part that is switched off has the logarithm -inf
        parts = [
            np.log(1 - config.epsilon - new) + subset.set_log_prob(rows, picks),
            np.log(config.epsilon) + subset.set_log_prob(_flat(rows), picks),
            np.log(new * singles),
        ]
    result: Double = np.logaddexp.reduce(parts, axis=0)
    return result


def _softmax(logits: Double) -> Double:
    weights = np.exp(logits - logits.max(initial=-np.inf))
    shares: Double = weights / weights.sum()
    return shares


def _flat(logits: Double) -> Double:
    """Logits of a policy to which all slots that are not masked are alike."""
    return np.where(np.isfinite(logits), 0.0, logits)
