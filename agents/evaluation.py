"""Plays agents in the same worlds and compares them: metrics, intervals, tuned opponents."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents import bandits, baselines
from agents.baselines import Agent, Oracle, Threshold, expected
from agents.config import RunConfig
from letta_gym.envs.glue import Driver, EnvConfig
from letta_gym.errors import ConfigError
from letta_gym.selection import subset

Floats = NDArray[np.float64]
Metrics = dict[str, float]

TUNED: Mapping[str, tuple[str, Callable[[Any], Any]]] = {
    "cosine": ("retrieval", baselines.cosine),
    "hybrid": ("retrieval", baselines.hybrid),
    "evidence": ("evidence", baselines.evidence),
}
SURCHARGES: Sequence[float] = (0.0, *np.geomspace(0.01, 2, 16).tolist())
"""On 1,000 tokens, from which :func:`priced` chooses."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with its 95 % interval over seeds."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Interval:
        """Student's t interval of the mean of independent ``values``; NaN values are left out."""
        known = np.array([v for v in values if not math.isnan(v)])
        if not len(known):
            return cls(math.nan, math.nan, math.nan)
        mean = float(known.mean())
        if len(known) < 2:
            return cls(mean, math.nan, math.nan)
        half = student_t(len(known) - 1) * float(known.std(ddof=1)) / math.sqrt(len(known))
        return cls(mean, mean - half, mean + half)


def student_t(freedom: int) -> float:
    """97.5 % quantile of Student's t, by bisection of the angle atan(t / sqrt(freedom))."""
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        angle = (low + high) / 2
        low, high = (angle, high) if _within(angle, freedom) < 0.95 else (low, angle)
    return math.sqrt(freedom) * math.tan(low)


def _within(angle: float, freedom: int) -> float:
    """P(|T| <= sqrt(freedom) tan(angle)) (Abramowitz and Stegun, 1964, 26.7.3 and 26.7.4)."""
    odd = freedom % 2
    term, total = math.cos(angle) ** odd, 0.0
    for power in range(odd, freedom - 1, 2):
        total += term
        term *= math.cos(angle) ** 2 * (power + 1) / (power + 2)
    inner = math.sin(angle) * total
    return 2 / math.pi * (angle + inner) if odd else inner


def begin(agent: Agent[Driver], config: EnvConfig, seed: int, sessions: int) -> Driver:
    """New sessions for ``agent``, the same for every agent with the same ``seed``."""
    driver = Driver(config.model_copy(update={"slots": agent.slots}), sessions)
    generators = [np.random.default_rng([seed, i]) for i in range(sessions)]
    driver.sessions.reset(np.arange(sessions), generators)
    return driver


def earn(agent: Agent[Driver], config: EnvConfig, seed: int, sessions: int) -> float:
    """The metric ``return`` of :func:`play`, without the work for the others."""
    driver, alive, total = begin(agent, config, seed, sessions), np.ones(sessions, bool), 0.0
    for _ in range(config.horizon):
        obs = driver.observe()
        picks = agent.act(obs, driver).picks
        step = driver.step(subset.to_mask(picks, config.candidates))
        baselines.learn(agent, obs, step, driver)
        total += float(step.reward[alive].sum(dtype=np.float64))
        alive &= ~(step.terminated | step.truncated)
    return total / (config.horizon * sessions)


def play(agent: Agent[Driver], config: EnvConfig, seed: int, sessions: int) -> Metrics:
    """Let ``agent`` play ``sessions`` sessions, the same for every agent with the same ``seed``.

    Metrics are means over tasks. ``return`` counts a task that a spent budget left undone as 0,
    ``utility`` leaves it out. ``none_recall``: share of the tasks made for no skill for which none
    was loaded; ``none_precision``: share of the empty choices that the oracle would have made too.
    ``hit_at_1``, ``recall_at_5``: of the ranking, over tasks made for a skill; any look-alike
    counts as the skill. ``regret``: expected reward of the oracle's choice less that of the
    agent's. ``/new``: tasks made for a skill that no training task is made for; ``/seen``: the
    other tasks made for skills; ``/pairs``: tasks that need two.
    """
    driver = begin(agent, config, seed, sessions)
    oracle, alive = Oracle(), np.ones(sessions, bool)
    steps: list[dict[str, NDArray[Any]]] = []
    for _ in range(config.horizon):
        obs = driver.observe()
        choice, best = agent.act(obs, driver), oracle.act(obs, driver)
        about = _about(driver, choice.ranking)
        action = subset.to_mask(choice.picks, config.candidates)
        gained = expected(driver, obs, driver.picks(action)[0])
        regret = expected(driver, obs, np.sort(best.picks, 1)) - gained
        step = driver.step(action)
        baselines.learn(agent, obs, step, driver)
        about |= {
            "reward": step.reward.astype(np.float64),
            "success": step.outcomes.success.astype(np.float64),
            "tokens": step.outcomes.tokens,
            "skills": (step.picks >= 0).sum(1),
            "empty": step.picks.max(1) < 0,
            "best_empty": best.picks.max(1) < 0,
            "regret": regret,
        }
        steps.append({name: values[alive] for name, values in about.items()})
        alive &= ~(step.terminated | step.truncated)
    rows = {name: np.concatenate([step[name] for step in steps]) for name in steps[0]}
    return _metrics(rows, config.horizon * sessions)


