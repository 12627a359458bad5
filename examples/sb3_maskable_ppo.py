"""MaskablePPO of sb3-contrib: up to k picks, masked slots left out.

Needs sb3-contrib, which the extra ``dev`` brings.
"""

from __future__ import annotations

from typing import Any

import gymnasium
from sb3_contrib import MaskablePPO
from stable_baselines3.common.vec_env import DummyVecEnv

from examples.returns import ID, SETTING, Act, Env, compare
from letta_gym.envs.wrappers import PickActions


def make() -> Env:
    """A ``Dict`` in, k picks out; MaskablePPO asks the wrapper for ``action_masks()``."""
    return PickActions(gymnasium.make(ID, **SETTING))


def learn(steps: int, seed: int = 0) -> Act:
    """Train for ``steps`` tasks, and act greedily."""
    envs = DummyVecEnv([make] * 4)
    model = MaskablePPO(
        "MultiInputPolicy",
        envs,
        n_steps=32,
        batch_size=64,
        learning_rate=5e-3,
        gamma=0.0,
        seed=seed,
    )
    model.learn(steps)

    def act(observation: Any, env: Env) -> Any:
        masks = env.get_wrapper_attr("action_masks")()
        return model.predict(observation, action_masks=masks, deterministic=True)[0]

    return act


if __name__ == "__main__":
    compare(make(), learn(20_000))
