"""Beta posteriors of success rates: means, credible intervals, and intervals of differences."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

_POINTS = 4_001
_SPREAD = 20.0  # standard deviations of the log-odds to each side


@dataclass(frozen=True, slots=True)
class Rate:
    """A number with the ends of its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Beta:
    """What is believed of a success rate: as after ``good`` successes and ``bad`` failures.

    Both are above 0 and need not be whole: graded and discounted outcomes add parts.
    """

    good: float
    bad: float

    @classmethod
    def around(cls, mean: float, strength: float) -> Beta:
        """A prior of the given mean in (0, 1), worth ``strength`` outcomes."""
        return cls(mean * strength, (1 - mean) * strength)

    def after(self, good: float, bad: float) -> Beta:
        """The posterior after further outcomes."""
        return Beta(self.good + good, self.bad + bad)

    @property
    def mean(self) -> float:
        """Expected success rate."""
        return self.good / (self.good + self.bad)

    def interval(self, confidence: float = 0.95) -> Rate:
        """Mean and equal-tailed credible interval.

        The density is summed over the log-odds x, where it is g(x) = p^good (1 - p)^bad with
        p = 1 / (1 + exp(-x)): one smooth hill, whatever the two numbers are.
        """
        deviation = math.sqrt(1 / self.good + 1 / self.bad)
        centre = math.log(self.good / self.bad)
        x = np.linspace(centre - _SPREAD * deviation, centre + _SPREAD * deviation, _POINTS)
        log_density = -self.good * np.logaddexp(0, -x) - self.bad * np.logaddexp(0, x)
        mass = np.exp(log_density - log_density.max())
        below = (mass.cumsum() - mass / 2) / mass.sum()
        tail = (1 - confidence) / 2
        low, high = np.interp([tail, 1 - tail], below, x)
        return Rate(self.mean, _logistic(low), _logistic(high))


UNINFORMED = Beta(0.5, 0.5)
"""Belief before any outcome (Jeffreys)."""


def success(count: float, mean: float) -> Beta:
    """What ``count`` graded outcomes in [0, 1] with that mean say of a success rate."""
    return UNINFORMED.after(count * mean, count * (1 - mean))


def difference(one: Beta, other: Beta, confidence: float = 0.95) -> Rate:
    """``one`` minus ``other``, with the interval of their own intervals.

    The hybrid of Newcombe, Statistics in Medicine 17 (1998), method 10: each end joins the
    distances from the two means to the ends that pull it there.
    """
    a, b = one.interval(confidence), other.interval(confidence)
    value = a.value - b.value
    return Rate(
        value,
        value - math.hypot(a.value - a.low, b.high - b.value),
        value + math.hypot(a.high - a.value, b.value - b.low),
    )


def _logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > 0 else math.exp(x) / (1 + math.exp(x))
