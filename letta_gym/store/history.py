"""What was decided and what came of it, read back: to learn from, to estimate, to restore."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sqlalchemy import Select, and_, or_, select
from sqlalchemy.orm import Session

from letta_gym.feedback.memory import ALONE, OutcomeMemory
from letta_gym.store.engine import Database
from letta_gym.store.models import (
    Agent,
    Base,
    DecisionRow,
    FeedbackRow,
    OutcomeRow,
    PickRow,
    Viewer,
)

_PAGE = 500  # decisions a query

# Plain tables: who may see a decision may see what its skills are called. Their scopes guard what
# is in them.
_SKILLS, _VERSIONS = Base.metadata.tables["skills"], Base.metadata.tables["skill_versions"]
_DECISIONS = (
    select(DecisionRow, Agent.name, OutcomeRow)
    .join(Agent, Agent.id == DecisionRow.agent_id)
    .outerjoin(OutcomeRow, OutcomeRow.decision_id == DecisionRow.id)
)


@dataclass(frozen=True, slots=True)
class LoggedPick:
    """A chosen skill; ``loaded`` is None until the outcome is there."""

    slot: int
    skill: str
    key: str
    fit: float
    tokens: int
    loaded: bool | None


class Version(NamedTuple):
    """What a version of a skill is called: the skill's id, content hash, category; and its cost."""

    skill: str
    key: str
    category: str | None
    tokens: int


@dataclass(frozen=True, eq=False, slots=True)
class Logged:
    """A decision with all that is known of it: its agent's name, the picks, what came of it."""

    agent: str
    decision: DecisionRow
    picks: tuple[LoggedPick, ...]
    outcome: OutcomeRow | None
    feedback: tuple[FeedbackRow, ...]

    @property
    def tokens(self) -> float | None:
        """What the loaded skills cost: as recorded, or as listed; None without an outcome."""
        if self.outcome is None:
            return None
        if self.outcome.tokens is not None:
            return self.outcome.tokens
        return float(sum(pick.tokens for pick in self.picks if pick.loaded))


class History:
    """The decisions that ``viewer`` may see; None is the operator, who sees all."""

    def __init__(self, database: Database, viewer: Viewer | None) -> None:
        self._database, self._viewer = database, viewer

    def decisions(
        self,
        *,
        agent: str | None = None,
        policy: str | None = None,
        since: float = 0.0,
        until: float | None = None,
        settled: bool = False,
    ) -> Iterator[Logged]:
        """Decisions in the order in which they were made; read page by page.

        Args:
            agent: only of the agent of this name.
            policy: only of the policy of this digest.
            since, until: from when on and before when they were made, Unix seconds.
            settled: only those with an outcome.
        """
        query = (
            select(DecisionRow, Agent.name, OutcomeRow)
            .join(Agent, Agent.id == DecisionRow.agent_id)
            .join(OutcomeRow, OutcomeRow.decision_id == DecisionRow.id, isouter=not settled)
            .where(DecisionRow.decided_at >= since)
            .order_by(DecisionRow.decided_at, DecisionRow.id)
            .limit(_PAGE)
        )
        if agent is not None:
            query = query.where(Agent.name == agent)
        if policy is not None:
            query = query.where(DecisionRow.policy_digest == policy)
        if until is not None:
            query = query.where(DecisionRow.decided_at < until)
        page = self._page(query)
        while page:
            yield from page
            last = page[-1].decision
            later = DecisionRow.decided_at > last.decided_at
            same = and_(DecisionRow.decided_at == last.decided_at, DecisionRow.id > last.id)
            page = self._page(query.where(or_(later, same)))

    def versions(self) -> dict[int, Version]:
        """What every version of a skill is called, by its id."""
        query = select(
            _VERSIONS.c.id,
            _SKILLS.c.skill,
            _VERSIONS.c.content_hash,
            _VERSIONS.c.category,
            _VERSIONS.c.tokens,
        ).join_from(_VERSIONS, _SKILLS)
        with self._database.read(None) as session:
            return {id: Version(*rest) for id, *rest in session.execute(query)}

    def one(self, decision_id: str) -> Logged | None:
        """A decision by its id; None where the viewer may see none."""
        found = self._page(_DECISIONS.where(DecisionRow.id == decision_id))
        return found[0] if found else None

    def latest(self, limit: int, before: tuple[float, str] | None = None) -> list[Logged]:
        """Decisions that were carried out, the newest first.

        Args:
            limit: at most so many.
            before: time and id of the last one that is known already.
        """
        query = _DECISIONS.where(DecisionRow.mode != "shadow").limit(limit)
        if before is not None:
            at, last = before
            same = and_(DecisionRow.decided_at == at, DecisionRow.id < last)
            query = query.where(or_(DecisionRow.decided_at < at, same))
        return self._page(query.order_by(DecisionRow.decided_at.desc(), DecisionRow.id.desc()))

    def contents(self, versions: Sequence[int]) -> list[tuple[str, int]]:
        """Skill id and tokens of each of the ``versions``, in their order."""
        query = (
            select(_VERSIONS.c.id, _SKILLS.c.skill, _VERSIONS.c.tokens)
            .join_from(_VERSIONS, _SKILLS)
            .where(_VERSIONS.c.id.in_(versions))
        )
        with self._database.read(None) as session:
            known = {id: (skill, tokens) for id, skill, tokens in session.execute(query)}
        return [known[version] for version in versions]

    def fill(self, memory: OutcomeMemory, agent: Viewer) -> int:
        """Add the newest outcomes of ``agent`` to ``memory``, oldest first, as they were learned.

        Returns how many were read, at most the memory's capacity.
        """
        evidence = (
            select(OutcomeRow.id)
            .where(
                OutcomeRow.agent_id == agent.id,
                OutcomeRow.evidence,
                OutcomeRow.success.is_not(None),
            )
            .order_by(OutcomeRow.id.desc())
        )
        with self._database.read(self._viewer) as session:
            newest = session.scalars(evidence.limit(memory.capacity)).all()[::-1]
            for start in range(0, len(newest), _PAGE):
                _fill_page(session, memory, newest[start : start + _PAGE])
        return len(newest)

    def _page(self, query: Select[DecisionRow, str, OutcomeRow]) -> list[Logged]:
        with self._database.read(self._viewer) as session:
            rows = session.execute(query).all()
            ids = [decision.id for decision, _, _ in rows]
            picks, feedback = _picks(session, ids), _feedback(session, ids)
            return [
                Logged(agent, decision, tuple(picks[decision.id]), outcome, feedback[decision.id])
                for decision, agent, outcome in rows
            ]


