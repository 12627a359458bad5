"""Which policies choose, and what moves them: candidate, shadow, canary, active, and back."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from letta_gym.errors import PolicyFileError, PromotionError
from letta_gym.feedback.promotion import GateConfig, Ruling
from letta_gym.selection.policy import Policy
from letta_gym.service.registry import Registry
from letta_gym.store.models import PolicyRow
from letta_gym.store.promotion import Promotion
from letta_gym.store.store import Store

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False, slots=True)
class Lineup:
    """The policies that choose.

    Attributes:
        active: chooses.
        fallback: digests of those that are the untrained baseline.
        canary: chooses in its place for ``share`` of the decisions, in [0, 1].
        shadow: chooses beside it, and nobody carries that out.
    """

    active: Policy
    fallback: frozenset[str] = frozenset()
    canary: Policy | None = None
    share: float = 0.0
    shadow: Policy | None = None

    @property
    def digests(self) -> tuple[str, str | None, float, str | None]:
        """What tells two of them apart."""
        canary, shadow = (None if p is None else p.digest for p in (self.canary, self.shadow))
        return self.active.digest, canary, self.share, shadow


class Board:
    """Moves the policies of a service. Its methods ask the database: call them beside the loop.

    Args:
        store: where their status and the log are.
        registry: where their files are.
        gate: what a policy must show.
    """

    def __init__(self, store: Store, registry: Registry, gate: GateConfig) -> None:
        self._store, self._registry, self._gate = store, registry, gate

    def lineup(self) -> Lineup:
        """Who chooses, as the store has it.

        Raises:
            PolicyFileError: the file of the active policy is gone or damaged.
        """
        rows = self._registry.all()
        of = {row.status: row for row in rows}
        canary = of.get("canary")
        return Lineup(
            active=self._registry.load(of["active"].digest),
            fallback=frozenset(row.digest for row in rows if Registry.is_fallback(row)),
            canary=self._loaded(canary),
            share=0.0 if canary is None else canary.share,
            shadow=self._loaded(of.get("shadow")),
        )

    def shadow(self, digest: str, actor: str) -> PolicyRow:
        """Let a policy choose in the shadow.

        Raises:
            ApiError: 404, there is no such policy.
            PromotionError: it chooses already.
            PolicyFileError: its file is gone or damaged.
        """
        if (row := self._registry.get(digest)).status in ("active", "canary"):
            raise PromotionError(f"the policy chooses already: it is {row.status}")
        self._registry.load(digest)
        return self._of(actor).shadow(digest)

    def canary(self, digest: str, share: float, actor: str) -> Ruling | None:
        """Let a policy choose for a share of the decisions, unless it is shown to be worse.

        Raises:
            ApiError: 404, there is no such policy.
            PromotionError: it is the active one, or worse.
            PolicyFileError: its file is gone or damaged.
        """
        self._registry.get(digest)
        self._registry.load(digest)
        return self._of(actor).canary(digest, share)

    def promote(self, digest: str, actor: str, *, force: bool) -> Ruling | None:
        """Let a policy choose, if the log speaks for it or ``force`` is set.

        Returns the ruling of the gate, as :meth:`Promotion.promote` does.

        Raises:
            ApiError: 404, there is no such policy.
            PromotionError: it is the active one, or nothing was explored.
            PolicyFileError: its file is gone or damaged, or it cannot be compared.
        """
        self._registry.get(digest)
        self._registry.load(digest)
        return self._of(actor).promote(digest, force=force)

    def rollback(self, digest: str, actor: str) -> PolicyRow:
        """Let the policy choose again that the active policy ``digest`` took over from.

        A canary, or a policy in the shadow, chooses no more. Returns the policy that changed.

        Raises:
            ApiError: 404, there is no such policy.
            PromotionError: it does not choose, or nothing was before it.
            PolicyFileError: the file of the one before is gone or damaged.
        """
        row, of = self._registry.get(digest), self._of(actor)
        if row.status != "active":
            return of.stop(digest)
        self._registry.load(of.before())
        return of.rollback()

    def compare(self, digest: str, actor: str) -> Ruling:
        """What the log of the active policy says of another one.

        Raises:
            ApiError: 404, there is no such policy.
            PromotionError: nothing was explored.
            PolicyFileError: the two cannot be compared.
        """
        self._registry.get(digest)
        return self._of(actor).compare(digest)

    def _of(self, actor: str) -> Promotion:
        return Promotion(self._store, self._gate, actor=actor)

    def _loaded(self, row: PolicyRow | None) -> Policy | None:
        """A policy that need not choose; None where it cannot be loaded."""
        if row is None:
            return None
        try:
            return self._registry.load(row.digest)
        except PolicyFileError as error:
            log.warning("the policy %s is %s and cannot choose: %s", row.digest, row.status, error)
            return None
