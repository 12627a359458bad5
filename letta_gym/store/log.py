"""The decision log of one agent: what a :class:`SkillSelector` is handed as ``log``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from pydantic import Field
from sqlalchemy import Connection, Row, and_, bindparam, delete, insert, select, update
from sqlalchemy.orm import Session

from letta_gym.config import Section
from letta_gym.errors import ConfigError, DecisionError
from letta_gym.feedback.decision import Decision, Pick, Waiting
from letta_gym.feedback.outcome import Outcome
from letta_gym.library.embeddings import VectorSpace
from letta_gym.library.vectors import text_hash
from letta_gym.store.agents import Agents
from letta_gym.store.catalogue import Catalogue
from letta_gym.store.engine import Clock, Database
from letta_gym.store.models import Base, DecisionRow, FeedbackRow, Viewer

_DAY = 86_400.0

Values = dict[str, object]
"""A row, by its columns."""

# Every decision and outcome goes through these, so they are put together once, and run on plain
# tables: that takes a quarter of the time. All of them ask for the agent's own decisions only.
_TABLES = Base.metadata.tables
_DECISIONS, _PICKED, _OUTCOMES = _TABLES["decisions"], _TABLES["picks"], _TABLES["outcomes"]
_VERSIONS, _SKILLS = _TABLES["skill_versions"], _TABLES["skills"]
_OWN = and_(_DECISIONS.c.id == bindparam("decision"), _DECISIONS.c.agent_id == bindparam("agent"))
_OF_DECISION = _PICKED.c.decision_id == bindparam("decision")

_KEEP_DECISION, _KEEP_PICKS, _KEEP_OUTCOME = insert(_DECISIONS), insert(_PICKED), insert(_OUTCOMES)
_OUTCOME = _OUTCOMES.c.decision_id == bindparam("decision")
_GRADED = ("success", "evidence", "reward", "reward_parts", "source")
_VECTOR = select(_DECISIONS.c.vector).where(_OWN)
_STATE = (
    select(
        _DECISIONS.c.mode,
        _DECISIONS.c.decided_at,
        _DECISIONS.c.expires_at,
        _OUTCOMES.c.digest,
        _OUTCOMES.c.success,
        _OUTCOMES.c.error,
    )
    .join_from(_DECISIONS, _OUTCOMES, isouter=True)
    .where(_OWN)
)
_PICKS = (
    select(
        _PICKED.c.slot,
        _SKILLS.c.skill,
        _VERSIONS.c.content_hash,
        _PICKED.c.fit,
        _PICKED.c.tokens,
    )
    .join_from(_PICKED, _VERSIONS)
    .join(_SKILLS)
    .where(_OF_DECISION)
    .order_by(_PICKED.c.rank)
)
_ALL_LOADED = update(_PICKED).where(_OF_DECISION).values(loaded=True)
_LOADED = (
    update(_PICKED)
    .where(_OF_DECISION, _PICKED.c.rank == bindparam("at"))
    .values(loaded=bindparam("mark"))
)


class LogConfig(Section):
    """What is kept of each decision.

    ``keep_text``: the texts of tasks and replies too. Their hashes and vectors are always kept, and
    a vector says roughly what its text was about.
    ``expire_days``: how long a decision waits for its outcome.
    """

    keep_text: bool = False
    expire_days: float = Field(default=30.0, gt=0)


class StoreLog:
    """A :class:`letta_gym.feedback.decision.DecisionLog` in a database; threads may share it."""

    def __init__(
        self,
        database: Database,
        agent: Viewer,
        catalogue: Catalogue,
        config: LogConfig,
        clock: Clock,
        mode: str = "active",
    ) -> None:
        self.agent, self.catalogue, self.config, self.mode = agent, catalogue, config, mode
        self._database, self._clock = database, clock

    def begin(self, space: VectorSpace) -> None:
        """Say whose vectors the agent's decisions have; see :meth:`Agents.settle`."""
        Agents(self._database, self._clock).settle(self.agent.name, space)

    def decided(self, decision: Decision) -> None:
        """Keep a decision; it is on the database when this returns."""
        write_decisions(self._database, [(self, decision)])

    def rows(self, decision: Decision) -> tuple[Values, list[Values]]:
        """The row of a decision, and those of its picks."""
        contents = [(s.id, key) for s, key in zip(decision.skills, decision.keys, strict=True)]
        versions = self.catalogue.ids(contents, decision.skills)
        now = self._clock()
        row = {
            "id": decision.id,
            "agent_id": self.agent.id,
            "policy_digest": decision.policy_digest,
            "mode": self.mode,
            "task_hash": text_hash(decision.task),
            "task_text": decision.task if self.config.keep_text else None,
            "vector": decision.vector,
            "candidates": versions,
            "features": decision.features,
            "context": decision.context,
            "scores": decision.scores,
            "k": decision.k,
            "log_propensity": decision.log_propensity,
            "explored": decision.explored,
            "hold_rate": decision.hold_rate,
            "held_out": None if decision.held_out is None else decision.held_out.slot,
            "decided_at": now,
            "expires_at": now + self.config.expire_days * _DAY,
        }
        picks: list[Values] = [
            {
                "decision_id": decision.id,
                "rank": rank,
                "version_id": versions[pick.slot],
                "slot": pick.slot,
                "fit": pick.fit,
                "tokens": pick.tokens,
            }
            for rank, pick in enumerate(decision.picks)
        ]
        return row, picks

    def waiting(self, decision_id: str) -> Waiting:
        """What learning from an outcome needs of its decision.

        Raises:
            DecisionError: the agent never made it, or retention has removed it.
        """
        with self._database.read(None) as session:
            of_decision = {"decision": decision_id, "agent": self.agent.id}
            vector = session.connection().scalar(_VECTOR, of_decision)
            if vector is None:
                raise self._unknown(decision_id)
            return Waiting(vector, _picks(session.connection(), decision_id))

    def recorded(self, decision_id: str, outcome: Outcome) -> bool:
        """Keep an outcome; False when this very outcome is kept already.

        An outcome that nobody graded may be followed by one that is, which then takes its place;
        how the agent went about the task stays.

        Raises:
            DecisionError: the decision is unknown, expired, not carried out, or has another
                outcome.
            ConfigError: the outcome names a skill that was not chosen.
        """
        digest = _digest(outcome)

        def work(session: Session) -> bool:
            connection = session.connection()
            of_decision = {"decision": decision_id, "agent": self.agent.id}
            found = connection.execute(_STATE, of_decision).one_or_none()
            if found is None:
                raise self._unknown(decision_id)
            if found.digest == digest:
                return False
            now, row = self._clock(), self._outcome_row(outcome)
            grades = outcome.success is not None and _is_ungraded(found)
            _check_open(decision_id, found, now, grades)
            _mark_loaded(connection, decision_id, outcome.loaded)
            kept = {"digest": digest, "delay": now - found.decided_at, "recorded_at": now}
            if grades:  # as a new row, for evidence is restored in the order of the rows
                old = connection.execute(select(_OUTCOMES).where(_OUTCOME), of_decision).one()
                connection.execute(delete(_OUTCOMES).where(_OUTCOME), of_decision)
                row = {**old._mapping, **{name: row[name] for name in _GRADED}}
                del row["id"]
            connection.execute(_KEEP_OUTCOME, {**row, **kept, "decision_id": decision_id})
            return True

        return self._database.once(work)

    def feedback(
        self, decision_id: str, key: str, source: str, value: float, comment: str | None = None
    ) -> bool:
        """Keep a later word on a decision; False when this very one is kept already.

        Args:
            decision_id: the decision, expired or not.
            key: the sender's own name for this word, so that sending it twice changes nothing.
            source: who says it, such as "human" or "delayed".
            value: from 0 (bad) to 1 (good).
            comment: in the person's words.

        Raises:
            DecisionError: the decision is unknown, or another feedback has the same key.
            ConfigError: ``value`` out of range.
        """
        if not 0 <= value <= 1:
            raise ConfigError(f"the value of a feedback lies in [0, 1]; got {value!r}")

        def work(session: Session) -> bool:
            mine = select(DecisionRow.id).where(
                DecisionRow.id == decision_id, DecisionRow.agent_id == self.agent.id
            )
            if session.scalar(mine) is None:
                raise self._unknown(decision_id)
            under_key = select(FeedbackRow.source, FeedbackRow.value, FeedbackRow.comment).where(
                FeedbackRow.decision_id == decision_id, FeedbackRow.key == key
            )
            known = session.execute(under_key).one_or_none()
            if known is not None and tuple(known) != (source, value, comment):
                raise DecisionError(
                    f"the decision {decision_id!r} has another feedback under the key {key!r}; "
                    "send what is new under a key of its own"
                )
            if known is None:
                row = {
                    "decision_id": decision_id,
                    "agent_id": self.agent.id,
                    "key": key,
                    "source": source,
                    "value": value,
                    "comment": comment,
                    "given_at": self._clock(),
                }
                session.execute(insert(FeedbackRow), row)
            return known is None

        return self._database.once(work)

    def _outcome_row(self, outcome: Outcome) -> dict[str, object]:
        return {
            "agent_id": self.agent.id,
            "success": outcome.success,
            "evidence": outcome.evidence,
            "reward": outcome.reward,
            "reward_parts": dict(outcome.reward_parts),
            "source": outcome.source,
            "tokens": outcome.tokens,
            "steps": outcome.steps,
            "tool_errors": outcome.tool_errors,
            "latency": outcome.latency,
            "stop_reason": outcome.stop_reason,
            "error": outcome.error,
            "response": outcome.response if self.config.keep_text else None,
            "run_id": outcome.run_id,
            "step_ids": list(outcome.step_ids),
        }

    def _unknown(self, decision_id: str) -> DecisionError:
        return DecisionError(
            f"the agent {self.agent.name!r} has no decision {decision_id!r} in the store: it was "
            "never made, was another agent's, or was removed by the retention"
        )


