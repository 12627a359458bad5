"""Whether a policy may take the place of the one that runs, by what the log says."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from pydantic import Field, model_validator

from letta_gym.config import Section
from letta_gym.errors import ConfigError
from letta_gym.feedback.offpolicy import (
    Diagnostics,
    Interval,
    LoggedRewards,
    diagnose,
    empirical_bernstein,
)


class GateConfig(Section):
    """What a policy must show.

    ``margin``: least gain, at the lower end of its interval, in units of the reward.
    ``confidence``: of that interval; half of the rest is the chance of a wrong promotion at one
    look at the log.
    ``min_effective``: least effective sample size.
    ``clip``: largest importance weight. Clipping takes value away from the candidate only.
    ``reward_low``, ``reward_high``: between which every reward lies.
    """

    margin: float = Field(default=0.005, ge=0)
    confidence: float = Field(default=0.95, gt=0, lt=1)
    min_effective: float = Field(default=200.0, ge=0)
    clip: float = Field(default=10.0, ge=1)
    reward_low: float = 0.0
    reward_high: float = 1.0

    @model_validator(mode="after")
    def _the_range_is_one(self) -> GateConfig:
        if not self.reward_low < self.reward_high:
            raise ValueError(
                f"reward_low must lie below reward_high; got {self.reward_low}, {self.reward_high}"
            )
        return self


@dataclass(frozen=True, slots=True)
class Ruling:
    """The gate's answer.

    Attributes:
        promoted: whether the candidate may take over.
        worse: whether the log shows that it is worse.
        reason: why, with the figures.
        candidate, incumbent: estimated value, and mean reward of what ran, exploration included.
        gain: their difference with its interval.
        diagnostics: of the log.
    """

    promoted: bool
    worse: bool
    reason: str
    candidate: float
    incumbent: float
    gain: Interval
    diagnostics: Diagnostics


def rule(log: LoggedRewards, config: GateConfig | None = None) -> Ruling:
    """Judge a candidate by the log of the incumbent.

    The gain is the mean of (w - 1) r over the decisions, with clipped weights w and the reward r
    counted from ``reward_low``. Its interval is the empirical Bernstein bound, which holds at any
    sample size and whatever the weights look like.

    Raises:
        ConfigError: fewer than two decisions, or a reward out of range.
    """
    config = config or GateConfig()
    low, high = config.reward_low, config.reward_high
    outside = (log.reward < low) | (log.reward > high)
    if len(log) < 2 or outside.any():
        got = f"{len(log)} decisions, rewards from {log.reward.min()} to {log.reward.max()}"
        raise ConfigError(
            f"the gate needs at least two decisions with rewards in [{low}, {high}]; got {got}. "
            "Set reward_low and reward_high to the range of your rewards"
        )
    height = high - low
    reward = log.reward - low
    weight = np.minimum(log.weight, config.clip)
    gain = empirical_bernstein(
        (weight - 1) * reward, -height, (config.clip - 1) * height, config.confidence
    )
    found = diagnose(log, config.clip)
    incumbent = float(log.reward.mean())
    promoted, reason = _decide(gain, found, config)
    return Ruling(promoted, gain.high < 0, reason, incumbent + gain.value, incumbent, gain, found)


def _decide(gain: Interval, found: Diagnostics, config: GateConfig) -> tuple[bool, str]:
    told = f"gain {gain.value:+.4f} ({gain.low:+.4f} to {gain.high:+.4f})"
    if found.effective < config.min_effective:
        return False, (
            f"refused: the effective sample size is {found.effective:.0f} of {found.decisions:,} "
            f"decisions, {config.min_effective:.0f} are needed; {told}"
        )
    if gain.low <= config.margin:
        return False, (
            f"refused: {told}, its lower end must exceed {config.margin:g}; "
            f"effective sample size {found.effective:.0f} of {found.decisions:,}"
        )
    return True, f"{told}, effective sample size {found.effective:.0f} of {found.decisions:,}"
