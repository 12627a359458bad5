"""Why a skill was chosen: every candidate with its score and what spoke for and against it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from letta_gym.selection.observation import FEATURE

Float = NDArray[np.float32]
Int = NDArray[np.int64]


@dataclass(frozen=True, eq=False, slots=True)
class Trace:
    """What a decision was made of, kept so that it can be explained when somebody asks.

    Attributes:
        ids: ids of the library's skills, length N.
        rows: which of them is in each slot, shape (M,).
        picks: slots carried out, at most k.
        logits: scores with STOP last, shape (M + 1,).
        features: shape (M, F).
        tokens: cost of each slot, shape (M,).
        outcomes: weight of the outcomes behind each slot's evidence, shape (M,).
    """

    ids: Sequence[str]
    rows: Int
    picks: Collection[int]
    logits: Float
    features: Float
    tokens: Float
    outcomes: Float


@dataclass(frozen=True, slots=True)
class Candidate:
    """One slot: its skill, whether it was chosen, its score above stopping, and reasons."""

    skill: str
    chosen: bool
    score: float
    tokens: int
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Explanation:
    """All candidates of a decision, best first; a score above 0 beats stopping."""

    candidates: tuple[Candidate, ...]

    def to_json(self) -> list[dict[str, Any]]:
        """The candidates as JSON values."""
        return [asdict(candidate) for candidate in self.candidates]

    def __str__(self) -> str:
        """A table for the terminal; chosen skills have a star."""
        width = max(len("skill"), *(len(c.skill) for c in self.candidates), 0)
        lines = [f"  {'skill':{width}s}   score  tokens  why"]
        for c in self.candidates:
            mark = "*" if c.chosen else " "
            why = ", ".join(c.reasons)
            lines.append(f"{mark} {c.skill:{width}s} {c.score:+7.2f} {c.tokens:7d}  {why}")
        return "\n".join(lines)


def explain(trace: Trace) -> Explanation:
    """Explain one decision: its candidates that could have been chosen, best first."""
    logits = trace.logits
    order = [int(slot) for slot in np.argsort(-logits[:-1], kind="stable")]
    return Explanation(
        tuple(
            Candidate(
                skill=trace.ids[trace.rows[slot]],
                chosen=slot in trace.picks,
                score=float(logits[slot] - logits[-1]),
                tokens=int(trace.tokens[slot]),
                reasons=_reasons(trace.features[slot], float(trace.outcomes[slot])),
            )
            for slot in order
            if np.isfinite(logits[slot])
        )
    )


def _reasons(f: Float, outcomes: float) -> tuple[str, ...]:
    fit, gain = float(f[FEATURE["fit"]]), float(f[FEATURE["uplift"]]) / 4
    reasons = [f"fit {fit:.2f}"]
    if outcomes < 0.5:
        reasons.append("not tried yet")
    else:
        reasons.append(f"adds {gain:+.2f} where it fits ({outcomes:.0f} outcomes)")
    if f[FEATURE["local_gain"]] < -0.1:
        reasons.append("did badly on tasks like this")
    if f[FEATURE["local_gain"]] > 0.1:
        reasons.append("did well on tasks like this")
    if f[FEATURE["alike_lead"]] < -0.2:
        reasons.append("a look-alike does better")
    return tuple(reasons)
