"""What past outcomes say about each skill for one task, and the score that needs no training.

An outcome is (task vector, skill, success r in [0, 1]). For a new task x and a skill j, over the
outcomes in which j was really loaded:

======================  =========================================================================
``success_similarity``  largest similarity of x to a task that went well with j (r >= 1/2), else 0
``failure_similarity``  largest similarity of x to a task that went badly with j (r < 1/2), else 0
``success_mass``        sum of K(x, y) r, with the kernel K(x, y) = exp((cos(x, y) - 1) / h)
``failure_mass``        sum of K(x, y) (1 - r)
``wins``                number of outcomes with r >= 1/2
``fit_successes``       sum of f r, with f the *fit* of j to the task of that outcome
``fit_failures``        sum of f (1 - r)
======================  =========================================================================

The first four look at tasks like x; the last two judge the skill on all tasks that it is meant for.
Outcomes in which no skill was loaded are kept the same way: they say how far the agent gets alone.
"""

from __future__ import annotations

from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from letta_gym.config import Section

Float = NDArray[np.float32]
Int = NDArray[np.int64]

_GRID = np.float32(4096)
_HALF = np.float32(0.5)


class Row:
    """One row of the table of :class:`Rows`, read by its name; the array (..., n) itself."""

    def __init__(self, index: int) -> None:
        self.index = index

    def __get__(self, rows: Rows, owner: type[Rows]) -> Float:
        row: Float = rows.table[self.index]
        return row


class Rows:
    """Named numbers about n skills for a batch of tasks, in one float32 array (R, ..., n).

    One array, so that one call gathers or transforms all of them.
    """

    NAMES: ClassVar[tuple[str, ...]] = ()
    __slots__ = ("table",)

    def __init__(self, table: Float) -> None:
        self.table = table

    def __init_subclass__(cls) -> None:
        cls.NAMES = tuple(name for name, value in vars(cls).items() if isinstance(value, Row))

    @classmethod
    def of(cls, *rows: Float) -> Self:
        """Stack one array (..., n) for each name, in their order."""
        return cls(np.stack(rows, dtype=np.float32))

    @classmethod
    def none(cls, shape: tuple[int, ...]) -> Self:
        """Zeros of ``shape``: what an empty memory says."""
        return cls(np.zeros((len(cls.NAMES), *shape), np.float32))

    def columns(self, which: slice) -> Self:
        """The columns ``which`` of the last axis."""
        return type(self)(self.table[..., which])

    def take(self, columns: Int) -> Self:
        """Gather ``columns`` (B, m) of rows (B, n)."""
        if len(columns) == 1:
            return type(self)(self.table.take(columns[0], 2))
        flattened = self.table.reshape(len(self.table), -1)
        return type(self)(flattened.take(flat(columns, self.table.shape[-1]), 1))


class Evidence(Rows):
    """What past outcomes say about each skill; the rows are those of the module's table."""

    __slots__ = ()
    success_similarity = Row(0)
    failure_similarity = Row(1)
    success_mass = Row(2)
    failure_mass = Row(3)
    wins = Row(4)
    fit_successes = Row(5)
    fit_failures = Row(6)


