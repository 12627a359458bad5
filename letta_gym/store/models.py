"""The tables.

Times are Unix seconds in double precision: they sort, subtract and group into hours and days alike
on every database. What belongs to an agent carries ``agent_id``, and :meth:`Scoped.visible_to` says
who else may see it; :mod:`letta_gym.store.engine` puts that condition into every query.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    ColumnElement,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Text,
    UniqueConstraint,
    and_,
    inspect,
    or_,
    select,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from letta_gym.store.columns import Floats, Vector

Float = NDArray[np.float32]

PRIVATE, TEAM, SHARED = SCOPES = ("private", "team", "shared")
MODES = ("active", "shadow", "canary")
STATUSES = ("candidate", "shadow", "canary", "active", "retired")
RUN_STATUSES = ("running", "finished", "failed")
JOB_STATES = ("running", "finished", "failed", "cancelled", "lost")
FROM_LOG = "log"
"""The kind of a training run that learns from decisions."""

_BIG = BigInteger().with_variant(Integer, "sqlite")  # SQLite numbers rows itself only for INTEGER


@dataclass(frozen=True, slots=True)
class Viewer:
    """The agent on whose behalf the store is read."""

    id: int
    name: str
    team: str | None


class Base(DeclarativeBase):
    """Names every constraint, so that a migration can name it too."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012
        float: Double,
        str: Text,
        dict[str, Any]: JSON,
        list[Any]: JSON,
    }


class Scoped:
    """Rows that only some agents may see."""

    @classmethod
    def visible_to(cls, viewer: Viewer) -> ColumnElement[bool]:
        """Which rows ``viewer`` may see."""
        raise NotImplementedError


