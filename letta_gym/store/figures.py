"""Figures over what was decided and what came of it, as far as a viewer may see it.

The database counts and averages; what that says of a rate is :mod:`letta_gym.feedback.beta`'s. The
same figures come of :mod:`letta_gym.feedback.analytics`, which reads every decision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, case, exists, func, select
from sqlalchemy.orm import Session

from letta_gym.feedback.beta import success
from letta_gym.store.engine import Clock, Database
from letta_gym.store.models import (
    DecisionRow,
    FeedbackRow,
    OutcomeRow,
    PickRow,
    SkillRow,
    VersionRow,
    Viewer,
)

DAY = 86_400.0
RECENT = 7 * DAY


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean of numbers in [0, 1] with its 95 % credible interval; None without any number."""

    count: int
    mean: float | None
    low: float | None
    high: float | None

    @classmethod
    def of(cls, count: int, mean: float | None) -> Mean:
        """The mean of ``count`` numbers.

        The interval holds the mean itself: where all went well or badly it reaches to the end
        (Brown, Cai and DasGupta, Statistical Science 16 (2001), the modified Jeffreys interval).
        """
        if not count or mean is None:
            return cls(0, None, None, None)
        rate = success(count, mean).interval()
        return cls(count, mean, min(rate.low, mean), max(rate.high, mean))


@dataclass(frozen=True, slots=True)
class Summary:
    """Figures over all decisions that were carried out.

    Attributes:
        decisions: how many.
        without_skill: of these, how many chose no skill.
        success: of the graded outcomes; ``with_skill`` of those with a loaded skill, ``alone`` of
            the others.
        reward: mean reward; None where nothing was priced.
        tokens: of the chosen skills, in all.
        failures: outcomes of which nothing can be learned.
        liked, disliked: later words of at least 0.5, and below.
    """

    decisions: int
    without_skill: int
    success: Mean
    with_skill: Mean
    alone: Mean
    reward: float | None
    tokens: int
    failures: int
    liked: int
    disliked: int


@dataclass(frozen=True, slots=True)
class SkillFigures:
    """Figures of one skill, over all its versions.

    Attributes:
        skill: its id.
        chosen, loaded: how often.
        success: of the graded outcomes in which it was loaded; ``recent`` of the last 7 days.
        last_used: when it was chosen last, Unix seconds.
    """

    skill: str
    chosen: int
    loaded: int
    success: Mean
    recent: Mean
    last_used: float


@dataclass(frozen=True, slots=True)
class VersionFigures:
    """Figures of one content of a skill.

    Attributes:
        content_hash: which.
        since: when it was first seen, Unix seconds.
        tokens: of its instructions.
        chosen: how often.
        success: of the graded outcomes in which it was loaded.
    """

    content_hash: str
    since: float
    tokens: int
    chosen: int
    success: Mean


@dataclass(frozen=True, slots=True)
class Point:
    """A stretch of time that begins at ``at``, Unix seconds."""

    at: float
    success: Mean
    reward: float | None


@dataclass(frozen=True, slots=True)
class PolicyFigures:
    """Figures of one policy by its digest, over the decisions that it made."""

    digest: str
    decisions: int
    success: Mean
    reward: float | None
    tokens_per_task: float


_CARRIED_OUT = DecisionRow.mode != "shadow"
_GRADED = and_(OutcomeRow.evidence, OutcomeRow.success.is_not(None))
_LOADED = exists().where(PickRow.decision_id == OutcomeRow.decision_id, PickRow.loaded.is_(True))


