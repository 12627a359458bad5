"""How many choices of an agent may differ from the best one, counted over all processes.

A process leases a part of what is left of the last 24 hours' budget and counts on its own, so that
most choices ask no database. A lease holds for an hour and is counted for 25: whatever it paid for
is a day old then. What it has left goes back with the next lease, or at the end of the process; a
process that dies takes its lease along until it is no longer counted.
"""

from __future__ import annotations

import threading

from sqlalchemy import ForeignKey, Index, delete, func, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from letta_gym.errors import ConfigError
from letta_gym.store.engine import Clock, Database
from letta_gym.store.models import Agent, Base, Viewer

HOLDS = 3_600.0  # seconds
_COUNTED = HOLDS + 86_400.0
_PARTS = 8  # a lease is this part of what is left
_AGAIN = 60.0  # seconds until somebody who got nothing asks again


class LeaseRow(Base):
    """A part of an agent's budget of exploration that one process counts down."""

    __tablename__ = "exploration_leases"
    __table_args__ = (Index(None, "agent_id", "granted_at"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    agent_id: Mapped[int] = mapped_column(ForeignKey("agents.id"))
    amount: Mapped[int]
    granted_at: Mapped[float]


class StoreBudget:
    """A :class:`letta_gym.selection.exploration.Budget` of one agent; threads may share it.

    Args:
        database: of the store.
        agent: whose.
        limit: choices within 24 hours, of all processes together.
        clock: gives the time in Unix seconds.
        waits: whether :attr:`left` takes the next lease itself; where it must never wait for a
            database, somebody else calls :meth:`renew` when :attr:`low` says so.

    Raises:
        ConfigError: a negative limit.
    """

    def __init__(
        self, database: Database, agent: Viewer, limit: int, clock: Clock, *, waits: bool = True
    ) -> None:
        if limit < 0:
            raise ConfigError(f"a budget of exploration is at least 0; got {limit}")
        self._database, self._agent, self._limit, self._clock = database, agent, limit, clock
        self._waits, self._renewing, self._counting = waits, threading.Lock(), threading.Lock()
        self._lease: int | None = None
        self._granted = self._left = 0
        self._until = self._asks_at = 0.0

    @property
    def left(self) -> int:
        """How many more choices may differ from the best one, as far as this process knows."""
        if self._waits and not self._mine():
            self.renew()
        return self._mine()

    @property
    def low(self) -> bool:
        """Whether it is time to :meth:`renew`: less than a quarter of the lease is left."""
        return 4 * self._mine() < max(self._granted, 1) and self._clock() >= self._asks_at

    def spend(self) -> None:
        """Count one."""
        with self._counting:
            self._left -= 1

    def renew(self) -> None:
        """Give back what is left of the lease, and take another; asks the database."""
        with self._renewing:
            now = self._clock()
            if now < self._asks_at:
                return
            rest = self._returned()
            with self._database.write() as session:
                granted = self._grant(session, rest, now)
            with self._counting:
                self._left += granted
                self._granted, self._until = granted, now + HOLDS
                self._asks_at = now if granted else now + _AGAIN

    def close(self) -> None:
        """Give back what is left."""
        with self._renewing:
            rest, lease = self._returned(), self._lease
            if lease is not None and rest:
                with self._database.write() as session:
                    _give_back(session, lease, rest)
            self._lease, self._granted = None, 0

    def _mine(self) -> int:
        return max(self._left, 0) if self._clock() < self._until else 0

    def _returned(self) -> int:
        """What nobody can spend any more."""
        with self._counting:
            rest, self._left = self._left, 0
            return rest

    def _grant(self, session: Session, rest: int, now: float) -> int:
        # Whoever asks for the same agent waits here; SQLite has one writer anyway.
        session.execute(select(Agent.id).where(Agent.id == self._agent.id).with_for_update())
        if self._lease is not None:
            _give_back(session, self._lease, rest)
        mine = LeaseRow.agent_id == self._agent.id
        session.execute(delete(LeaseRow).where(mine, LeaseRow.granted_at <= now - _COUNTED))
        taken = session.scalar(select(func.sum(LeaseRow.amount)).where(mine)) or 0
        free = self._limit - taken
        amount = min(free, max(1, free // _PARTS))
        if amount <= 0:
            self._lease = None
            return 0
        row = LeaseRow(agent_id=self._agent.id, amount=amount, granted_at=now)
        session.add(row)
        session.flush()
        self._lease = row.id
        return amount


def _give_back(session: Session, lease: int, rest: int) -> None:
    row = session.get(LeaseRow, lease)
    if row is not None:  # else it is no longer counted
        row.amount -= rest