class Agent(Scoped, Base):
    """An agent. Its scope says who may see what it did: itself, its team, or every agent.

    ``embedder`` and its ``probes`` say whose vectors its decisions have, once there are any.
    """

    __tablename__ = "agents"
    __table_args__ = (CheckConstraint(f"scope IN {SCOPES}", "scope"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    team: Mapped[str | None]
    scope: Mapped[str] = mapped_column(default=PRIVATE)
    embedder: Mapped[dict[str, Any] | None]
    probes: Mapped[Float | None] = mapped_column(Floats)
    created_at: Mapped[float]

    @classmethod
    def visible_to(cls, viewer: Viewer) -> ColumnElement[bool]:
        """Itself, those of its team that are not private, and the shared ones."""
        return _agent_is_open(cls, viewer)


class OfAgent(Scoped):
    """What an agent did: seen by whoever may see the agent."""

    agent_id: Mapped[int] = mapped_column(ForeignKey("agents.id"))

    @classmethod
    def visible_to(cls, viewer: Viewer) -> ColumnElement[bool]:
        """Rows of the agents that ``viewer`` may see."""
        agents = inspect(Agent).local_table.alias().c
        return cls.agent_id.in_(select(agents.id).where(_agent_is_open(agents, viewer)))


class SkillRow(Scoped, Base):
    """A skill of one agent, by its id in the agent's library; it has a scope of its own."""

    __tablename__ = "skills"
    __table_args__ = (
        UniqueConstraint("agent_id", "skill"),
        CheckConstraint(f"scope IN {SCOPES}", "scope"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    agent_id: Mapped[int] = mapped_column(ForeignKey("agents.id"))
    skill: Mapped[str]
    scope: Mapped[str] = mapped_column(default=PRIVATE)

    @classmethod
    def visible_to(cls, viewer: Viewer) -> ColumnElement[bool]:
        """Its own, those of its team that are not private, and the shared ones."""
        return _skill_is_open(cls, viewer)


class VersionRow(Scoped, Base):
    """One content of a skill; evidence belongs to it."""

    __tablename__ = "skill_versions"
    __table_args__ = (UniqueConstraint("skill_id", "content_hash"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    skill_id: Mapped[int] = mapped_column(ForeignKey("skills.id", ondelete="CASCADE"))
    content_hash: Mapped[str] = mapped_column(index=True)
    name: Mapped[str]
    description: Mapped[str]
    body: Mapped[str]
    tokens: Mapped[int]
    category: Mapped[str | None]
    tags: Mapped[list[Any]] = mapped_column(default=list)
    vector: Mapped[Float | None] = mapped_column(Vector)
    embedder: Mapped[str | None]
    created_at: Mapped[float]

    @classmethod
    def visible_to(cls, viewer: Viewer) -> ColumnElement[bool]:
        """Versions of the skills that ``viewer`` may see."""
        skills = inspect(SkillRow).local_table.alias().c
        return cls.skill_id.in_(select(skills.id).where(_skill_is_open(skills, viewer)))


class DecisionRow(OfAgent, Base):
    """A choice of skills for one task; see :class:`letta_gym.feedback.decision.Decision`.

    ``candidates`` are ids of skill versions in slot order; ``held_out`` is the slot of the chosen
    skill that was withheld at random, which happens with probability ``hold_rate``. The text of the
    task is kept only by choice, its SHA-256 always. After ``expires_at`` no outcome is taken.
    """

    __tablename__ = "decisions"
    __table_args__ = (
        CheckConstraint(f"mode IN {MODES}", "mode"),
        CheckConstraint("hold_rate BETWEEN 0 AND 1", "hold_rate"),
        Index(None, "agent_id", "decided_at"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    policy_digest: Mapped[str] = mapped_column(index=True)
    mode: Mapped[str]
    task_hash: Mapped[str]
    task_text: Mapped[str | None]
    vector: Mapped[Float] = mapped_column(Vector)
    candidates: Mapped[list[Any]]
    features: Mapped[Float] = mapped_column(Floats)
    context: Mapped[Float] = mapped_column(Floats)
    scores: Mapped[Float] = mapped_column(Floats)
    k: Mapped[int]
    log_propensity: Mapped[float]
    explored: Mapped[bool]
    hold_rate: Mapped[float]
    held_out: Mapped[int | None]
    decided_at: Mapped[float] = mapped_column(index=True)
    expires_at: Mapped[float]


class PickRow(Scoped, Base):
    """A chosen skill, best first; ``loaded`` is known with the outcome."""

    __tablename__ = "picks"

    decision_id: Mapped[str] = mapped_column(
        ForeignKey("decisions.id", ondelete="CASCADE"), primary_key=True
    )
    rank: Mapped[int] = mapped_column(primary_key=True)
    version_id: Mapped[int] = mapped_column(ForeignKey("skill_versions.id"), index=True)
    slot: Mapped[int]
    fit: Mapped[float]
    tokens: Mapped[int]
    loaded: Mapped[bool | None]

    @classmethod
    def visible_to(cls, viewer: Viewer) -> ColumnElement[bool]:
        """Picks of the decisions that ``viewer`` may see."""
        decisions = inspect(DecisionRow).local_table.alias().c
        agents = inspect(Agent).local_table.alias().c
        of_open_agents = decisions.agent_id.in_(
            select(agents.id).where(_agent_is_open(agents, viewer))
        )
        return cls.decision_id.in_(select(decisions.id).where(of_open_agents))


class OutcomeRow(OfAgent, Base):
    """What came of a decision; see :class:`letta_gym.feedback.outcome.Outcome`.

    ``digest`` is the SHA-256 of the whole outcome, by which a repeated one is known. ``delay`` are
    the seconds since the decision. The response is kept only where texts are.
    """

    __tablename__ = "outcomes"
    __table_args__ = (Index(None, "agent_id", "recorded_at"),)

    id: Mapped[int] = mapped_column(_BIG, primary_key=True)
    decision_id: Mapped[str] = mapped_column(
        ForeignKey("decisions.id", ondelete="CASCADE"), unique=True
    )
    digest: Mapped[str]
    success: Mapped[float | None]
    evidence: Mapped[bool]
    reward: Mapped[float | None]
    reward_parts: Mapped[dict[str, Any]]
    source: Mapped[str]
    tokens: Mapped[float | None]
    steps: Mapped[int | None]
    tool_errors: Mapped[int | None]
    latency: Mapped[float | None]
    delay: Mapped[float]
    stop_reason: Mapped[str | None]
    error: Mapped[str | None]
    response: Mapped[str | None]
    run_id: Mapped[str | None]
    step_ids: Mapped[list[Any]]
    recorded_at: Mapped[float]


class FeedbackRow(OfAgent, Base):
    """A later word on a decision: a person's, or a reward that came with a delay, in [0, 1].

    ``key`` is the sender's own name for it, so that sending it twice changes nothing.
    """

    __tablename__ = "feedback"
    __table_args__ = (
        UniqueConstraint("decision_id", "key"),
        CheckConstraint("value BETWEEN 0 AND 1", "value"),
        Index(None, "agent_id", "given_at"),
    )

    id: Mapped[int] = mapped_column(_BIG, primary_key=True)
    decision_id: Mapped[str] = mapped_column(ForeignKey("decisions.id", ondelete="CASCADE"))
    key: Mapped[str]
    source: Mapped[str]
    value: Mapped[float]
    comment: Mapped[str | None]
    given_at: Mapped[float]


class PolicyRow(Base):
    """A policy by its digest; at most one is active, and at most one runs as a canary."""

    __tablename__ = "policies"
    __table_args__ = (
        CheckConstraint(f"status IN {STATUSES}", "status"),
        CheckConstraint("share BETWEEN 0 AND 1", "share"),
        *(
            Index(
                f"uq_policies_one_{status}",
                "status",
                unique=True,
                sqlite_where=text(f"status = '{status}'"),
                postgresql_where=text(f"status = '{status}'"),
            )
            for status in ("active", "canary")
        ),
    )

    digest: Mapped[str] = mapped_column(primary_key=True)
    path: Mapped[str | None]
    status: Mapped[str]
    share: Mapped[float] = mapped_column(default=0.0)
    provenance: Mapped[dict[str, Any]] = mapped_column(default=dict)
    evaluation: Mapped[dict[str, Any]] = mapped_column(default=dict)
    added_at: Mapped[float]


class RunRow(Base):
    """A training run."""

    __tablename__ = "training_runs"
    __table_args__ = (CheckConstraint(f"status IN {RUN_STATUSES}", "status"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    folder: Mapped[str]
    config: Mapped[dict[str, Any]]
    status: Mapped[str]
    policy_digest: Mapped[str | None]
    error: Mapped[str | None]
    started_at: Mapped[float]
    ended_at: Mapped[float | None]


class JobRow(Scoped, Base):
    """What the supervisor of a training run and those who start it tell each other.

    ``slot`` is 1 while the run is under way and null otherwise; being unique, it lets one run at a
    time. ``holder`` is the supervisor at hand, who must move ``lease_until`` on, or the run counts
    as lost. ``source`` names the configuration, ``changes`` its keys that were set otherwise, and
    ``steps`` how many there are to do, where that is known. ``agent_id`` is the agent of whose
    decisions a run from the log learns; null for those of all.
    """

    __tablename__ = "training_jobs"
    __table_args__ = (CheckConstraint(f"state IN {JOB_STATES}", "state"),)

    run_id: Mapped[int] = mapped_column(
        ForeignKey("training_runs.id", ondelete="CASCADE"), primary_key=True
    )
    slot: Mapped[int | None] = mapped_column(unique=True)
    state: Mapped[str]
    kind: Mapped[str]
    source: Mapped[str]
    changes: Mapped[dict[str, Any]]
    steps: Mapped[int | None]
    agent_id: Mapped[int | None] = mapped_column(ForeignKey("agents.id"))
    actor: Mapped[str]
    holder: Mapped[str]
    attempts: Mapped[int]
    beat_at: Mapped[float]
    lease_until: Mapped[float]
    cancel_at: Mapped[float | None]

    @classmethod
    def visible_to(cls, viewer: Viewer) -> ColumnElement[bool]:
        """Every run that learns from no log, and those from the log of an agent that is seen."""
        agents = inspect(Agent).local_table.alias().c
        seen = cls.agent_id.in_(select(agents.id).where(_agent_is_open(agents, viewer)))
        return or_(cls.kind != FROM_LOG, seen)


class MetricRow(Base):
    """One number of a training run at one step."""

    __tablename__ = "training_metrics"

    run_id: Mapped[int] = mapped_column(
        ForeignKey("training_runs.id", ondelete="CASCADE"), primary_key=True
    )
    name: Mapped[str] = mapped_column(primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True)
    value: Mapped[float]


class TransferRow(Scoped, Base):
    """Skills and evidence that went from one agent to another, as one bundle, at most once.

    ``source_id`` is None where the bundle is of an agent of another store. ``content`` holds what
    became of each skill.
    """

    __tablename__ = "transfers"
    __table_args__ = (
        UniqueConstraint("target_id", "bundle_sha256"),
        CheckConstraint("source_id IS NULL OR source_id <> target_id", "not_to_oneself"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    source_id: Mapped[int | None] = mapped_column(ForeignKey("agents.id"))
    target_id: Mapped[int] = mapped_column(ForeignKey("agents.id"))
    bundle_sha256: Mapped[str]
    content: Mapped[dict[str, Any]]
    bundle: Mapped[bytes]
    discount: Mapped[float]
    imported_at: Mapped[float]

    @classmethod
    def visible_to(cls, viewer: Viewer) -> ColumnElement[bool]:
        """Those from or to ``viewer``."""
        return or_(cls.source_id == viewer.id, cls.target_id == viewer.id)


class AuditRow(Base):
    """Who changed what of the policies and the data, and when; rows are only ever added."""

    __tablename__ = "audit"

    id: Mapped[int] = mapped_column(_BIG, primary_key=True)
    at: Mapped[float] = mapped_column(index=True)
    actor: Mapped[str]
    action: Mapped[str]
    subject: Mapped[str]
    detail: Mapped[dict[str, Any]]


# The conditions below read plain tables: the mapped classes would get the conditions once more.


def _agent_is_open(agent: Any, viewer: Viewer) -> ColumnElement[bool]:
    return or_(agent.id == viewer.id, agent.scope == SHARED, _of_team(agent, viewer))


def _skill_is_open(skill: Any, viewer: Viewer) -> ColumnElement[bool]:
    agents = inspect(Agent).local_table.alias().c
    mates = select(agents.id).where(agents.team.is_not(None), agents.team == viewer.team)
    of_mate = and_(skill.scope == TEAM, skill.agent_id.in_(mates))
    return or_(skill.agent_id == viewer.id, skill.scope == SHARED, of_mate)


def _of_team(agent: Any, viewer: Viewer) -> ColumnElement[bool]:
    return and_(agent.scope == TEAM, agent.team.is_not(None), agent.team == viewer.team)
