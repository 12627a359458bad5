"""Stable-Baselines3 PPO on the environment as it is: a ``Dict`` in, a ``MultiBinary`` out.

It does not know the masks; a set bit on a masked slot does nothing. Needs stable-baselines3, which
the extra ``dev`` brings.
"""

from __future__ import annotations

from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv

from examples.returns import Act, compare, make


def learn(steps: int, seed: int = 0) -> Act:
    """Train for ``steps`` tasks, and act greedily."""
    envs = DummyVecEnv([make] * 4)
    model = PPO(
        "MultiInputPolicy",
        envs,
        n_steps=32,
        batch_size=64,
        learning_rate=5e-3,
        gamma=0.0,
        seed=seed,
    )
    model.learn(steps)
    return lambda observation, env: model.predict(observation, deterministic=True)[0]


if __name__ == "__main__":
    compare(make(), learn(20_000))
