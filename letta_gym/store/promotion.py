"""From candidate to active policy, and back: judged by the log, and audited."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np

from letta_gym.errors import PolicyFileError, PromotionError, StoreError
from letta_gym.feedback.offpolicy import LoggedRewards
from letta_gym.feedback.promotion import GateConfig, Ruling, rule
from letta_gym.selection.judging import Seen, check_comparable, log_probs
from letta_gym.selection.policy import Policy
from letta_gym.store.history import Logged
from letta_gym.store.models import PolicyRow
from letta_gym.store.store import Store


class Promotion:
    """Moves policies: candidate, shadow, canary, active, retired.

    Args:
        store: where decisions are logged and policies listed.
        config: what a policy must show.
        actor: who moves them, for the audit.
    """

    def __init__(self, store: Store, config: GateConfig | None = None, *, actor: str) -> None:
        self.store, self.config, self.actor = store, config or GateConfig(), actor

    def add(self, file: Path | str) -> PolicyRow:
        """Make a policy file known, as a candidate.

        Raises:
            PolicyFileError: the file is damaged or does not fit this version.
        """
        path = str(Path(file).resolve())
        policy = Policy.load(path)
        return self.store.policies.add(policy.digest, actor=self.actor, path=path)

    def shadow(self, digest: str) -> PolicyRow:
        """Let a policy choose beside the active one; its choices are logged and not carried out.

        Raises:
            PromotionError: it is the active one.
            StoreError: there is no such policy.
        """
        self._refuse_active(digest)
        return self.store.policies.switch(digest, "shadow", actor=self.actor)

    def canary(self, digest: str, share: float) -> Ruling | None:
        """Let a policy choose for a share of the decisions, unless the log shows that it is worse.

        Returns what the log says; None where it says nothing: there is no active policy, nothing
        was explored, or the two cannot be compared.

        Raises:
            PromotionError: it is the active one, or worse.
            StoreError: no such policy.
        """
        self._refuse_active(digest)
        ruling = self._ruling(digest, needed=False)
        if ruling is not None and ruling.worse:
            raise PromotionError(
                f"no canary: the log shows that the policy is worse, {ruling.reason}"
            )
        self.store.policies.switch(
            digest, "canary", actor=self.actor, share=share, detail=_figures(ruling)
        )
        return ruling

    def promote(self, digest: str, *, force: bool = False) -> Ruling | None:
        """Make a policy the active one, if the log of the active one speaks for it.

        Returns the ruling; None for the first policy of a store. A refusal changes nothing but the
        audit.

        Args:
            digest: the policy.
            force: promote it whatever the log says; the audit keeps that, with the ruling where
                there is one.

        Raises:
            PromotionError: it is the active one, or nothing was explored.
            StoreError: no such policy.
        """
        self._refuse_active(digest)
        ruling = self._ruling(digest, needed=not force) if self._active() else None
        detail = _figures(ruling) | ({"forced": True} if force else {})
        if ruling is not None and not ruling.promoted and not force:
            self.store.policies.note(digest, "refuse", actor=self.actor, detail=detail)
            return ruling
        self.store.policies.switch(digest, "active", actor=self.actor, detail=detail)
        return ruling

    def stop(self, digest: str) -> PolicyRow:
        """Let a canary, or a policy in the shadow, choose no more: it is a candidate again.

        Raises:
            PromotionError: it is neither.
            StoreError: no such policy.
        """
        row = self._find(digest)
        if row.status not in ("canary", "shadow"):
            raise PromotionError(f"the policy {row.digest[:12]} is {row.status}: nothing to stop")
        detail = {"reason": "stopped"}
        return self.store.policies.switch(row.digest, "candidate", actor=self.actor, detail=detail)

    def rollback(self) -> PolicyRow:
        """Make the policy active again that was so before; returns it.

        Raises:
            PromotionError: there was none.
        """
        detail = {"reason": "rollback"}
        return self.store.policies.switch(self.before(), "active", actor=self.actor, detail=detail)

    def before(self) -> str:
        """Digest of the policy that was active before the active one.

        Raises:
            PromotionError: there was none.
        """
        active = self._active()
        for row in reversed(self.store.policies.audit()):
            before = row.detail.get("retired")
            if active and row.subject == active.digest and row.detail.get("to") == "active":
                if isinstance(before, str):
                    return before
                break
        raise PromotionError(
            "no policy was active before this one, so there is nothing to go back to"
        )

    def compare(self, digest: str) -> Ruling:
        """What the log of the active policy says of another one.

        Only explored decisions count, whose probability is known and below 1. The reward is the
        outcome's, or its success where nothing was priced.

        Raises:
            PromotionError: no policy is active, or nothing was explored.
            StoreError: no such policy.
            PolicyFileError: a file is gone or damaged, or the two cannot be compared.
        """
        active = self._active()
        if active is None:
            raise PromotionError("no policy is active, so there is nothing to compare with")
        candidate, incumbent = self._load(self._find(digest)), self._load(active)
        check_comparable(candidate, incumbent)
        logged = list(self._explored(active.digest))
        if len(logged) < 2:
            raise PromotionError(
                f"the log holds {len(logged)} explored decisions of the active policy with an "
                "outcome; let it explore first"
            )
        log = LoggedRewards(
            reward=np.array([_reward(one) for one in logged]),
            log_propensity=np.array([one.decision.log_propensity for one in logged]),
            target_log_prob=np.minimum(log_probs(candidate, [_seen(one) for one in logged]), 0.0),
        )
        return rule(log, self.config)

    def _ruling(self, digest: str, *, needed: bool) -> Ruling | None:
        """What the log says; None, or an error where it is needed, if it says nothing."""
        try:
            return self.compare(digest)
        except (PromotionError, PolicyFileError):
            if needed:
                raise
            return None

    def _explored(self, digest: str) -> Iterator[Logged]:
        for one in self.store.history().decisions(policy=digest, settled=True):
            outcome = one.outcome
            assert outcome is not None
            if one.decision.explored and outcome.evidence and outcome.success is not None:
                yield one

    def _active(self) -> PolicyRow | None:
        return next(iter(self.store.policies.with_status("active")), None)

    def _find(self, digest: str) -> PolicyRow:
        return self.store.policies.get(digest)

    def _refuse_active(self, digest: str) -> None:
        if self._find(digest).status == "active":
            raise PromotionError(f"the policy {digest[:12]} is the active one already")

    def _load(self, row: PolicyRow) -> Policy:
        if row.path is None:
            raise StoreError(f"the store knows no file of the policy {row.digest[:12]}; add it")
        policy = Policy.load(row.path)
        if policy.digest != row.digest:
            raise StoreError(
                f"{row.path} holds the policy {policy.digest[:12]} by now, not {row.digest[:12]}; "
                "put the file back, or add the new one"
            )
        return policy


def _seen(logged: Logged) -> Seen:
    decision = logged.decision
    m = len(decision.candidates)
    return Seen(
        decision.features.reshape(m, -1),
        decision.context,
        np.isfinite(decision.scores[:-1]),
        tuple(pick.slot for pick in logged.picks),
        decision.k,
    )


def _reward(logged: Logged) -> float:
    outcome = logged.outcome
    assert outcome is not None
    assert outcome.success is not None
    return outcome.success if outcome.reward is None else outcome.reward


def _figures(ruling: Ruling | None) -> dict[str, object]:
    return {} if ruling is None else asdict(ruling)
