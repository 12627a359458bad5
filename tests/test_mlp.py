"""The plain actor-critic: its initial weights and its distribution."""

from __future__ import annotations

import numpy as np
import pytest

from agents.mlp import MLPActorCritic, orthogonal


@pytest.mark.parametrize(("rows", "columns"), [(3, 7), (7, 3), (5, 5)])
def test_initial_weights_are_orthogonal_with_their_gain(rows: int, columns: int) -> None:
    w = orthogonal(rows, columns, 2.0, np.random.default_rng(0))
    assert w.shape == (rows, columns)
    gram = w @ w.T if rows <= columns else w.T @ w
    np.testing.assert_allclose(gram, 4 * np.eye(min(rows, columns)), atol=1e-12)


def test_initial_weights_prefer_no_direction() -> None:
    rng = np.random.default_rng(0)
    draws = np.stack([orthogonal(3, 3, 1.0, rng) for _ in range(2000)])
    deviation = np.sqrt(1 / 3 / 2000)  # an entry of a random rotation has variance 1 / 3
    assert np.abs(draws.mean(axis=0)).max() < 4 * deviation


def test_the_first_policy_is_near_uniform() -> None:
    model = MLPActorCritic(4, 3, np.random.default_rng(0))
    obs = {"obs": np.random.default_rng(1).normal(size=(100, 4))}
    action = model.act(obs, np.random.default_rng(2))
    np.testing.assert_allclose(action.log_prob, -np.log(3), atol=0.05)
    assert action.value.dtype == action.log_prob.dtype == np.float32


def test_actions_have_the_frequencies_of_their_probabilities() -> None:
    rng = np.random.default_rng(0)
    model = MLPActorCritic(2, 3, rng, dtype=np.float64)
    model.parameters["actor.b2"][...] = [0.0, 1.0, -1.0]
    draws = 100_000
    obs = {"obs": np.ones((draws, 2))}
    action = model.act(obs, rng)
    actions = np.arange(3)
    log_probs = model.evaluate({"obs": np.ones((3, 2))}, actions).log_prob
    probs = np.exp(log_probs)
    assert probs.sum() == pytest.approx(1, abs=1e-12)
    found = np.bincount(action.action, minlength=3) / draws
    assert (np.abs(found - probs) < 4 * np.sqrt(probs * (1 - probs) / draws)).all()
    np.testing.assert_allclose(action.log_prob, log_probs[action.action], rtol=1e-12)
    assert (model.act(obs, rng, greedy=True).action == 1).all()
