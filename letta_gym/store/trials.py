"""The settled decisions of a store, as the quality tracker reads them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from letta_gym.feedback.quality import Trial
from letta_gym.store.history import Logged, Version


def trials(logged: Iterable[Logged], versions: Mapping[int, Version]) -> Iterator[Trial]:
    """Every decision that has evidence, in the order of ``logged``.

    The kind of a task is the category of its best candidate, or that candidate's id without one.

    Args:
        logged: decisions; those without an outcome, or whose outcome is no evidence, are left out.
        versions: what every version of a skill is called, by its id.
    """
    for one in logged:
        decision, outcome = one.decision, one.outcome
        if outcome is None or not outcome.evidence or outcome.success is None:
            continue
        best = versions[decision.candidates[0]]
        held_out = None
        if decision.held_out is not None:
            held_out = versions[decision.candidates[decision.held_out]].key
        chosen = tuple(pick.key for pick in one.picks)
        yield Trial(
            at=decision.decided_at,
            agent=one.agent,
            kind=best.category or best.skill,
            chosen=chosen if held_out is None else (*chosen, held_out),
            loaded=tuple(pick.key for pick in one.picks if pick.loaded),
            success=outcome.success,
            reward=outcome.reward,
            tokens=one.tokens or 0.0,
            hold_rate=decision.hold_rate,
            held_out=held_out,
            policy=decision.policy_digest,
            allowed_tokens=float(
                sum(versions[id].tokens for id in decision.candidates[: decision.k])
            ),
        )
