"""Whether to load at all before outcomes can tell: retrieval decides first, then the network.

STOP is the part of a trained policy that travels worst. Other libraries cost less, match better or
worse, and with an empty memory nothing corrects the network. So its margin, the best slot's logit
less that of STOP, is mixed with one that needs no training:

    margin = v margin_network + (1 - v) margin_opening,    v = n / (n + outcomes)

n is the number of outcomes in memory. ``margin_opening`` are the log-odds that some skill is meant
for the task, by the level of the best retrieval score r: (r - level) / scale, the first factor of
the fit (:func:`letta_gym.feedback.evidence.fit`). Where the skills of a library are all alike, as
sizes of one machine are, their texts do not say what for, and r tells nothing; then the odds are
those that a task needs a skill at all.

Only the logit of STOP changes, so the ranking is the network's, and probabilities stay exact.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from letta_gym.config import Section
from letta_gym.selection.observation import CONTEXT

Floats = NDArray[np.floating[Any]]

_HISTORY, _BEST = (
    [column.name for column in CONTEXT].index(name) for name in ("history", "best_retrieval")
)


class Opening(Section):
    """How a policy begins in a library that it does not know.

    ``outcomes``: of these in memory the network decides a half; the margins are mixed.
    ``level``, ``scale``: retrieval score at which the odds are even, and the slope there; those of
    the fit.
    ``usual``: log-odds that a task needs a skill at all; 86 % of the mock's do.
    ``likeness``: mean cosine between skills above which they count as all alike. Libraries of
    different skills have 0.15 to 0.22, nine descriptions of language models 0.46.
    """

    outcomes: float = Field(default=100.0, gt=0)
    level: float = 0.25
    scale: float = Field(default=0.05, gt=0)
    usual: float = 1.8
    likeness: float = Field(default=1 / 3, ge=0, le=1)

    def settle(self, logits: Floats, context: Floats, likeness: float = 0.0) -> None:
        """Set the logit of STOP in ``logits`` (B, M + 1) in place; masked slots are -inf.

        A row without a free slot stays as it is: there is nothing but STOP.

        Args:
            logits: of the network.
            context: of the decisions, shape (B, C).
            likeness: :func:`likeness` of the library.
        """
        # Row by row: usually there is one, for which NumPy's calls would cost ten times as much.
        alike = likeness > self.likeness
        tops = np.maximum.reduce(logits[:, :-1], 1).tolist()
        for row, (top, seen) in enumerate(zip(tops, context.tolist(), strict=True)):
            if top > -math.inf:
                opening = self.usual if alike else (seen[_BEST] / 4 - self.level) / self.scale
                known = math.expm1(8 * seen[_HISTORY])
                part = known / (known + self.outcomes)
                margin = top - logits.item(row, -1)
                logits[row, -1] = top - part * margin - (1 - part) * opening


def likeness(vectors: Floats) -> float:
    """Mean cosine between two skills of a library with unit ``vectors`` (N, D); 0 for a single one.

    The sum over all pairs is the squared length of the sum of the vectors.
    """
    n = len(vectors)
    if n < 2:
        return 0.0
    total = vectors.sum(0, dtype=np.float64)
    return float((total @ total - n) / (n * (n - 1)))
