"""The learner solves CartPole-v1, and a learner with one wrong sign does not."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, VectorEnv

import agents.rollout
from agents.gae import gae
from agents.mlp import MLPActorCritic
from agents.ppo import PPO, PPOConfig

SOLVED = 475.0
EPISODES = 20

# Discount, lambda and learning rate are the customary ones for this task in RL Baselines3 Zoo.
CONFIG = PPOConfig(
    num_envs=16,
    num_steps=32,
    num_minibatches=2,
    update_epochs=10,
    learning_rate=1e-3,
    gamma=0.98,
    gae_lambda=0.8,
    ent_coef=0.0,
)


def make(num_envs: int) -> VectorEnv[Any, Any, Any]:
    return gymnasium.make_vec(
        "CartPole-v1",
        num_envs=num_envs,
        vectorization_mode="sync",
        vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP},
    )


def train(seed: int, total_steps: int) -> MLPActorCritic:
    rng = np.random.default_rng(seed)
    model = MLPActorCritic(4, 2, rng)
    PPO(make(CONFIG.num_envs), model, CONFIG, rng, total_steps=total_steps).train()
    return model


def mean_return(model: MLPActorCritic, seed: int) -> float:
    """Return the mean return of the greedy policy over 20 episodes, one in each environment."""
    env = make(EPISODES)
    rng = np.random.default_rng(seed)
    obs, _ = env.reset(seed=10_000 + seed)
    returns = np.zeros(EPISODES)
    running = np.ones(EPISODES, dtype=bool)
    while running.any():
        action = model.act({"obs": obs}, rng, greedy=True).action
        obs, rewards, terminated, truncated, _ = env.step(model.env_action(action))
        returns += rewards * running
        running &= ~(terminated | truncated)
    return float(returns.mean())


@pytest.mark.parametrize("seed", range(5))
def test_cartpole_is_solved(seed: int) -> None:
    assert mean_return(train(seed, total_steps=100_000), seed) >= SOLVED


def test_a_short_run_learns_and_the_same_run_with_a_wrong_sign_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def flipped(*args: Any) -> Any:
        advantages, returns = gae(*args)
        return -advantages, returns

    threshold = 100.0
    assert mean_return(train(0, total_steps=20_000), 0) >= threshold
    monkeypatch.setattr(agents.rollout, "gae", flipped)
    assert mean_return(train(0, total_steps=20_000), 0) < threshold / 2
