"""Stable-Baselines3 A2C: the observation as one vector, up to k picks as ``MultiDiscrete``.

Needs stable-baselines3, which the extra ``dev`` brings.
"""

from __future__ import annotations

import gymnasium
from stable_baselines3 import A2C
from stable_baselines3.common.vec_env import DummyVecEnv

from examples.returns import ID, SETTING, Act, Env, compare
from letta_gym.envs.wrappers import FlatObservation, PickActions


def make() -> Env:
    """One vector in, k picks out."""
    return FlatObservation(PickActions(gymnasium.make(ID, **SETTING)))


def learn(steps: int, seed: int = 0) -> Act:
    """Train for ``steps`` tasks, and act greedily."""
    envs = DummyVecEnv([make] * 8)
    model = A2C("MlpPolicy", envs, n_steps=4, learning_rate=2e-3, gamma=0.0, seed=seed)
    model.learn(steps)
    return lambda observation, env: model.predict(observation, deterministic=True)[0]


if __name__ == "__main__":
    compare(make(), learn(20_000))
