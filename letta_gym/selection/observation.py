"""The observation: one table of feature columns, one function that fills them.

The environment and the runtime call :func:`features` and :func:`context` alike, so what was trained
is what is served. The table below is the source of the documentation and of the schema hash.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from letta_gym.feedback.evidence import Evidence, EvidenceConfig, Judgement, Row, Rows, flat

Float = NDArray[np.float32]
Int = NDArray[np.int64]
Bool = NDArray[np.bool_]
PerSession: TypeAlias = Float | np.float32


@dataclass(frozen=True, slots=True)
class Column:
    """One number of the observation: its name, meaning, range and where it comes from.

    ``scale`` is the factor in front of a feature; :func:`features` applies all of them at once.
    """

    name: str
    meaning: str
    low: float
    high: float
    source: str
    scale: float = 1.0


R, E, S = "retrieval", "evidence", "session"

FEATURES: tuple[Column, ...] = (
    Column("dense", "4 x cosine of task and skill", -4, 4, R, 4),
    Column("lexical", "4 x TF-IDF cosine of task and skill", 0, 4, R, 4),
    Column("retrieval", "4 x retrieval score", -8, 8, R, 4),
    Column("fit", "fit of the skill to the task, from the retrieval scores", 0, 1, R),
    Column("uplift", "4 x posterior of what the skill adds where it fits", -4, 4, E, 4),
    Column("nearest", "4 x score from the nearest outcomes", -8, 8, E, 4),
    Column("closed_form", "8 x closed-form score, the expected gain", -8, 8, E, 8),
    Column("retrieval_gap", "4 x (retrieval score - best of the slots)", -16, 0, R, 4),
    Column("closed_form_gap", "8 x (closed-form score - best of the slots)", -16, 0, E, 8),
    Column("local_gain", "success with the skill near this task, less without", -1, 1, E),
    Column("certainty", "weight of outcomes in the posterior uplift", 0, 1, E),
    Column("alike_lead", "4 x (uplift - mean uplift of its look-alikes)", -8, 8, E, 4),
    Column("alike_rival", "4 x largest uplift of its look-alikes, 0 without", -4, 4, E, 4),
    Column("alike_certainty", "weight of outcomes behind its look-alikes", 0, 1, E),
    Column("alike", "1 where another slot holds a look-alike", 0, 1, E),
    Column("cost", "8 x tokens of the skill x price of a token", 0, 80, S, 8),
)

CONTEXT: tuple[Column, ...] = (
    Column("budget_left", "share of the token budget left", 0, 1, S),
    Column("budget_per_task", "tokens left per task to come / 1000, at most 8", 0, 8, S),
    Column("progress", "share of the session that is over", 0, 1, S),
    Column("history", "ln(1 + outcomes in memory) / 8", 0, 4, E),
    Column("alone", "the agent's success without skills in general", 0, 1, E),
    Column("alone_here", "the agent's success without skills near this task", 0, 1, E),
    Column("best_retrieval", "4 x best retrieval score of the slots", -8, 8, R),
    Column("best_gain", "8 x largest closed-form score of the slots", -8, 8, E),
)

FEATURE = {column.name: i for i, column in enumerate(FEATURES)}

# Of each feature, to be applied to columns of shape (F, B, M).
_SCALE, _FEATURE_LOW, _FEATURE_HIGH = (
    np.array([[[getattr(column, bound)]] for column in FEATURES], np.float32)
    for bound in ("scale", "low", "high")
)
_CONTEXT_LOW = np.array([column.low for column in CONTEXT], np.float32)
_CONTEXT_HIGH = np.array([column.high for column in CONTEXT], np.float32)
_LOWEST = np.float32(-1e3)  # below every score, and finite: all slots masked is no NaN


def _rows(first: str, last: str, step: int | None = None) -> slice:
    """The columns of :data:`FEATURES` from ``first`` to ``last``, which must come after it."""
    return slice(FEATURE[first], FEATURE[last] + 1, step)


_SCORES = _rows("dense", "retrieval")
_JUDGEMENT = _rows("fit", "closed_form")
_RANKED = _rows("retrieval", "closed_form", FEATURE["closed_form"] - FEATURE["retrieval"])
_GAPS = _rows("retrieval_gap", "closed_form_gap")
_ALIKE = _rows("alike_lead", "alike")


def schema_hash() -> str:
    """SHA-256 over both tables: a policy is only served with the columns that it was trained on."""
    rows = (f"{c.name}|{c.meaning}|{c.low}|{c.high}|{c.source}" for c in FEATURES + CONTEXT)
    text = "\n".join(rows)
    return hashlib.sha256(text.encode()).hexdigest()


class Scores(Rows):
    """How well retrieval thinks that each skill fits the task."""

    __slots__ = ()
    dense = Row(0)
    lexical = Row(1)
    retrieval = Row(2)


@dataclass(eq=False, slots=True)
class Situation:
    """What is known about B decisions with M slots each.

    Whatever has the shape (B, 1) may be a float32 scalar where B is 1: that is much cheaper.

    Attributes:
        scores, evidence, judgement: of each slot's skill, arrays (B, M).
        alone: evidence of outcomes without any skill, arrays (B, 1).
        alone_rate: posterior success without any skill, shape (B, 1).
        alone_nearby: the same on tasks like this one, shape (B, 1).
        alike: :func:`alike_slots` of the slots' skills, shape (W, B, M).
        tokens: cost of each slot's skill, shape (B, M).
        mask: True where the slot may be chosen, shape (B, M).
        tokens_left, budget: of the session, shape (B, 1).
        tasks_left, horizon: of the session, in tasks, shape (B, 1).
        outcomes: number of outcomes in memory, shape (B, 1).
    """

    scores: Scores
    evidence: Evidence
    judgement: Judgement
    alone: Evidence
    alone_rate: PerSession
    alone_nearby: PerSession
    alike: Int
    tokens: Float
    mask: Bool
    tokens_left: PerSession
    budget: PerSession
    tasks_left: PerSession
    horizon: PerSession
    outcomes: PerSession


def look_alikes(vectors: Float) -> Int:
    """The look-alikes (cosine above 0.9) of each of n skills, shape (W, n).

    Columns are ascending and padded with n; W is the largest number of look-alikes of any skill.
    """
    n = len(vectors)
    alike = vectors @ vectors.T > 0.9
    np.fill_diagonal(alike, False)
    row, other = np.nonzero(alike)
    count = alike.sum(1)
    table = np.full((int(count.max(initial=0)), n), n)
    table[np.arange(len(row)) - (count.cumsum() - count)[row], row] = other
    return table


def alike_slots(table: Int, skills: Int) -> Int:
    """The slots that hold look-alikes of each slot's skill, shape (W, B, M).

    Args:
        table: :func:`look_alikes` of the library, shape (W, n).
        skills: which of its skills is in each slot, shape (B, M).

    Returns:
        Slot numbers, ascending, padded with M.
    """
    (width, n), (batch, slots) = table.shape, skills.shape
    slot = np.full(batch * (n + 1), slots)
    slot[flat(skills, n + 1)] = np.arange(slots)
    found = slot.take(flat(table.take(skills, 1), n + 1))
    if width > 1:
        found.sort(0)
    return found


def features(s: Situation, config: EvidenceConfig, token_price: float) -> Float:
    """Fill the columns of :data:`FEATURES`, float32, shape (B, M, F); masked slots are zero.

    Every number lies within the bounds of its column.

    Args:
        s: the situation.
        config: constants of the evidence.
        token_price: what a token costs in units of reward.
    """
    e, mask, k = s.evidence, s.mask, config.prior_strength
    barrier = None if all_free(mask) else np.where(mask, np.float32(0), _LOWEST)
    columns = np.empty((len(FEATURES), *mask.shape), np.float32)
    columns[_SCORES] = s.scores.table
    columns[_JUDGEMENT] = s.judgement.table
    ranked, gaps = columns[_RANKED], columns[_GAPS]
    free = ranked if barrier is None else ranked + barrier
    np.subtract(ranked, np.maximum.reduce(free, -1, keepdims=True), out=gaps)
    at, here = FEATURE, s.alone_nearby
    near = k + e.success_mass + e.failure_mass
    np.subtract((k * here + e.success_mass) / near, here, out=columns[at["local_gain"]])
    weight = e.fit_successes + e.fit_failures
    certainty = np.divide(weight, weight + k, out=columns[at["certainty"]])
    alike_columns(s.judgement.uplift, certainty, s.alike, barrier, out=columns[_ALIKE])
    np.multiply(s.tokens, token_price, out=columns[at["cost"]])

    columns *= _SCALE
    np.maximum(columns, _FEATURE_LOW, out=columns)
    np.minimum(columns, _FEATURE_HIGH, out=columns)
    if barrier is not None:
        columns *= mask
    return np.ascontiguousarray(columns.transpose(1, 2, 0))


def context(s: Situation, f: Float) -> Float:
    """Fill the columns of :data:`CONTEXT` from the situation and its features ``f``, (B, C).

    Every number lies within the bounds of its column.
    """
    ranked, free = np.ascontiguousarray(f.transpose(2, 0, 1)[_RANKED]), all_free(s.mask)
    if not free:
        ranked = np.where(s.mask, ranked, _LOWEST)
    best = np.maximum.reduce(ranked, -1, keepdims=True)
    retrieval, gain = best if free else best * s.mask.any(-1, keepdims=True)
    values = (
        s.tokens_left / s.budget,
        s.tokens_left / np.maximum(s.tasks_left, 1) / 1000,
        1 - s.tasks_left / s.horizon,
        np.log1p(s.outcomes) / 8,
        s.alone_rate,
        s.alone_nearby,
        retrieval,
        gain,
    )
    c = np.empty((len(s.mask), len(CONTEXT)), np.float32)
    for column, value in enumerate(values):
        c[:, column : column + 1] = value
    np.maximum(c, _CONTEXT_LOW, out=c)
    return np.minimum(c, _CONTEXT_HIGH, out=c)


def all_free(mask: Bool) -> bool:
    """Whether every slot may be chosen, so that nothing has to be masked."""
    return bool(np.count_nonzero(mask) == mask.size)


def alike_columns(
    merit: Float, certainty: Float, alike: Int, barrier: Float | None, out: Float
) -> None:
    """Write what the unmasked look-alikes of each slot say about it; 0 without any.

    Of two look-alikes often only one works, so a good one speaks against the other.

    Args:
        merit, certainty: of each slot, shape (B, M).
        alike: slots of the look-alikes, padded with M, shape (W, B, M).
        barrier: 0 where a slot may be chosen, :data:`_LOWEST` elsewhere, shape (B, M); None where
            every slot may be.
        out: shape (4, B, M): merit less the mean merit of the look-alikes; their largest merit;
            their mean certainty; 1 where there is one.
    """
    width, batch, slots = alike.shape
    if not width:
        out[:] = 0
        return
    # One slot more, which stands for "no look-alike": as far below as a masked one.
    said = np.full((2, batch, slots + 1), _LOWEST)
    said[0, :, :-1] = merit if barrier is None else merit + barrier
    said[1, :, :-1] = certainty
    heard = said.reshape(2, -1).take(flat(alike, slots + 1), 1)
    there = heard[0] > _LOWEST / 2
    heard *= there
    if width == 1:
        (merits, sure), some = heard[:, 0], there[0]
        rivals = merits
    else:
        count = there.sum(0)
        some, divisor = count > 0, np.maximum(count, 1).astype(np.float32)
        rivals = np.where(there, heard[0], _LOWEST).max(0) * some
        merits, sure = heard.sum(1) / divisor
    out[0], out[1], out[2], out[3] = (merit - merits) * some, rivals, sure, some
