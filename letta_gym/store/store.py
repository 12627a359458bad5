"""The store: one database with everything that outlives the process."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from sqlalchemy import delete, func, select

from letta_gym.errors import ConfigError
from letta_gym.feedback.memory import OutcomeMemory
from letta_gym.feedback.quality import Trial
from letta_gym.store.agents import Agents
from letta_gym.store.budget import StoreBudget
from letta_gym.store.catalogue import Catalogue
from letta_gym.store.engine import Clock, Database
from letta_gym.store.export import export
from letta_gym.store.figures import Figures
from letta_gym.store.history import History
from letta_gym.store.jobs import Jobs
from letta_gym.store.keys import Keys
from letta_gym.store.log import LogConfig, StoreLog
from letta_gym.store.models import MODES, AuditRow, DecisionRow, Viewer
from letta_gym.store.offers import Offers
from letta_gym.store.policies import Policies, Runs, audit
from letta_gym.store.replies import Replies
from letta_gym.store.transfers import learn_all
from letta_gym.store.trials import trials

STORE_VARIABLE = "LETTA_GYM_STORE"
"""Environment variable with the URL of the store, for programs that are told no other way."""

_BATCH = 1_000  # decisions removed in one transaction, so that writers wait only briefly


class Store:
    """Opens a database, brings its tables to this version, and hands out what works on them.

    Threads may share a store, and processes may open the same database.

    Args:
        url: a path, ``sqlite:///path``, or ``postgresql://user:password@host/name``.
        clock: gives the time in Unix seconds.
        create: make a missing SQLite file; otherwise it is an error.

    Attributes:
        agents: whose decisions are kept.
        policies: the policies and their status.
        offers: the skills that agents may choose from.
        keys: the API keys of the service.
        replies: replies of the service by idempotency key.
        runs: training runs and their metrics.
        jobs: training runs that a supervisor looks after.
        clock: gives the time in Unix seconds.

    Raises:
        StoreError: the database cannot be used or is of a later version.
        MissingExtraError: PostgreSQL without psycopg.
    """

    def __init__(self, url: str | Path, clock: Clock = time.time, *, create: bool = True) -> None:
        self.database, self.clock = Database(str(url), create=create), clock
        try:
            self.database.migrate()
        except BaseException:
            self.database.close()
            raise
        self.agents = Agents(self.database, clock)
        self.policies = Policies(self.database, clock)
        self.runs = Runs(self.database, clock)
        self.jobs = Jobs(self.database, clock)
        self.offers = Offers(self.database, clock)
        self.keys = Keys(self.database, clock)
        self.replies = Replies(self.database, clock)

    def catalogue(self, agent: Viewer) -> Catalogue:
        """The skills of an agent."""
        return Catalogue(self.database, agent, self.clock)

    def log(
        self, agent: Viewer, config: LogConfig | None = None, *, mode: str = "active"
    ) -> StoreLog:
        """The decision log of an agent, for :class:`SkillSelector`.

        Args:
            agent: whose.
            config: what is kept.
            mode: of the selector: "active", "canary", or "shadow" for one whose choices nobody
                carries out.

        Raises:
            ConfigError: an unknown mode.
        """
        if mode not in MODES:
            raise ConfigError(f"a mode is one of {', '.join(MODES)}; got {mode!r}")
        catalogue, kept = self.catalogue(agent), config or LogConfig()
        return StoreLog(self.database, agent, catalogue, kept, self.clock, mode)

    def budget(self, agent: Viewer, limit: int, *, waits: bool = True) -> StoreBudget:
        """The exploration budget of an agent over all processes; see :class:`StoreBudget`."""
        return StoreBudget(self.database, agent, limit, self.clock, waits=waits)

    def history(self, viewer: Viewer | None = None) -> History:
        """The decisions that an agent may see; for None, the operator, all of them."""
        return History(self.database, viewer)

    def figures(self, viewer: Viewer | None = None) -> Figures:
        """Figures of what an agent may see; for None, the operator, of everything."""
        return Figures(self.database, viewer, self.clock)

    def restore(self, memory: OutcomeMemory, agent: Viewer) -> int:
        """Fill an empty memory with the newest outcomes of ``agent``; returns how many.

        What came to it by transfers is learned first, as the oldest.

        Raises:
            ConfigError: the memory is not empty: what it holds would count twice.
        """
        if len(memory):
            raise ConfigError(
                f"the memory holds {len(memory)} outcomes already; restore into an empty one"
            )
        received = learn_all(self.database, memory, agent)
        return received + self.history(agent).fill(memory, agent)

    def export(
        self,
        path: Path | str,
        form: str,
        *,
        agent: str | None = None,
        since: float = 0.0,
        until: float | None = None,
    ) -> int:
        """Write decisions and outcomes as "jsonl" or "parquet"; returns how many decisions.

        Raises:
            StoreError: no such agent.
            ConfigError: an unknown form.
            MissingExtraError: Parquet without pyarrow.
        """
        if agent is not None:
            self.agents.get(agent)
        history = self.history()
        logged = history.decisions(agent=agent, since=since, until=until)
        return export(logged, history.versions(), path, form)

    def trials(self, viewer: Viewer | None = None, *, since: float = 0.0) -> Iterator[Trial]:
        """Settled decisions that ``viewer`` may see, for :class:`QualityTracker`."""
        history = self.history(viewer)
        return trials(history.decisions(since=since, settled=True), history.versions())

    def purge(self, older_than_days: float, *, actor: str) -> int:
        """Remove decisions of long ago with their outcomes and feedback; returns how many.

        Raises:
            ConfigError: ``older_than_days`` is negative.
        """
        if not older_than_days >= 0:
            raise ConfigError(f"older_than_days must be at least 0; got {older_than_days}")
        before = self.clock() - older_than_days * 86_400
        removed = sum(self._remove(before))
        with self.database.write() as session:
            detail = {"before": before, "decisions": removed}
            audit(session, self.clock(), actor, "purge", "decisions", detail)
        return removed

    def note(self, actor: str, action: str, subject: str, detail: Mapping[str, Any]) -> None:
        """Say in the audit who changed what."""
        with self.database.write() as session:
            audit(session, self.clock(), actor, action, subject, detail)

    def changes(self, after: int) -> dict[int, str]:
        """The actions of the audit by their number, those with a number above ``after``."""
        query = select(AuditRow.id, AuditRow.action).where(AuditRow.id > after)
        with self.database.read(None) as session:
            return {row.id: row.action for row in session.execute(query)}

    def last_change(self) -> int:
        """Number of the newest entry of the audit; 0 where there is none."""
        with self.database.read(None) as session:
            return session.scalar(select(func.max(AuditRow.id))) or 0

    def close(self) -> None:
        """Close the connections; the store cannot be used afterwards."""
        self.database.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _remove(self, before: float) -> Iterator[int]:
        old = select(DecisionRow.id).where(DecisionRow.decided_at < before).limit(_BATCH)
        while True:
            with self.database.write() as session:
                ids = session.scalars(old).all()
                session.execute(delete(DecisionRow).where(DecisionRow.id.in_(ids)))
            yield len(ids)
            if len(ids) < _BATCH:
                return
