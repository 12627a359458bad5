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

_ALONE = 0  # its column


class OutcomeMemory:
    """Outcomes (task vector, skill, success, fit), the newest ``capacity`` of them.

    Skills are known by a key, their content hash: a skill that was changed starts anew, and the key
    of a skill is forgotten with its last outcome.
    """

    def __init__(self, dimension: int, config: EvidenceConfig, capacity: int = 50_000) -> None:
        if capacity < 1:
            raise ConfigError(f"the memory's capacity must be at least 1; got {capacity}")
        self.config, self.capacity, self.dimension = config, capacity, dimension
        self._columns: dict[str, int] = {ALONE: _ALONE}
        self._keys: list[str] = [ALONE]  # of each column; a free one keeps its last key
        self._free: list[int] = []
        self._size = self._next = 0
        room = min(capacity, 256)
        self._vectors = np.zeros((room, dimension), np.float32)
        self._column = np.zeros(room, np.int64)
        self._success = np.zeros(room, np.float32)
        self._fit = np.zeros(room, np.float32)
        self._totals = np.zeros((4, 1))  # successes, fit successes, fit failures, outcomes
        self._latest: tuple[Sequence[str], Int] | None = None

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
        if vector.shape != (self.dimension,):
            expected = (self.dimension,)
            raise ConfigError(f"a task vector has the shape {expected}; got {vector.shape}")
        if not (0 <= success <= 1 and 0 <= fit <= 1):
            raise ConfigError(f"success and fit lie in [0, 1]; got {success} and {fit}")
        at = self._place()
        self._vectors[at], self._column[at] = vector, self._column_of(key)
        self._success[at], self._fit[at] = success, fit
        self._count(at, 1)

    def evidence(self, vectors: Float, keys: Sequence[str]) -> Evidence:
        """Evidence about the skills ``keys`` (n) for B task vectors (B, D); arrays (B, n).

        Raises:
            ConfigError: the vectors have another shape.
        """
        return Evidence(self.tables(vectors, keys))

    def tables(self, vectors: Float, keys: Sequence[str]) -> Float:
        """The rows of :class:`Evidence` in one array, shape (7, B, n); see :meth:`evidence`."""
        if vectors.ndim != 2 or vectors.shape[1] != self.dimension:
            raise ConfigError(
                f"task vectors have the shape (B, {self.dimension}); got {vectors.shape}"
            )
        if not self._size:
            return np.zeros((7, len(vectors), len(keys)), np.float32)
        n = len(self._keys)
        tables = np.zeros((7, len(vectors), n + 1), np.float32)
        self._scan(vectors, tables)
        tables[4:, :, :n] = self._totals[:3, None, :n]
        chosen: Float = tables.take(self._where(keys), 2)
        return chosen

    def _where(self, keys: Sequence[str]) -> Int:
        """Column of each key, one past the last for unknown ones; the latest answer is kept."""
        if self._latest is not None and self._latest[0] is keys:
            return self._latest[1]
        n = len(self._keys)
        columns = np.array([self._columns.get(key, n) for key in keys], np.int64)
        if isinstance(keys, tuple):
            self._latest = keys, columns
        return columns

    def _scan(self, vectors: Float, tables: Float) -> None:
        """Fill the similarities and masses of every column; ``tables`` has shape (7, B, n + 1)."""
        _, rows, width = tables.shape
        success = self._success[: self._size]
        near = vectors @ self._vectors[: self._size].T
        weight = kernel(near, self.config.bandwidth)
        place = self._column[: self._size] + width * np.arange(rows)[:, None]
        # The best of both outcomes in one pass: those of the failures follow the successes'.
        half = place + rows * width * (success < 0.5)
        # On flat arrays ufunc.at has a fast loop.
        np.maximum.at(tables[:2].reshape(-1), half.reshape(-1), near.reshape(-1))
        flat, size = place.reshape(-1), rows * width
        for table, share in ((tables[2], success), (tables[3], 1 - success)):
            table[:] = np.bincount(flat, (weight * share).reshape(-1), size).reshape(rows, width)

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
            self._forget(int(self._column[at]))
        self._size = min(self._size + 1, self.capacity)
        self._next = (at + 1) % self.capacity
        return at

    def _column_of(self, key: str) -> int:
        """The column of ``key``; a new key takes a free one."""
        if key in self._columns:
            return self._columns[key]
        self._latest = None
        if self._free:
            column = self._free.pop()
            self._keys[column] = key
        else:
            column = len(self._keys)
            self._keys.append(key)
            if column == self._totals.shape[1]:
                self._totals = np.pad(self._totals, ((0, 0), (0, column)))
        self._columns[key] = column
        return column

    def _forget(self, column: int) -> None:
        """Free the column if nothing is left in it."""
        if column != _ALONE and self._totals[-1, column] == 0:
            self._totals[:, column] = 0  # what rounding may have left
            self._free.append(column)
            del self._columns[self._keys[column]]
            self._latest = None

    def _count(self, at: int, sign: int) -> None:
        success, fit = float(self._success[at]), float(self._fit[at])
        change = (float(success >= 0.5), fit * success, fit * (1 - success), 1)
        self._totals[:, self._column[at]] += sign * np.array(change)
