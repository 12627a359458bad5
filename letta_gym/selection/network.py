"""The policy network: scores each slot by the same small function, and scores stopping.

    score_j = w . f_j + v . tanh(A f_j + B c + b)            for every slot j
    stop    = s . z + u . tanh(D z + d) + t                   z = [c, max_j f_j, mean_j f_j]
    value   = g . tanh(E z + e) + h

f_j are the features of slot j, c the context of the decision. The scores do not depend on the order
or the number of slots. ``w`` starts as the closed form less the cost, all output layers at zero, so
that the untrained policy *is* the closed form with a threshold. Forward and backward are plain
functions of named arrays: training and the runtime use the same ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from letta_gym.selection.observation import CONTEXT, FEATURE, FEATURES, all_free

Floats: TypeAlias = NDArray[np.floating[Any]]
Weights: TypeAlias = Mapping[str, Floats]


@dataclass(frozen=True, slots=True)
class Cache:
    """What the backward pass needs of the forward pass."""

    features: Floats  # (B, M, F)
    context: Floats  # (B, C)
    pooled: Floats  # (B, C + 2 F)
    hidden: Floats  # (B, M, H)
    stop_hidden: Floats  # (B, H)
    value_hidden: Floats  # (B, H)


def shapes(hidden: int) -> dict[str, tuple[int, ...]]:
    """Shape of each weight for hidden layers of width ``hidden``."""
    n_features, n_context = len(FEATURES), len(CONTEXT)
    n_pooled = n_context + 2 * n_features
    return {
        "score_linear": (n_features,),
        "score_features": (n_features, hidden),
        "score_context": (n_context, hidden),
        "score_bias": (hidden,),
        "score_out": (hidden,),
        "stop_linear": (n_pooled,),
        "stop_hidden": (n_pooled, hidden),
        "stop_bias": (hidden,),
        "stop_out": (hidden,),
        "stop_level": (1,),
        "value_hidden": (n_pooled, hidden),
        "value_bias": (hidden,),
        "value_out": (hidden,),
        "value_level": (1,),
    }


def initial(
    rng: np.random.Generator, hidden: int, sharpness: float, threshold: float
) -> dict[str, NDArray[np.float64]]:
    """Weights of the untrained policy.

    Args:
        rng: draws the hidden layers, normal of variance 1 / fan-in.
        hidden: width H of each hidden layer.
        sharpness: logit per unit of expected gain.
        threshold: expected gain (closed form less cost) at which stopping is as good.
    """
    weights = {name: np.zeros(shape) for name, shape in shapes(hidden).items()}
    for name in ("score_features", "score_context", "stop_hidden", "value_hidden"):
        rows = len(weights[name])
        weights[name] = rng.standard_normal((rows, hidden)) / np.sqrt(rows)
    weights["score_linear"][FEATURE["closed_form"]] = sharpness / 8
    weights["score_linear"][FEATURE["cost"]] = -sharpness / 8
    weights["stop_level"][:] = sharpness * threshold
    return weights


def rows_of(weights: Weights, features: Sequence[int]) -> list[Floats]:
    """Views of all weights, or gradients, that read one of the columns ``features``."""
    pooled = [len(CONTEXT) + j for j in features]
    pooled += [len(CONTEXT) + len(FEATURES) + j for j in features]
    views = [
        weights[name][j : j + 1] for name in ("score_linear", "score_features") for j in features
    ]
    names = ("stop_linear", "stop_hidden", "value_hidden")
    return views + [weights[name][j : j + 1] for name in names for j in pooled]


def pool(features: Floats, context: Floats, mask: NDArray[np.bool_]) -> Floats:
    """z of the module's formula: context, maximum and mean over the unmasked slots, (B, C + 2F).

    Masked slots of ``features`` are zero; ``mask`` (B, M) is true where a slot is not masked.
    """
    total = np.add.reduce(features, 1)  # masked slots are zero
    if all_free(mask):
        mean = total / total.dtype.type(mask.shape[1])
        parts = [context, np.maximum.reduce(features, 1), mean]
        return np.concatenate(parts, 1, dtype=features.dtype)
    free = mask.sum(-1, keepdims=True, dtype=features.dtype)
    largest = (features + _barrier(mask, features.dtype)[..., None]).max(1)
    parts = [context, np.where(free > 0, largest, 0), total / np.maximum(free, 1)]
    return np.concatenate(parts, 1, dtype=features.dtype)


def _barrier(mask: NDArray[np.bool_], dtype: np.dtype[Any]) -> Floats:
    """What masks a score by addition, shape (B, M): 0 where the slot is free, else -inf."""
    barrier: Floats = np.where(mask, dtype.type(0), dtype.type(-np.inf))
    return barrier


def forward(
    w: Weights, features: Floats, context: Floats, mask: NDArray[np.bool_]
) -> tuple[Floats, Floats, Cache]:
    """Logits (B, M + 1) with STOP last and -inf where masked, values (B,), and the cache."""
    pooled = pool(features, context, mask)
    logits, hidden, stop_hidden = _logits(w, features, context, mask, pooled)
    value_hidden = np.tanh(pooled @ w["value_hidden"] + w["value_bias"])
    value = value_hidden @ w["value_out"] + w["value_level"]
    return logits, value, Cache(features, context, pooled, hidden, stop_hidden, value_hidden)


def logits(w: Weights, features: Floats, context: Floats, mask: NDArray[np.bool_]) -> Floats:
    """The logits of :func:`forward` alone, for serving: no value, hence none of its weights."""
    return _logits(w, features, context, mask, pool(features, context, mask))[0]


def _logits(
    w: Weights, features: Floats, context: Floats, mask: NDArray[np.bool_], pooled: Floats
) -> tuple[Floats, Floats, Floats]:
    batch, slots, width = features.shape
    flat = features.reshape(-1, width)
    hidden = (flat @ w["score_features"]).reshape(batch, slots, -1)
    hidden += (context @ w["score_context"] + w["score_bias"])[:, None]
    np.tanh(hidden, out=hidden)
    stop_hidden = np.tanh(pooled @ w["stop_hidden"] + w["stop_bias"])
    logits = np.empty((batch, slots + 1), features.dtype)
    scores = flat @ w["score_linear"] + hidden.reshape(batch * slots, -1) @ w["score_out"]
    logits[:, :-1] = scores.reshape(batch, slots)
    if not all_free(mask):
        np.copyto(logits[:, :-1], -np.inf, where=~mask)
    logits[:, -1] = pooled @ w["stop_linear"] + stop_hidden @ w["stop_out"] + w["stop_level"]
    return logits, hidden, stop_hidden


def backward(w: Weights, cache: Cache, dlogits: Floats, dvalue: Floats) -> dict[str, Floats]:
    """Gradient of each weight, given those of the logits (B, M + 1) and of the values (B,)."""
    dscore = np.ascontiguousarray(dlogits[:, :-1]).reshape(-1)
    dstop = dlogits[:, -1]
    flat = cache.features.reshape(-1, cache.features.shape[-1])
    hidden = cache.hidden.reshape(len(flat), -1)
    dhidden = (1 - hidden * hidden) * w["score_out"] * dscore[:, None]
    by_row = dhidden.reshape(cache.hidden.shape).sum(1)
    dstop_hidden = (1 - cache.stop_hidden**2) * w["stop_out"] * dstop[:, None]
    dvalue_hidden = (1 - cache.value_hidden**2) * w["value_out"] * dvalue[:, None]
    return {
        "score_linear": flat.T @ dscore,
        "score_features": flat.T @ dhidden,
        "score_context": cache.context.T @ by_row,
        "score_bias": by_row.sum(0),
        "score_out": hidden.T @ dscore,
        "stop_linear": cache.pooled.T @ dstop,
        "stop_hidden": cache.pooled.T @ dstop_hidden,
        "stop_bias": dstop_hidden.sum(0),
        "stop_out": cache.stop_hidden.T @ dstop,
        "stop_level": dstop.sum(keepdims=True),
        "value_hidden": cache.pooled.T @ dvalue_hidden,
        "value_bias": dvalue_hidden.sum(0),
        "value_out": cache.value_hidden.T @ dvalue,
        "value_level": dvalue.sum(keepdims=True),
    }
