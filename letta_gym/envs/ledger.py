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

    The same tasks come again in a stream, so there is a line of evidence for each that differs,
    those first that will be asked last: what is still of use is always in front.

    Attributes:
        tasks: the different tasks of each stream, padded, shape (B, T).
        line: line of the task of each step, shape (B, T).
        tables: the first four fields of :class:`Evidence` by line, shape (B, T, 4, L + 1).
        totals: the other three, shape (3, B, L + 1), also by their names.
    """

    STATE = frozenset({"tasks", "line", "tables", "totals"})

    def __init__(self, pool: Pool, sessions: int, width: int, horizon: int) -> None:
        self.pool, self.width = pool, width
        self.tasks = np.zeros((sessions, horizon), np.int64)
        self.line = np.zeros((sessions, horizon), np.int64)
        self.tables = np.zeros((sessions, horizon, 4, width + 1), np.float32)
        self.totals = np.zeros((3, sessions, width + 1), np.float32)
        self.wins, self.fit_successes, self.fit_failures = self.totals
        self._rows = np.arange(sessions)

    def load(self, past: Past, stream: Int) -> None:
        """Put ``past`` in place of all that is known of its sessions.

        Args:
            past: outcomes of R sessions.
            stream: their tasks to come, shape (R, T).
        """
        rows, shape = past.rows, (len(past.rows), self.width + 1)
        first = past.count.cumsum() - past.count
        # In double precision all sums are exact, in whatever order BLAS takes them, so that a
        # session does not depend on the others of its batch.
        good = np.add.reduceat(past.success, first, dtype=np.float64)
        wins = np.add.reduceat(past.success >= 0.5, first, dtype=np.int64)
        bad = past.count - good
        amounts = (wins, past.meant * good, past.meant * bad)
        for total, amount in zip(self.totals, amounts, strict=True):
            summed = np.bincount(past.who * shape[1] + past.slot, amount, shape[0] * shape[1])
            total[rows] = summed.reshape(shape)

        tasks = self._line_up(rows, stream)
        pair = tasks[..., None] * len(self.pool.similarity) + past.tasks[:, None]
        tables = np.empty((shape[0], tasks.shape[1], 4, shape[1]), np.float32)
        tables[:, :, :2] = self._nearest(past, wins, self.pool.similarity.take(pair))
        masses = np.zeros((shape[0], past.tasks.shape[1], 2, shape[1]))
        masses[past.who, past.at, 0, past.slot] = good
        masses[past.who, past.at, 1, past.slot] = bad
        weight = self.pool.weight.take(pair).astype(np.float64)
        sums = weight @ masses.reshape(*masses.shape[:2], -1)
        tables[:, :, 2:] = sums.reshape(*tasks.shape, 2, -1)
        self.tables[rows, : tasks.shape[1]] = tables

    def _line_up(self, rows: Int, stream: Int) -> Int:
        """Give a line to each task of ``stream`` (R, T) that differs; tasks by line, (R, D)."""
        every, steps = np.arange(len(rows))[:, None], np.arange(stream.shape[1])
        last = np.zeros((len(rows), len(self.pool.similarity)), np.int64)
        last[every, stream] = steps + 1  # of a task that comes again the last counts
        tasks, when = occurring(last)
        order = when.argsort(1)[:, ::-1]
        tasks = tasks[every, order]
        last[every, tasks] = steps[: tasks.shape[1]]
        self.line[rows] = last[every, stream]
        self.tasks[rows, : tasks.shape[1]] = tasks
        return tasks

    def _nearest(self, past: Past, wins: Int, similarity: Float) -> Float:
        """Largest similarities to the tasks that went well and badly with each slot, at least 0.

        Args:
            past: outcomes of R sessions.
            wins: how many of each cell went well, (C,).
            similarity: of the tasks to come to the past ones, shape (R, D, P).

        Returns:
            Shape (R, D, 2, L + 1).
        """
        lines, width = similarity.shape[1], self.width + 1
        happened = [(wins > 0).nonzero()[0], (wins < past.count).nonzero()[0]]
        cell, kind = np.concatenate(happened), np.repeat([0, 1], [len(h) for h in happened])
        near = similarity.transpose(0, 2, 1).reshape(-1, lines)
        task = past.who[cell] * past.tasks.shape[1] + past.at[cell]
        group = (2 * past.who[cell] + kind) * width + past.slot[cell]
        best = np.zeros((len(past.rows) * 2 * width, lines), np.float32)
        if len(group):
            groups, largest = _largest(near, task, group)
            best[groups] = np.maximum(largest, 0)
        return best.reshape(-1, 2, width, lines).transpose(0, 3, 1, 2)

    def at(self, step: Int, rows: Int | slice = slice(None)) -> Evidence:
        """Evidence for the task at ``step`` (B,) of each session; arrays (B, L + 1).

        With ``rows`` (R,) of these sessions alone, where ``step`` is (R,).
        """
        row = self._rows[rows]
        table = np.empty((7, len(row), self.width + 1), np.float32)
        lines = self.tables.reshape(-1, 4, self.width + 1)
        line = row * self.tables.shape[1] + self.line[row, step]
        table[:4] = lines.take(line, 0).transpose(1, 0, 2)
        table[4:] = self.totals[:, rows]
        return Evidence(table)

    def record(self, step: Int, task: Int, slot: Int, outcomes: Outcomes, meant: Float) -> None:
        """Enter the outcome of one decision of every session.

        Args:
            step: index of the decision in its session, shape (B,).
            task: of each decision, shape (B,).
            slot, meant: slots of the chosen skills and the fit of each, shape (B, k).
            outcomes: what came of them.
        """
        lone = ~outcomes.loaded.any(1) & outcomes.evidence
        row, j = (outcomes.loaded & outcomes.evidence[:, None]).nonzero()
        column = np.concatenate([slot[row, j], np.full(lone.sum(), self.width)])
        fits = np.concatenate([meant[row, j], np.ones(lone.sum(), np.float32)])
        row = np.concatenate([row, lone.nonzero()[0]])
        good, width = outcomes.success[row], self.width + 1
        bad = 1 - good
        wins, fit_successes, fit_failures = self.totals.reshape(3, -1)
        key = row * width + column
        wins[key] += good >= 0.5
        fit_successes[key] += fits * good
        fit_failures[key] += fits * bad

        used = int(self.line[:, int(step.min()) :].max()) + 1
        pair = task[:, None] * len(self.pool.similarity) + self.tasks[:, :used]
        near, weight = self.pool.similarity.take(pair), self.pool.weight.take(pair)
        table, stride = self.tables.reshape(-1), 4 * width
        at = (row * self.tables.shape[1] * stride + column)[:, None] + stride * np.arange(used)
        best = at + width * (good < 0.5)[:, None]
        table[best] = np.maximum(table.take(best), near[row])
        for kind, amount in ((2, good), (3, bad)):
            some = amount.nonzero()[0]
            mass = at[some] + kind * width
            table[mass] += weight[row[some]] * amount[some, None]


def _largest(values: Float, at: Int, group: Int) -> tuple[Int, Float]:
    """Largest of the rows ``values[at]`` of each group, column by column.

    The first rows of all groups are taken at once, then the second ones, and so on, the larger
    groups in front: a few long operations, where ``np.maximum.reduceat`` does many short ones.

    Args:
        values: shape (m, T).
        at, group: rows of ``values`` and the group of each, equal ones together, both (n,).

    Returns:
        The groups (G,), and their largest values, shape (G, T).
    """
    first = starts(group)
    size = np.diff(first, append=len(group))
    order = (-size).argsort(kind="stable")
    first, size = first[order], size[order]
    begin = (size.cumsum() - size).repeat(size)
    nth = np.arange(len(group)) - begin  # of its group
    sequence = (first.repeat(size) + nth)[
        nth.astype(np.min_scalar_type(size[0])).argsort(kind="stable")
    ]
    rows = values.take(at[sequence], 0)
    counts = np.bincount(nth)
    largest, done = rows[: counts[0]], counts[0]
    for count in counts[1:].tolist():
        np.maximum(largest[:count], rows[done : done + count], out=largest[:count])
        done += count
    return group[first], largest