def _picks(session: Session, decisions: Sequence[str]) -> dict[str, list[LoggedPick]]:
    query = (
        select(
            PickRow.decision_id,
            PickRow.slot,
            _SKILLS.c.skill,
            _VERSIONS.c.content_hash,
            PickRow.fit,
            PickRow.tokens,
            PickRow.loaded,
        )
        .join(_VERSIONS, _VERSIONS.c.id == PickRow.version_id)
        .join(_SKILLS, _SKILLS.c.id == _VERSIONS.c.skill_id)
        .where(PickRow.decision_id.in_(decisions))
        .order_by(PickRow.decision_id, PickRow.rank)
    )
    found: dict[str, list[LoggedPick]] = defaultdict(list)
    for row in session.execute(query):
        found[row.decision_id].append(LoggedPick(*row[1:]))
    return found


def _feedback(session: Session, decisions: Sequence[str]) -> dict[str, tuple[FeedbackRow, ...]]:
    query = (
        select(FeedbackRow)
        .where(FeedbackRow.decision_id.in_(decisions))
        .order_by(FeedbackRow.given_at, FeedbackRow.id)
    )
    found: dict[str, tuple[FeedbackRow, ...]] = defaultdict(tuple)
    for row in session.scalars(query):
        found[row.decision_id] += (row,)
    return found


def _fill_page(session: Session, memory: OutcomeMemory, outcomes: Sequence[int]) -> None:
    query = (
        select(DecisionRow.id, DecisionRow.vector, OutcomeRow.success)
        .join(OutcomeRow, OutcomeRow.decision_id == DecisionRow.id)
        .where(OutcomeRow.id.in_(outcomes))
        .order_by(OutcomeRow.id)
    )
    rows = session.execute(query).all()
    picks = _picks(session, [decision for decision, _, _ in rows])
    for decision, vector, success in rows:
        assert success is not None  # the ids are those of graded outcomes
        loaded = [pick for pick in picks[decision] if pick.loaded]
        for pick in loaded:
            memory.add(pick.key, vector, success, pick.fit)
        if not loaded:
            memory.add(ALONE, vector, success)