def _about(driver: Driver, ranking: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    """What the current tasks need, and how well ``ranking`` (B, M) finds it; arrays (B,)."""
    pool, s = driver.pool, driver.sessions
    relevant = pool.relevant[s.task]
    trained = pool.relevant[pool.split == "train"].any(0)
    rows, order = np.arange(s.count)[:, None], ranking[:, :5]
    skills = s.slot_skills()[rows, order]
    fits = relevant[rows, skills] & s.slot_present()[rows, order]
    found = np.zeros_like(relevant)
    found[np.nonzero(fits)[0], pool.origin[skills[fits]]] = True
    needed = (relevant & (pool.origin == np.arange(len(pool.origin)))).sum(1)
    return {
        "needed": needed > 0,
        "new": (relevant & ~trained).any(1),
        "pairs": needed > 1,
        "hit": fits[:, 0],
        "recall": found.sum(1) / np.maximum(needed, 1),
    }


def _metrics(rows: Mapping[str, NDArray[Any]], tasks: int) -> Metrics:
    """Metrics of the tasks served, one row each, of ``tasks`` planned."""
    needed, empty, new = rows["needed"], rows["empty"], rows["new"]
    result = {
        "return": float(rows["reward"].sum() / tasks),
        "success": _mean(rows["success"]),
        "utility": _mean(rows["reward"]),
        "tokens": _mean(rows["tokens"]),
        "skills_per_task": _mean(rows["skills"]),
        "none_recall": _mean(empty[~needed]),
        "none_precision": _mean(rows["best_empty"][empty]),
        "hit_at_1": _mean(rows["hit"][needed]),
        "recall_at_5": _mean(rows["recall"][needed]),
        "regret": _mean(rows["regret"]),
    }
    columns = {"utility": "reward", "success": "success", "hit_at_1": "hit"}
    groups = {"seen": needed & ~new, "new": new, "pairs": rows["pairs"]}
    for group, members in groups.items():
        for name, column in columns.items():
            result[f"{name}/{group}"] = _mean(rows[column][members])
    return result


def _mean(values: NDArray[Any]) -> float:
    return float(values.mean(dtype=np.float64)) if len(values) else math.nan


def tune(name: str, config: RunConfig) -> Agent[Driver]:
    """The baseline ``name`` with the level and k that earn most on the train split.

    The level is searched over quantiles of the best slot's score with one skill, then k.
    """
    slots, score = TUNED[name]
    env = config.environment(split="train")
    seed, sessions = config.evaluate.first_seed - 1, config.evaluate.tune_sessions

    def baseline(level: float, k: int) -> Threshold:
        return Threshold(name, slots, score, level, k)

    def earned(level: float, k: int) -> float:
        return earn(baseline(level, k), env, seed, sessions)

    obs = begin(baseline(0, 1), env, seed, sessions).observe()
    best = np.where(obs["action_mask"], score(obs["features"]), -np.inf).max(1)
    levels = np.quantile(best[np.isfinite(best)], np.linspace(0.05, 0.95, 10)).tolist()
    level = max(levels, key=lambda value: earned(value, 1))
    sizes = range(1, config.env.max_skills + 1)
    return baseline(level, max(sizes, key=lambda k: earned(level, k)))


def taught(name: str, config: RunConfig) -> Agent[Driver]:
    """The bandit ``name`` after ``evaluate.bandit_steps`` decisions of its own, or more.

    It plays whole batches of ``evaluate.tune_sessions`` on the train split. In fresh worlds a
    skill's quality differs by session, so that a model of each skill learns an average.
    """
    env, e = config.environment(split="train"), config.evaluate
    seed = e.first_seed + e.seeds
    agent = bandits.bandit(name, len(env.pool().ids), np.random.default_rng(seed))
    for batch in range(math.ceil(e.bandit_steps / (e.tune_sessions * env.horizon))):
        bandits.study(agent, begin(agent, env, seed + batch, e.tune_sessions))
    return agent


def priced(config: RunConfig) -> Oracle:
    """The oracle with the fixed surcharge on tokens that earns most on the train split."""
    env, e = config.environment(split="train"), config.evaluate
    oracles = [Oracle("priced", surcharge) for surcharge in SURCHARGES]
    return max(oracles, key=lambda a: earn(a, env, e.first_seed - 1, e.tune_sessions))


def line_up(
    config: RunConfig, weights: Mapping[str, NDArray[Any]] | None
) -> Iterator[Agent[Driver]]:
    """All agents of a comparison, made when asked for; the learned one only with ``weights``."""
    yield baselines.NoSkills()
    yield baselines.Random(np.random.default_rng(config.evaluate.first_seed))
    for name in TUNED:
        yield tune(name, config)
    if weights is not None:
        yield baselines.Learned(weights)
    for name in config.evaluate.also:
        yield priced(config) if name == "priced" else taught(name, config)
    yield baselines.Informed()
    yield Oracle()


@dataclass(frozen=True, slots=True)
class Comparison:
    """Metrics of several agents in the same worlds, one row of values a seed."""

    suite: str
    split: str
    episodes: int
    runs: Mapping[str, Sequence[Metrics]]

    def interval(self, agent: str, metric: str) -> Interval:
        """Mean and 95 % interval over the seeds."""
        return Interval.of([run[metric] for run in self.runs[agent]])

    def lead(self, agent: str, over: str, metric: str = "return") -> Interval:
        """Paired difference of two agents in the same worlds, with its 95 % interval."""
        pairs = zip(self.runs[agent], self.runs[over], strict=True)
        return Interval.of([a[metric] - b[metric] for a, b in pairs])

    def best_baseline(self, metric: str = "return") -> str:
        """The best of those that ignore outcomes: ``none``, ``cosine``, ``hybrid``."""
        names = ("none", "cosine", "hybrid")
        return max(names, key=lambda name: self.interval(name, metric).mean)

    def closed(self, agent: str) -> float:
        """Share of the gap in return, from the best such baseline to the oracle, that is closed.

        NaN where there is no gap.
        """
        low = self.interval(self.best_baseline(), "return").mean
        gap = self.interval("oracle", "return").mean - low
        return (self.interval(agent, "return").mean - low) / gap if gap else math.nan

    def to_json(self) -> dict[str, Any]:
        """The comparison as JSON values; NaN becomes null."""
        agents = {
            name: {metric: as_json(self.interval(name, metric)) for metric in runs[0]}
            for name, runs in self.runs.items()
        }
        result = {
            "suite": self.suite,
            "split": self.split,
            "episodes": self.episodes,
            "agents": agents,
            "best_baseline": self.best_baseline(),
            "gap_closed": {name: _number(self.closed(name)) for name in self.runs},
        }
        if "learned" in self.runs:
            names = [self.best_baseline(), "evidence"]
            result["lead_of_learned"] = {n: as_json(self.lead("learned", n)) for n in names}
        return result

    def table(self) -> str:
        """The main metrics as text: mean and half-width of the 95 % interval."""
        shown = ("return", "success", "tokens", "skills_per_task", "none_recall", "hit_at_1")
        width = max(10, *map(len, self.runs))
        head = f"{'agent':{width}s}" + "".join(f"{name:>17s}" for name in shown)
        lines = [f"{head}   gap closed"]
        for agent in self.runs:
            text = "".join(cell(name, self.interval(agent, name)) for name in shown)
            closed = self.closed(agent)
            share = "-" if math.isnan(closed) else f"{closed:.0%}"
            lines.append(f"{agent:{width}s}{text}{share:>13s}")
        return "\n".join(lines)


def cell(metric: str, interval: Interval) -> str:
    """A mean and the half-width of its interval, 17 characters."""
    digits = 0 if metric == "tokens" else 3
    if math.isnan(interval.mean):
        return f"{'-':>17s}"
    half = interval.high - interval.mean
    return f"{interval.mean:10.{digits}f} ±{half:5.{digits}f}"


def as_json(interval: Interval) -> dict[str, float | None]:
    """The interval as JSON values; NaN becomes null."""
    return {bound: _number(getattr(interval, bound)) for bound in ("mean", "low", "high")}


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def held_out(config: RunConfig, split: str | None = None) -> EnvConfig:
    """The environment on ``split`` (by default the configured one), sure to be playable.

    Raises:
        ConfigError: the split is that of training, or the sessions do not fit it.
        SuiteError: the suite has no such split.
    """
    split = split or config.evaluate.split
    if split == "train":
        raise ConfigError("the train split is for training; evaluate on validation or test")
    env = config.environment(split=split)
    Driver(env, 1)
    return env


def compare(
    config: RunConfig,
    weights: Mapping[str, NDArray[Any]] | None,
    split: str | None = None,
    progress: Callable[[str], None] | None = None,
) -> Comparison:
    """Play every agent on ``split`` (by default the configured one) in the same worlds.

    Raises:
        ConfigError: the split is that of training, or the sessions do not fit it.
        SuiteError: the suite has no such split.
    """
    env, e = held_out(config, split), config.evaluate
    runs: dict[str, list[Metrics]] = {}
    for agent in line_up(config, weights):
        if progress is not None:
            progress(agent.name)
        seeds = range(e.first_seed, e.first_seed + e.seeds)
        runs[agent.name] = [play(agent, env, seed, e.sessions) for seed in seeds]
    return Comparison(config.suite.path, env.split, e.seeds * e.sessions, runs)
