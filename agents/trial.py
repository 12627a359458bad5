"""One agent on one draw of new skills: it learns on the stream, then it is looked at.

1. The stream: the train tasks of the skills that exist, with learning.
2. The level of a threshold is set on the validation tasks.
3. The new skills arrive. The test tasks are decided without learning: ``seen`` and ``new@0``.
4. For each of ``evaluate.levels``, so many train tasks of each new skill are asked, with learning
   but no gradient, and its test tasks are decided again: ``new@5`` and so on.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.baselines import Agent, Threshold, learn
from agents.opponents import Explorer
from agents.replay_config import ReplayRunConfig
from letta_gym.envs.replay import ReplayDriver
from letta_gym.selection import subset

Int = NDArray[np.int64]
Rows = dict[str, NDArray[Any]]
Metrics = dict[str, float]

AT_ONCE = 128  # test tasks decided at once; nothing is learned between them
BLIND = frozenset({"none", "random", "cosine", "lexical", "hybrid"})
"""Agents that ignore outcomes, and so need no stream."""


def stream(agent: Agent[ReplayDriver], driver: ReplayDriver, passes: int) -> None:
    """Let ``agent`` decide every task of the stream ``passes`` times and learn."""
    s = driver.sessions
    for _ in range(passes * len(s.stream) // s.count):
        decide(agent, driver, explore=True)


def decide(agent: Agent[ReplayDriver], driver: ReplayDriver, explore: bool) -> Rows:
    """Decide the tasks at hand, and let the agent know what came of it if anything is learned."""
    s, c = driver.sessions, driver.config
    if isinstance(agent, Explorer):
        agent.exploring = explore
    obs = driver.observe()
    choice = agent.act(obs, driver)
    tasks, allowed = s.task, s.available(s.task)
    ranked = np.take_along_axis(s.slot_skills(), choice.ranking, 1)
    usable = np.take_along_axis(s.slot_present(), choice.ranking, 1)
    step = driver.step(subset.to_mask(choice.picks, c.candidates))
    if s.learning:
        learn(agent, obs, step, driver)
    relevant = s.labels.relevant[tasks]
    fits = np.take_along_axis(relevant, ranked, 1) & usable
    needed = relevant.sum(1)
    utility = step.reward.astype(np.float64)
    return {
        "needed": needed > 0,
        "hit": fits[:, 0],
        "top": fits[:, :5].cumsum(1) / np.maximum(needed, 1)[:, None],
        "success": step.outcomes.success,
        "utility": utility,
        "tokens": step.outcomes.tokens,
        "skills": (step.picks >= 0).sum(1),
        "regret": s.labels.best(tasks, allowed, c.max_skills, c.token_price / 1000) - utility,
    }


def look(agent: Agent[ReplayDriver], driver: ReplayDriver, tasks: Int) -> Rows:
    """Decide ``tasks`` without learning anything."""
    s = driver.sessions
    s.learning = False
    found = []
    for first in range(0, len(tasks), AT_ONCE):
        s.show(tasks[first : first + AT_ONCE])
        found.append(decide(agent, driver, explore=False))
    s.learning = True
    return {name: np.concatenate([rows[name] for rows in found]) for name in found[0]}


def trial(agent: Agent[ReplayDriver], driver: ReplayDriver, config: ReplayRunConfig) -> Metrics:
    """Steps 2 to 4 of the module, after the agent's stream; all metrics.

    Metrics without a suffix are over all tasks of the split, with new skills at no outcome.
    """
    s, e = driver.sessions, config.evaluate
    if isinstance(agent, Threshold):
        tune(agent, driver)
    s.open_library()
    seen, new = s.tasks(e.split, new=False), s.tasks(e.split, new=True)
    parts = {"seen": look(agent, driver, seen)} if len(seen) else {}
    if len(new):
        parts["new@0"] = look(agent, driver, new)
    whole = {name: np.concatenate([p[name] for p in parts.values()]) for name in parts["seen"]}
    result = metrics(whole)
    if len(new) and agent.name in BLIND:
        parts |= {f"new@{level}": parts["new@0"] for level in e.levels}
    elif len(new):
        lessons = _lessons(driver, e.levels)
        for level, tasks in zip(e.levels, lessons, strict=True):
            for first in range(0, len(tasks), e.batch):
                s.show(tasks[first : first + e.batch])
                decide(agent, driver, explore=True)
            parts[f"new@{level}"] = look(agent, driver, new)
    for group, rows in parts.items():
        result |= {f"{name}/{group}": value for name, value in metrics(rows).items()}
    return result


def _lessons(driver: ReplayDriver, levels: tuple[int, ...]) -> list[Int]:
    """Train tasks of the new skills, in a random order: those between two levels of each skill."""
    s = driver.sessions
    rng = np.random.default_rng([driver.config.split_seed, 1])
    tasks = rng.permutation(s.tasks("train", new=True))
    first = (s.labels.relevant[tasks] & s.new_skills).argmax(1)
    order = first.argsort(kind="stable")
    starts = np.flatnonzero(np.diff(first[order], prepend=-1))
    lengths = np.diff(np.append(starts, len(order)))
    rank = np.zeros(len(tasks), np.int64)
    rank[order] = np.arange(len(order)) - starts.repeat(lengths)
    edges = [0, *levels]
    return [tasks[(rank >= a) & (rank < b)] for a, b in itertools.pairwise(edges)]


def tune(agent: Threshold, driver: ReplayDriver) -> None:
    """Set the level of ``agent`` to what earns most with one skill on the validation tasks."""
    s = driver.sessions
    tasks = s.tasks("validation", new=False)
    agent.level, agent.k = -math.inf, 1
    if not len(tasks):
        return
    s.learning = False
    tops, rows = [], []
    for first in range(0, len(tasks), AT_ONCE):
        s.show(tasks[first : first + AT_ONCE])
        obs = driver.observe()
        score = np.where(obs["action_mask"], agent.rate(obs, driver), -np.inf)
        tops.append(score.max(1))
        rows.append(decide(agent, driver, explore=False))
    s.learning = True
    top = np.concatenate(tops)
    chosen = np.concatenate([r["utility"] for r in rows])
    nothing = ~np.concatenate([r["needed"] for r in rows])
    levels = [-math.inf, *np.quantile(top, np.linspace(0.02, 0.98, 49)).tolist()]
    agent.level = max(levels, key=lambda at: float(np.where(top >= at, chosen, nothing).mean()))


def metrics(rows: Mapping[str, NDArray[Any]]) -> Metrics:
    """Means over tasks; NaN where there is nothing to average."""
    needed, empty, top = rows["needed"], rows["skills"] == 0, rows["top"]
    return {
        "hit_at_1": _mean(rows["hit"][needed]),
        "recall_at_2": _mean(top[needed, min(1, top.shape[1] - 1)]),
        "recall_at_5": _mean(top[needed, -1]),
        "success": _mean(rows["success"]),
        "utility": _mean(rows["utility"]),
        "skills_per_task": _mean(rows["skills"]),
        "tokens": _mean(rows["tokens"]),
        "none_recall": _mean(empty[~needed]),
        "none_precision": _mean(~needed[empty]),
        "regret": _mean(rows["regret"]),
    }


def _mean(values: NDArray[Any]) -> float:
    return float(values.mean()) if len(values) else math.nan
