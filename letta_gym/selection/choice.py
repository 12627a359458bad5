"""One choice: from the scores of a task's candidates to what is carried out, told and logged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from letta_gym.feedback.decision import Decision, Pick
from letta_gym.library.skills import Skill
from letta_gym.selection import candidates, subset
from letta_gym.selection.explanation import Explanation, Trace, explain
from letta_gym.selection.exploration import Draw
from letta_gym.selection.shelf import Shelf
from letta_gym.selection.weighing import Case, Weighed

Int = NDArray[np.int64]


@dataclass(frozen=True, eq=False, slots=True)
class Selection:
    """The choice for one task.

    Attributes:
        decision_id: pass it to :meth:`SkillSelector.record` with the outcome.
        skills: the chosen skills, best first.
        scores: logit of each chosen skill; higher is better, ``stop_score`` is that of stopping.
        tokens: what the chosen skills cost in all.
        log_propensity: log-probability of the chosen *set*; 0 for a choice without exploration.
        explored: whether the set was sampled.
        policy_digest: SHA-256 of the policy that chose.
    """

    decision_id: str
    skills: tuple[Skill, ...]
    scores: tuple[float, ...]
    stop_score: float
    tokens: int
    log_propensity: float
    explored: bool
    policy_digest: str
    _choice: Choice

    def explain(self) -> Explanation:
        """Every candidate with its score and what spoke for and against it."""
        return explain(self._choice.trace())


class Choice:
    """What is carried out for one of several tasks that were weighed.

    Args:
        shelf: what was chosen from.
        weighed: the tasks.
        at: which of them.
        draw: the wanted set; what the tokens that are left do not pay for is dropped.

    Attributes:
        picks: what is carried out, best first.
    """

    __slots__ = ("_at", "_draw", "_keys", "_logits", "_order", "_skills", "_weighed", "picks")

    def __init__(self, shelf: Shelf, weighed: Weighed, at: int, draw: Draw) -> None:
        self._skills, self._keys = shelf.skills, shelf.keys  # as they are now
        self._weighed, self._at, self._draw = weighed, at, draw
        self._logits = weighed.logits[at]
        score = self._logits.item
        wanted = affordable(draw.picks, weighed, at)
        self._order = sorted(wanted, key=lambda slot: (-score(slot), slot))
        self.picks = self._picked(self._order)

    def selection(self, decision_id: str, policy_digest: str) -> Selection:
        """As whoever asked is told."""
        rows, order = self._weighed.rows[self._at], self._order
        skills = tuple([self._skills[rows.item(slot)] for slot in order])
        return Selection(
            decision_id=decision_id,
            skills=skills,
            scores=tuple([self._logits.item(slot) for slot in order]),
            stop_score=self._logits.item(-1),
            tokens=sum([skill.tokens for skill in skills]),
            log_propensity=self._draw.log_propensity,
            explored=self._draw.explored,
            policy_digest=policy_digest,
            _choice=self,
        )

    def trace(self) -> Trace:
        """What explains it."""
        weighed, at = self._weighed, self._at
        return Trace(
            [skill.id for skill in self._skills],
            weighed.rows[at],
            self._order,
            self._logits,
            weighed.features[at],
            weighed.situation.tokens[at],
            weighed.outcomes(at),
        )

    def decision(self, decision_id: str, policy_digest: str, case: Case) -> Decision:
        """As it is logged."""
        weighed, at, draw = self._weighed, self._at, self._draw
        rows = weighed.rows[at].tolist()
        return Decision(
            id=decision_id,
            task=case.text,
            vector=case.vector,
            skills=tuple([self._skills[row] for row in rows]),
            keys=tuple([self._keys[row + 1] for row in rows]),
            features=weighed.features[at],
            context=weighed.context[at],
            scores=self._logits,
            picks=self.picks,
            k=draw.picks.shape[1],
            log_propensity=draw.log_propensity,
            explored=draw.explored,
            policy_digest=policy_digest,
            hold_rate=draw.hold_rate,
            held_out=next(iter(self._picked(draw.held_out)), None),
        )

    def _picked(self, slots: Sequence[int]) -> tuple[Pick, ...]:
        at, rows, fit = self._at, self._weighed.rows, self._weighed.situation.judgement.fit
        picks = []
        for slot in slots:
            row = rows.item(at, slot)
            skill, key = self._skills[row], self._keys[row + 1]
            picks.append(Pick(slot, skill.id, key, fit.item(at, slot), skill.tokens))
        return tuple(picks)


def affordable(picks: Int, weighed: Weighed, at: int) -> list[int]:
    """The slots of ``picks`` (1, k) that are carried out, as the environment carries them out."""
    wanted = [slot for slot in picks[0].tolist() if slot >= 0]
    tokens, left = weighed.situation.tokens, weighed.tokens_left(at)
    if sum([tokens.item(at, slot) for slot in wanted]) <= left:
        return wanted
    mask = subset.to_mask(picks, tokens.shape[1]).astype(bool)
    kept = candidates.affordable(mask, tokens[at : at + 1], left, picks.shape[1])
    return [slot for slot in kept[0].tolist() if slot >= 0]
