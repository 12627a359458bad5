"""The outcome memory: what happened, kept so that the next choice can use it at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from letta_gym.errors import ConfigError
from letta_gym.feedback.entries import Entries, MemoryConfig
from letta_gym.feedback.evidence import Evidence, EvidenceConfig, kernel
from letta_gym.feedback.pages import PAGE, Pages, Plan

Float = NDArray[np.float32]
Int = NDArray[np.int64]
Bool = NDArray[np.bool_]

ALONE = ""
"""Key of the outcomes in which no skill was loaded."""

_CACHED = 1 << 16  # numbers of one kind that stay in the cache
_COPIED = 64  # pages that are copied out at a time
_NOBODY, _ALONE = 0, 1  # columns: of unknown keys, always empty; of ALONE


class OutcomeMemory:
    """Outcomes (task vector, skill, success, fit), bounded for each skill and in all.

    Skills are known by a key, their content hash: a skill that was changed starts anew, and the key
    of a skill is forgotten with its last outcome.

    Args:
        dimension: D, length of a task vector.
        config: constants of the evidence.
        capacity, newest, reservoir, half_life: see :class:`MemoryConfig`.
        rng: draws the reservoirs.

    Raises:
        ConfigError: a number out of range.
    """

    def __init__(
        self,
        dimension: int,
        config: EvidenceConfig,
        capacity: int = 50_000,
        *,
        newest: int = 512,
        reservoir: int = 512,
        half_life: float | None = None,
        rng: np.random.Generator | None = None,
    ) -> None:
        if capacity < 1:
            raise ConfigError(f"the memory's capacity must be at least 1; got {capacity}")
        if newest < 1 or reservoir < 0 or newest + reservoir > 1024:
            raise ConfigError(
                "a memory keeps at least the newest outcome of a skill and at most 1,024 in all; "
                f"got newest={newest} and reservoir={reservoir}"
            )
        self.config, self.dimension = config, dimension
        self.capacity, self.newest, self.reservoir = capacity, newest, reservoir
        self.half_life = half_life
        self._rng = np.random.default_rng(0) if rng is None else rng
        self._columns: dict[str, int] = {ALONE: _ALONE}
        self._keys: list[str] = ["", ALONE]  # of each column; a free one keeps its last key
        self._free: list[int] = []
        self._size = self._clock = 0
        self._pages = Pages()
        self._vectors = np.zeros((256, dimension), np.float32)
        self._success, self._fit = np.zeros((2, 256), np.float32)
        self._column, self._note, self._serial = np.zeros((3, 256), np.int64)
        # What a row adds: to the best success and failure, to both masses; 0 for an idle row.
        self._shares = np.zeros((4, 256), np.float32)
        self._totals = np.zeros((3, 2))  # successes, fit successes, fit failures
        self._seen = np.zeros(2, np.int64)  # outcomes ever added
        self._stamp = np.zeros(2, np.int64)  # clock at which the totals are right
        self._plan: tuple[Sequence[str], Int, Plan] | None = None

    @classmethod
    def of(
        cls,
        dimension: int,
        config: EvidenceConfig,
        limits: MemoryConfig,
        rng: np.random.Generator | None = None,
    ) -> OutcomeMemory:
        """An empty memory with the bounds of ``limits``."""
        return cls(dimension, config, **limits.model_dump(), rng=rng)

    def __len__(self) -> int:
        """Number of outcomes kept."""
        return self._size

    # -- change ------------------------------------------------------------------------------

    def add(
        self, key: str, vector: Float, success: float, fit: float = 1.0, note: int = -1
    ) -> None:
        """Keep one outcome; where there is no room another one goes.

        Args:
            key: content hash of the skill, or :data:`ALONE`.
            vector: snapped task vector, shape (D,).
            success: graded result in [0, 1].
            fit: how much the skill was meant for the task, in [0, 1].
            note: any number, such as that of the decision; see :meth:`entries`.

        Raises:
            ConfigError: a wrong shape, or a number out of range.
        """
        if vector.shape != (self.dimension,):
            expected = (self.dimension,)
            raise ConfigError(f"a task vector has the shape {expected}; got {vector.shape}")
        if not (0 <= success <= 1 and 0 <= fit <= 1):
            raise ConfigError(f"success and fit lie in [0, 1]; got {success} and {fit}")
        column = self._columns.get(key, _NOBODY)
        if self._pages.count(column) == self.newest + self.reservoir:
            row = self._age(column)
        else:
            if self._size == self.capacity:
                self._forget(int(self._live()[self._serial[self._live()].argmin()]))
            column = self._column_of(key)
            row = self._append(column)
        self._write(row, column, vector, success, fit, note, self._clock)
        self._clock += 1
        self._seen[column] += 1
        self._count(row, 1)

    def _age(self, column: int) -> int:
        """The row of the oldest of the newest outcomes, which is free, or moved to the reservoir.

        Of the n outcomes that ever left the newest each is in the reservoir with the same chance
        (J. S. Vitter, "Random sampling with a reservoir", 1985, algorithm R).
        """
        rows = self._pages.rows(column)
        rows = rows[self._serial[rows].argsort()]
        oldest = int(rows[self.reservoir])
        left = int(self._seen[column]) + 1 - self.newest
        drawn = int(self._rng.integers(left)) if self.reservoir else left
        if drawn >= self.reservoir:
            self._count(oldest, -1)
        else:
            self._count(int(rows[drawn]), -1)
            self._move(oldest, int(rows[drawn]))
        return oldest

    def _append(self, column: int) -> int:
        row, fresh = self._pages.append(column)
        if fresh:
            self._plan = None
            self._make_room(self._pages.used * PAGE)
        self._size += 1
        return row

    def _make_room(self, rows: int) -> None:
        have = len(self._column)
        if rows <= have:
            return
        more = max(have, rows - have)
        self._vectors = np.pad(self._vectors, ((0, more), (0, 0)))
        self._shares = np.pad(self._shares, ((0, 0), (0, more)))
        for name in ("_success", "_fit", "_column", "_note", "_serial"):
            setattr(self, name, np.pad(getattr(self, name), (0, more)))

    def _write(
        self,
        row: int,
        column: int,
        vector: Float,
        success: float,
        fit: float,
        note: int,
        serial: int,
    ) -> None:
        self._vectors[row] = vector
        self._column[row], self._note[row], self._serial[row] = column, note, serial
        self._success[row], self._fit[row] = success, fit
        won = success >= 0.5
        self._shares[:, row] = won, not won, success, 1 - np.float32(success)

    def _move(self, source: int, target: int) -> None:
        for table in (self._vectors, self._success, self._fit, self._column, self._note):
            table[target] = table[source]
        self._serial[target] = self._serial[source]
        self._shares[:, target] = self._shares[:, source]

    def _forget(self, row: int) -> None:
        """Take the outcome in ``row`` away, and its key if nothing is left of it."""
        column = int(self._column[row])
        self._count(row, -1)
        last, emptied = self._pages.remove(column)
        self._move(last, row)
        self._shares[:, last], self._column[last] = 0, _NOBODY
        self._size -= 1
        if emptied:
            self._plan = None
        if column != _ALONE and not self._pages.count(column):
            self._totals[:, column] = self._seen[column] = 0  # and what rounding may have left
            self._free.append(column)
            del self._columns[self._keys[column]]

    def _column_of(self, key: str) -> int:
        """The column of ``key``; a new key takes a free one."""
        if key in self._columns:
            return self._columns[key]
        if self._free:
            column = self._free.pop()
            self._keys[column] = key
        else:
            column = len(self._keys)
            self._keys.append(key)
            if column == self._totals.shape[1]:
                self._totals = np.pad(self._totals, ((0, 0), (0, column)))
                self._seen, self._stamp = (
                    np.pad(a, (0, column)) for a in (self._seen, self._stamp)
                )
        self._columns[key] = column
        return column

    def _count(self, row: int, sign: int) -> None:
        """Add the outcome in ``row`` to its column's totals, or subtract it."""
        column = int(self._column[row])
        success, fit = float(self._success[row]), float(self._fit[row])
        change = np.array((float(success >= 0.5), fit * success, fit * (1 - success)))
        if self.half_life is not None:
            self._totals[:, column] *= self._left(self._clock - self._stamp[column])
            self._stamp[column] = self._clock
            change *= self._left(self._clock - 1 - self._serial[row])
        self._totals[:, column] += sign * change

    def _left(self, age: Any) -> Any:
        """Weight of outcomes after ``age`` further ones."""
        return 1.0 if self.half_life is None else np.exp2(-age / self.half_life)

    def _live(self) -> Int:
        """Rows that hold an outcome, shape (E,)."""
        return np.flatnonzero(self._column[: self._pages.used * PAGE])

    # -- ask ---------------------------------------------------------------------------------

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
        tables = np.zeros((7, len(vectors), len(keys)), np.float32)
        columns, plan = self._where(keys)
        if len(plan.which):
            self._scan(vectors, plan, tables)
            totals = self._totals.take(columns, 1)
            if self.half_life is not None:
                totals *= self._left(self._clock - self._stamp[columns])
            tables[4:] = totals[:, None]
        return tables

    def _where(self, keys: Sequence[str]) -> tuple[Int, Plan]:
        """Column of each key, and how to read their rows; the latest answer is kept."""
        if self._plan is not None and self._plan[0] is keys:
            return self._plan[1:]
        columns = np.array([self._columns.get(key, _NOBODY) for key in keys], np.int64)
        plan = self._pages.plan(columns)
        if isinstance(keys, tuple):
            self._plan = keys, columns, plan
        return columns, plan

    def _scan(self, vectors: Float, plan: Plan, tables: Float) -> None:
        """Fill the similarities and masses of the keys asked for; ``tables`` is (7, B, n)."""
        near, shares, serial = self._read(vectors, plan)
        scale = None if self.half_life is None else self._left(self._clock - 1 - serial)
        # A few tasks at a time, so that what is made in between stays in the cache.
        step = max(1, _CACHED // near.shape[1])
        said = np.empty((4, min(step, len(near)), near.shape[1]), np.float32)
        for first in range(0, len(near), step):
            part = near[first : first + step]
            into = said[:, : len(part)]
            np.multiply(part, shares[:2, None], out=into[:2])
            weight = kernel(part, self.config.bandwidth)
            if scale is not None:
                weight *= scale
            np.multiply(weight, shares[2:, None], out=into[2:])
            for half, combine in ((slice(0, 2), np.maximum), (slice(2, 4), np.add)):
                found = plan.combine(combine, into[half])
                np.maximum(found, 0, out=found)
                tables[half, first : first + step][..., plan.which] = found

    def _read(self, vectors: Float, plan: Plan) -> tuple[Float, Float, Int]:
        """Similarity of the tasks to the rows of the plan (B, R); those rows' shares and serials.

        Rows are copied out a few pages at a time, which are read again from the cache.
        """
        end = self._pages.used * PAGE
        if plan.pages is None:
            near = vectors @ self._vectors[:end].T
            return near, self._shares[:, :end], self._serial[:end]
        paged = self._vectors.reshape(-1, PAGE, self.dimension)
        near = np.empty((len(vectors), len(plan.pages) * PAGE), np.float32)
        copied = np.empty((_COPIED, PAGE, self.dimension), np.float32)
        for first in range(0, len(plan.pages), _COPIED):
            pages = plan.pages[first : first + _COPIED]
            rows = paged.take(pages, 0, out=copied[: len(pages)], mode="clip")
            at = slice(first * PAGE, (first + len(pages)) * PAGE)
            near[:, at] = vectors @ rows.reshape(-1, self.dimension).T
        shares = self._shares.reshape(4, -1, PAGE)[:, plan.pages].reshape(4, -1)
        return near, shares, self._serial.reshape(-1, PAGE)[plan.pages].reshape(-1)

    def tried(self, keys: Sequence[str]) -> Int:
        """How many outcomes of each key there ever were, kept or not, shape (n,)."""
        columns = (self._columns.get(key) for key in keys)
        return np.array([0 if at is None else self._seen[at] for at in columns], np.int64)

    # -- copy --------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """What a memory of the same :meth:`entries` needs to go on alike, as JSON values."""
        columns = [self._columns[key] for key in self._columns]
        return {
            "clock": self._clock,
            "seen": dict(zip(self._columns, self._seen[columns].tolist(), strict=True)),
            "rng": self._rng.bit_generator.state,
        }

    @classmethod
    def restored(
        cls,
        dimension: int,
        config: EvidenceConfig,
        limits: MemoryConfig,
        entries: Entries,
        state: Mapping[str, Any],
    ) -> OutcomeMemory:
        """The memory that had these ``entries`` and this :meth:`state`."""
        memory = cls.of(dimension, config, limits)
        memory._fill(entries, np.ones(len(entries.key), bool), int(state["clock"]))
        for key, count in state["seen"].items():
            memory._seen[memory._column_of(key)] = count
        memory._rng.bit_generator.state = state["rng"]
        return memory

    def entries(self) -> Entries:
        """Copies of all outcomes."""
        rows = self._live()
        rows = rows[self._serial[rows].argsort()]
        columns, key = np.unique(self._column[rows], return_inverse=True)
        return Entries(
            tuple(self._keys[column] for column in columns),
            key,
            self._vectors[rows],
            self._success[rows],
            self._fit[rows],
            self._note[rows],
            self._serial[rows],
        )

    @property
    def limits(self) -> MemoryConfig:
        """How much is kept."""
        return MemoryConfig(
            capacity=self.capacity,
            newest=self.newest,
            reservoir=self.reservoir,
            half_life=self.half_life,
        )

    def kept(self, entries: Entries, which: Bool) -> OutcomeMemory:
        """A memory with the same constants that holds only the outcomes ``which`` (E,).

        Args:
            entries: :meth:`entries` of this memory, or of one with the same vectors.
            which: those to keep.
        """
        other = OutcomeMemory.of(self.dimension, self.config, self.limits)
        other._fill(entries, which, self._clock)
        return other

    def _fill(self, entries: Entries, which: Bool, clock: int) -> None:
        """Put outcomes into an empty memory, whose bounds they keep to."""
        chosen = np.flatnonzero(which)
        chosen = chosen[entries.key[chosen].argsort(kind="stable")]
        keys, counts = np.unique(entries.key[chosen], return_counts=True)
        columns = [self._column_of(entries.keys[key]) for key in keys]
        each = zip(columns, counts.tolist(), strict=True)
        none = np.zeros(0, np.int64)
        rows = np.concatenate([none, *(self._pages.extend(*pair) for pair in each)])
        self._make_room(self._pages.used * PAGE)
        self._size = len(rows)
        column = np.repeat(np.array(columns, np.int64), counts)
        success, fit = entries.success[chosen], entries.fit[chosen]
        self._vectors[rows], self._column[rows] = entries.vectors[chosen], column
        self._success[rows], self._fit[rows] = success, fit
        self._note[rows], self._serial[rows] = entries.note[chosen], entries.serial[chosen]
        won = success >= 0.5
        self._shares[:, rows] = won, ~won, success, 1 - success
        self._clock = clock
        weight = self._left(self._clock - 1 - entries.serial[chosen])
        good = fit.astype(np.float64) * success * weight
        bad = fit.astype(np.float64) * (1 - success) * weight
        for total, share in zip(self._totals, (won * weight, good, bad), strict=True):
            total += np.bincount(column, share, self._totals.shape[1])
        self._seen += np.bincount(column, minlength=len(self._seen))
        self._stamp[:] = self._clock
