"""What happened before a session: the outcomes of a deployment that chose skills by retrieval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from letta_gym.envs.pool import Pool
from letta_gym.feedback.evidence import EvidenceConfig, fit
from letta_gym.letta.mock import MockWorld, grade

Float = NDArray[np.float32]
Int = NDArray[np.int64]
Bool = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Past:
    """E outcomes of R sessions, in C cells of one session, one slot and one task each.

    Attributes:
        rows: the sessions, shape (R,).
        tasks: tasks of each session's past, padded, shape (R, P).
        who, slot, at: of each cell its number in ``rows``, the slot of the loaded skill (L for
            none) and its column in ``tasks``, in lexical order, each (C,).
        count: outcomes of each cell, at least 1, (C,).
        meant: fit of the skill to the task, 1 for none, (C,).
        success: grades, those of the first cell first, (E,).
    """

    rows: Int
    tasks: Int
    who: Int
    slot: Int
    at: Int
    count: Int
    meant: Float
    success: Float


class Historian:
    """Writes the pasts of sessions.

    Outcomes of the past are independent, and nobody asks for their order; so they are drawn in the
    order of their cells, and what depends on the cell alone is worked out once for each.

    Args:
        pool: tasks and skills.
        evidence: constants of the fit.
        world: the hidden worlds of the sessions.
        temperature: of the softmax over retrieval scores by which skills were chosen.
        none_share: share of the outcomes for which no skill was chosen.
    """

    def __init__(
        self,
        pool: Pool,
        evidence: EvidenceConfig,
        world: MockWorld,
        temperature: float,
        none_share: float,
    ) -> None:
        self.pool, self.evidence, self.world = pool, evidence, world
        self.temperature = np.float32(temperature)
        self._loads = (1 - none_share) * float(world.load_probability(np.ones(1, bool))[0])

    def write(
        self,
        rows: Int,
        skills: Int,
        usable: Bool,
        tasks: Int,
        share: NDArray[np.float64],
        length: Int,
        generators: Sequence[np.random.Generator],
    ) -> Past:
        """The pasts of the sessions ``rows`` (R,).

        Args:
            rows: the sessions.
            skills: of their libraries, shape (R, L).
            usable: which of them were there then, shape (R, L).
            tasks, share: tasks that were asked, and how often, 0 for padding, shape (R, P).
            length: number of outcomes, shape (R,).
            generators: of the sessions.
        """
        some = usable.any(1, keepdims=True)
        # Where no skill is usable none is loaded, and it does not matter which is preferred.
        open_to = (usable | ~some)[..., None]
        pair = tasks[:, None] * self.pool.retrieval.shape[1] + skills[..., None]
        score = np.where(open_to, self.pool.retrieval.take(pair), np.float32(-np.inf))
        best = score.max(1, keepdims=True)
        desire = np.exp((score - best) / self.temperature)
        loads = self._loads * some
        shares = np.empty((len(rows), skills.shape[1] + 1, tasks.shape[1]))
        np.multiply(desire, (share * loads / desire.sum(1))[:, None], out=shares[:, :-1])
        np.multiply(share, 1 - loads, out=shares[:, -1])
        cell, count, check = _draw(shares.reshape(len(rows), -1), length, generators)

        who, slot, at = np.unravel_index(cell, shares.shape)
        loaded, some_slot = slot < skills.shape[1], np.minimum(slot, skills.shape[1] - 1)
        p = self.world.success_probability(
            rows[who], tasks[who, at], skills[who, some_slot][:, None], loaded[:, None]
        )
        meant = fit(score[who, some_slot, at], best[who, 0, at], self.evidence)
        meant = np.where(loaded, meant, np.float32(1))
        thresholds = self.world.thresholds(p).astype(np.float32)
        success = grade(thresholds.repeat(count, 1), check)
        return Past(rows, tasks, who, slot, at, count, meant, success)


def occurring(weights: NDArray[np.generic]) -> tuple[Int, NDArray[np.float64]]:
    """The columns of ``weights`` (R, n) that are not 0, ascending, and what stands there.

    Both have the shape (R, m), and are padded with 0 behind.
    """
    row, column = weights.nonzero()
    count = np.bincount(row, minlength=len(weights))
    place = np.arange(len(row)) - (count.cumsum() - count)[row]
    columns = np.zeros((len(weights), count.max(initial=0)), np.int64)
    values = np.zeros(columns.shape)
    columns[row, place], values[row, place] = column, weights[row, column]
    return columns, values


def _draw(
    shares: NDArray[np.float64], length: Int, generators: Sequence[np.random.Generator]
) -> tuple[Int, Int, Float]:
    """Draw ``length`` (R,) cells from each row of ``shares`` (R, n), and a uniform for each.

    Returns:
        The cells that were drawn, in the flattened array, ascending, and how often each was, both
        (C,); the uniforms, (E,).
    """
    cumulative = shares.cumsum(1)
    total = cumulative[:, -1].copy()
    cumulative[:, -1] = np.inf  # where a level rounded up to the total falls
    found, uniform = [], []
    for i, (n, generator) in enumerate(zip(length.tolist(), generators, strict=True)):
        # Sums of exponentials over their total are uniforms in ascending order: no sorting, and a
        # search for them in order is several times faster.
        level = generator.standard_exponential(n + 1).cumsum()
        level *= total[i] / level[-1]
        found.append(cumulative[i].searchsorted(level[:-1], "right") + i * shares.shape[1])
        uniform.append(generator.random(n, np.float32))
    cells = np.concatenate(found)
    first = starts(cells)
    return cells[first], np.diff(first, append=len(cells)), np.concatenate(uniform)


def starts(groups: Int) -> Int:
    """Where each run of equal numbers in ``groups`` (n,) begins, shape (runs,)."""
    begins = np.ones(len(groups), bool)
    np.not_equal(groups[1:], groups[:-1], out=begins[1:])
    return begins.nonzero()[0]
