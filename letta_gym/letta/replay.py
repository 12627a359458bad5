"""A labelled suite as a backend: what comes of a choice is read from the labels of its task.

Where a task has measured ``outcomes``, the success of a set is the best of its members'. Elsewhere
the task's ``relevant`` skills decide. Where none is relevant, the empty set is right and every
other one wrong. Of a set that holds relevant skills the agent loads those and leaves the others
alone; of one without, it tries all. Every chosen skill costs its tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from letta_gym.errors import SuiteError
from letta_gym.letta.backend import Bool, Float, Int, Outcomes, Requests
from letta_gym.library.tasks import Task

Rule = Literal["any", "all", "fraction"]
"""What makes a choice succeed: one relevant skill, all of them, or the share of them chosen."""


class Labels:
    """The labels of T tasks over N skills; a :class:`~letta_gym.letta.backend.Backend`.

    Args:
        tasks: the tasks.
        row: index of each skill id, in 0..N-1.
        tokens: cost of each skill, shape (N,).
        rule: what makes a choice succeed.

    Attributes:
        relevant: which skills help with a task, shape (T, N).
        table: measured outcomes, NaN where the suite has none, shape (T, N); None without any.

    Raises:
        SuiteError: a measured outcome lies outside [0, 1].
    """

    def __init__(
        self, tasks: Sequence[Task], row: Mapping[str, int], tokens: Float, rule: Rule = "any"
    ) -> None:
        self.tokens, self.rule = tokens.astype(np.float32), rule
        self.relevant = np.zeros((len(tasks), len(tokens)), bool)
        self.table: Float | None = None
        for t, task in enumerate(tasks):
            self.relevant[t, [row[skill_id] for skill_id in task.relevant]] = True
        if any(task.outcomes for task in tasks):
            self.table = np.full(self.relevant.shape, np.nan, np.float32)
            for t, task in enumerate(tasks):
                for skill_id, outcome in (task.outcomes or {}).items():
                    if not 0 <= outcome <= 1:
                        raise SuiteError(
                            f"task {task.id!r}: an outcome to replay lies in [0, 1]; that of "
                            f"{skill_id!r} is {outcome}. Scale the suite's outcomes"
                        )
                    self.table[t, row[skill_id]] = outcome

    def execute(self, requests: Requests) -> Outcomes:
        """Read the outcome of every request; ``expected`` is the outcome itself."""
        tasks, chosen = requests.tasks, requests.skills >= 0
        success, fits = self._success(tasks, requests.skills)
        loaded = np.where(fits.any(1, keepdims=True), fits, chosen)
        tokens = np.where(chosen, self.tokens[np.maximum(requests.skills, 0)], 0).sum(1)
        return Outcomes(
            success, loaded, tokens.astype(np.float32), success, np.ones(len(tasks), bool)
        )

    def best(self, tasks: Int, allowed: Bool, max_skills: int, price: float) -> NDArray[np.float64]:
        """Largest success less cost that any choice has, shape (B,).

        Args:
            tasks: shape (B,).
            allowed: which skills may be chosen, shape (B, N).
            max_skills: k.
            price: cost of a token.
        """
        cost = price * self.tokens.astype(np.float64)
        relevant = self.relevant[tasks]
        fits = relevant & allowed
        ranked = np.sort(np.where(fits, cost, np.inf), 1)[:, :max_skills]
        size = np.arange(1, ranked.shape[1] + 1)
        needed = np.maximum(relevant.sum(1, keepdims=True), 1)
        share = {"any": 1.0, "all": size >= needed, "fraction": np.minimum(size / needed, 1)}
        value = (share[self.rule] - ranked.cumsum(1)).max(1, initial=0)
        value = np.where(relevant.any(1), value, 1.0)
        if self.table is None:
            return value
        table = self.table[tasks]
        single = np.where(allowed & ~np.isnan(table), table - cost, -np.inf).max(1)
        nothing = np.where(relevant.any(1), 0.0, 1.0)
        return np.where(np.isnan(table).all(1), value, np.maximum(single, nothing))

    def _success(self, tasks: Int, skills: Int) -> tuple[Float, Bool]:
        """Success of each choice (B,), and which of its members it is owed to (B, k)."""
        chosen, at = skills >= 0, np.maximum(skills, 0)
        fits = self.relevant[tasks[:, None], at] & chosen
        needed, found = self.relevant[tasks].sum(1), fits.sum(1)
        match self.rule:
            case "any":
                success = (found > 0).astype(np.float32)
            case "all":
                success = (found == needed).astype(np.float32)
            case "fraction":
                success = (found / np.maximum(needed, 1)).astype(np.float32)
        success = np.where(needed > 0, success, ~chosen.any(1)).astype(np.float32)
        if self.table is None:
            return success, fits
        measured = np.where(chosen, self.table[tasks[:, None], at], np.nan)
        given = np.logical_and(~np.isnan(self.table[tasks]).all(1), chosen.any(1))
        measured = np.nan_to_num(measured, nan=0.0) * chosen
        top = measured.max(1, keepdims=True)
        owed = chosen & (measured == top) & (top > 0)
        return (
            np.where(given, top[:, 0], success).astype(np.float32),
            np.where(given[:, None], owed, fits),
        )