def write_decisions(database: Database, entries: Sequence[tuple[StoreLog, Decision]]) -> None:
    """Keep decisions of several agents, all in one transaction.

    Args:
        database: of all the logs.
        entries: each decision with the log that it goes to.
    """
    rows = [log.rows(decision) for log, decision in entries]
    picks = [pick for _, of_row in rows for pick in of_row]
    with database.write() as session:
        connection = session.connection()
        connection.execute(_KEEP_DECISION, [row for row, _ in rows])
        if picks:
            connection.execute(_KEEP_PICKS, picks)


def _is_ungraded(found: Row[*tuple[Any, ...]]) -> bool:
    """Whether the decision has an outcome that nobody graded, and that is no failure."""
    return found.digest is not None and found.success is None and found.error is None


def _check_open(decision_id: str, found: Row[*tuple[Any, ...]], now: float, grades: bool) -> None:
    if found.digest is not None and not grades:
        raise DecisionError(
            f"the decision {decision_id!r} has another outcome already; what is learned later "
            "goes into feedback()"
        )
    if found.mode == "shadow":
        raise DecisionError(
            f"the decision {decision_id!r} was made in the shadow and not carried out: record the "
            "outcome for the one that was"
        )
    if now > found.expires_at:
        late = (now - found.expires_at) / _DAY
        raise DecisionError(
            f"the decision {decision_id!r} expired {late:.1f} days ago; raise expire_days "
            "if outcomes come so late"
        )


def _mark_loaded(connection: Connection, decision_id: str, loaded: tuple[str, ...] | None) -> None:
    if loaded is None:
        connection.execute(_ALL_LOADED, {"decision": decision_id})
        return
    chosen = [pick.skill for pick in _picks(connection, decision_id)]
    foreign = [skill for skill in loaded if skill not in chosen]
    if foreign:
        raise ConfigError(f"the outcome says that {foreign} were loaded; chosen were {chosen}")
    marks = [
        {"decision": decision_id, "at": rank, "mark": skill in loaded}
        for rank, skill in enumerate(chosen)
    ]
    if marks:
        connection.execute(_LOADED, marks)


def _picks(connection: Connection, decision_id: str) -> tuple[Pick, ...]:
    return tuple(Pick(*row) for row in connection.execute(_PICKS, {"decision": decision_id}))


def _digest(outcome: Outcome) -> str:
    """SHA-256 of everything that an outcome says."""
    said = json.dumps(asdict(outcome), sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()
