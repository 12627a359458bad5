"""What a policy would have done in decisions that another one logged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from letta_gym.errors import PolicyFileError
from letta_gym.selection import bilinear, network, subset
from letta_gym.selection.observation import CONTEXT, FEATURES
from letta_gym.selection.policy import Policy

Float = NDArray[np.float32]
Double = NDArray[np.float64]
Bool = NDArray[np.bool_]


class Seen(NamedTuple):
    """What was observed and done in one decision.

    ``features`` (M, F), ``context`` (C,), ``mask`` (M,) of the slots that could be chosen, the
    ``slots`` that were, and ``k``, how many could have been.
    """

    features: Float
    context: Float
    mask: Bool
    slots: tuple[int, ...]
    k: int


def check_comparable(candidate: Policy, incumbent: Policy) -> None:
    """Raise unless ``candidate`` would have observed what ``incumbent`` did.

    Raises:
        PolicyFileError: they compute their features by other constants, or the candidate needs
            vectors, which a log does not hold.
    """
    if bilinear.rank(candidate.weights):
        raise PolicyFileError(
            "a policy with a bilinear term reads the vectors of the candidates, which a log does "
            "not hold; compare it in the shadow instead"
        )
    ours = candidate.evidence, candidate.retrieval, candidate.token_price
    if ours != (incumbent.evidence, incumbent.retrieval, incumbent.token_price):
        raise PolicyFileError(
            "the two policies observe by other constants (evidence, retrieval, token price), so "
            "the log does not say what the candidate would have seen"
        )


def log_probs(policy: Policy, seen: Sequence[Seen]) -> Double:
    """Log-probability with which ``policy`` draws each logged set, shape (n,).

    Raises:
        PolicyFileError: the features were logged by another version.
    """
    result = np.empty(len(seen))
    for shape in {(len(one.mask), one.k) for one in seen}:
        rows = [i for i, one in enumerate(seen) if (len(one.mask), one.k) == shape]
        result[rows] = _log_probs(policy, [seen[i] for i in rows], *shape)
    return result


def _log_probs(policy: Policy, seen: Sequence[Seen], m: int, k: int) -> Double:
    features = np.stack([one.features for one in seen])
    context = np.stack([one.context for one in seen])
    wanted = (m, len(FEATURES)), (len(CONTEXT),)
    if (features.shape[1:], context.shape[1:]) != wanted:
        raise PolicyFileError(
            f"this version observes {wanted[0][1]} features and {wanted[1][0]} numbers of context; "
            f"the log holds {features.shape[2]} and {context.shape[1]}, of another version"
        )
    mask = np.stack([one.mask for one in seen])
    picks = np.full((len(seen), k), subset.NO_PICK)
    for row, one in zip(picks, seen, strict=True):
        row[: len(one.slots)] = one.slots
    logits = network.logits(policy.weights, features, context, mask).astype(np.float64)
    if policy.opening is not None:
        policy.opening.settle(logits, context)
    result: Double = np.asarray(subset.set_log_prob(logits, picks), np.float64)
    return result
