"""Advantages, computed three independent ways."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.buffers import RolloutBuffer

from agents.gae import gae

T, B = 40, 6


def rollout(dtype: Any = np.float64) -> dict[str, NDArray[Any]]:
    """Random steps whose episodes end now and then, by termination, truncation or both."""
    rng = np.random.default_rng(0)
    terminated, truncated = rng.random((2, T, B)) < 0.1
    values = rng.normal(size=(T, B)).astype(dtype)
    next_values = rng.normal(size=(T, B)).astype(dtype)
    follows = ~(terminated | truncated)[:-1]
    next_values[:-1][follows] = values[1:][follows]
    return {
        "rewards": rng.normal(size=(T, B)).astype(dtype),
        "values": values,
        "next_values": next_values,
        "terminated": terminated,
        "ended": terminated | truncated,
    }


@pytest.mark.parametrize(("gamma", "gae_lambda"), [(0.99, 0.95), (0.9, 1.0), (0.9, 0.0), (0, 0.9)])
def test_it_agrees_with_the_double_sum_of_the_definition(gamma: float, gae_lambda: float) -> None:
    steps = rollout()
    advantages, returns = gae(**steps, gamma=gamma, gae_lambda=gae_lambda)
    for b in range(B):
        for start in range(T):
            total, weight = 0.0, 1.0
            for t in range(start, T):
                bootstrap = 0 if steps["terminated"][t, b] else steps["next_values"][t, b]
                delta = steps["rewards"][t, b] + gamma * bootstrap - steps["values"][t, b]
                total += weight * delta
                weight *= gamma * gae_lambda
                if steps["ended"][t, b]:
                    break
            assert advantages[start, b] == pytest.approx(total, abs=1e-12)
    np.testing.assert_array_equal(returns, advantages + steps["values"])


def test_it_agrees_with_stable_baselines3() -> None:
    steps = rollout(np.float32)
    gamma, gae_lambda = 0.98, 0.9
    box = spaces.Box(-1, 1, (1,))
    buffer = RolloutBuffer(T, box, box, device="cpu", gae_lambda=gae_lambda, gamma=gamma, n_envs=B)
    truncated_only = steps["ended"] & ~steps["terminated"]
    # That library adds the discounted value of a truncated episode's last state to the reward.
    buffer.rewards[:] = steps["rewards"] + gamma * steps["next_values"] * truncated_only
    buffer.values[:] = steps["values"]
    buffer.episode_starts[1:] = steps["ended"][:-1]
    last_values = torch.from_numpy(steps["next_values"][-1])
    buffer.compute_returns_and_advantage(last_values, steps["ended"][-1])

    advantages, returns = gae(**steps, gamma=gamma, gae_lambda=gae_lambda)
    assert advantages.dtype == returns.dtype == np.float32
    assert np.abs(advantages - buffer.advantages).max() < 1e-6
    assert np.abs(returns - buffer.returns).max() < 1e-6


def test_what_follows_a_termination_is_ignored_whatever_it_is() -> None:
    steps = rollout()
    expected, _ = gae(**steps, gamma=0.99, gae_lambda=0.95)
    steps["next_values"][steps["terminated"]] = np.nan
    advantages, _ = gae(**steps, gamma=0.99, gae_lambda=0.95)
    np.testing.assert_array_equal(advantages, expected)


def test_what_follows_a_truncation_counts() -> None:
    one = np.ones((1, 1))
    advantages, returns = gae(one, 2 * one, 10 * one, 0 * one, one, gamma=0.5, gae_lambda=0.95)
    assert advantages[0, 0] == 1 + 0.5 * 10 - 2
    assert returns[0, 0] == 1 + 0.5 * 10


def test_the_arguments_are_left_as_they_were() -> None:
    steps = rollout()
    before = {name: array.copy() for name, array in steps.items()}
    gae(**steps, gamma=0.99, gae_lambda=0.95)
    for name, array in steps.items():
        np.testing.assert_array_equal(array, before[name])
