"""The observation: one table of feature columns, one function that fills them.

The environment and the runtime call :func:`features` and :func:`context` alike, so what was trained
is what is served. The table below is the source of the documentation and of the schema hash.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from letta_gym.feedback.evidence import Evidence, EvidenceConfig, Judgement

Float = NDArray[np.float32]
Bool = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Column:
    """One number of the observation: its name, meaning, range and where it comes from."""

    name: str
    meaning: str
    low: float
    high: float
    source: str


R, E, S = "retrieval", "evidence", "session"

FEATURES: tuple[Column, ...] = (
    Column("retrieval", "4 x retrieval score", -8, 8, R),
    Column("retrieval_gap", "4 x (retrieval score - best of the slots)", -16, 0, R),
    Column("dense", "4 x cosine of task and skill", -4, 4, R),
    Column("lexical", "4 x TF-IDF cosine of task and skill", 0, 4, R),
    Column("fit", "fit of the skill to the task, from the retrieval scores", 0, 1, R),
    Column("unknown", "1 where the skill has no success yet", 0, 1, E),
    Column("success_gap", "4 x (nearest success - retrieval score), 0 if unknown", -8, 8, E),
    Column("success_lead", "4 x (nearest success - best competitor's)", -8, 8, E),
    Column("failure_penalty", "4 x how much nearer a failure is than any success", 0, 4, E),
    Column("success_mass", "ln(1 + 20 kernel mass of successes) / 2", 0, 8, E),
    Column("failure_mass", "ln(1 + 20 kernel mass of failures) / 2", 0, 8, E),
    Column("local_gain", "success with the skill near this task, less without", -1, 1, E),
    Column("uplift", "4 x posterior of what the skill adds where it fits", -4, 4, E),
    Column("certainty", "weight of outcomes in that posterior", 0, 1, E),
    Column("alike_lead", "4 x (uplift - mean uplift of its look-alikes)", -8, 8, E),
    Column("alike_rival", "4 x largest uplift of its look-alikes, 0 without", -4, 4, E),
    Column("alike_certainty", "weight of outcomes behind its look-alikes", 0, 1, E),
    Column("alike", "1 where another slot holds a look-alike", 0, 1, E),
    Column("nearest", "4 x score from the nearest outcomes", -8, 8, E),
    Column("closed_form", "8 x closed-form score, the expected gain", -8, 8, E),
    Column("closed_form_gap", "8 x (closed-form score - best of the slots)", -16, 0, E),
    Column("cost", "8 x tokens of the skill x price of a token", 0, 80, S),
)

CONTEXT: tuple[Column, ...] = (
    Column("budget_left", "share of the token budget left", 0, 1, S),
    Column("budget_per_task", "tokens left per task to come / 1000, at most 8", 0, 8, S),
    Column("progress", "share of the session that is over", 0, 1, S),
    Column("history", "ln(1 + outcomes in memory) / 8", 0, 4, E),
    Column("alone", "the agent's success without skills in general", 0, 1, E),
    Column("alone_here", "the agent's success without skills near this task", 0, 1, E),
    Column("alone_mass", "ln(1 + 20 kernel mass of those outcomes) / 2", 0, 8, E),
    Column("slots", "share of slots that may be chosen", 0, 1, S),
    Column("best_retrieval", "4 x best retrieval score of the slots", -8, 8, R),
    Column("best_margin", "4 x (best - second best retrieval score)", 0, 16, R),
    Column("best_gain", "8 x largest closed-form score of the slots", -8, 8, E),
)

FEATURE = {column.name: i for i, column in enumerate(FEATURES)}


def schema_hash() -> str:
    """SHA-256 over both tables: a policy is only served with the columns that it was trained on."""
    rows = (f"{c.name}|{c.meaning}|{c.low}|{c.high}|{c.source}" for c in FEATURES + CONTEXT)
    text = "\n".join(rows)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Situation:
    """What is known about B decisions with M slots each.

    Attributes:
        dense, lexical, retrieval: scores of task and skill, shape (B, M).
        evidence, judgement: of each slot's skill, arrays (B, M).
        alone: evidence of outcomes without any skill, arrays (B, 1).
        alone_rate: posterior success without any skill, shape (B, 1).
        alike: :func:`look_alikes` of the slots' skills, shape (B, M, M).
        tokens: cost of each slot's skill, shape (B, M).
        mask: True where the slot may be chosen, shape (B, M).
        tokens_left, budget: of the session, shape (B,).
        tasks_left, horizon: of the session, in tasks, shape (B,).
        outcomes: number of outcomes in memory, shape (B,).
    """

    dense: Float
    lexical: Float
    retrieval: Float
    evidence: Evidence
    judgement: Judgement
    alone: Evidence
    alone_rate: Float
    alike: Float
    tokens: Float
    mask: Bool
    tokens_left: Float
    budget: Float
    tasks_left: Float
    horizon: Float
    outcomes: Float


def look_alikes(vectors: Float) -> Float:
    """1 where two skills are alike (cosine above 0.9), shape (n, n); no skill is its own."""
    alike = (vectors @ vectors.T > 0.9).astype(np.float32)
    np.fill_diagonal(alike, 0)
    return alike


def features(s: Situation, config: EvidenceConfig, token_price: float) -> Float:
    """Fill the columns of :data:`FEATURES`, float32, shape (B, M, F); masked slots are zero.

    Args:
        s: the situation.
        config: constants of the evidence.
        token_price: what a token costs in units of reward.
    """
    e, j, mask, k = s.evidence, s.judgement, s.mask, config.prior_strength
    known = e.wins > 0
    success = e.success_similarity * known
    here = _alone_here(s, config)
    weight = e.fit_successes + e.fit_failures
    twins = alike_columns(j.uplift, weight / (weight + k), s.alike, mask)
    values = (
        4 * s.retrieval,
        4 * (s.retrieval - _best(s.retrieval, mask)),
        4 * s.dense,
        4 * s.lexical,
        j.fit,
        ~known,
        4 * (success - s.retrieval) * known,
        4 * (success - _best_other(success, mask)),
        4 * j.failure_penalty,
        np.log1p(20 * e.success_mass) / 2,
        np.log1p(20 * e.failure_mass) / 2,
        (k * here + e.success_mass) / (k + e.success_mass + e.failure_mass) - here,
        4 * j.uplift,
        weight / (weight + k),
        *(scale * column for scale, column in zip((4, 4, 1, 1), twins, strict=True)),
        4 * j.nearest,
        8 * j.closed_form,
        8 * (j.closed_form - _best(j.closed_form, mask)),
        8 * token_price * s.tokens,
    )
    columns = np.concatenate(values, dtype=np.float32).reshape(len(FEATURES), *mask.shape)
    f: Float = np.empty((*mask.shape, len(FEATURES)), np.float32)
    np.multiply(columns.transpose(1, 2, 0), mask[..., None], out=f)
    return f


def context(s: Situation, f: Float, config: EvidenceConfig) -> Float:
    """Fill the columns of :data:`CONTEXT` from the situation and its features ``f``, (B, C)."""
    free = s.mask.sum(-1, keepdims=True)
    some = free > 0
    retrieval = np.sort(np.where(s.mask, f[..., FEATURE["retrieval"]], _LOWEST), -1)
    best = retrieval[:, -1:]
    second = retrieval[:, -2:-1] if retrieval.shape[1] > 1 else best
    left, tasks = s.tokens_left[:, None], s.tasks_left[:, None]
    values = (
        left / s.budget[:, None],
        np.minimum(left / np.maximum(tasks, 1) / 1000, 8),
        1 - tasks / s.horizon[:, None],
        np.log1p(s.outcomes)[:, None] / 8,
        s.alone_rate,
        _alone_here(s, config),
        np.log1p(20 * (s.alone.success_mass + s.alone.failure_mass)) / 2,
        free / s.mask.shape[1],
        best * some,
        np.where(free > 1, best - second, np.maximum(best, 0) * some),
        _best(f[..., FEATURE["closed_form"]], s.mask) * some,
    )
    return np.concatenate(values, 1, dtype=np.float32)


def alike_columns(
    merit: Float, certainty: Float, alike: Float, mask: Bool
) -> tuple[Float, Float, Float, Float]:
    """What the unmasked look-alikes of each slot say about it, each (B, M), 0 without any.

    Of two look-alikes often only one works, so a good one speaks against the other.

    Returns:
        Merit less the mean merit of the look-alikes; their largest merit; their mean certainty;
        1 where there is one.
    """
    free = mask.astype(np.float32)
    count = np.einsum("bmn,bn->bm", alike, free)
    some, divisor = count > 0, np.maximum(count, 1)
    mean = np.einsum("bmn,bn->bm", alike, merit * free) / divisor
    sure = np.einsum("bmn,bn->bm", alike, certainty * free) / divisor
    rivals = np.where((alike * free[:, None]) > 0, merit[:, None], _LOWEST).max(-1)
    return (merit - mean) * some, rivals * some, sure, some.astype(np.float32)


_LOWEST = np.float32(-1e3)  # below every score, and finite: all slots masked is no NaN


def _best(values: Float, mask: Bool) -> Float:
    """Largest value of the unmasked slots, shape (B, 1)."""
    best: Float = np.where(mask, values, _LOWEST).max(-1, keepdims=True)
    return best


def _best_other(values: Float, mask: Bool) -> Float:
    """For each slot the largest value of the *other* unmasked slots, at least 0, shape (B, M)."""
    known = values * mask
    if known.shape[-1] < 2:
        return np.zeros_like(known)
    top = np.sort(known, -1)
    best, second = top[..., -1:], top[..., -2:-1]
    return np.maximum(np.where(known >= best, second, best), 0)


def _alone_here(s: Situation, config: EvidenceConfig) -> Float:
    """Posterior success of the agent without skills near this task, shape (B, 1)."""
    k, alone = config.prior_strength, s.alone
    mass = alone.success_mass + alone.failure_mass
    return (k * s.alone_rate + alone.success_mass) / (k + mass)
