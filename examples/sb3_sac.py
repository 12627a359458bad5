"""Stable-Baselines3 SAC: a score for each slot, of which the best above 0 are loaded.

TD3 and DDPG take the same environment. Needs stable-baselines3, which the extra ``dev`` brings.
"""

from __future__ import annotations

import gymnasium
from stable_baselines3 import SAC

from examples.returns import ID, SETTING, Act, Env, compare
from letta_gym.envs.wrappers import FlatObservation, ScoreActions


def make() -> Env:
    """One vector in, one score a slot out."""
    return FlatObservation(ScoreActions(gymnasium.make(ID, **SETTING)))


def learn(steps: int, seed: int = 0) -> Act:
    """Train for ``steps`` tasks, and act greedily."""
    model = SAC(
        "MlpPolicy",
        make(),
        learning_starts=steps // 5,
        learning_rate=3e-3,
        ent_coef=0.01,
        batch_size=128,
        gamma=0.0,
        policy_kwargs={"net_arch": [64, 64]},
        seed=seed,
    )
    model.learn(steps)
    return lambda observation, env: model.predict(observation, deterministic=True)[0]


if __name__ == "__main__":
    compare(make(), learn(20_000))
