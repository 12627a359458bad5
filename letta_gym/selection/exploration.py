"""Exploration in production: careful, within a budget, and with exact probabilities.

A set is drawn from a mixture: mostly the policy's own distribution, sometimes any set alike
(``epsilon``), sometimes one skill that was never tried (``untried``). Then, rarely, one of the
chosen skills is held out at random (``hold_rate``), so that its effect can be measured. The
probability of the set that is carried out adds up every way in which it may come about: for a set S
of n skills,

    P(S) = (1 - h [n > 0]) Q(S) + sum over j outside of S of h / (n + 1) Q(S + j)

with Q the mixture and h the rate of hold-outs.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from letta_gym.config import Section
from letta_gym.selection import subset

Double = NDArray[np.float64]
Int = NDArray[np.int64]
Bool = NDArray[np.bool_]

_DAY = 86_400.0


class ExplorationConfig(Section):
    """How much a selector explores; it does so only where it is asked to.

    ``epsilon``: share of the choices in which any set is drawn alike.
    ``untried``: share of the choices in which one skill that was never tried is drawn.
    ``hold_rate``: share of the choices in which one of the chosen skills is held out.
    ``daily_budget``: choices within 24 hours that may differ from the best one; when they are used
    up, the best set is chosen.
    """

    epsilon: float = Field(default=0.02, ge=0, le=1)
    untried: float = Field(default=0.02, ge=0, le=1)
    hold_rate: float = Field(default=0.015, ge=0, lt=1)
    daily_budget: int = Field(default=500, ge=0)

    @model_validator(mode="after")
    def _leave_a_part_to_the_policy(self) -> ExplorationConfig:
        if not self.epsilon + self.untried < 1:
            raise ValueError(
                "epsilon + untried must stay below 1, the rest is the policy's; "
                f"got {self.epsilon} + {self.untried}"
            )
        return self


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


class Explorer:
    """Draws sets for one agent and counts how often they differ from the best.

    Args:
        config: how much.
        clock: gives the time in seconds.
    """

    def __init__(
        self, config: ExplorationConfig | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self.config = config or ExplorationConfig()
        self._clock = clock
        self._different: deque[float] = deque()

    @property
    def left(self) -> int:
        """How many more choices may differ from the best one now."""
        now = self._clock()
        while self._different and self._different[0] <= now - _DAY:
            self._different.popleft()
        return max(self.config.daily_budget - len(self._different), 0)

    def draw(self, logits: Double, k: int, untried: Bool, rng: np.random.Generator) -> Draw:
        """Draw a set.

        Args:
            logits: of the M slots, -inf where masked, and of stopping, shape (1, M + 1).
            k: most skills.
            untried: slots whose skill was never tried, shape (M,).
            rng: source of chance.
        """
        best = subset.greedy(logits, k)
        if not self.left:
            return Draw(best, 0.0, explored=False)
        new = np.flatnonzero(untried & np.isfinite(logits[0, :-1]))
        chosen = self._choose(logits, k, new, rng)
        picks, held_out = self._hold_out(chosen, rng)
        log_propensity = set_log_prob(logits, picks, new, self.config)
        if set(picks[0].tolist()) != set(best[0].tolist()):
            self._different.append(self._clock())
        return Draw(picks, log_propensity, True, self.config.hold_rate, held_out)

    def _choose(self, logits: Double, k: int, new: Int, rng: np.random.Generator) -> Int:
        part = rng.random()
        if part < self.config.epsilon:
            return subset.sample(_flat(logits), k, rng)
        if part < self.config.epsilon + self.config.untried and len(new):
            picks = np.full((1, k), subset.NO_PICK)
            picks[0, 0] = rng.choice(new)
            return picks
        return subset.sample(logits, k, rng)

    def _hold_out(self, chosen: Int, rng: np.random.Generator) -> tuple[Int, tuple[int, ...]]:
        at = np.flatnonzero(chosen[0] >= 0)
        if not len(at) or rng.random() >= self.config.hold_rate:
            return chosen, ()
        which = rng.choice(at)
        picks = chosen.copy()
        picks[0, which] = subset.NO_PICK
        return picks, (int(chosen[0, which]),)


def set_log_prob(logits: Double, picks: Int, untried: Int, config: ExplorationConfig) -> float:
    """Log-probability with which :meth:`Explorer.draw` carries out the set ``picks`` (1, k).

    Args:
        logits: shape (1, M + 1).
        picks: slots, -1 where there is none, shape (1, k).
        untried: slots, not masked, whose skill was never tried, shape (U,).
        config: how much is explored.
    """
    k, members = picks.shape[1], picks[0][picks[0] >= 0]
    rate, size = config.hold_rate, len(members)
    ways = [picks[0]]
    shares = [1 - rate if size else 1.0]
    if size < k and rate > 0:
        free = np.flatnonzero(np.isfinite(logits[0, :-1]))
        for slot in np.setdiff1d(free, members):
            way = np.full(k, subset.NO_PICK)
            way[: size + 1] = *members, slot
            ways.append(way)
            shares.append(rate / (size + 1))
    chosen = _chosen_log_prob(logits, np.stack(ways), untried, config)
    total: float = np.logaddexp.reduce(np.log(shares) + chosen)
    return float(total)


def _chosen_log_prob(logits: Double, picks: Int, untried: Int, config: ExplorationConfig) -> Double:
    """Log-probability of drawing each set of ``picks`` (B, k), before hold-outs, shape (B,)."""
    rows = np.repeat(logits, len(picks), axis=0)
    new = config.untried if len(untried) else 0.0
    alone = (picks >= 0).sum(axis=1) == 1
    singles = alone & np.isin(picks.max(axis=1), untried)
    with np.errstate(divide="ignore"):  # a part that is switched off has the logarithm -inf
        parts = [
            np.log(1 - config.epsilon - new) + subset.set_log_prob(rows, picks),
            np.log(config.epsilon) + subset.set_log_prob(_flat(rows), picks),
            np.log(new * singles / max(len(untried), 1)),
        ]
    result: Double = np.logaddexp.reduce(parts, axis=0)
    return result


def _flat(logits: Double) -> Double:
    """Logits of a policy to which all slots that are not masked are alike."""
    return np.where(np.isfinite(logits), 0.0, logits)
