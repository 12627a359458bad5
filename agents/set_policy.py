"""The skill-selection network as a distribution over sets, whatever the order of their members."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from agents.actor_critic import Actions, Evaluation, Observation
from agents.adam import Floats, Parameters
from agents.skill_policy import SkillPolicy
from letta_gym.selection import network, subset

Int = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class SetPass:
    """A forward pass: the network, every order of every set (P to a row), and their shares."""

    network: network.Cache
    orders: subset.Evaluation  # of B * P rows
    share: Floats  # (B, P): probability of each order, given the set; 0 for padding


class SetPolicy(SkillPolicy):
    """A :class:`SkillPolicy` whose log-probability is that of the picked *set*.

    A log knows the set that was carried out and its probability, not the order in which its members
    were drawn. With P = k! orders o of a set S,

        log p(S) = log sum of p(o),    d log p(S) = sum of p(o | S) d log p(o)

    The entropy is the mean over the orders of that along each. Meant for k up to about 4, and for
    policies without a bilinear term.

    Args:
        weights: of the network.
        max_skills: k.
    """

    def __init__(
        self, weights: Mapping[str, NDArray[Any]], max_skills: int, dtype: DTypeLike = np.float32
    ) -> None:
        self.parameters = Parameters.from_arrays(weights, dtype)
        self.max_skills = max_skills

    def evaluate(self, obs: Observation, action: Actions) -> Evaluation[Any]:
        """Log-probability, entropy and value of recorded sets, picks first and then -1."""
        logits, value, cache, _ = self._forward(obs)
        orders, real = all_orders(action)
        batch, count, k = orders.shape
        repeated = np.repeat(logits, count, axis=0)
        result = subset.evaluate(repeated, orders.reshape(-1, k))
        each = np.where(real, result.log_prob.reshape(batch, count), -np.inf)
        log_prob = np.logaddexp.reduce(each, axis=1)
        share = np.exp(each - log_prob[:, None]).astype(logits.dtype, copy=False)
        entropy = (share * result.entropy.reshape(batch, count)).sum(axis=1)
        return Evaluation(log_prob, entropy, value, SetPass(cache, result, share))

    def backward(
        self, evaluation: Evaluation[Any], dlog_prob: Floats, dentropy: Floats, dvalue: Floats
    ) -> None:
        """Overwrite ``parameters.grad``; that of the entropy takes the shares as given."""
        cache: SetPass = evaluation.cache
        of_orders = subset.backward(
            cache.orders,
            (cache.share * dlog_prob[:, None]).reshape(-1),
            (cache.share * dentropy[:, None]).reshape(-1),
        )
        batch, count = cache.share.shape
        dlogits = of_orders.reshape(batch, count, -1).sum(axis=1)
        gradients = network.backward(self.parameters, cache.network, dlogits, dvalue)
        for name, gradient in gradients.items():
            self.parameters.gradients[name][...] = gradient


def all_orders(sets: Actions) -> tuple[Int, NDArray[np.bool_]]:
    """Every order of the members of each set.

    Args:
        sets: slots, then -1, shape (B, k).

    Returns:
        orders, shape (B, k!, k), and which of them are real, shape (B, k!): a set of n < k members
        has n! orders, the rest repeat the first.
    """
    k = sets.shape[1]
    permutations = np.array(list(itertools.permutations(range(k))))
    size = (sets >= 0).sum(axis=1)
    # A permutation is an order of the first n members where it leaves what follows in its place.
    fixed_from = np.array([_moved(permutation) for permutation in permutations.tolist()])
    real = fixed_from[None, :] <= size[:, None]
    orders = sets[:, permutations]
    orders = np.where(real[:, :, None], orders, sets[:, None, :])
    return orders, real


def _moved(permutation: list[int]) -> int:
    """One past the last position that the permutation moves."""
    return max((i + 1 for i, to in enumerate(permutation) if i != to), default=0)
