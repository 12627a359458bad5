"""An agent of one's own in plain NumPy: LinUCB over the slots, on the environment as it is."""

from __future__ import annotations

from typing import Any

import numpy as np

from examples.returns import Act, compare, make
from letta_gym.selection.observation import CONTEXT, FEATURES

WIDTH = len(FEATURES) + len(CONTEXT)


def options(obs: Any) -> Any:
    """What is known of each slot and, last, of choosing none: (M + 1, features and context)."""
    rows = np.zeros((len(obs["features"]) + 1, WIDTH))
    rows[:-1, : len(FEATURES)] = obs["features"]
    rows[:, len(FEATURES) :] = obs["context"]
    return rows


def learn(steps: int, seed: int = 0, bonus: float = 0.5) -> Act:
    """Learn from ``steps`` tasks, then act without the bonus for what is uncertain."""
    inverse, moment, env = np.eye(WIDTH), np.zeros(WIDTH), make()

    def choose(obs: Any, bonus: float) -> tuple[Any, Any]:
        rows = options(obs)
        spread = np.sqrt(np.einsum("ij,jk,ik->i", rows, inverse, rows))
        score = rows @ (inverse @ moment) + bonus * spread
        score[:-1][obs["action_mask"] == 0] = -np.inf
        best = score.argmax()
        return (np.arange(len(score) - 1) == best).astype(np.int8), rows[best]

    obs, over = env.reset(seed=seed)[0], False
    for _ in range(steps):
        if over:
            obs, _ = env.reset()
        action, x = choose(obs, bonus)
        obs, reward, terminated, truncated, _ = env.step(action)
        over = terminated or truncated
        inverse -= np.outer(inverse @ x, inverse @ x) / (1 + x @ inverse @ x)  # Sherman-Morrison
        moment += float(reward) * x
    return lambda observation, env: choose(observation, 0.0)[0]


if __name__ == "__main__":
    compare(make(), learn(20_000))
