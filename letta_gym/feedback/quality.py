"""How good each skill is, from what happened: for all agents or one, all kinds of tasks or one.

Skills are known by their content hash, so a changed SKILL.md starts anew from its prior. Nothing
here acts: what looks harmful or forgotten is proposed for pruning, and a person decides.

Two comparisons tell what a skill adds. Where one of the chosen skills was *held out* at random, the
tasks with and without it differ by nothing else: that is an effect. Otherwise its uses are compared
with the tasks that the agent did alone, which may have been other tasks: that is a hint, and no
hint proves a skill.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import combinations

from pydantic import Field

from letta_gym.config import Section
from letta_gym.errors import ConfigError
from letta_gym.feedback.beta import UNINFORMED, Beta, Rate, difference

_DAY = 86_400.0
_LEAST_PRIOR, _MOST_PRIOR = 0.02, 0.98


class QualityConfig(Section):
    """Constants of the judgement.

    ``half_life_days``: an outcome of that age counts half; None counts all alike. Agents, models
    and tasks change, so that old outcomes say less.
    ``window_days``: length of the two windows whose difference is the trend.
    ``min_uses``: uses, discounted, below which nothing is said of a skill.
    ``min_held_out``: tasks without the skill below which hold-outs say nothing.
    ``stale_days``: unused for so long, a skill is proposed for pruning.
    ``confidence``: of every interval.
    ``prior_strength``: outcomes that the prior of a success rate is worth.
    ``prior_alone``: success without skills before any outcome, published average.
    ``prior_uplift``: what a skill is expected to add before any outcome, published average.
    """

    half_life_days: float | None = Field(default=None, gt=0)
    window_days: float = Field(default=14.0, gt=0)
    min_uses: float = Field(default=20.0, gt=0)
    min_held_out: int = Field(default=8, ge=1)
    stale_days: float = Field(default=60.0, gt=0)
    confidence: float = Field(default=0.95, gt=0, lt=1)
    prior_strength: float = Field(default=2.0, gt=0)
    prior_alone: float = Field(default=0.35, gt=0, lt=1)
    prior_uplift: float = 0.1


@dataclass(frozen=True, slots=True)
class Trial:
    """One settled decision.

    Attributes:
        at: when, Unix seconds.
        agent: whose.
        kind: kind of task, in whatever words.
        chosen: content hashes of the chosen skills, with the one that was held out.
        loaded: of those that the agent loaded.
        success: graded result in [0, 1].
        reward: where it was priced.
        tokens: what the loaded skills cost.
        hold_rate: probability with which one of ``chosen`` was to be held out.
        held_out: the one that was.
        policy: digest of the policy that chose.
        allowed_tokens: what the best candidates cost, as many as were allowed; None if unknown.
    """

    at: float
    agent: str
    kind: str
    chosen: tuple[str, ...]
    loaded: tuple[str, ...]
    success: float
    reward: float | None = None
    tokens: float = 0.0
    hold_rate: float = 0.0
    held_out: str | None = None
    policy: str = ""
    allowed_tokens: float | None = None

    def __post_init__(self) -> None:
        offered = set(self.chosen) - {self.held_out}
        if not set(self.loaded) <= offered:
            raise ConfigError(
                f"only skills that were chosen and not held out can be loaded, {sorted(offered)}; "
                f"got {list(self.loaded)}"
            )
        if not 0 <= self.success <= 1 or not 0 <= self.hold_rate < 1:
            raise ConfigError(
                "success lies in [0, 1] and hold_rate in [0, 1); "
                f"got {self.success} and {self.hold_rate}"
            )


class Verdict(StrEnum):
    """What the outcomes say of a skill."""

    UNKNOWN = "unknown"
    PROMISING = "promising"
    PROVEN = "proven"
    HARMFUL = "harmful"


@dataclass(frozen=True, slots=True)
class SkillQuality:
    """What is known of a skill, for the agent and the kind of task that were asked for.

    Attributes:
        key: content hash.
        uses: tasks in which it was loaded.
        success: success rate in them, with its credible interval.
        reward: mean reward in them, of those that were priced.
        tokens: mean tokens of everything loaded in them.
        uplift: success with it minus success without; None where there is nothing to compare.
        randomised: whether ``uplift`` comes from hold-outs.
        held_out: tasks in which it was held out.
        trend: success in the last window minus that in the one before; None with too few uses.
        idle_days: days since it was loaded last; None if never.
        verdict, reason: what follows.
    """

    key: str
    uses: int
    success: Rate
    reward: float | None
    tokens: float | None
    uplift: Rate | None
    randomised: bool
    held_out: int
    trend: Rate | None
    idle_days: float | None
    verdict: Verdict
    reason: str


@dataclass(frozen=True, slots=True)
class CoUse:
    """Two skills that were loaded together, and how much more often than by chance (lift 1)."""

    one: str
    other: str
    uses: int
    lift: float


@dataclass(frozen=True, slots=True)
class Proposal:
    """A skill that a person may want to remove, and why."""

    key: str
    reason: str


class QualityTracker:
    """Settled decisions, and what they say about each skill.

    Args:
        config: the constants.
        priors: expected success rate of a skill before its first outcome, by content hash, from
            what it says it does; by default the agent's alone and the published uplift.
    """

    def __init__(
        self, config: QualityConfig | None = None, priors: Mapping[str, float] | None = None
    ) -> None:
        self.config = config or QualityConfig()
        self._priors = dict(priors or {})
        self._all: list[Trial] = []
        self._of: dict[str, list[Trial]] = defaultdict(list)

    def add(self, trials: Iterable[Trial]) -> None:
        """Take in settled decisions, in any order."""
        for trial in trials:
            self._all.append(trial)
            for key in trial.chosen:
                self._of[key].append(trial)

    def quality(
        self, key: str, now: float, *, agent: str | None = None, kind: str | None = None
    ) -> SkillQuality:
        """What is known of the skill ``key`` at the time ``now`` (Unix seconds).

        Args:
            key: content hash; a skill without a decision has its prior and is unknown.
            now: outcomes are as old as that says.
            agent, kind: only of this agent, only of this kind of task.
        """
        trials = [trial for trial in self._of[key] if _asked(trial, agent, kind)]
        used = [trial for trial in trials if key in trial.loaded]
        alone = self._alone(now, agent, kind)
        success = self._prior(key, alone).after(*self._weigh(used, now))
        uplift, randomised, held_out = self._uplift(key, trials, success, alone, now)
        weight = sum(self._weight(trial, now) for trial in used)
        idle = (now - max(trial.at for trial in used)) / _DAY if used else None
        verdict, reason = self._judge(weight, uplift, randomised, held_out)
        priced = [trial.reward for trial in used if trial.reward is not None]
        return SkillQuality(
            key=key,
            uses=len(used),
            success=success.interval(self.config.confidence),
            reward=sum(priced) / len(priced) if priced else None,
            tokens=sum(trial.tokens for trial in used) / len(used) if used else None,
            uplift=uplift,
            randomised=randomised,
            held_out=held_out,
            trend=self._trend(used, now),
            idle_days=idle,
            verdict=verdict,
            reason=reason,
        )

    def table(
        self,
        keys: Sequence[str],
        now: float,
        *,
        agent: str | None = None,
        kind: str | None = None,
    ) -> list[SkillQuality]:
        """The quality of several skills, the most successful first."""
        found = [self.quality(key, now, agent=agent, kind=kind) for key in keys]
        return sorted(found, key=lambda one: (-one.success.value, one.key))

    def co_use(self, *, min_uses: int = 5) -> list[CoUse]:
        """Pairs of skills that were loaded together at least ``min_uses`` times, by lift.

        lift = P(both) / (P(one) P(other)) over the tasks in which any skill was loaded.
        """
        loads = [sorted(set(trial.loaded)) for trial in self._all if trial.loaded]
        single = Counter(key for keys in loads for key in keys)
        pairs = Counter(pair for keys in loads for pair in combinations(keys, 2))
        found = [
            CoUse(one, other, both, both * len(loads) / (single[one] * single[other]))
            for (one, other), both in pairs.items()
            if both >= min_uses
        ]
        return sorted(found, key=lambda pair: (-pair.lift, pair.one, pair.other))

    def prune(self, keys: Sequence[str], now: float) -> list[Proposal]:
        """Which of the skills ``keys`` a person may want to remove; nothing is removed here."""
        proposals = []
        for key in keys:
            one = self.quality(key, now)
            if one.verdict is Verdict.HARMFUL:
                proposals.append(Proposal(key, one.reason))
            elif one.idle_days is not None and one.idle_days > self.config.stale_days:
                proposals.append(Proposal(key, f"not used for {one.idle_days:.0f} days"))
        return proposals

    def _uplift(
        self, key: str, trials: Sequence[Trial], success: Beta, alone: Beta, now: float
    ) -> tuple[Rate | None, bool, int]:
        """What the skill adds, whether hold-outs say so, and how many there were.

        With hold-outs: of the decisions that might have held it out, those that held out nothing
        and those that held out this one, each weighted by one over the probability of that, as in
        a randomised trial (Hajek). What counts is that it was offered: whether the agent then
        loads it is part of the effect.
        """
        eligible = [trial for trial in trials if trial.hold_rate > 0]
        offered = [(t, 1 / (1 - t.hold_rate)) for t in eligible if t.held_out is None]
        withheld = [(t, len(t.chosen) / t.hold_rate) for t in eligible if t.held_out == key]
        if len(withheld) >= self.config.min_held_out and offered:
            one, other = self._arm(offered, now), self._arm(withheld, now)
            return difference(one, other, self.config.confidence), True, len(withheld)
        if not any(key in trial.loaded for trial in trials):
            return None, False, len(withheld)
        return difference(success, alone, self.config.confidence), False, len(withheld)

    def _arm(self, trials: Sequence[tuple[Trial, float]], now: float) -> Beta:
        """One side of a trial: its weighted success, worth its effective sample size (Kish)."""
        weights = [weight * self._weight(trial, now) for trial, weight in trials]
        total = sum(weights)
        mean = sum(w * t.success for w, (t, _) in zip(weights, trials, strict=True)) / total
        size = total**2 / sum(weight**2 for weight in weights)
        return UNINFORMED.after(size * mean, size * (1 - mean))

    def _judge(
        self, weight: float, uplift: Rate | None, randomised: bool, held_out: int
    ) -> tuple[Verdict, str]:
        wanted = self.config.min_uses
        if uplift is None or weight < wanted:
            return Verdict.UNKNOWN, f"{weight:.0f} uses count, {wanted:.0f} are needed"
        spread = f"{100 * uplift.value:+.0f} points ({100 * uplift.low:+.0f} to "
        spread += f"{100 * uplift.high:+.0f})"
        told = (
            f"{spread} against {held_out} tasks in which it was held out"
            if randomised
            else f"{spread} against the agent alone, on tasks that may differ"
        )
        if uplift.high < 0:
            return Verdict.HARMFUL, told
        if uplift.low > 0 and randomised:
            return Verdict.PROVEN, told
        if uplift.value > 0:
            return Verdict.PROMISING, told
        return Verdict.UNKNOWN, told

    def _trend(self, used: Sequence[Trial], now: float) -> Rate | None:
        length = self.config.window_days * _DAY
        sides = []
        for end in (now, now - length):
            inside = [trial.success for trial in used if end - length < trial.at <= end]
            if len(inside) < 5:
                return None
            good = sum(inside)
            sides.append(UNINFORMED.after(good, len(inside) - good))
        return difference(sides[0], sides[1], self.config.confidence)

    def _alone(self, now: float, agent: str | None, kind: str | None) -> Beta:
        prior = Beta.around(self.config.prior_alone, self.config.prior_strength)
        alone = [t for t in self._all if not t.loaded and _asked(t, agent, kind)]
        return prior.after(*self._weigh(alone, now))

    def _prior(self, key: str, alone: Beta) -> Beta:
        expected = self._priors.get(key, alone.mean + self.config.prior_uplift)
        mean = min(max(expected, _LEAST_PRIOR), _MOST_PRIOR)
        return Beta.around(mean, self.config.prior_strength)

    def _weigh(self, trials: Sequence[Trial], now: float) -> tuple[float, float]:
        """Discounted successes and failures."""
        pairs = [(self._weight(trial, now), trial.success) for trial in trials]
        good = sum(weight * success for weight, success in pairs)
        return good, sum(weight for weight, _ in pairs) - good

    def _weight(self, trial: Trial, now: float) -> float:
        half_life = self.config.half_life_days
        if half_life is None:
            return 1.0
        return float(0.5 ** (max(now - trial.at, 0.0) / _DAY / half_life))


def _asked(trial: Trial, agent: str | None, kind: str | None) -> bool:
    return (agent is None or trial.agent == agent) and (kind is None or trial.kind == kind)
