"""One decision as it is logged, and the protocol of whoever logs it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from letta_gym.feedback.outcome import Outcome
from letta_gym.library.embeddings import VectorSpace
from letta_gym.library.skills import Skill

Float = NDArray[np.float32]


class Pick(NamedTuple):
    """A chosen skill: its slot among the candidates, id, content hash, fit to the task, cost."""

    slot: int
    skill: str
    key: str
    fit: float
    tokens: int


@dataclass(frozen=True, eq=False, slots=True)
class Decision:
    """What was chosen for one task, out of what, and why; complete enough to learn from later.

    Attributes:
        id: by which its outcome will be recorded.
        task: the text.
        vector: its snapped vector, shape (D,).
        skills: the candidates, in slot order, length M.
        keys: their content hashes, length M.
        features, context: what the policy observed, shapes (M, F) and (C,).
        scores: logits of the slots and, last, of stopping, shape (M + 1,); -inf where masked.
        picks: the chosen skills, best first.
        k: most skills that could have been drawn.
        log_propensity: log-probability of the chosen set; 0 without exploration.
        explored: whether the set was sampled.
        policy_digest: SHA-256 of the policy that chose.
        hold_rate: probability with which one of the chosen skills was to be withheld at random.
        held_out: the one that was; it was chosen and is none of ``picks``.
    """

    id: str
    task: str
    vector: Float
    skills: tuple[Skill, ...]
    keys: tuple[str, ...]
    features: Float
    context: Float
    scores: Float
    picks: tuple[Pick, ...]
    k: int
    log_propensity: float
    explored: bool
    policy_digest: str
    hold_rate: float = 0.0
    held_out: Pick | None = None


@dataclass(frozen=True, eq=False, slots=True)
class Waiting:
    """What learning from an outcome needs of its decision: the task's vector (D,) and the picks."""

    vector: Float
    picks: tuple[Pick, ...]


class DecisionLog(Protocol):
    """Where decisions and outcomes are kept beyond the process; each call returns once they are."""

    def begin(self, space: VectorSpace) -> None:
        """Say whose vectors the decisions to come have; called before the first of them.

        Raises:
            EmbeddingError: the log holds decisions with vectors of another model.
        """
        ...

    def decided(self, decision: Decision) -> None:
        """Keep a decision; called before anybody can act on it."""
        ...

    def waiting(self, decision_id: str) -> Waiting:
        """A decision that another process made, or that this one has forgotten.

        Raises:
            DecisionError: it is unknown.
        """
        ...

    def recorded(self, decision_id: str, outcome: Outcome) -> bool:
        """Keep an outcome; False when this very outcome is kept already.

        Raises:
            DecisionError: the decision is unknown, expired, or has another outcome.
        """
        ...
