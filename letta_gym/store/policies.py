"""Policies and their status, training runs, and the audit of who changed what."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import delete, insert, select, update
from sqlalchemy.orm import Session

from letta_gym.errors import ConfigError, StoreError
from letta_gym.store.engine import Clock, Database
from letta_gym.store.models import STATUSES, AuditRow, JobRow, MetricRow, PolicyRow, RunRow


def audit(
    session: Session, at: float, actor: str, action: str, subject: str, detail: Mapping[str, Any]
) -> None:
    """Say in the transaction of ``session`` who changes what."""
    session.add(AuditRow(at=at, actor=actor, action=action, subject=subject, detail=dict(detail)))


class Policies:
    """The policies that a store knows, by digest."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database, self._clock = database, clock

    def add(
        self,
        digest: str,
        *,
        actor: str,
        path: str | None = None,
        provenance: Mapping[str, Any] | None = None,
        evaluation: Mapping[str, Any] | None = None,
    ) -> PolicyRow:
        """Make a policy known as a candidate; one that is known stays as it is."""

        def work(session: Session) -> PolicyRow:
            known = session.get(PolicyRow, digest)
            if known is not None:
                return known
            now = self._clock()
            policy = PolicyRow(
                digest=digest,
                path=path,
                status="candidate",
                share=0.0,
                provenance=dict(provenance or {}),
                evaluation=dict(evaluation or {}),
                added_at=now,
            )
            session.add(policy)
            audit(session, now, actor, "add", digest, {"path": path})
            return policy

        return self._database.once(work)

    def switch(
        self,
        digest: str,
        status: str,
        *,
        actor: str,
        share: float = 0.0,
        detail: Mapping[str, Any] | None = None,
    ) -> PolicyRow:
        """Give a policy a status. There is one active policy, one canary and one in the shadow: the
        one before it is retired, or a candidate again if it was in the shadow. Both changes and
        their audit are one transaction.

        Args:
            digest: the policy.
            status: "candidate", "shadow", "canary", "active" or "retired".
            actor: who says so.
            share: of the decisions that a canary takes, in [0, 1].
            detail: why, for the audit: figures, a reason.

        Raises:
            StoreError: no such policy.
            ConfigError: an unknown status, or a share out of range.
        """
        if status not in STATUSES or not 0 <= share <= 1:
            raise ConfigError(
                f"a status is one of {', '.join(STATUSES)} and a share lies in [0, 1]; "
                f"got {status!r} and {share!r}"
            )

        def work(session: Session) -> PolicyRow:
            policy = session.get(PolicyRow, digest)
            if policy is None:
                raise StoreError(f"the store knows no policy {digest!r}; add it first")
            said = {"from": policy.status, "to": status, "share": share, **(detail or {})}
            if status in ("active", "canary", "shadow"):
                said["retired"] = self._retire(session, status, but=digest)
            policy.status, policy.share = status, share
            audit(session, self._clock(), actor, "switch", digest, said)
            return policy

        return self._database.once(work)

    def get(self, digest: str) -> PolicyRow:
        """The policy of a digest, or of its first characters, at least eight.

        Raises:
            StoreError: there is none, or more than one.
        """
        found = [row for row in self.all() if row.digest == digest]
        if not found and len(digest) >= 8:
            found = [row for row in self.all() if row.digest.startswith(digest)]
        if len(found) != 1:
            raise StoreError(
                f"the store knows {len(found)} policies {digest!r}; list them with: "
                "letta-gym policy list"
            )
        return found[0]

    def note(self, digest: str, action: str, *, actor: str, detail: Mapping[str, Any]) -> None:
        """Write into the audit what was done about a policy that changed nothing."""
        with self._database.write() as session:
            audit(session, self._clock(), actor, action, digest, detail)

    def all(self) -> list[PolicyRow]:
        """Every policy, the newest first."""
        with self._database.read(None) as session:
            order = PolicyRow.added_at.desc(), PolicyRow.digest
            return [*session.scalars(select(PolicyRow).order_by(*order))]

    def with_status(self, status: str) -> list[PolicyRow]:
        """The policies of one status, the newest first."""
        return [policy for policy in self.all() if policy.status == status]

    def audit(self) -> list[AuditRow]:
        """Every change, oldest first."""
        with self._database.read(None) as session:
            return [*session.scalars(select(AuditRow).order_by(AuditRow.id))]

    def _retire(self, session: Session, status: str, but: str) -> str | None:
        others = select(PolicyRow).where(PolicyRow.status == status, PolicyRow.digest != but)
        found = None
        for other in session.scalars(others.with_for_update()).all():
            other.status, other.share = "candidate" if status == "shadow" else "retired", 0.0
            found = other.digest
        session.flush()  # before the other row takes the status: each is there once at any time
        return found


class Runs:
    """Training runs and their metrics."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database, self._clock = database, clock

    def start(self, folder: str, config: Mapping[str, Any]) -> int:
        """A run begins; returns its number: that of the supervised run in ``folder``, if any."""
        supervised = select(RunRow.id).join(JobRow).where(RunRow.folder == folder, JobRow.slot == 1)
        with self._database.write() as session:
            known = session.scalar(supervised)
            if known is not None:
                return known
            run = RunRow(
                folder=folder, config=dict(config), status="running", started_at=self._clock()
            )
            session.add(run)
            session.flush()
            return run.id

    def metrics(self, run: int, step: int, values: Mapping[str, float]) -> None:
        """Numbers of one step, by name, in place of those that it had.

        Raises:
            StoreError: no such run.
        """
        with self._database.write() as session:
            _find(session, run)
            rows = [
                {"run_id": run, "step": step, "name": name, "value": value}
                for name, value in values.items()
            ]
            session.execute(
                delete(MetricRow).where(MetricRow.run_id == run, MetricRow.step == step)
            )
            if rows:
                session.execute(insert(MetricRow), rows)

    def finish(
        self, run: int, *, policy_digest: str | None = None, error: str | None = None
    ) -> None:
        """A run ends, with a policy or with an error; a supervised one is ended by its supervisor.

        Raises:
            StoreError: no such run.
        """
        with self._database.write() as session:
            _find(session, run)
            if session.get(JobRow, run) is not None:
                return
            session.execute(
                update(RunRow)
                .where(RunRow.id == run)
                .values(
                    status="finished" if error is None else "failed",
                    policy_digest=policy_digest,
                    error=error,
                    ended_at=self._clock(),
                )
            )

    def all(self) -> list[RunRow]:
        """Every run, the newest first."""
        with self._database.read(None) as session:
            return [*session.scalars(select(RunRow).order_by(RunRow.id.desc()))]

    def curve(self, run: int, name: str) -> list[tuple[int, float]]:
        """A metric of a run: (step, value), by step."""
        query = (
            select(MetricRow.step, MetricRow.value)
            .where(MetricRow.run_id == run, MetricRow.name == name)
            .order_by(MetricRow.step)
        )
        with self._database.read(None) as session:
            return [(step, value) for step, value in session.execute(query)]


def _find(session: Session, run: int) -> RunRow:
    row = session.get(RunRow, run)
    if row is None:
        raise StoreError(f"the store knows no training run {run}")
    return row
