"""An optional term on the vectors themselves: slot j scores (P x) . (Q s_j) more.

x is the vector of the task, s_j that of the slot's skill, P and Q have a low rank R. It can learn
which texts belong together, at the price of 2 D R weights and of skills never seen in training, so
it is off by default. Q starts at zero: the untrained policy stays the closed form.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from letta_gym.selection.network import Floats, Weights

TASK, SKILL = "bilinear_task", "bilinear_skill"
Vectors: TypeAlias = tuple[Floats, Floats]
"""Vectors of the tasks, shape (B, D), and of the slots' skills, shape (B, M, D)."""


@dataclass(frozen=True, slots=True)
class Cache:
    """What the backward pass needs of the forward pass."""

    vectors: Vectors
    task: Floats  # (B, R)
    skills: Floats  # (B, M, R)


def shapes(rank: int, dimension: int) -> dict[str, tuple[int, ...]]:
    """Shape of each weight for rank R and vectors of D numbers; none for rank 0."""
    return {TASK: (dimension, rank), SKILL: (dimension, rank)} if rank else {}


def initial(rng: np.random.Generator, rank: int, dimension: int) -> dict[str, NDArray[np.float64]]:
    """Weights that add nothing yet, yet have a gradient; none for rank 0."""
    if not rank:
        return {}
    # A vector is 1 long, so variance 1 keeps the projection of order 1.
    return {TASK: rng.standard_normal((dimension, rank)), SKILL: np.zeros((dimension, rank))}


def rank(w: Weights) -> int:
    """R of these weights, 0 without the term."""
    return w[TASK].shape[1] if TASK in w else 0


def add(w: Weights, logits: Floats, vectors: Vectors) -> Cache:
    """Add the term to the slots of ``logits`` (B, M + 1) in place; masked slots stay at -inf."""
    x, s = (v.astype(logits.dtype, copy=False) for v in vectors)
    batch, slots, dimension = s.shape
    task = x @ w[TASK]
    skills = (s.reshape(-1, dimension) @ w[SKILL]).reshape(batch, slots, -1)
    logits[:, :-1] += np.einsum("br,bmr->bm", task, skills)
    return Cache((x, s), task, skills)


def backward(cache: Cache, dlogits: Floats) -> dict[str, Floats]:
    """Gradient of both weights, given that of the logits (B, M + 1)."""
    x, s = cache.vectors
    dscore = dlogits[:, :-1]
    dtask = np.einsum("bm,bmr->br", dscore, cache.skills)
    dskills = dscore[..., None] * cache.task[:, None]
    flat: Any = s.reshape(-1, s.shape[-1])
    return {TASK: x.T @ dtask, SKILL: flat.T @ dskills.reshape(len(flat), -1)}
