"""What an outcome memory keeps, and how much of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from letta_gym.config import Section

Float = NDArray[np.float32]
Int = NDArray[np.int64]


class MemoryConfig(Section):
    """How much an outcome memory keeps.

    ``capacity``: outcomes in all; the oldest goes first.
    ``newest``, ``reservoir``: of each skill its newest outcomes, and a uniform sample of those
    before. Together at most 1,024, so that sums of graded outcomes are exact.
    ``half_life``: outcomes, of any skill, after which one counts half as much; null for never.
    """

    capacity: int = Field(default=50_000, ge=1)
    newest: int = Field(default=512, ge=1)
    reservoir: int = Field(default=512, ge=0)
    half_life: float | None = Field(default=None, gt=0)


@dataclass(frozen=True, eq=False, slots=True)
class Entries:
    """Outcomes of a memory, oldest first; E of them, and n keys.

    Attributes:
        keys: content hashes of skills, or :data:`~letta_gym.feedback.memory.ALONE`, length n.
        key: which of the keys each outcome is of, shape (E,).
        vectors: task vectors, shape (E, D).
        success, fit: as they were added, shape (E,).
        note: number that each was added with, shape (E,).
        serial: when each was added, as a count of all outcomes, shape (E,).
    """

    keys: tuple[str, ...]
    key: Int
    vectors: Float
    success: Float
    fit: Float
    note: Int
    serial: Int
