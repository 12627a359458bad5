"""Skills and their versions: what an agent could choose from, content by content."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import select
from sqlalchemy.orm import Session

from letta_gym.errors import ConfigError, StoreError
from letta_gym.library.skills import Skill
from letta_gym.library.vectors import EmbedderIdentity
from letta_gym.store.engine import Clock, Database
from letta_gym.store.models import SCOPES, Agent, SkillRow, VersionRow, Viewer

Float = NDArray[np.float32]

Content = tuple[str, str]
"""A skill's id and its content hash."""


class Catalogue:
    """The skills of one agent. A changed skill is a new version; old ones are kept."""

    def __init__(self, database: Database, agent: Viewer, clock: Clock) -> None:
        self._database, self._agent, self._clock = database, agent, clock
        self._ids: dict[Content, int] = {}

    def ids(self, contents: Sequence[Content], skills: Sequence[Skill]) -> list[int]:
        """Ids of the versions ``contents`` of ``skills``; new ones are registered."""
        try:
            return [self._ids[content] for content in contents]
        except KeyError:
            self.register(skills)
            return [self._ids[content] for content in contents]

    def register(
        self,
        skills: Sequence[Skill],
        vectors: Float | None = None,
        embedder: EmbedderIdentity | None = None,
    ) -> None:
        """Make the current contents of ``skills`` known.

        Args:
            skills: n skills.
            vectors: their snapped vectors, shape (n, D), where they are known.
            embedder: which made them.

        Raises:
            ConfigError: vectors without their embedder, or not one for each skill.
        """
        if (vectors is None) != (embedder is None) or (
            vectors is not None and len(vectors) != len(skills)
        ):
            raise ConfigError(
                f"vectors come one for each of the {len(skills)} skills and with their embedder; "
                f"got {None if vectors is None else len(vectors)} and {embedder}"
            )

        with self._database.write() as session:
            # One registration of an agent at a time; decisions that name the agent need not wait.
            mine = select(Agent.id).where(Agent.id == self._agent.id)
            session.execute(mine.with_for_update(key_share=True))
            rows = self._skill_rows(session, [skill.id for skill in skills])
            known = self._version_rows(session)
            for i, skill in enumerate(skills):
                content = skill.id, skill.content_hash
                version = known.get(content)
                if version is None:
                    version = known[content] = self._version(skill, rows[skill.id].id)
                    session.add(version)
                if vectors is not None and embedder is not None:
                    version.vector, version.embedder = vectors[i], embedder.key
            session.flush()
            ids = {content: version.id for content, version in known.items()}
        self._ids.update(ids)  # in place: other threads do the same

    def share(self, skill: str, scope: str) -> None:
        """Say who may see a skill, all its versions: "private", "team" or "shared".

        Raises:
            StoreError: the agent has no such skill.
            ConfigError: an unknown scope.
        """
        if scope not in SCOPES:
            raise ConfigError(f"a scope is one of {', '.join(SCOPES)}; got {scope!r}")
        with self._database.write() as session:
            row = session.scalar(
                select(SkillRow).where(SkillRow.agent_id == self._agent.id, SkillRow.skill == skill)
            )
            if row is None:
                raise StoreError(f"the agent {self._agent.name!r} has no skill {skill!r}")
            row.scope = scope

    def versions(self) -> list[tuple[SkillRow, VersionRow]]:
        """Every version that the agent may see, its own and what others share, oldest first."""
        with self._database.read(self._agent) as session:
            query = select(SkillRow, VersionRow).join(VersionRow).order_by(VersionRow.id)
            return [(skill, version) for skill, version in session.execute(query)]

    def _skill_rows(self, session: Session, ids: Sequence[str]) -> dict[str, SkillRow]:
        mine = select(SkillRow).where(SkillRow.agent_id == self._agent.id)
        rows = {row.skill: row for row in session.scalars(mine)}
        new = {i: SkillRow(agent_id=self._agent.id, skill=i) for i in ids if i not in rows}
        session.add_all(new.values())
        session.flush()
        return rows | new

    def _version_rows(self, session: Session) -> dict[Content, VersionRow]:
        query = (
            select(SkillRow.skill, VersionRow)
            .join(VersionRow)
            .where(SkillRow.agent_id == self._agent.id)
        )
        return {(skill, row.content_hash): row for skill, row in session.execute(query)}

    def _version(self, skill: Skill, skill_id: int) -> VersionRow:
        category, tags = skill.metadata.get("category"), skill.metadata.get("tags")
        return VersionRow(
            skill_id=skill_id,
            content_hash=skill.content_hash,
            name=skill.name,
            description=skill.description,
            body=skill.body,
            tokens=skill.tokens,
            category=None if category is None else str(category),
            tags=[str(tag) for tag in tags] if isinstance(tags, list | tuple) else [],
            created_at=self._clock(),
        )
