"""RLlib PPO: the observation as one vector, each set of at most k slots one action.

ray[rllib] wants an older Gymnasium than the one that this project is tested with, so it lives in an
environment of its own: ``make test-ray`` makes ``.venv-ray`` and tests this example there.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import torch
from ray.rllib.algorithms.ppo import PPOConfig
from ray.tune.registry import register_env

from examples.returns import ID, SETTING, Act, Env, compare
from letta_gym.envs.wrappers import FlatObservation, SubsetActions


def make() -> Env:
    """One vector in, one of 15 sets out."""
    return FlatObservation(SubsetActions(gymnasium.make(ID, **SETTING)))


def learn(steps: int, seed: int = 0) -> Act:
    """Train for ``steps`` tasks, and act greedily."""
    register_env("skill-selection", lambda _: make())
    batch: dict[str, Any] = {"train_batch_size": 512, "minibatch_size": 64, "num_epochs": 8}
    algorithm = (
        PPOConfig()
        .environment("skill-selection")
        .env_runners(num_env_runners=0, num_envs_per_env_runner=4)
        .training(**batch, lr=2e-3, gamma=0.0)
        .debugging(seed=seed)
        .build_algo()
    )
    for _ in range(steps // 512):
        algorithm.train()
    module: Any = algorithm.get_module()

    def act(observation: Any, env: Env) -> int:
        with torch.no_grad():
            out = module.forward_inference({"obs": torch.as_tensor(observation)[None]})
        return int(out["action_dist_inputs"][0].argmax())

    return act


if __name__ == "__main__":
    compare(make(), learn(20_480))
