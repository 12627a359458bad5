"""Generalised advantage estimation (Schulman et al., 2016, equations 11 and 16)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.adam import Floats


def gae(
    rewards: Floats,
    values: Floats,
    next_values: Floats,
    terminated: NDArray[Any],
    ended: NDArray[Any],
    gamma: float,
    gae_lambda: float,
) -> tuple[Floats, Floats]:
    """Return advantages and returns, each of shape (T, B)::

        delta_t = r_t + gamma * V(s'_t) * [not terminated_t] - V(s_t)
        A_t     = delta_t + gamma * lambda * [not ended_t] * A_{t+1}

    A truncated episode is cut like a terminated one, but its last state is still worth
    something: its value enters through ``next_values``.

    Args:
        rewards: array, shape (T, B)
        values: array, shape (T, B): V of the observation that was acted on
        next_values: array, shape (T, B): V of the observation that followed. Where the episode was
            truncated, this is V(final observation), not V of the episode that began by itself.
            Ignored, whatever it holds, where the episode terminated
        terminated: array of bool or 0/1, shape (T, B)
        ended: array of bool or 0/1, shape (T, B): terminated or truncated
        gamma: discount, in [0, 1]
        gae_lambda: weight of the longer returns, in [0, 1]

    Returns:
        ``(advantages, returns)`` with ``returns = advantages + values``
    """
    advantages = np.where(terminated, 0, next_values)
    advantages *= gamma
    advantages += rewards
    advantages -= values
    decay = np.where(ended, 0, values.dtype.type(gamma * gae_lambda))
    for t in range(len(rewards) - 2, -1, -1):
        advantages[t] += decay[t] * advantages[t + 1]
    return advantages, advantages + values