class EvidenceConfig(Section):
    """Constants of the evidence and of the closed form, each with its reason.

    ``bandwidth``: h of the kernel; at 0.12 a task at cosine 0.6 weighs 1/28 of an equal one.
    ``fit_level``, ``fit_scale``: the fit of a skill to a task is the logistic of
    (score - level) / scale times exp((score - best score) / scale): meant for the task at all, and
    not far behind the best of the library. Level and scale are those of MiniLM cosines between
    tasks as people write them and skill descriptions.
    ``prior_uplift``: what a matching skill is expected to add before any outcome; published
    paired runs of curated skills average 0.10 to 0.16.
    ``prior_strength``: pseudo-outcomes behind that expectation.
    ``prior_alone``: success without skills before any outcome, published average.
    ``novelty``: head start of a skill without a success over its retrieval score.
    ``count_correction``, ``count_cap``: a maximum grows with its sample; ln(cap / n) corrects it.
    ``failure_weight``, ``failure_cap``: cost of failing nearer to the task than succeeding.
    ``local_weight``, ``local_strength``: weight of the skill's success near the task less one half,
    and the pseudo-outcomes behind that half. Unlike the penalty it hears every failure.
    ``share_weight``, ``share_strength``: weight of its share in all successes near the task, and
    the kernel mass that belongs to no skill.
    ``uplift_weight``, ``nearest_weight``: of fit x uplift and of the nearest-success score in the
    closed form. Outcomes of an agent that often succeeds alone say little one by one, so the mock
    keeps the latter small; where a label decides, nothing else counts.
    """

    bandwidth: float = Field(default=0.12, gt=0)
    fit_level: float = 0.25
    fit_scale: float = Field(default=0.05, gt=0)
    prior_uplift: float = 0.1
    prior_strength: float = Field(default=2.0, gt=0)
    prior_alone: float = Field(default=0.35, ge=0, le=1)
    novelty: float = 0.1
    count_correction: float = 0.02
    count_cap: float = Field(default=70.0, gt=1)
    failure_weight: float = 0.5
    failure_cap: float = Field(default=0.4, ge=0)
    local_weight: float = Field(default=0.0, ge=0)
    local_strength: float = Field(default=0.1, gt=0)
    share_weight: float = Field(default=0.0, ge=0)
    share_strength: float = Field(default=0.3, gt=0)
    uplift_weight: float = Field(default=1.0, ge=0)
    nearest_weight: float = Field(default=0.05, ge=0)


class Judgement(Rows):
    """What retrieval and evidence say together about each skill.

    See the functions of the same names; ``closed_form`` is the expected gain of loading a skill.
    """

    __slots__ = ()
    fit = Row(0)
    uplift = Row(1)
    nearest = Row(2)
    closed_form = Row(3)


def flat(columns: Int, width: int) -> Int:
    """Where ``columns`` (..., B, m) of an array (B, width) are in it once it is flattened.

    One such index gathers from many arrays, several times faster than ``take_along_axis``.
    """
    batch = columns.shape[-2]
    if batch == 1:
        return columns
    return columns + width * np.arange(batch)[:, None]


def kernel(similarity: Float, bandwidth: float) -> Float:
    """K = exp((similarity - 1) / bandwidth), rounded to multiples of 2**-12.

    On that grid sums of up to 1,024 graded outcomes are exact in float32 whatever their order, so
    evidence built in one pass equals evidence built outcome by outcome, bit for bit.
    """
    return _round(np.exp((similarity - 1) / bandwidth))


def fit(score: Float, best: Float, config: EvidenceConfig, out: Float | None = None) -> Float:
    """How much a skill is meant for a task, in [0, 1], from its retrieval ``score``.

    Args:
        score: retrieval score of the skill, shape (...).
        best: best retrieval score of the library for the same task, broadcastable.
        out: where to write, float32, shape (...); by default a new array.
    """
    # Both exponentials in one call.
    powers = np.empty((2, *score.shape), np.float32)
    behind, below = powers[0, ...], powers[1, ...]
    np.subtract(score, best, out=behind)
    np.subtract(config.fit_level, score, out=below)
    powers /= config.fit_scale
    np.exp(powers, out=powers)
    below += 1
    return _round(np.divide(behind, below, out=behind if out is None else out))


def _round(weights: Float) -> Float:
    """Round ``weights``, which are nobody else's, to the grid, in place."""
    weights *= _GRID
    np.rint(weights, out=weights)
    weights /= _GRID
    return weights


def alone_rate(alone: Evidence, config: EvidenceConfig) -> Float:
    """Posterior success of the agent without any skill, in [0, 1], shape (..., n)."""
    k = config.prior_strength
    good, bad = alone.fit_successes, alone.fit_failures
    return (k * config.prior_alone + good) / (k + good + bad)


