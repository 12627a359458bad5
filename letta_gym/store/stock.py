"""What a store has in stock for every agent: a shared library, and the vectors of its skills."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sqlalchemy import or_, select

from letta_gym.library.embeddings import Embedder
from letta_gym.library.passages import embed_skills
from letta_gym.library.skills import Skill
from letta_gym.store.models import SHARED, SkillRow, VersionRow
from letta_gym.store.offers import OfferRow

if TYPE_CHECKING:
    from letta_gym.store.store import Store

LIBRARY = "library"
"""The agent that owns the shared skills, which every agent may choose from."""


def seed(store: Store, skills: Sequence[Skill], *, actor: str) -> int:
    """Offer ``skills`` to every agent, those that are not offered as they are; returns how many."""
    owner = store.agents.ensure(LIBRARY, scope=SHARED)
    offered = {offer.skill for offer in store.offers.seen_by(owner).values()}
    new = [skill for skill in skills if skill not in offered]
    if new:
        store.offers.put(owner, new, actor=actor, scope=SHARED)
    return len(new)


def embed(store: Store, embedder: Embedder, *, actor: str) -> int:
    """Keep the vectors of the offered skills that have none of this embedder; returns how many.

    Raises:
        MissingExtraError: none is installed.
    """
    key = embedder.identity.key
    lacking = or_(VersionRow.vector.is_(None), VersionRow.embedder != key)
    query = (
        select(SkillRow.skill, VersionRow)
        .join(VersionRow, VersionRow.skill_id == SkillRow.id)
        .join(OfferRow, OfferRow.version_id == VersionRow.id)
        .where(lacking)
        .order_by(VersionRow.id)
    )
    with store.database.read(None) as session:
        found = {
            row.id: Skill(skill, row.name, row.description, row.body, row.tokens)
            for skill, row in session.execute(query)
        }
    if not found:
        return 0
    vectors = embed_skills(embedder, [*found.values()])
    with store.database.write() as session:
        for (number, _), vector in zip(found.items(), vectors, strict=True):
            row = session.get_one(VersionRow, number)
            row.vector, row.embedder = vector, key
    store.note(actor, "embed skills", embedder.identity.id, {"skills": len(found)})
    return len(found)
