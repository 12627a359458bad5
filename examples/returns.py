"""What an agent earns in a few sessions, beside random actions in the same sessions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import gymnasium
import numpy as np
from numpy.typing import NDArray

ID = "letta_gym:letta_gym/MockSkillSelection-v0"
SETTING: dict[str, Any] = {
    "obs": "compact",
    "candidates": 4,
    "token_price": 0.2,
    "history": (100, 400),
}
"""No vectors of texts, few slots, dear tokens: small enough that a few hundred steps show."""

Env: TypeAlias = gymnasium.Env[Any, Any]
Act: TypeAlias = Callable[[Any, Env], Any]


def make() -> Env:
    """The environment as it is, without the vectors of texts."""
    return gymnasium.make(ID, **SETTING)


def random_action(observation: Any, env: Env) -> Any:
    """Any action of the space."""
    return env.action_space.sample()


def returns(env: Env, act: Act, sessions: int = 10, seed: int = 1000) -> NDArray[np.float64]:
    """Undiscounted return of each session, the same sessions for the same ``seed``, (sessions,)."""
    env.action_space.seed(seed)
    totals = np.zeros(sessions)
    for i in range(sessions):
        observation, _ = env.reset(seed=seed + i)
        over = False
        while not over:
            observation, reward, terminated, truncated, _ = env.step(act(observation, env))
            totals[i] += float(reward)
            over = terminated or truncated
    return totals


def compare(env: Env, act: Act) -> None:
    """Print the mean return of what was learned and of random actions."""
    learned, random = returns(env, act), returns(env, random_action)
    print(f"return of a session: learned {learned.mean():.2f}, random {random.mean():.2f}")
