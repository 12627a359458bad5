"""Training runs under a supervisor: one at a time, each with a lease that its supervisor renews."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import ColumnElement, Select, delete, func, insert, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from letta_gym.errors import StoreError
from letta_gym.store.engine import Clock, Database
from letta_gym.store.models import Agent, JobRow, MetricRow, RunRow, Viewer
from letta_gym.store.policies import audit

RUNNING, FINISHED, FAILED, CANCELLED, LOST = "running", "finished", "failed", "cancelled", "lost"
RESUMABLE = (FAILED, CANCELLED, LOST)

Word = Literal["go on", "stop", "leave"]
"""What a supervisor is told at a heartbeat; "leave": the run is somebody else's by now."""

Points = Mapping[str, float]

_GONE = "its supervisor gave no sign of life any more; resume it"


@dataclass(frozen=True, slots=True)
class NewJob:
    """A training run to begin; see :class:`~letta_gym.store.models.JobRow`."""

    source: str
    kind: str
    changes: Mapping[str, Any]
    config: Mapping[str, Any]
    folder: str
    steps: int | None = None
    agent: Viewer | None = None


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """A training run as it stands; times are Unix seconds.

    Runs that were started by hand have no supervisor: ``beat_at`` is None then, and nobody can
    cancel or resume them from here.
    """

    id: int
    state: str
    kind: str
    source: str | None
    changes: Mapping[str, Any]
    config: Mapping[str, Any]
    folder: str
    step: int
    steps: int | None
    agent: str | None
    actor: str | None
    attempts: int
    cancelling: bool
    started_at: float
    ended_at: float | None
    beat_at: float | None
    policy_digest: str | None
    error: str | None


