"""Replies kept by idempotency key, so that a request that is sent twice is carried out once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import JSON, ForeignKey, delete
from sqlalchemy.orm import Mapped, Session, mapped_column

from letta_gym.store.engine import Clock, Database
from letta_gym.store.models import Base, Viewer

DAY = 86_400.0


class ReplyRow(Base):
    """A request by its sender's own name for it; ``status`` is null until it was answered."""

    __tablename__ = "replies"

    agent_id: Mapped[int] = mapped_column(ForeignKey("agents.id"), primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    request: Mapped[str]
    status: Mapped[int | None]
    body: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    begun_at: Mapped[float]


@dataclass(frozen=True, slots=True)
class Reply:
    """What is known of a request that came before; ``status`` is None while it is under way.

    ``same`` tells whether it was this very request.
    """

    same: bool
    status: int | None
    body: dict[str, Any] | None


class Replies:
    """The replies of a store; they are forgotten after a day."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database, self._clock = database, clock

    def begin(self, agent: Viewer, key: str, request: str) -> Reply | None:
        """Say that a request is carried out now; or what is known of it, when it came before.

        Args:
            agent: on whose behalf.
            key: the sender's own name for the request.
            request: digest of what is asked for.
        """

        def work(session: Session) -> Reply | None:
            known = session.get(ReplyRow, (agent.id, key))
            if known is not None:
                return Reply(known.request == request, known.status, known.body)
            now = self._clock()
            session.execute(delete(ReplyRow).where(ReplyRow.begun_at < now - DAY))
            session.add(ReplyRow(agent_id=agent.id, key=key, request=request, begun_at=now))
            session.flush()
            return None

        return self._database.once(work)

    def finish(self, agent: Viewer, key: str, status: int, body: dict[str, Any]) -> None:
        """Keep the reply."""
        with self._database.write() as session:
            row = session.get(ReplyRow, (agent.id, key))
            if row is not None:
                row.status, row.body = status, body

    def abandon(self, agent: Viewer, key: str) -> None:
        """Forget a request that was not carried out; it may be sent again."""
        with self._database.write() as session:
            session.execute(
                delete(ReplyRow).where(ReplyRow.agent_id == agent.id, ReplyRow.key == key)
            )
