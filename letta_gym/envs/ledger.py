"""Evidence of B sessions about every task that is still to come in them, kept outcome by outcome.

A session's stream is known from its reset, so an outcome is spread over the tasks to come once,
when it happens; a decision then only reads a column. The numbers are those of
:class:`letta_gym.feedback.memory.OutcomeMemory` for the same outcomes, bit for bit.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from letta_gym.envs.pool import Pool
from letta_gym.feedback.evidence import Evidence
from letta_gym.letta.backend import Outcomes

Float = NDArray[np.float32]
Int = NDArray[np.int64]


class Ledger:
    """Tables of shape (B, L + 1, T): skill slots and, last, the outcomes without any skill."""

    STATE = frozenset(Evidence.NAMES)

    def __init__(self, sessions: int, width: int, horizon: int) -> None:
        shape = (sessions, width + 1, horizon)
        self.width = width
        self.success_similarity = np.zeros(shape, np.float32)
        self.failure_similarity = np.zeros(shape, np.float32)
        self.success_mass = np.zeros(shape, np.float32)
        self.failure_mass = np.zeros(shape, np.float32)
        self.wins = np.zeros(shape[:2], np.float32)
        self.fit_successes = np.zeros(shape[:2], np.float32)
        self.fit_failures = np.zeros(shape[:2], np.float32)

    def clear(self, rows: Int) -> None:
        """Forget everything about ``rows``."""
        for name in Evidence.NAMES:
            getattr(self, name)[rows] = 0

    def load(
        self, row: Int, slot: Int, task: Int, success: Float, meant: Float, stream: Int, pool: Pool
    ) -> None:
        """Enter E past outcomes at once; all arrays (E,), and ``stream`` (B, T) of all sessions."""
        if not len(row):
            return
        key, size = row * (self.width + 1) + slot, self.wins.size
        for table, weight in (
            (self.wins, success >= 0.5),
            (self.fit_successes, meant * success),
            (self.fit_failures, meant * (1 - success)),
        ):
            table += np.bincount(key, weight, size).reshape(table.shape).astype(np.float32)
        self._spread(key, task, success, stream, pool)

    def _spread(self, key: Int, task: Int, success: Float, stream: Int, pool: Pool) -> None:
        """Tell the tasks to come; outcomes of one skill on one task are told together."""
        n_tasks = len(pool.similarity)
        pairs, pair = np.unique(key * n_tasks + task, return_inverse=True)
        good = np.bincount(pair, success).astype(np.float32)
        bad = np.bincount(pair, 1 - success).astype(np.float32)
        wins = np.bincount(pair, success >= 0.5)
        losses = np.bincount(pair) - wins
        key, task = np.divmod(pairs, n_tasks)
        row = key // (self.width + 1)
        for part in _whole_rows(np.arange(len(key)), row, 4096):
            future, past = stream[row[part]], task[part, None]
            near, weight = pool.similarity[past, future], pool.weight[past, future]
            keys, starts = np.unique(key[part], return_index=True)
            for table, values, combine in (
                (self.success_similarity, near * (wins[part] > 0)[:, None], np.maximum),
                (self.failure_similarity, near * (losses[part] > 0)[:, None], np.maximum),
                (self.success_mass, weight * good[part, None], np.add),
                (self.failure_mass, weight * bad[part, None], np.add),
            ):
                flat = table.reshape(-1, stream.shape[1])
                flat[keys] = combine(flat[keys], combine.reduceat(values, starts, axis=0))

    def at(self, step: Int) -> Evidence:
        """Evidence for the task at ``step`` (B,) of each session; arrays (B, L + 1)."""
        rows = np.arange(len(step))
        return Evidence.of(
            self.success_similarity[rows, :, step],
            self.failure_similarity[rows, :, step],
            self.success_mass[rows, :, step],
            self.failure_mass[rows, :, step],
            self.wins,
            self.fit_successes,
            self.fit_failures,
        )

    def record(
        self,
        stream: Int,
        step: Int,
        task: Int,
        slot: Int,
        outcomes: Outcomes,
        meant: Float,
        pool: Pool,
    ) -> None:
        """Enter the outcome of one decision of every session; ``slot`` and ``meant`` (B, k)."""
        near = pool.similarity[task[:, None], stream]
        weight = pool.weight[task[:, None], stream]
        success = outcomes.success
        alone = ~outcomes.loaded.any(1, keepdims=True)
        which = np.concatenate([outcomes.loaded, alone], 1) & outcomes.evidence[:, None]
        columns = np.pad(slot, ((0, 0), (0, 1)), constant_values=self.width)
        fits = np.pad(meant, ((0, 0), (0, 1)), constant_values=1)
        for j in range(which.shape[1]):
            column, fitting = columns[:, j], fits[:, j]
            rows = np.flatnonzero(which[:, j])
            at, r = column[rows], success[rows]
            well = (r >= 0.5)[:, None]
            self._raise(self.success_similarity, rows, at, np.where(well, near[rows], 0))
            self._raise(self.failure_similarity, rows, at, np.where(well, 0, near[rows]))
            self.success_mass[rows, at] += weight[rows] * r[:, None]
            self.failure_mass[rows, at] += weight[rows] * (1 - r)[:, None]
            self.wins[rows, at] += r >= 0.5
            self.fit_successes[rows, at] += fitting[rows] * r
            self.fit_failures[rows, at] += fitting[rows] * (1 - r)

    @staticmethod
    def _raise(table: Float, rows: Int, at: Int, values: Float) -> None:
        table[rows, at] = np.maximum(table[rows, at], values)


def _whole_rows(order: Int, rows: Int, size: int) -> list[Int]:
    """Split ``order`` (E,) into chunks of about ``size`` that never part equal ``rows`` (E,).

    Sums of a session are then taken in the same order however many sessions there are.
    """
    starts = np.flatnonzero(np.diff(rows, prepend=-1))
    wanted = np.arange(size, len(order), size)
    cuts = np.unique(starts[np.searchsorted(starts, wanted, "right") - 1])
    return np.split(order, cuts[cuts > 0])
