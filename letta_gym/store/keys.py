"""API keys: who may call the service, for whom, and what for. Only their hashes are kept."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import JSON, CheckConstraint, ForeignKey, select
from sqlalchemy.orm import Mapped, mapped_column

from letta_gym.errors import ConfigError, StoreError
from letta_gym.store.engine import Clock, Database
from letta_gym.store.models import Agent, Base, Viewer
from letta_gym.store.policies import audit

RIGHTS = ("read", "select", "write", "train", "admin")
_PREFIX = "lg_"


class KeyRow(Base):
    """An API key; bound to one agent, to a team, or to neither, which is the operator's."""

    __tablename__ = "api_keys"
    __table_args__ = (CheckConstraint("agent_id IS NULL OR team IS NULL", "one_binding"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    digest: Mapped[str] = mapped_column(unique=True)
    rights: Mapped[list[Any]] = mapped_column(JSON)
    agent_id: Mapped[int | None] = mapped_column(ForeignKey("agents.id"))
    team: Mapped[str | None]
    made_at: Mapped[float]
    revoked_at: Mapped[float | None]


@dataclass(frozen=True, slots=True)
class Key:
    """A key that holds: its name, what it may do, and the agent or team that it is bound to."""

    name: str
    rights: frozenset[str]
    agent: Viewer | None
    team: str | None
    made_at: float


def digest_of(secret: str) -> str:
    """SHA-256 of a key. A key is 256 random bits, so a slow hash would protect nothing more."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


class Keys:
    """The API keys of a store."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database, self._clock = database, clock

    def make(
        self,
        name: str,
        rights: Sequence[str],
        *,
        actor: str,
        agent: Viewer | None = None,
        team: str | None = None,
    ) -> str:
        """Make a key and return it; it cannot be shown again.

        Raises:
            ConfigError: no or unknown rights, a name that is taken, or two bindings.
        """
        unknown = [right for right in rights if right not in RIGHTS]
        if not rights or unknown:
            raise ConfigError(f"rights are some of {', '.join(RIGHTS)}; got {list(rights)}")
        if not name or (agent is not None and team is not None):
            raise ConfigError("a key needs a name, and is bound to an agent or to a team, not both")
        secret = _PREFIX + secrets.token_urlsafe(32)
        with self._database.write() as session:
            if session.scalar(select(KeyRow.id).where(KeyRow.name == name)) is not None:
                raise ConfigError(f"there is a key {name!r} already; choose another name")
            row = KeyRow(
                name=name,
                digest=digest_of(secret),
                rights=[right for right in RIGHTS if right in rights],
                agent_id=None if agent is None else agent.id,
                team=team,
                made_at=self._clock(),
            )
            session.add(row)
            bound = {"agent": None if agent is None else agent.name, "team": team}
            audit(session, self._clock(), actor, "make key", name, {"rights": row.rights, **bound})
        return secret

    def revoke(self, name: str, *, actor: str) -> None:
        """A key holds no more.

        Raises:
            StoreError: no such key holds.
        """
        with self._database.write() as session:
            held = KeyRow.name == name, KeyRow.revoked_at.is_(None)
            row = session.scalar(select(KeyRow).where(*held))
            if row is None:
                raise StoreError(f"there is no key {name!r} that holds")
            row.revoked_at = self._clock()
            audit(session, self._clock(), actor, "revoke key", name, {})

    def held(self) -> dict[str, Key]:
        """The keys that hold, by their digests."""
        query = (
            select(KeyRow, Agent)
            .outerjoin(Agent, Agent.id == KeyRow.agent_id)
            .where(KeyRow.revoked_at.is_(None))
            .order_by(KeyRow.name)
        )
        with self._database.read(None) as session:
            return {row.digest: _key(row, agent) for row, agent in session.execute(query)}


def _key(row: KeyRow, agent: Agent | None) -> Key:
    bound = None if agent is None else Viewer(agent.id, agent.name, agent.team)
    return Key(row.name, frozenset(row.rights), bound, row.team, row.made_at)
