"""What a deployment looks like: trends, costs, policies side by side, and which skills matter."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from letta_gym.feedback.beta import Beta, Rate, difference, success
from letta_gym.feedback.quality import (
    CoUse,
    Proposal,
    QualityConfig,
    QualityTracker,
    SkillQuality,
    Trial,
)


class Period(Enum):
    """Length of a point of a trend, in seconds; periods begin at whole hours or days of UTC."""

    HOUR = 3_600
    DAY = 86_400


@dataclass(frozen=True, slots=True)
class Point:
    """What happened in one period.

    Attributes:
        start: when it began, Unix seconds.
        decisions: settled ones, at least one.
        success: rate with its credible interval.
        reward: mean of those that were priced.
        tokens: mean of what was loaded.
        tokens_saved: against loading the best candidates as many as were allowed, in all; of the
            decisions for which that is known.
    """

    start: float
    decisions: int
    success: Rate
    reward: float | None
    tokens: float
    tokens_saved: float


@dataclass(frozen=True, slots=True)
class PolicyRecord:
    """What came of the decisions of one policy, and how that differs from the one named first.

    The tasks of two policies may differ: this is a record, and the gate of a promotion decides.
    """

    policy: str
    decisions: int
    success: Rate
    reward: float | None
    tokens: float
    lead: Rate | None


@dataclass(frozen=True, slots=True)
class Summary:
    """A deployment in numbers.

    Attributes:
        whole: everything in one point.
        coverage: share of the decisions in which a skill was loaded.
        used: share of the skills that were loaded at least once.
        cost: of all loaded tokens, at the given price.
        saved: of all saved tokens.
        top, bottom: skills by success rate, the best and the worst first; each with enough uses.
        unused: skills that were never loaded.
        prune: skills that a person may want to remove, and why; nothing is removed.
        together: skills that were loaded together more often than by chance, by lift.
    """

    whole: Point | None
    coverage: float
    used: float
    cost: float
    saved: float
    top: tuple[SkillQuality, ...]
    bottom: tuple[SkillQuality, ...]
    unused: tuple[str, ...]
    prune: tuple[Proposal, ...]
    together: tuple[CoUse, ...]


def trend(trials: Sequence[Trial], period: Period) -> list[Point]:
    """One point for each hour or day in which something was settled, in order."""
    of: dict[float, list[Trial]] = defaultdict(list)
    for trial in trials:
        of[trial.at // period.value * period.value].append(trial)
    return [_point(start, of[start]) for start in sorted(of)]


def compare_policies(trials: Sequence[Trial], first: str | None = None) -> list[PolicyRecord]:
    """The record of every policy, the most used first; ``first`` is who the others are held to.

    By default that is the most used one.
    """
    of: dict[str, list[Trial]] = defaultdict(list)
    for trial in trials:
        of[trial.policy].append(trial)
    order = sorted(of, key=lambda policy: (policy != first, -len(of[policy]), policy))
    records = []
    for policy in order:
        lead = None
        if policy != order[0]:
            lead = difference(_success(of[policy]), _success(of[order[0]]))
        whole = _point(0.0, of[policy])
        records.append(
            PolicyRecord(policy, whole.decisions, whole.success, whole.reward, whole.tokens, lead)
        )
    return records


def summarise(
    trials: Sequence[Trial],
    keys: Sequence[str],
    now: float,
    *,
    price: float = 0.0,
    most: int = 5,
    min_uses: int = 5,
    quality: QualityConfig | None = None,
) -> Summary:
    """A deployment in numbers.

    Args:
        trials: settled decisions.
        keys: content hashes of the skills that are installed now.
        now: Unix seconds.
        price: of a token.
        most: skills in ``top`` and in ``bottom``.
        min_uses: uses that a skill needs to be in one of them.
        quality: constants by which skills are judged, such as how fast outcomes grow old.
    """
    tracker = QualityTracker(quality)
    tracker.add(trials)
    table = tracker.table(keys, now)
    known = [one for one in table if one.uses >= min_uses]
    unused = tuple(one.key for one in table if not one.uses)
    whole = _point(0.0, trials) if trials else None
    tokens = sum(trial.tokens for trial in trials)
    return Summary(
        whole=whole,
        coverage=sum(bool(trial.loaded) for trial in trials) / len(trials) if trials else 0.0,
        used=1 - len(unused) / len(keys) if keys else 0.0,
        cost=price * tokens,
        saved=price * whole.tokens_saved if whole else 0.0,
        top=tuple(known[:most]),
        bottom=tuple(known[::-1][:most]),
        unused=unused,
        prune=tuple(tracker.prune(keys, now)),
        together=tuple(pair for pair in tracker.co_use()[:most] if pair.lift > 1),
    )


def _point(start: float, trials: Sequence[Trial]) -> Point:
    priced = [trial.reward for trial in trials if trial.reward is not None]
    saved = [t.allowed_tokens - t.tokens for t in trials if t.allowed_tokens is not None]
    return Point(
        start=start,
        decisions=len(trials),
        success=_success(trials).interval(),
        reward=sum(priced) / len(priced) if priced else None,
        tokens=sum(trial.tokens for trial in trials) / len(trials),
        tokens_saved=sum(saved),
    )


def _success(trials: Sequence[Trial]) -> Beta:
    return success(len(trials), sum(trial.success for trial in trials) / len(trials))
