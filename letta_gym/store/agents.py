"""Agents: whose skills, decisions and outcomes the store keeps, and who else may see them."""

from __future__ import annotations

import difflib

from sqlalchemy import select
from sqlalchemy.orm import Session

from letta_gym.errors import ConfigError, EmbeddingError, StoreError
from letta_gym.library.embeddings import VectorSpace
from letta_gym.library.vectors import EmbedderIdentity
from letta_gym.store.engine import Clock, Database
from letta_gym.store.models import PRIVATE, SCOPES, Agent, Viewer


class Agents:
    """The agents of a store."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database, self._clock = database, clock

    def ensure(self, name: str, *, team: str | None = None, scope: str = PRIVATE) -> Viewer:
        """The agent ``name``, made when it is new; an agent that exists stays as it is.

        Args:
            name: unique in the store.
            team: which agents are of one team.
            scope: who may see what it does: "private", "team" or "shared".

        Raises:
            ConfigError: an empty name or an unknown scope.
        """
        if not name:
            raise ConfigError("an agent needs a name; got ''")
        _check_scope(scope)

        def work(session: Session) -> Viewer:
            agent = session.scalar(select(Agent).where(Agent.name == name))
            if agent is None:
                agent = Agent(name=name, team=team, scope=scope, created_at=self._clock())
                session.add(agent)
                session.flush()
            return Viewer(agent.id, agent.name, agent.team)

        return self._database.once(work)

    def get(self, name: str) -> Viewer:
        """The agent ``name``.

        Raises:
            StoreError: there is none.
        """
        with self._database.read(None) as session:
            return _viewer(_find(session, name))

    def change(self, name: str, *, team: str | None, scope: str) -> Viewer:
        """Put an agent into a team and a scope; what it did before moves along.

        Raises:
            StoreError: there is no such agent.
            ConfigError: an unknown scope.
        """
        _check_scope(scope)
        with self._database.write() as session:
            agent = _find(session, name)
            agent.team, agent.scope = team, scope
            return _viewer(agent)

    def settle(self, name: str, space: VectorSpace) -> None:
        """Say whose vectors an agent's decisions have; it keeps to them.

        Raises:
            StoreError: there is no such agent.
            EmbeddingError: they are of another model by now.
        """
        with self._database.read(None) as session:
            known = space_of(_find(session, name))
        if known is None:
            with self._database.write() as session:
                settle(_find(session, name), space)
        else:
            check_space(name, known, space, "those of this policy")

    def space(self, name: str) -> VectorSpace | None:
        """Whose vectors an agent's decisions have; None where there are none yet.

        Raises:
            StoreError: there is no such agent.
        """
        with self._database.read(None) as session:
            return space_of(_find(session, name))

    def all(self, viewer: Viewer | None = None) -> list[Agent]:
        """The agents that ``viewer`` may see, by name; None is the operator, who sees all."""
        with self._database.read(viewer) as session:
            return [*session.scalars(select(Agent).order_by(Agent.name))]


def space_of(agent: Agent) -> VectorSpace | None:
    """Whose vectors the decisions of ``agent`` have."""
    if agent.embedder is None or agent.probes is None:
        return None
    identity = EmbedderIdentity(**agent.embedder)
    return VectorSpace(identity, agent.probes.reshape(-1, identity.dimension))


def settle(agent: Agent, space: VectorSpace) -> None:
    """Say it for the first time, or again."""
    known = space_of(agent)
    if known is None:
        agent.embedder, agent.probes = space.identity.to_json(), space.probes
    else:
        check_space(agent.name, known, space, "those that come")


def check_space(agent: str, known: VectorSpace, other: VectorSpace, whose: str) -> None:
    """Raise unless an agent may use vectors of ``other``.

    Raises:
        EmbeddingError: they are of another model.
    """
    try:
        known.check(other, whose)
    except EmbeddingError as error:
        raise EmbeddingError(
            f"the agent {agent!r} cannot use these vectors: {error}. Use the embedder that it "
            "began with, or begin anew with another agent"
        ) from error


def _viewer(agent: Agent) -> Viewer:
    return Viewer(agent.id, agent.name, agent.team)


def _find(session: Session, name: str) -> Agent:
    agent = session.scalar(select(Agent).where(Agent.name == name))
    if agent is None:
        near = difflib.get_close_matches(name, session.scalars(select(Agent.name)), n=1)
        hint = f"did you mean {near[0]!r}?" if near else "add it with agents.ensure()"
        raise StoreError(f"the store knows no agent {name!r}; {hint}")
    return agent


def _check_scope(scope: str) -> None:
    if scope not in SCOPES:
        raise ConfigError(f"a scope is one of {', '.join(SCOPES)}; got {scope!r}")
