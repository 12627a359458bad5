"""Evidence of B sessions about every task that is still to come in them, kept outcome by outcome.

A session's stream is known from its reset, so an outcome is spread over the tasks to come once,
when it happens; a decision then only reads a column. The numbers are those of
:class:`letta_gym.feedback.memory.OutcomeMemory` for the same outcomes, bit for bit.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from letta_gym.envs.history import Past, occurring, starts
from letta_gym.envs.pool import Pool
from letta_gym.feedback.evidence import Evidence
from letta_gym.letta.backend import Outcomes

Float = NDArray[np.float32]
Int = NDArray[np.int64]


class Ledger:
    """What each of L skill slots and, last, the agent alone has shown in B sessions of T tasks.

    The same tasks come again in a stream, so there is a column for each that differs.

    Attributes:
        tasks: the different tasks of each stream, padded, shape (B, T).
        column: column of the task of each step, shape (B, T).
        tables: the first four fields of :class:`Evidence` by column, shape (B, 4, L + 1, T).
        totals: the other three, shape (3, B, L + 1), also by their names.
    """

    STATE = frozenset({"tasks", "column", "tables", "totals"})

    def __init__(self, pool: Pool, sessions: int, width: int, horizon: int) -> None:
        self.pool, self.width = pool, width
        self.tasks = np.zeros((sessions, horizon), np.int64)
        self.column = np.zeros((sessions, horizon), np.int64)
        self.tables = np.zeros((sessions, 4, width + 1, horizon), np.float32)
        self.totals = np.zeros((3, sessions, width + 1), np.float32)
        self.wins, self.fit_successes, self.fit_failures = self.totals
        lines = np.arange(4 * self.wins.size).reshape(sessions, 4, width + 1)
        self._starts = horizon * lines.transpose(1, 0, 2).copy()

    def load(self, past: Past, stream: Int) -> None:
        """Put ``past`` in place of all that is known of its sessions.

        Args:
            past: outcomes of R sessions.
            stream: their tasks to come, shape (R, T).
        """
        rows, width, n_tasks = past.rows, self.width + 1, len(self.pool.similarity)
        every = np.arange(len(rows))
        asked = np.zeros((len(rows), n_tasks), bool)
        asked[every[:, None], stream] = True
        tasks, _ = occurring(asked)
        self.column[rows] = (asked.cumsum(1) - 1)[every[:, None], stream]
        self.tasks[rows] = 0
        self.tasks[rows, : tasks.shape[1]] = tasks
        pair = past.tasks[..., None] * n_tasks + tasks[:, None]

        # In double precision these sums are exact in whatever order BLAS takes them, so that a
        # session does not depend on the others of its batch.
        first = past.count.cumsum() - past.count
        good = np.add.reduceat(past.success, first, dtype=np.float64)
        wins = np.add.reduceat(past.success >= 0.5, first, dtype=np.int64)
        bad = past.count - good
        masses = np.zeros((len(rows), 2, width, past.tasks.shape[1]))
        masses[past.who, 0, past.slot, past.at] = good
        masses[past.who, 1, past.slot, past.at] = bad
        weight = self.pool.weight.take(pair).astype(np.float64)
        self.tables[rows, 2:, :, : tasks.shape[1]] = masses @ weight[:, None]

        happened = [(wins > 0).nonzero()[0], (wins < past.count).nonzero()[0]]
        cell, kind = np.concatenate(happened), np.repeat([0, 1], [len(h) for h in happened])
        line = (2 * past.who[cell] + kind) * width + past.slot[cell]
        near = self.pool.similarity.take(pair).reshape(-1, tasks.shape[1])
        values = near.take(past.who[cell] * past.tasks.shape[1] + past.at[cell], 0)
        best = np.zeros((2 * width * len(rows), tasks.shape[1]), np.float32)
        group = starts(line)
        best[line[group]] = np.maximum(np.maximum.reduceat(values, group, axis=0), 0)
        self.tables[rows, :2, :, : tasks.shape[1]] = best.reshape(len(rows), 2, width, -1)

        amounts = (wins, past.meant * good, past.meant * bad)
        for total, amount in zip(self.totals, amounts, strict=True):
            sums = np.bincount(past.who * width + past.slot, amount, width * len(rows))
            total[rows] = sums.reshape(len(rows), width)

    def at(self, step: Int) -> Evidence:
        """Evidence for the task at ``step`` (B,) of each session; arrays (B, L + 1)."""
        column = self.column[np.arange(len(step)), step]
        table = np.empty((7, *self.wins.shape), np.float32)
        self.tables.take(self._starts + column[:, None], out=table[:4], mode="clip")
        table[4:] = self.totals
        return Evidence(table)

    def record(self, task: Int, slot: Int, outcomes: Outcomes, meant: Float) -> None:
        """Enter the outcome of one decision of every session; ``slot`` and ``meant`` (B, k)."""
        width = self.width + 1
        alone = ~outcomes.loaded.any(1, keepdims=True)
        which = np.concatenate([outcomes.loaded, alone], 1) & outcomes.evidence[:, None]
        row, j = which.nonzero()
        last = ((0, 0), (0, 1))
        column = np.pad(slot, last, constant_values=self.width)[row, j]
        fitting, r = np.pad(meant, last, constant_values=1)[row, j], outcomes.success[row]
        failed = 1 - r
        wins, fit_successes, fit_failures = self.totals.reshape(3, -1)
        key = row * width + column
        wins[key] += r >= 0.5
        fit_successes[key] += fitting * r
        fit_failures[key] += fitting * failed

        used = slice(0, int(self.column.max()) + 1)
        pair = (task[:, None] * len(self.pool.similarity) + self.tasks[:, used])[row]
        table = self.tables.reshape(-1, self.tables.shape[-1])
        line = row * 4 * width + column
        at = line + width * (r < 0.5)
        table[at, used] = np.maximum(table[at, used], self.pool.similarity.take(pair))
        good, bad = r.nonzero()[0], failed.nonzero()[0]
        at = np.concatenate([line[good] + 2 * width, line[bad] + 3 * width])
        amount = np.concatenate([r[good], failed[bad]])[:, None]
        table[at, used] += self.pool.weight.take(pair[np.concatenate([good, bad])]) * amount
