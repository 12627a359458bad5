"""Raises the level of STOP until a trained policy leaves alone what needs no skill.

The reward prices a needless skill low, so the return is nearly flat in that level, while users feel
every skill that was loaded for nothing. Calibrated on the train split: the test split stays unseen.
"""

from __future__ import annotations

import math

from agents.baselines import Learned
from agents.config import RunConfig
from agents.evaluation import play
from letta_gym.selection.network import Weights

_LARGEST, _HALVINGS = 4.0, 6


def calibrated(weights: Weights, config: RunConfig) -> Weights:
    """The weights with the least STOP level that reaches ``train.none_recall``.

    Found by bisection over 0 to 4 nats above the trained level, to a sixteenth; the trained weights
    themselves where they reach it, where no share is asked for, or where every task needs a skill.
    """
    target = config.train.none_recall
    if target is None:
        return weights
    env = config.environment(split="train")
    seed, sessions = config.evaluate.first_seed - 2, config.evaluate.tune_sessions

    def recall(shift: float) -> float:
        agent = Learned(_shifted(weights, shift))
        return play(agent, env, seed, sessions)["none_recall"]

    low, high = 0.0, _LARGEST
    reached = recall(low)
    if math.isnan(reached) or reached >= target:
        return weights
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if recall(middle) >= target else (middle, high)
    return _shifted(weights, high)


def _shifted(weights: Weights, shift: float) -> Weights:
    level = weights["stop_level"]
    return {**weights, "stop_level": (level + shift).astype(level.dtype)}
