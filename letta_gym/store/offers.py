"""Which skills may be chosen now: each agent's own, and what others share with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import JSON, ForeignKey, delete, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from letta_gym.errors import ConfigError, StoreError
from letta_gym.library.skills import Skill
from letta_gym.store.catalogue import Catalogue
from letta_gym.store.engine import Clock, Database
from letta_gym.store.models import PRIVATE, SCOPES, Agent, Base, SkillRow, VersionRow, Viewer
from letta_gym.store.policies import audit

_OF_MATE, _OF_OTHER = 1, 2


class OfferRow(Base):
    """The version of a skill that may be chosen; a skill without a row here was removed.

    ``extra`` are the other keys of its SKILL.md.
    """

    __tablename__ = "offers"

    skill_id: Mapped[int] = mapped_column(
        ForeignKey("skills.id", ondelete="CASCADE"), primary_key=True
    )
    version_id: Mapped[int] = mapped_column(ForeignKey("skill_versions.id", ondelete="CASCADE"))
    extra: Mapped[dict[str, Any]] = mapped_column(JSON)
    changed_at: Mapped[float]


@dataclass(frozen=True, slots=True)
class Offer:
    """A skill that may be chosen: whose it is, who may see it, since when it is as it is."""

    skill: Skill
    owner: str
    scope: str
    changed_at: float


class Offers:
    """The skills that agents may choose from."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database, self._clock = database, clock

    def put(
        self, owner: Viewer, skills: Sequence[Skill], *, actor: str, scope: str | None = None
    ) -> None:
        """Offer skills of ``owner`` as they are now, all or none; those of the same id change.

        Args:
            owner: whose they are.
            skills: what is offered.
            actor: who says so, for the audit.
            scope: who may see them: "private", "team" or "shared"; None leaves it as it is.

        Raises:
            ConfigError: an unknown scope.
        """
        if scope is not None and scope not in SCOPES:
            raise ConfigError(f"a scope is one of {', '.join(SCOPES)}; got {scope!r}")
        Catalogue(self._database, owner, self._clock).register(skills)

        def work(session: Session) -> None:
            for skill in skills:
                row, version = _version(session, owner, skill)
                row.scope = scope or row.scope or PRIVATE
                offer = session.get(OfferRow, row.id) or OfferRow(skill_id=row.id)
                offer.version_id, offer.extra = version, dict(skill.metadata)
                offer.changed_at = self._clock()
                session.add(offer)
                detail = {"content": skill.content_hash, "scope": row.scope}
                audit(session, self._clock(), actor, "offer skill", _named(owner, skill.id), detail)

        self._database.once(work)

    def withdraw(self, owner: Viewer, skill: str, *, actor: str) -> None:
        """Take a skill back; what was decided with it stays.

        Raises:
            StoreError: the owner offers no such skill.
        """
        with self._database.write() as session:
            row = session.scalar(
                select(SkillRow.id).where(SkillRow.agent_id == owner.id, SkillRow.skill == skill)
            )
            gone = session.execute(delete(OfferRow).where(OfferRow.skill_id == row))
            if not getattr(gone, "rowcount", 0):
                raise StoreError(f"the agent {owner.name!r} offers no skill {skill!r}")
            audit(session, self._clock(), actor, "withdraw skill", _named(owner, skill), {})

    def seen_by(self, viewer: Viewer) -> dict[str, Offer]:
        """What ``viewer`` may choose from, by ascending id.

        Of several skills with one id its own comes first, then its team's, then the others';
        among these the oldest.
        """
        query = (
            select(SkillRow, VersionRow, OfferRow, Agent.__table__.c.name, Agent.__table__.c.team)
            .join(OfferRow, OfferRow.skill_id == SkillRow.id)
            .join(VersionRow, VersionRow.id == OfferRow.version_id)
            .join(Agent.__table__, Agent.__table__.c.id == SkillRow.agent_id)
        )
        with self._database.read(viewer) as session:
            found = session.execute(query).all()

        def nearness(row: Any) -> tuple[int, int]:
            if row.SkillRow.agent_id == viewer.id:
                return 0, row.SkillRow.id
            mate = viewer.team is not None and row.team == viewer.team
            return _OF_MATE if mate else _OF_OTHER, row.SkillRow.id

        offers: dict[str, Offer] = {}
        for row in sorted(found, key=nearness):
            offers.setdefault(row.SkillRow.skill, _offer(row))
        return dict(sorted(offers.items()))


def _version(session: Session, owner: Viewer, skill: Skill) -> tuple[SkillRow, int]:
    query = (
        select(SkillRow, VersionRow.id)
        .join(VersionRow, VersionRow.skill_id == SkillRow.id)
        .where(
            SkillRow.agent_id == owner.id,
            SkillRow.skill == skill.id,
            VersionRow.content_hash == skill.content_hash,
        )
    )
    row, version = session.execute(query).one()
    return row, version


def _offer(row: Any) -> Offer:
    version = row.VersionRow
    skill = Skill(
        id=row.SkillRow.skill,
        name=version.name,
        description=version.description,
        body=version.body,
        tokens=version.tokens,
        metadata=row.OfferRow.extra,
    )
    return Offer(skill, row.name, row.SkillRow.scope, row.OfferRow.changed_at)


def _named(owner: Viewer, skill: str) -> str:
    return f"{owner.name}/{skill}"
