"""Ordered subsets of at most ``k`` of ``M`` items: Plackett-Luce without replacement, with STOP.

Logits have shape (B, M + 1); the last one is STOP. Items are drawn one after the other, each from
the softmax over what is left, until STOP is drawn or ``k`` items are picked (after the ``k``-th
there is nothing to decide, so no STOP factor). A masked item has the logit ``-inf``; the STOP logit
is always finite, so the empty subset always exists.

Picks are integers, shape (B, k): item numbers 0 .. M-1 in the drawn order, then -1 to the end.
Results follow the floating type of the logits.

Sources: R. L. Plackett, "The analysis of permutations", 1975; Gumbel top-k sampling: W. Kool,
H. van Hoof, M. Welling, "Stochastic beams and where to find them", 2019, section 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from letta_gym.errors import ConfigError

Floats: TypeAlias = NDArray[np.floating[Any]]
Picks: TypeAlias = NDArray[np.int64]

NO_PICK = -1


@dataclass(frozen=True, slots=True)
class Cache:
    """What :func:`backward` needs of the forward pass.

    The batch is the last axis: NumPy reduces a short axis several times faster when it is not the
    innermost one.
    """

    choice: Picks  # (k, B): the choice at each step, STOP being M
    active: NDArray[np.bool_]  # (k, B): whether the step took place, that is, no STOP before it
    probs: Floats  # (k, M + 1, B): conditional distribution at each step
    plogp: Floats  # (k, M + 1, B): probs * log(probs), 0 where a choice is impossible
    entropies: Floats  # (k, B): entropy of each conditional distribution


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Log-probability and entropy of given picks, each of shape (B,)."""

    log_prob: Floats
    entropy: Floats
    cache: Cache


def apply_mask(logits: Floats, mask: NDArray[Any]) -> Floats:
    """Return logits with ``-inf`` where an item may not be picked; STOP always stays.

    Args:
        logits: array, shape (B, M + 1)
        mask: array of int8 or bool, shape (B, M); true where an item may be picked
    """
    masked = logits.copy()
    masked[:, :-1][~mask.astype(bool, copy=False)] = -np.inf
    return masked


def sample(logits: Floats, k: int, rng: np.random.Generator) -> Picks:
    """Draw one ordered subset for each row.

    Sorting ``logits + Gumbel noise`` draws from Plackett-Luce exactly, for all steps at once.

    Args:
        logits: array, shape (B, M + 1)
        k: the largest size of a subset, at least 1; it may exceed M
        rng: source of the B * (M + 1) Gumbel variates

    Returns:
        picks, shape (B, k)

    Raises:
        ConfigError: ``k`` is less than 1.
    """
    return _first_until_stop(logits + rng.gumbel(size=logits.shape), k)


def greedy(logits: Floats, k: int) -> Picks:
    """Return the picks that take the largest remaining logit at every step, shape (B, k).

    Ties go to the lower item, and STOP loses every tie because it comes last.

    Raises:
        ConfigError: ``k`` is less than 1.
    """
    return _first_until_stop(logits, k)


def log_prob(logits: Floats, picks: Picks) -> Floats:
    """Return the log-probability of the ordered picks, shape (B,); see :func:`evaluate`."""
    return evaluate(logits, picks).log_prob


def entropy(logits: Floats, picks: Picks) -> Floats:
    """Return the entropy estimate along the drawn order, shape (B,); see :func:`evaluate`."""
    return evaluate(logits, picks).entropy


def evaluate(logits: Floats, picks: Picks) -> Evaluation:
    """Return log-probability and entropy of picks, with what :func:`backward` needs.

    The entropy is the sum of the conditional entropies of the steps that took place. By the chain
    rule its expectation over picks is the entropy of the whole ordered subset, in nats; for one
    draw it is an unbiased estimate. It is differentiated with the drawn order held fixed.

    Args:
        logits: array, shape (B, M + 1)
        picks: array of int, shape (B, k); picks of probability zero get ``-inf``
    """
    steps = np.ascontiguousarray(picks.T)
    choice = np.where(steps >= 0, steps, logits.shape[1] - 1)
    active = np.ones(steps.shape, dtype=np.bool_)
    active[1:] = steps[:-1] >= 0

    log_probs = _remaining(logits, steps)
    log_probs -= log_probs.max(axis=1, keepdims=True)
    probs = np.exp(log_probs)
    total = probs.sum(axis=1, keepdims=True)
    probs /= total
    log_probs -= np.log(total)

    chosen = np.take_along_axis(log_probs, choice[:, None, :], axis=1)[:, 0]
    finite = np.maximum(log_probs, np.finfo(log_probs.dtype).min, out=log_probs)  # 0 * -inf is nan
    plogp = np.multiply(probs, finite, out=finite)
    entropies = -plogp.sum(axis=1)
    return Evaluation(
        log_prob=(chosen * active).sum(axis=0),
        entropy=(entropies * active).sum(axis=0),
        cache=Cache(choice, active, probs, plogp, entropies),
    )