class Figures:
    """Figures of what ``viewer`` may see; None is the operator, who sees all."""

    def __init__(self, database: Database, viewer: Viewer | None, clock: Clock) -> None:
        self._database, self._viewer, self._clock = database, viewer, clock

    def summary(self, since: float = 0.0) -> Summary:
        """Figures over the decisions since ``since``, Unix seconds."""
        made = and_(_CARRIED_OUT, DecisionRow.decided_at >= since)
        picked = exists().where(PickRow.decision_id == DecisionRow.id)
        counts = select(func.count(), func.coalesce(func.sum(case((picked, 0), else_=1)), 0)).where(
            made
        )
        tokens = select(func.coalesce(func.sum(PickRow.tokens), 0)).join(
            DecisionRow, DecisionRow.id == PickRow.decision_id
        )
        words = (
            select(func.count(), func.count(case((FeedbackRow.value >= 0.5, 1))))
            .join(DecisionRow, DecisionRow.id == FeedbackRow.decision_id)
            .where(made)
        )
        failed = _of_outcomes(func.count()).where(made, ~OutcomeRow.evidence)
        with self._database.read(self._viewer) as session:
            decisions, without = session.execute(counts.select_from(DecisionRow)).one()
            said, liked = session.execute(words.select_from(FeedbackRow)).one()
            return Summary(
                decisions=decisions,
                without_skill=without,
                success=_mean(session, made),
                with_skill=_mean(session, made, _LOADED),
                alone=_mean(session, made, ~_LOADED),
                reward=session.scalar(_of_outcomes(func.avg(OutcomeRow.reward)).where(made)),
                tokens=session.scalar(tokens.where(made)) or 0,
                failures=session.scalar(failed) or 0,
                liked=liked,
                disliked=said - liked,
            )

    def skills(self, since: float = 0.0) -> list[SkillFigures]:
        """Figures of every skill that was ever chosen, by id."""
        loaded = PickRow.loaded.is_(True)
        good = and_(loaded, _GRADED)
        recent = and_(good, OutcomeRow.recorded_at >= self._clock() - RECENT)
        query = (
            select(
                SkillRow.skill,
                func.count(),
                func.count(case((loaded, 1))),
                func.count(case((good, 1))),
                func.avg(case((good, OutcomeRow.success))),
                func.count(case((recent, 1))),
                func.avg(case((recent, OutcomeRow.success))),
                func.max(DecisionRow.decided_at),
            )
            .select_from(PickRow)
            .join(DecisionRow, DecisionRow.id == PickRow.decision_id)
            .outerjoin(OutcomeRow, OutcomeRow.decision_id == PickRow.decision_id)
            .join(VersionRow, VersionRow.id == PickRow.version_id)
            .join(SkillRow, SkillRow.id == VersionRow.skill_id)
            .where(_CARRIED_OUT, DecisionRow.decided_at >= since)
            .group_by(SkillRow.skill)
            .order_by(SkillRow.skill)
        )
        with self._database.read(self._viewer) as session:
            return [
                SkillFigures(skill, chosen, loaded, Mean.of(n, mean), Mean.of(new, late), last)
                for skill, chosen, loaded, n, mean, new, late, last in session.execute(query)
            ]

    def versions(self, skill: str) -> list[VersionFigures]:
        """Figures of every content that a skill had, the newest first."""
        known = (
            select(
                VersionRow.content_hash,
                func.min(VersionRow.created_at),
                func.max(VersionRow.tokens),
            )
            .join(SkillRow, SkillRow.id == VersionRow.skill_id)
            .where(SkillRow.skill == skill)
            .group_by(VersionRow.content_hash)
        )
        good = and_(PickRow.loaded.is_(True), _GRADED)
        used = (
            select(
                VersionRow.content_hash,
                func.count(),
                func.count(case((good, 1))),
                func.avg(case((good, OutcomeRow.success))),
            )
            .select_from(PickRow)
            .join(DecisionRow, DecisionRow.id == PickRow.decision_id)
            .outerjoin(OutcomeRow, OutcomeRow.decision_id == PickRow.decision_id)
            .join(VersionRow, VersionRow.id == PickRow.version_id)
            .join(SkillRow, SkillRow.id == VersionRow.skill_id)
            .where(_CARRIED_OUT, SkillRow.skill == skill)
            .group_by(VersionRow.content_hash)
        )
        with self._database.read(self._viewer) as session:
            did = {key: rest for key, *rest in session.execute(used)}
            found = [
                VersionFigures(key, since, tokens, chosen, Mean.of(count, mean))
                for key, since, tokens in session.execute(known)
                for chosen, count, mean in [did.get(key, (0, 0, None))]
            ]
        return sorted(found, key=lambda one: (-one.since, one.content_hash))

    def trend(self, since: float, width: float, skill: str | None = None) -> list[Point]:
        """Success and reward of what was decided in stretches of ``width`` seconds.

        Stretches in which nothing was that has an outcome are left out. With ``skill``, of the
        outcomes for which it was loaded, in whatever version.
        """
        asked = [_CARRIED_OUT, DecisionRow.decided_at >= since]
        if skill is not None:
            of_skill = select(VersionRow.id).join(SkillRow, SkillRow.id == VersionRow.skill_id)
            with_it = PickRow.version_id.in_(of_skill.where(SkillRow.skill == skill))
            asked.append(_LOADED.where(with_it))
        # round(x - 0.5) and not floor(x): SQLite has the latter only where it was built with it.
        stretch = func.round(DecisionRow.decided_at / width - 0.5)
        query = (
            _of_outcomes(
                stretch,
                func.count(case((_GRADED, 1))),
                func.avg(case((_GRADED, OutcomeRow.success))),
                func.avg(OutcomeRow.reward),
            )
            .where(*asked)
            .group_by(stretch)
            .order_by(stretch)
        )
        with self._database.read(self._viewer) as session:
            return [
                Point(number * width, Mean.of(count, mean), reward)
                for number, count, mean, reward in session.execute(query)
            ]

    def policies(self, since: float = 0.0) -> list[PolicyFigures]:
        """Figures of every policy that decided, the one with the most decisions first."""
        made = and_(_CARRIED_OUT, DecisionRow.decided_at >= since)
        of_policy = DecisionRow.policy_digest
        query = (
            select(
                of_policy,
                func.count(),
                func.count(case((_GRADED, 1))),
                func.avg(case((_GRADED, OutcomeRow.success))),
                func.avg(OutcomeRow.reward),
            )
            .outerjoin(OutcomeRow, OutcomeRow.decision_id == DecisionRow.id)
            .where(made)
            .group_by(of_policy)
            .order_by(func.count().desc(), of_policy)
        )
        spent = (
            select(of_policy, func.sum(PickRow.tokens))
            .join(PickRow, PickRow.decision_id == DecisionRow.id)
            .where(made)
            .group_by(of_policy)
        )
        with self._database.read(self._viewer) as session:
            tokens = {row[0]: row[1] for row in session.execute(spent)}
            return [
                PolicyFigures(digest, n, Mean.of(good, mean), reward, tokens.get(digest, 0) / n)
                for digest, n, good, mean, reward in session.execute(query)
            ]


def _of_outcomes(*columns: Any) -> Select[Any]:
    """Columns of outcomes beside their decisions."""
    joined = select(*columns).select_from(OutcomeRow)
    return joined.join(DecisionRow, DecisionRow.id == OutcomeRow.decision_id)


def _mean(session: Session, *conditions: ColumnElement[bool]) -> Mean:
    query = _of_outcomes(func.count(), func.avg(OutcomeRow.success)).where(_GRADED, *conditions)
    count, mean = session.execute(query).one()
    return Mean.of(count, mean)


def harmful(skills: Sequence[SkillFigures], alone: Mean) -> list[str]:
    """Ids of the skills that do worse than no skill at all, by their intervals."""
    return [
        one.skill
        for one in skills
        if one.success.high is not None and alone.low is not None and one.success.high < alone.low
    ]
