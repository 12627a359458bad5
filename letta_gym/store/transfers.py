"""Skills and evidence that go from one agent to another, as bundle files."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from sqlalchemy import select
from sqlalchemy.orm import Session

from letta_gym.errors import BundleError, EmbeddingError, StoreError
from letta_gym.feedback.memory import OutcomeMemory
from letta_gym.feedback.transfer import (
    AgentEvidence,
    Bundle,
    Recommendation,
    TransferConfig,
    recommend,
)
from letta_gym.library.skills import Skill
from letta_gym.library.vectors import Float
from letta_gym.store.agents import settle
from letta_gym.store.engine import Database
from letta_gym.store.history import Logged
from letta_gym.store.models import Agent, SkillRow, TransferRow, VersionRow, Viewer
from letta_gym.store.policies import audit

if TYPE_CHECKING:
    from letta_gym.store.store import Store


class _Outcome(NamedTuple):
    """What one decision says of one loaded skill."""

    key: str
    vector: Float
    success: float
    fit: float


class Conflict(StrEnum):
    """What to do where the receiving agent has a skill of the same id and another content.

    REFUSE: take in nothing, and name the conflicts. KEEP: keep its own, and leave the bundle's out.
    TAKE: take the bundle's as a new version.
    """

    REFUSE = "refuse"
    KEEP = "keep"
    TAKE = "take"


class UnresolvedError(BundleError):
    """An agent has other contents of ``skills`` than the bundle, and nobody said what to do."""

    def __init__(self, agent: str, skills: Sequence[str]) -> None:
        self.skills, self.reason = tuple(skills), f"{agent!r} has other contents of {[*skills]}"
        super().__init__(
            f"{self.reason}; say for each whether to keep its own or take the bundle's (conflicts=)"
        )


class Transfers:
    """Packs bundles, takes them in, and recommends what is worth it.

    Args:
        store: of one or both agents.
        config: how far evidence travels.
    """

    def __init__(self, store: Store, config: TransferConfig | None = None) -> None:
        self.store, self.config = store, config or TransferConfig()

    def recommend(self, agent: str, tasks: Float) -> list[Recommendation]:
        """Skills that did well for the agents that ``agent`` may see, on tasks like ``tasks``.

        Skills that it has already, in the same content, are left out, and so is evidence of agents
        with another embedder: their tasks cannot be compared.

        Raises:
            StoreError: there is no such agent.
        """
        viewer = self.store.agents.get(agent)
        own = {version.content_hash for _, version in self._skills(viewer, agent)}
        found: dict[tuple[str, str], list[_Outcome]] = defaultdict(list)
        comparable: dict[str, bool] = {}
        for one in self.store.history(viewer).decisions(settled=True):
            if one.agent not in comparable:
                comparable[one.agent] = one.agent != agent and self._comparable(agent, one.agent)
            for outcome in _outcomes(one) if comparable[one.agent] else ():
                if outcome.key not in own:
                    found[one.agent, outcome.key].append(outcome)
        evidence = [
            AgentEvidence(
                of,
                key,
                np.stack([outcome.vector for outcome in each]),
                np.array([outcome.success for outcome in each], np.float32),
            )
            for (of, key), each in found.items()
        ]
        return recommend(evidence, tasks, self.config)

    def pack(
        self, source: str, recipient: str | None, keys: Collection[str] | None = None
    ) -> Bundle:
        """A bundle of skills of one agent with its outcomes, as far as ``recipient`` may see them.

        Args:
            source: whose skills and outcomes.
            recipient: for whom; None for an agent of another store, which sees what is shared.
            keys: content hashes of the skills; by default every current skill with an outcome.

        Raises:
            StoreError: an agent is unknown, or recipient and source are one.
            BundleError: the recipient may see none of the skills.
        """
        giver = self.store.agents.get(source)
        if recipient == source:
            raise StoreError(f"a transfer from {source!r} to itself changes nothing")
        stranger = Viewer(-1, "", None)
        viewer = stranger if recipient is None else self.store.agents.get(recipient)
        current = {
            version.content_hash: (row, version) for row, version in self._skills(viewer, source)
        }
        found: dict[str, list[_Outcome]] = defaultdict(list)
        for one in self.store.history(viewer).decisions(agent=giver.name, settled=True):
            for outcome in _outcomes(one):
                if outcome.key in current and (keys is None or outcome.key in keys):
                    found[outcome.key].append(outcome)
        wanted = [key for key in current if key in (found if keys is None else keys)]
        if not wanted:
            raise BundleError(
                f"{recipient or 'an agent of another store'} may see no such skill of {source!r} "
                "with its outcomes; change the scope of the agent and of its skills first"
            )
        newest = [found[key][-self.config.newest :] for key in wanted]
        made = _bundle(source, [current[key] for key in wanted], newest)
        return replace(made, space=self.store.agents.space(source))

    def take_in(
        self,
        file: Bundle | Path | str,
        target: str,
        *,
        conflicts: Conflict | Mapping[str, Conflict] = Conflict.REFUSE,
        actor: str,
    ) -> TransferRow:
        """Give the skills of a bundle and a share of its evidence to an agent.

        Taking in the same bundle again changes nothing. A memory learns of it by :func:`learn`, and
        whenever the store restores one.

        Args:
            file: a bundle or its file.
            target: who gets it.
            conflicts: what to do about skills of the same id and another content, for all or by id.
            actor: who says so, for the audit.

        Raises:
            StoreError: there is no such agent, or the bundle is its own.
            BundleError: the bundle is damaged, conflicts are refused, or its vectors are of another
                model than those of the agent.
        """
        bundle = file if isinstance(file, Bundle) else Bundle.load(file)
        agent = self.store.agents.get(target)
        if bundle.source == target:
            raise StoreError(f"this bundle is of {target!r} itself; give it to another agent")

        def work(session: Session) -> TransferRow:
            known = session.scalar(
                select(TransferRow).where(
                    TransferRow.target_id == agent.id, TransferRow.bundle_sha256 == bundle.digest
                )
            )
            if known is not None:
                return known
            fates = self._fates(session, agent, bundle, conflicts)
            _settle(session, agent, bundle)
            source = session.scalar(select(Agent.id).where(Agent.name == bundle.source))
            row = TransferRow(
                source_id=source,
                target_id=agent.id,
                bundle_sha256=bundle.digest,
                content={"source": bundle.source, "skills": fates},
                bundle=bundle.to_bytes(),
                discount=self.config.discount,
                imported_at=self.store.clock(),
            )
            session.add(row)
            detail = {"from": bundle.source, "skills": fates}
            audit(session, row.imported_at, actor, "transfer", target, detail)
            return row

        row = self.store.database.once(work)
        fates = row.content["skills"]
        taken = [skill for skill in bundle.skills if fates[skill.id] in ("new", "taken")]
        self.store.catalogue(agent).register(taken)
        return row

    def _comparable(self, one: str, other: str) -> bool:
        """Whether the tasks of two agents have vectors of the same model."""
        first, second = (self.store.agents.space(name) for name in (one, other))
        return first is None or second is None or first.agrees(second)

    def received(self, agent: Viewer) -> list[TransferRow]:
        """The bundles that an agent took in, the newest first."""
        query = select(TransferRow).where(TransferRow.target_id == agent.id)
        with self.store.database.read(agent) as session:
            return [*session.scalars(query.order_by(TransferRow.id.desc()))]

    def _skills(self, viewer: Viewer, owner: str) -> Sequence[tuple[SkillRow, VersionRow]]:
        """The newest visible version of each skill of ``owner``."""
        query = (
            select(SkillRow, VersionRow)
            .join(VersionRow, VersionRow.skill_id == SkillRow.id)
            .where(SkillRow.agent_id == self.store.agents.get(owner).id)
            .order_by(VersionRow.id)
        )
        with self.store.database.read(viewer) as session:
            newest = {row.skill: (row, version) for row, version in session.execute(query)}
        return [*newest.values()]

    def _fates(
        self,
        session: Session,
        agent: Viewer,
        bundle: Bundle,
        conflicts: Conflict | Mapping[str, Conflict],
    ) -> dict[str, str]:
        """What becomes of each skill: "new", "same", "kept" or "taken"."""
        query = (
            select(SkillRow.skill, VersionRow.content_hash)
            .join(VersionRow, VersionRow.skill_id == SkillRow.id)
            .where(SkillRow.agent_id == agent.id)
            .order_by(VersionRow.id)
        )
        own = {row.skill: row.content_hash for row in session.execute(query)}
        fates: dict[str, str] = {}
        refused: list[str] = []
        for skill in bundle.skills:
            choice = conflicts
            if not isinstance(choice, Conflict):
                choice = choice.get(skill.id, Conflict.REFUSE)
            if skill.id not in own:
                fates[skill.id] = "new"
            elif own[skill.id] == skill.content_hash:
                fates[skill.id] = "same"
            elif choice is Conflict.REFUSE:
                refused.append(skill.id)
            else:
                fates[skill.id] = "kept" if choice is Conflict.KEEP else "taken"
        if refused:
            raise UnresolvedError(agent.name, refused)
        return fates


def _settle(session: Session, agent: Viewer, bundle: Bundle) -> None:
    """Make sure that the agent can use the vectors of a bundle, and keeps to them."""
    if bundle.space is None or not len(bundle.vectors):
        return
    row = session.get(Agent, agent.id)
    assert row is not None
    try:
        settle(row, bundle.space)
    except EmbeddingError as error:
        raise BundleError(f"no evidence can be taken from this bundle: {error}") from error


def learn(memory: OutcomeMemory, transfer: TransferRow) -> int:
    """Add the evidence of a transfer to a memory; returns how many outcomes.

    The discount is the share of each skill's outcomes that is taken, the newest ones, so that every
    statistic of the memory is discounted alike.

    Raises:
        BundleError: the vectors are of another length than the memory's.
    """
    bundle = Bundle.from_bytes(transfer.bundle)
    if bundle.vectors.shape[1] != memory.dimension:
        raise BundleError(
            f"the bundle holds vectors of {bundle.vectors.shape[1]} dimensions, of another "
            f"embedder; the memory's have {memory.dimension}"
        )
    fates = transfer.content["skills"]
    learned = 0
    for at in bundle.thinned(transfer.discount):
        skill = bundle.skills[bundle.skill[at]]
        if fates[skill.id] != "kept":
            success, fit = float(bundle.success[at]), float(bundle.fit[at])
            memory.add(skill.content_hash, bundle.vectors[at], success, fit)
            learned += 1
    return learned


def learn_all(database: Database, memory: OutcomeMemory, agent: Viewer) -> int:
    """Add the evidence of every transfer to ``agent``, oldest first; returns how many outcomes."""
    query = (
        select(TransferRow)
        .where(TransferRow.target_id == agent.id)
        .order_by(TransferRow.imported_at, TransferRow.id)
    )
    with database.read(agent) as session:
        rows = session.scalars(query).all()
    return sum(learn(memory, row) for row in rows)


def _outcomes(logged: Logged) -> Iterator[_Outcome]:
    outcome = logged.outcome
    if outcome is not None and outcome.evidence and outcome.success is not None:
        for pick in logged.picks:
            if pick.loaded:
                yield _Outcome(pick.key, logged.decision.vector, outcome.success, pick.fit)


def _bundle(
    source: str,
    skills: Sequence[tuple[SkillRow, VersionRow]],
    outcomes: Sequence[Sequence[_Outcome]],
) -> Bundle:
    packed = [
        Skill(row.skill, version.name, version.description, version.body, version.tokens)
        for row, version in skills
    ]
    flat = [(number, one) for number, each in enumerate(outcomes) for one in each]
    dimension = len(flat[0][1].vector) if flat else 0
    return Bundle(
        source=source,
        skills=tuple(packed),
        skill=np.array([number for number, _ in flat], np.int64),
        vectors=np.array([one.vector for _, one in flat], np.float32).reshape(-1, dimension),
        success=np.array([one.success for _, one in flat], np.float32),
        fit=np.array([one.fit for _, one in flat], np.float32),
    )