def backward(evaluation: Evaluation, dlog_prob: Floats, dentropy: Floats) -> Floats:
    """Return the gradient with respect to the logits, shape (B, M + 1); exactly 0 where masked.

    One step adds ``dlog_prob * (onehot(choice) - p) - dentropy * p * (log p + entropy)``.

    Args:
        evaluation: the result of :func:`evaluate`, for picks of positive probability
        dlog_prob: array, shape (B,): gradient of the loss with respect to ``log_prob``
        dentropy: array, shape (B,): gradient of the loss with respect to ``entropy``
    """
    cache = evaluation.cache
    dlogp = dlog_prob * cache.active
    dent = dentropy * cache.active
    dlogits = np.einsum("kcb,kb->cb", cache.probs, -dlogp - dent * cache.entropies)
    dlogits -= np.einsum("kcb,kb->cb", cache.plogp, dent)
    rows = np.arange(dlogits.shape[1])
    for choice, upstream in zip(cache.choice, dlogp, strict=True):
        dlogits[choice, rows] += upstream
    return np.ascontiguousarray(dlogits.T)


def set_log_prob(logits: Floats, picks: Picks) -> Floats:
    """Return the log-probability of the *set* of the picked items, whatever their order.

    It sums over all orders, and includes the STOP factor of a set smaller than k. With w the
    weights exp(logit), R their sum over STOP and all items outside the set, and f(S) the
    probability that the first |S| picks are the members S in any order::

        f({}) = 1,    f(S) = sum over i in S of f(S - i) * w_i / (R + w(set) - w(S - i))

    so 2**k subsets take the place of k! orders. Everything is kept in logarithms.

    Args:
        logits: array, shape (B, M + 1)
        picks: array of int, shape (B, k), in any order; meant for k up to about 4

    Returns:
        array, shape (B,)
    """
    batch, k = picks.shape
    stop = logits[:, -1]
    member_logits, outside = _members_and_rest(logits, picks)
    subsets = np.arange(2**k)
    contains = (subsets[:, None] >> np.arange(k)) & 1 == 1  # (2**k, k)

    left = np.full((2**k, batch), -np.inf, dtype=logits.dtype)  # log weight not yet in S
    for subset in subsets:
        absent = np.where(contains[subset], -np.inf, member_logits)
        left[subset] = np.logaddexp(outside, np.logaddexp.reduce(absent, axis=1))

    order_sum = np.full_like(left, -np.inf)  # log f(S)
    order_sum[0] = 0.0
    for subset in subsets[1:]:
        for member in np.flatnonzero(contains[subset]):
            before = subset ^ (1 << member)
            last_pick = order_sum[before] + member_logits[:, member] - left[before]
            order_sum[subset] = np.logaddexp(order_sum[subset], last_pick)

    size = (picks >= 0).sum(axis=1)
    full = ((picks >= 0) << np.arange(k)).sum(axis=1)
    rows = np.arange(batch)
    stop_factor = np.where(size < k, stop - left[full, rows], 0)
    result: Floats = order_sum[full, rows] + stop_factor
    return result


def to_mask(picks: Picks, num_items: int) -> NDArray[np.int8]:
    """Return the picked sets as 0/1 vectors, int8 of shape (B, num_items)."""
    mask = np.zeros((len(picks), num_items), dtype=np.int8)
    rows, steps = np.nonzero(picks >= 0)
    mask[rows, picks[rows, steps]] = 1
    return mask


def _first_until_stop(keys: Floats, k: int) -> Picks:
    """Return item numbers by falling key, at most k, cut at STOP (the last column)."""
    if k < 1:
        raise ConfigError(f"a subset needs room for at least one item: k >= 1; got k = {k}")
    choices = keys.shape[1]
    picks: Picks = (-keys).argsort(axis=1, kind="stable")[:, :k].copy()
    picks[np.logical_or.accumulate(picks == choices - 1, axis=1)] = NO_PICK
    if k <= choices:
        return picks
    return np.pad(picks, ((0, 0), (0, k - choices)), constant_values=NO_PICK)


def _remaining(logits: Floats, steps: Picks) -> Floats:
    """Return the logits at each step, (k, M + 1, B), with ``-inf`` for what was picked before."""
    left = np.empty((len(steps), *logits.shape[::-1]), dtype=logits.dtype)
    left[:] = logits.T
    for step, picks in enumerate(steps[:-1]):
        rows = np.flatnonzero(picks >= 0)
        left[step + 1 :, picks[rows], rows] = -np.inf
    return left


def _members_and_rest(logits: Floats, picks: Picks) -> tuple[Floats, Floats]:
    """Return the picked items' logits, (B, k) with ``-inf`` padding, and logsumexp of the rest."""
    picked = picks >= 0
    index = np.where(picked, picks, 0)
    no_weight = logits.dtype.type(-np.inf)
    members = np.where(picked, np.take_along_axis(logits, index, axis=1), no_weight)
    rest = logits.copy()
    rest[:, :-1][to_mask(picks, logits.shape[1] - 1) == 1] = no_weight
    outside: Floats = np.logaddexp.reduce(rest, axis=1)
    return members, outside
