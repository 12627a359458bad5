"""Sets the level of STOP of a trained policy to what earns most on the validation tasks.

PPO moves that level slowly where few tasks need nothing. The baselines with a level have it set the
same way, so neither side gains from it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from agents.opponents import Sampled
from agents.trial import AT_ONCE, decide
from letta_gym.envs.replay import ReplayDriver
from letta_gym.selection import bilinear, network
from letta_gym.selection.network import Weights


def with_stop_level(weights: Weights, driver: ReplayDriver) -> Weights:
    """The weights with the best of 51 levels of STOP, by the utility of choosing one skill or none.

    The weights themselves where the validation split has no task that needs nothing, or no task.

    Args:
        weights: the trained weights.
        driver: a deployment that knows the outcomes of training; nothing is learned in it.
    """
    s = driver.sessions
    tasks = s.tasks("validation", new=False)
    needless = ~s.labels.relevant[tasks].any(1)
    if not needless.any():
        return weights
    eager = _shifted(weights, -1e6)  # never stops, so that each outcome of the best skill is seen
    agent = Sampled(eager, np.random.default_rng(0))
    s.learning = False
    margins, earned = [], []
    for first in range(0, len(tasks), AT_ONCE):
        s.show(tasks[first : first + AT_ONCE])
        margins.append(margin(weights, driver))
        earned.append(_with_one_skill(agent, driver))
    s.learning = True
    top, chosen = np.concatenate(margins), np.concatenate(earned)
    levels = np.quantile(top, np.linspace(0, 1, 51)).tolist()
    best = max(levels, key=lambda at: float(np.where(top > at, chosen, needless).mean()))
    return _shifted(weights, best)


def margin(weights: Weights, driver: ReplayDriver) -> NDArray[np.float64]:
    """Logit of the best slot less that of STOP, for the decisions at hand, shape (B,)."""
    obs = driver.observe()
    mask = obs["action_mask"].astype(bool)
    logits = network.logits(weights, obs["features"], obs["context"], mask)
    if bilinear.rank(weights):
        bilinear.add(weights, logits, (obs["task"], obs["skills"]))
    best: NDArray[np.float64] = (logits[:, :-1].max(1) - logits[:, -1]).astype(np.float64)
    return best


def _with_one_skill(agent: Sampled, driver: ReplayDriver) -> NDArray[np.float64]:
    """Utility of the best skill alone, shape (B,)."""
    limit = driver.config
    driver.config = limit.model_copy(update={"max_skills": 1})
    utility: NDArray[np.float64] = decide(agent, driver, explore=False)["utility"]
    driver.config = limit
    return utility


def _shifted(weights: Weights, shift: float) -> Weights:
    level = weights["stop_level"]
    return {**weights, "stop_level": (level + shift).astype(level.dtype)}
