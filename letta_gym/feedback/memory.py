"""The outcome memory: what happened, kept so that the next choice can use it at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from letta_gym.errors import ConfigError
from letta_gym.feedback.evidence import Evidence, EvidenceConfig, kernel

Float = NDArray[np.float32]
Int = NDArray[np.int64]

ALONE = ""
"""Key of the outcomes in which no skill was loaded."""


class OutcomeMemory:
    """Outcomes (task vector, skill, success, fit), the newest ``capacity`` of them.

    Skills are known by a key, their content hash: a skill that was changed starts anew.
    """

    def __init__(self, dimension: int, config: EvidenceConfig, capacity: int = 50_000) -> None:
        if capacity < 1:
            raise ConfigError(f"the memory's capacity must be at least 1; got {capacity}")
        self.config, self.capacity = config, capacity
        self._columns: dict[str, int] = {ALONE: 0}
        self._size = self._next = 0
        self._vectors = np.zeros((min(capacity, 256), dimension), np.float32)
        self._column = np.zeros(len(self._vectors), np.int64)
        self._success = np.zeros(len(self._vectors), np.float32)
        self._fit = np.zeros(len(self._vectors), np.float32)
        self._totals = np.zeros((3, 1))
        self._latest: tuple[Sequence[str], int, Int] = ((), 0, np.zeros(0, np.int64))

    @property
    def dimension(self) -> int:
        """D, length of a task vector."""
        return int(self._vectors.shape[1])

    def __len__(self) -> int:
        """Number of outcomes kept."""
        return self._size

    def add(self, key: str, vector: Float, success: float, fit: float = 1.0) -> None:
        """Keep one outcome; the oldest goes when the memory is full.

        Args:
            key: content hash of the skill, or :data:`ALONE`.
            vector: snapped task vector, shape (D,).
            success: graded result in [0, 1].
            fit: how much the skill was meant for the task, in [0, 1].

        Raises:
            ConfigError: a wrong shape, or a number out of range.
        """
        if vector.shape != self._vectors.shape[1:]:
            expected = self._vectors.shape[1:]
            raise ConfigError(f"a task vector has the shape {expected}; got {vector.shape}")
        if not (0 <= success <= 1 and 0 <= fit <= 1):
            raise ConfigError(f"success and fit lie in [0, 1]; got {success} and {fit}")
        column = self._columns.setdefault(key, len(self._columns))
        if column == self._totals.shape[1]:
            self._totals = np.pad(self._totals, ((0, 0), (0, column)))
        at = self._place()
        self._vectors[at], self._column[at] = vector, column
        self._success[at], self._fit[at] = success, fit
        self._count(at, 1)

    def evidence(self, vectors: Float, keys: Sequence[str]) -> Evidence:
        """Evidence about the skills ``keys`` (n) for B task vectors (B, D); arrays (B, n)."""
        return Evidence(*self.tables(vectors, keys))

    def tables(self, vectors: Float, keys: Sequence[str]) -> Float:
        """The fields of :class:`Evidence` in one array, shape (7, B, n); see :meth:`evidence`."""
        rows, n = len(vectors), len(self._columns)
        if not self._size:
            return np.zeros((7, rows, len(keys)), np.float32)
        tables = np.zeros((7, rows, n + 1), np.float32)
        self._scan(vectors, tables[:4])
        tables[4:, :, :n] = self._totals[:, None, :n]
        chosen: Float = tables[:, :, self._where(keys)]
        return chosen

    def _where(self, keys: Sequence[str]) -> Int:
        """Column of each key, one past the last for unknown ones; the latest answer is kept."""
        n = len(self._columns)
        if not isinstance(keys, tuple) or self._latest[0] is not keys or self._latest[1] != n:
            columns = np.array([self._columns.get(key, n) for key in keys], np.int64)
            self._latest = (keys, n, columns)
        return self._latest[2]

    def _scan(self, vectors: Float, tables: Float) -> None:
        """Fill the similarities and masses of every column, (4, B, n + 1)."""
        column, success = self._column[: self._size], self._success[: self._size]
        near = vectors @ self._vectors[: self._size].T
        weight = kernel(near, self.config.bandwidth)
        well = success >= 0.5
        place = np.arange(len(vectors))[:, None] * tables.shape[2] + column
        for table, which in ((tables[0], well), (tables[1], ~well)):
            # On flat arrays ufunc.at has a fast loop.
            np.maximum.at(table.reshape(-1), place[:, which].ravel(), near[:, which].ravel())
        flat = place.ravel()
        for table, share in ((tables[2], success), (tables[3], 1 - success)):
            mass = np.bincount(flat, (weight * share).ravel(), table.size)
            table[:] = mass.reshape(table.shape)

    def _place(self) -> int:
        at = self._next
        if at == len(self._vectors) and at < self.capacity:
            extra = min(self.capacity - at, at)
            self._vectors = np.pad(self._vectors, ((0, extra), (0, 0)))
            self._column = np.pad(self._column, (0, extra))
            self._success = np.pad(self._success, (0, extra))
            self._fit = np.pad(self._fit, (0, extra))
        if self._size == self.capacity:
            self._count(at, -1)
        self._size = min(self._size + 1, self.capacity)
        self._next = (at + 1) % self.capacity
        return at

    def _count(self, at: int, sign: int) -> None:
        success, fit = float(self._success[at]), float(self._fit[at])
        change = (float(success >= 0.5), fit * success, fit * (1 - success))
        self._totals[:, self._column[at]] += sign * np.array(change)
