"""The seam to whoever carries tasks out: one batched call, requests in, outcomes out.

The mock, a labelled suite, a real Letta and a pool of remote workers all stand behind it, so one
environment drives them all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from letta_gym.feedback.outcome import Outcome

Float = NDArray[np.float32]
Int = NDArray[np.int64]
Bool = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Requests:
    """B tasks to carry out, each with its chosen skills.

    Attributes:
        rows: session of each request, shape (B,).
        tasks: index of each task in the pool, shape (B,).
        skills: indices of the chosen skills in the pool, in order of preference, padded with -1,
            shape (B, k).
    """

    rows: Int
    tasks: Int
    skills: Int


@dataclass(frozen=True, slots=True)
class Outcomes:
    """What came of B requests.

    Attributes:
        success: graded result in [0, 1], shape (B,).
        loaded: which of the chosen skills the agent really loaded, shape (B, k).
        tokens: tokens of the loaded skills, shape (B,).
        expected: true success probability where the backend knows it (a simulation), else NaN,
            shape (B,). For evaluation only; it never reaches an observation.
        evidence: False where the infrastructure failed: such an outcome says nothing about a skill
            and enters neither memory nor reward, shape (B,).
        details: each outcome in full where a real agent gave it, length B; else empty.
    """

    success: Float
    loaded: Bool
    tokens: Float
    expected: Float
    evidence: Bool
    details: tuple[Outcome, ...] = ()


class Backend(Protocol):
    """Whoever carries tasks out."""

    def execute(self, requests: Requests) -> Outcomes:
        """Carry out every request, in one call.

        A request whose infrastructure failed has an outcome that is no evidence.

        Raises:
            BackendError: no request could be carried out at all; no outcome is invented.
        """
        ...
