"""Keeps of several weights those that earn most on the validation tasks.

Where skills are to come that no task of the stream was made for, tasks of known skills stand in for
theirs: their outcomes are hidden, one part of the skills after the other. So weights that gained on
known skills at the expense of new ones do not look better than they are.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from agents.baselines import Learned
from agents.trial import look
from letta_gym.envs.replay import ReplayDriver
from letta_gym.selection.network import Weights


def best_of(candidates: Sequence[Weights], driver: ReplayDriver, rng: np.random.Generator) -> int:
    """Which of the candidates earns most; the first of equals, the last without such tasks.

    Args:
        candidates: the weights.
        driver: a deployment that knows the outcomes of training; nothing is learned in it.
        rng: draws the parts of the skills.
    """
    if not len(driver.sessions.tasks("validation", new=False)):
        return len(candidates) - 1
    part = parts(driver, rng)
    return int(np.argmax([earned(weights, driver, part) for weights in candidates]))


def parts(driver: ReplayDriver, rng: np.random.Generator) -> NDArray[np.int64]:
    """The part that each skill belongs to, shape (N,): as many as new skills fit into the library.

    Shape (0,) where no skill is new.
    """
    share, n = driver.config.new_skills, len(driver.pool.ids)
    if not share:
        return np.zeros(0, np.int64)
    return rng.permutation(n) % max(2, round(1 / share))


def earned(weights: Weights, driver: ReplayDriver, part: NDArray[np.int64]) -> float:
    """Mean utility on the validation tasks, plus that while the skills made for them are hidden."""
    s, agent = driver.sessions, Learned(weights)
    tasks = s.tasks("validation", new=False)
    total = float(look(agent, driver, tasks)["utility"].mean())
    memory, entries, hidden = s.memory, s.memory.entries(), []
    place = {key: i - 1 for i, key in enumerate(driver.pool.keys)}
    skill = np.array([place[key] for key in entries.keys], np.int64)[entries.key]
    for number in range(part.max(initial=-1) + 1):
        mine = tasks[s.labels.relevant[tasks][:, part == number].any(1)]
        if len(mine):
            s.memory = memory.kept(entries, (skill < 0) | (part[skill] != number))
            hidden.append(look(agent, driver, mine)["utility"])
    s.memory = memory
    return total + float(np.concatenate(hidden).mean()) if hidden else total
