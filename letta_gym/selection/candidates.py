"""Which skills get a slot: dense and lexical retrieval, fused, then ranked with the evidence."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from letta_gym.config import Section
from letta_gym.library.skills import Skill

Float = NDArray[np.float32]
Int = NDArray[np.int64]
Bool = NDArray[np.bool_]


_LAST = 2.0**40
"""Rank of what is not available: behind every score."""

_MANY = 8  # times as many columns as slots: from here on it pays to part the best before sorting


class RetrievalConfig(Section):
    """How dense and lexical scores are fused; ``lexical_weight`` 0 is dense retrieval alone."""

    lexical_weight: float = Field(default=0.5, ge=0)


def document(skill: Skill) -> str:
    """What lexical retrieval reads of a skill: name, description and body."""
    return f"{skill.name.replace('-', ' ')} {skill.description} {skill.body}"


def fuse(dense: Float, lexical: Float, config: RetrievalConfig, out: Float | None = None) -> Float:
    """Retrieval score dense + w lexical, on the scale of the dense cosine, same shape.

    Unlike a sum of ranks or of z-scores it keeps the level, which tells whether *any* skill fits.
    It is written to ``out``, by default a new array.
    """
    fused: Float = np.multiply(lexical, np.float32(config.lexical_weight), out=out)
    fused += dense
    return fused


def rank(score: Float, available: Bool | None, slots: int) -> Int:
    """The ``slots`` best available columns of each row, best first; unavailable ones come last.

    Scores are rounded to 1e-5 and ties keep the order of the columns (which is that of the ids),
    so that rounding errors never permute slots.

    Args:
        score: shape (B, n).
        available: shape (B, n); None where all are.
        slots: M, at most n.

    Returns:
        Columns, shape (B, M).
    """
    columns = score.shape[-1]
    # Score and column in one integer, so that a plain sort, much faster than a stable argsort with
    # its gathers, gives the order of both.
    order = score * -1e5
    np.rint(order, out=order)
    if available is not None:
        order = np.where(available, order, _LAST)
    key = order.astype(np.int64)
    key *= columns
    key += np.arange(columns)
    if columns > _MANY * slots:
        key.partition(slots, -1)
        key = np.ascontiguousarray(key[..., :slots])
    key.sort(-1)
    best: Int = key[..., :slots] % columns
    return best


def affordable(
    wanted: Bool, tokens: Float, tokens_left: Float | np.float32, max_skills: int
) -> Int:
    """The wanted slots that are carried out: the first in slot order that k and budget allow.

    Args:
        wanted: slots that were asked for and may be chosen, shape (B, M).
        tokens: cost of each slot, shape (B, M).
        tokens_left: of each session, shape (B, 1), or a scalar where B is 1.
        max_skills: k.

    Returns:
        Slots in ascending order, padded with -1, shape (B, k).
    """
    keep = wanted & (wanted.cumsum(1) <= max_skills)
    keep &= (tokens * keep).cumsum(1) <= tokens_left
    none = keep.shape[1]
    order = np.sort(np.where(keep, np.arange(none), none), 1)[:, :max_skills]
    return np.where(order < none, order, -1)