class Jobs:
    """The training runs of a store, and who looks after them.

    A run is ``running`` as long as its supervisor renews the lease, and then ``finished``,
    ``failed``, ``cancelled``, or ``lost`` where the lease ran out. Only a finished one cannot be
    resumed.
    """

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database, self._clock = database, clock

    # --- by those who start runs ------------------------------------------------------------------

    def begin(self, job: NewJob, *, actor: str, holder: str, lease: float) -> int | None:
        """Begin a run for the supervisor ``holder``; its number, or None while another runs."""
        try:
            with self._database.write() as session:
                self._mark_lost(session)
                if self._under_way(session) is not None:
                    return None
                now = self._clock()
                run = RunRow(
                    folder=job.folder, config=dict(job.config), status=RUNNING, started_at=now
                )
                session.add(run)
                session.flush()
                session.add(
                    JobRow(
                        run_id=run.id,
                        slot=1,
                        state=RUNNING,
                        kind=job.kind,
                        source=job.source,
                        changes=dict(job.changes),
                        steps=job.steps,
                        agent_id=None if job.agent is None else job.agent.id,
                        actor=actor,
                        holder=holder,
                        attempts=1,
                        beat_at=now,
                        lease_until=now + lease,
                    )
                )
                session.flush()
                detail = {"config": job.source, "set": dict(job.changes)}
                audit(session, now, actor, "start training", str(run.id), detail)
                return run.id
        except IntegrityError:  # another one took the slot meanwhile
            return None

    def resume(self, run: int, *, actor: str, holder: str, lease: float) -> bool:
        """Begin a run again for the supervisor ``holder``; False while any runs.

        Raises:
            StoreError: no such run, or it is finished.
        """
        try:
            with self._database.write() as session:
                self._mark_lost(session)
                job, row = _find(session, run)
                if self._under_way(session) is not None:
                    return False
                if job.state not in RESUMABLE:
                    raise StoreError(f"the training run {run} is {job.state}; start a new one")
                now = self._clock()
                job.state, job.slot, job.holder, job.cancel_at = RUNNING, 1, holder, None
                job.attempts, job.beat_at, job.lease_until = job.attempts + 1, now, now + lease
                row.status, row.error, row.ended_at = RUNNING, None, None
                session.flush()
                audit(session, now, actor, "resume training", str(run), {})
                return True
        except IntegrityError:
            return False

    def cancel(self, run: int, *, actor: str) -> bool:
        """Ask the supervisor of a run to stop it; False when it does not run.

        Raises:
            StoreError: no such run.
        """
        with self._database.write() as session:
            self._mark_lost(session)
            job, _ = _find(session, run)
            if job.state != RUNNING:
                return False
            if job.cancel_at is None:
                job.cancel_at = self._clock()
                audit(session, job.cancel_at, actor, "cancel training", str(run), {})
            return True

    def under_way(self) -> int | None:
        """The run that is under way."""
        with self._database.read(None) as session:
            return self._under_way(session)

    def mark_lost(self) -> list[int]:
        """Mark the runs whose lease ran out; returns their numbers."""
        with self._database.read(None) as session:
            if not session.scalars(self._expired()).all():
                return []
        with self._database.write() as session:
            return self._mark_lost(session)

    def give_up(self, run: int, holder: str) -> list[int]:
        """Mark a run as lost whose supervisor ``holder`` is known to be dead; returns its number.

        Nothing is returned where the supervisor had said how the run ended.

        Raises:
            StoreError: no such run.
        """
        with self._database.write() as session:
            job, _ = _find(session, run)
            if job.holder != holder or job.state != RUNNING:
                return []
            self._close(session, job, LOST, _GONE)
            return [run]

    # --- by the supervisor ------------------------------------------------------------------------

    def beat(self, run: int, holder: str, lease: float) -> Word:
        """Renew the lease.

        A run that was marked as lost meanwhile is taken up again, unless another one runs.

        Raises:
            StoreError: no such run.
        """
        try:
            with self._database.write() as session:
                job, row = _find(session, run)
                if job.holder != holder or job.state not in (RUNNING, LOST):
                    return "leave"
                now = self._clock()
                job.beat_at, job.lease_until = now, now + lease
                job.state, job.slot = RUNNING, 1
                row.status, row.error, row.ended_at = RUNNING, None, None
                session.flush()
                return "go on" if job.cancel_at is None else "stop"
        except IntegrityError:
            return "leave"

    def record(self, run: int, steps: Iterable[tuple[int, Points]]) -> None:
        """Keep metrics by step; what is there already is replaced, and what is not finite left out.

        Raises:
            StoreError: no such run.
        """
        rows = [
            {"run_id": run, "step": step, "name": name, "value": value}
            for step, values in steps
            for name, value in values.items()
            if math.isfinite(value)
        ]
        if not rows:
            return
        rows = list({(row["step"], row["name"]): row for row in rows}.values())
        with self._database.write() as session:
            _find(session, run)
            steps_of: dict[Any, set[Any]] = {}
            for row in rows:
                steps_of.setdefault(row["name"], set()).add(row["step"])
            for name, known in steps_of.items():
                session.execute(
                    delete(MetricRow).where(
                        MetricRow.run_id == run,
                        MetricRow.name == name,
                        MetricRow.step.in_(known),
                    )
                )
            session.execute(insert(MetricRow), rows)

    def end(
        self,
        run: int,
        holder: str,
        state: str,
        *,
        policy_digest: str | None = None,
        error: str | None = None,
    ) -> bool:
        """A run is over; False when it was not ``holder``'s any more.

        Raises:
            StoreError: no such run.
        """
        with self._database.write() as session:
            job, _ = _find(session, run)
            if job.holder != holder or job.state not in (RUNNING, LOST):
                return False
            self._close(session, job, state, error, policy_digest)
            return True

    # --- by readers -------------------------------------------------------------------------------

    def get(self, run: int, viewer: Viewer | None = None) -> TrainingRun | None:
        """A run that ``viewer`` may see; None, the operator, sees all."""
        found = self._seen(viewer, [RunRow.id == run], 1)
        return found[0] if found else None

    def latest(
        self, limit: int, before: int | None = None, viewer: Viewer | None = None
    ) -> list[TrainingRun]:
        """Runs that ``viewer`` may see, the newest first, from below the number ``before`` on."""
        conditions = [] if before is None else [RunRow.id < before]
        return self._seen(viewer, conditions, limit)

    def curves(self, run: int, after: int = -1) -> dict[str, list[tuple[int, float]]]:
        """The metrics of a run by name: (step, value), by step, for steps above ``after``."""
        query = (
            select(MetricRow.name, MetricRow.step, MetricRow.value)
            .where(MetricRow.run_id == run, MetricRow.step > after)
            .order_by(MetricRow.name, MetricRow.step)
        )
        found: dict[str, list[tuple[int, float]]] = {}
        with self._database.read(None) as session:
            for name, step, value in session.execute(query):
                found.setdefault(name, []).append((step, value))
        return found

    # --- parts ------------------------------------------------------------------------------------

    def _seen(
        self, viewer: Viewer | None, conditions: Sequence[ColumnElement[bool]], limit: int
    ) -> list[TrainingRun]:
        done = (
            select(func.max(MetricRow.step)).where(MetricRow.run_id == RunRow.id).scalar_subquery()
        )
        query: Select[Any] = (
            select(RunRow, JobRow, Agent.name, done)
            # Whoever is bound to an agent sees no run without a job: it may be from any log.
            .join(JobRow, JobRow.run_id == RunRow.id, isouter=viewer is None)
            .join(Agent, Agent.id == JobRow.agent_id, isouter=True)
            .where(*conditions)
            .order_by(RunRow.id.desc())
            .limit(limit)
        )
        with self._database.read(viewer) as session:
            return [_run(*row) for row in session.execute(query)]

    def _under_way(self, session: Session) -> int | None:
        return session.scalar(select(JobRow.run_id).where(JobRow.slot == 1))

    def _expired(self) -> Select[JobRow]:
        return select(JobRow).where(JobRow.slot == 1, JobRow.lease_until < self._clock())

    def _mark_lost(self, session: Session) -> list[int]:
        jobs = session.scalars(self._expired().with_for_update()).all()
        for job in jobs:
            self._close(session, job, LOST, _GONE)
        session.flush()
        return [job.run_id for job in jobs]

    def _close(
        self,
        session: Session,
        job: JobRow,
        state: str,
        error: str | None,
        policy_digest: str | None = None,
    ) -> None:
        now = self._clock()
        row = session.get_one(RunRow, job.run_id)
        job.state, job.slot = state, None
        row.status = FINISHED if state == FINISHED else FAILED
        row.error, row.ended_at, row.policy_digest = error, now, policy_digest
        detail = {"state": state, "error": error, "policy": policy_digest}
        audit(session, now, "training", "end training", str(job.run_id), detail)


def _find(session: Session, run: int) -> tuple[JobRow, RunRow]:
    job = session.scalar(select(JobRow).where(JobRow.run_id == run).with_for_update())
    if job is None:
        raise StoreError(f"no supervisor looks after a training run {run}")
    return job, session.get_one(RunRow, run)


def _run(row: RunRow, job: JobRow | None, agent: str | None, step: int | None) -> TrainingRun:
    return TrainingRun(
        id=row.id,
        state=row.status if job is None else job.state,
        kind=str(row.config.get("kind", "")) if job is None else job.kind,
        source=None if job is None else job.source,
        changes={} if job is None else job.changes,
        config=row.config,
        folder=row.folder,
        step=step or 0,
        steps=None if job is None else job.steps,
        agent=agent,
        actor=None if job is None else job.actor,
        attempts=1 if job is None else job.attempts,
        cancelling=job is not None and job.state == RUNNING and job.cancel_at is not None,
        started_at=row.started_at,
        ended_at=row.ended_at,
        beat_at=None if job is None else job.beat_at,
        policy_digest=row.policy_digest,
        error=row.error,
    )
