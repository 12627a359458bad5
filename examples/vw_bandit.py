"""Vowpal Wabbit: a bandit that chooses one slot or none by the features of each.

Needs vowpalwabbit, which the extra ``dev`` brings.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import vowpalwabbit

from examples.returns import ID, SETTING, Act, Env, compare
from letta_gym.envs.wrappers import SubsetActions
from letta_gym.selection.observation import CONTEXT, FEATURES


def make() -> Env:
    """With at most one skill, action 0 is none and action i is slot i - 1."""
    return SubsetActions(gymnasium.make(ID, **SETTING, max_skills=1))


def text(columns: Any, values: Any) -> str:
    """Numbers in the format of Vowpal Wabbit."""
    return " ".join(f"{c.name}:{value:.4f}" for c, value in zip(columns, values, strict=True))


def options(obs: Any) -> tuple[list[int], list[str]]:
    """The actions that are allowed, and a line of text about each, after one about the task."""
    actions = [0, *(np.flatnonzero(obs["action_mask"]) + 1).tolist()]
    lines = [f"|slot {text(FEATURES, obs['features'][action - 1])}" for action in actions[1:]]
    return actions, [f"shared |task {text(CONTEXT, obs['context'])}", "|none none", *lines]


def learn(steps: int, seed: int = 0) -> Act:
    """Learn from ``steps`` tasks, then take the most likely action."""
    bandit = vowpalwabbit.Workspace("--cb_explore_adf --squarecb --quiet")
    rng, env = np.random.default_rng(seed), make()
    obs, _ = env.reset(seed=seed)
    for _ in range(steps):
        actions, lines = options(obs)
        chances = np.array(bandit.predict(lines))
        chosen = rng.choice(len(actions), p=chances / chances.sum())
        obs, reward, *ends, _ = env.step(actions[chosen])
        lines[chosen + 1] = f"0:{-float(reward)}:{chances[chosen]} {lines[chosen + 1]}"
        bandit.learn(lines)
        if any(ends):
            obs, _ = env.reset()

    def act(observation: Any, env: Env) -> int:
        actions, lines = options(observation)
        return actions[np.argmax(bandit.predict(lines))]

    return act


if __name__ == "__main__":
    compare(make(), learn(20_000))
