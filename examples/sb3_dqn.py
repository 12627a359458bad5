"""Stable-Baselines3 DQN: each set of at most k slots is one action.

Needs stable-baselines3, which the extra ``dev`` brings.
"""

from __future__ import annotations

import gymnasium
from stable_baselines3 import DQN

from examples.returns import ID, SETTING, Act, Env, compare
from letta_gym.envs.wrappers import FlatObservation, SubsetActions


def make() -> Env:
    """One vector in, one of 15 sets out."""
    return FlatObservation(SubsetActions(gymnasium.make(ID, **SETTING)))


def learn(steps: int, seed: int = 0) -> Act:
    """Train for ``steps`` tasks, and act greedily."""
    model = DQN(
        "MlpPolicy",
        make(),
        learning_starts=steps // 5,
        exploration_fraction=0.5,
        train_freq=1,
        gamma=0.0,
        learning_rate=2e-3,
        seed=seed,
    )
    model.learn(steps)
    return lambda observation, env: model.predict(observation, deterministic=True)[0]


if __name__ == "__main__":
    compare(make(), learn(20_000))