def alone_nearby(alone: Evidence, rate: Float, config: EvidenceConfig) -> Float:
    """Posterior success without any skill on tasks like this one, in [0, 1], shape (..., n).

    Kernel masses are the outcomes, ``rate`` (the :func:`alone_rate`) is the prior.
    """
    k, good = config.prior_strength, alone.success_mass
    return (k * rate + good) / (k + good + alone.failure_mass)


def uplift(evidence: Evidence, alone: Float, config: EvidenceConfig) -> Float:
    """Posterior of what each skill adds on tasks that it fits, in [-1, 1], shape (..., n).

    The mean of (r - alone) over its outcomes, weighted by fit, shrunk towards the prior.
    """
    k, good = config.prior_strength, evidence.fit_successes
    weight = good + evidence.fit_failures
    gained = good - alone * weight
    gained += k * config.prior_uplift
    weight += k
    gained /= weight
    return gained


def failure_penalty(evidence: Evidence, config: EvidenceConfig) -> Float:
    """How much nearer the skill failed than it succeeded, in [0, failure_cap], shape (..., n)."""
    reference = evidence.success_similarity + (evidence.wins == 0) * _HALF  # one of them is 0
    nearer: Float = evidence.failure_similarity - reference
    np.maximum(nearer, 0, out=nearer)
    return np.minimum(nearer, config.failure_cap, out=nearer)


def nearest(retrieval: Float, evidence: Evidence, config: EvidenceConfig) -> Float:
    """Score from the nearest outcomes, on the scale of the retrieval score, shape (..., n).

    With a success: half the retrieval score, half the nearest success, corrected for the count.
    Without: the retrieval score and a head start. From both a penalty for failures that are nearer
    than any success; to both the terms of ``local_weight`` and ``share_weight``. For the latter the
    last axis must hold every skill of the library.
    """
    score: Float = retrieval + config.novelty
    wins = evidence.wins
    # Counting costs a tenth of what it saves where nothing is known yet.
    if np.count_nonzero(wins):
        count = np.minimum(np.maximum(wins, 1), config.count_cap)
        correction = config.count_correction * np.log(config.count_cap / count)
        seen = (retrieval + evidence.success_similarity) * _HALF + correction
        score = np.where(wins > 0, seen, score)
    if np.count_nonzero(evidence.failure_similarity):
        score -= config.failure_weight * failure_penalty(evidence, config)
    good, bad = evidence.success_mass, evidence.failure_mass
    if config.local_weight:
        prior = config.local_strength / 2
        score += config.local_weight * ((good + prior) / (good + bad + 2 * prior) - _HALF)
    if config.share_weight:
        every = good.sum(-1, keepdims=True) + config.share_strength
        score += config.share_weight * (good / every)
    return score


def judge(
    retrieval: Float,
    best: Float,
    evidence: Evidence,
    alone: Float,
    config: EvidenceConfig,
    out: Float | None = None,
) -> Judgement:
    """Judge skills for tasks, without learning.

    The closed form is uplift_weight x fit x uplift + nearest_weight x nearest. Without outcomes
    every term grows with the retrieval score, so that an empty memory leaves the retrieval ranking.

    Args:
        retrieval: retrieval scores, shape (..., n).
        best: best retrieval score of the library for the task, shape (..., 1).
        evidence: what is known about each skill, arrays (..., n).
        alone: success without skills, shape (..., 1).
        config: the constants.
        out: where to write, float32, shape (4, ..., n); by default a new array.
    """
    table = np.empty((4, *retrieval.shape), np.float32) if out is None else out
    meant = fit(retrieval, best, config, out=table[0])
    table[1] = added = uplift(evidence, alone, config)
    table[2] = near = nearest(retrieval, evidence, config)
    gain = np.multiply(meant, added, out=table[3])
    gain *= config.uplift_weight
    gain += config.nearest_weight * near
    return Judgement(table)
