"""Plays agents in the same worlds and compares them: metrics, intervals, tuned opponents."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents import baselines
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
    """97.5 % quantile of Student's t (Hill, 1970, by the expansion around the normal quantile)."""
    z, n = 1.959963984540054, freedom
    if n <= 2:
        return {1: 12.706204736, 2: 4.302652730}[n]
    terms = (
        z,
        (z**3 + z) / (4 * n),
        (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2),
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3),
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * n**4),
    )
    return sum(terms)


class Tally:
    """Collects what one agent does in one batch of sessions."""

    def __init__(self, driver: Driver, seen: NDArray[np.bool_]) -> None:
        self._driver, self._seen = driver, seen
        self._rows: list[dict[str, NDArray[Any]]] = []

    def add(self, rows: Mapping[str, NDArray[Any]]) -> None:
        """Note one step of all sessions; arrays (B,)."""
        self._rows.append(dict(rows))

    def metrics(self) -> Metrics:
        """Means over the tasks that were served; groups by suffix."""
        all_rows = {k: np.concatenate([r[k] for r in self._rows]) for k in self._rows[0]}
        rows = {k: v[all_rows["alive"]] for k, v in all_rows.items()}
        needed, empty, right = rows["needed"], rows["empty"], rows["none_right"]
        tasks = self._driver.config.horizon * self._driver.sessions.count
        result = {
            "return": float(rows["reward"].sum() / tasks),
            "success": _mean(rows["success"]),
            "utility": _mean(rows["reward"]),
            "tokens": _mean(rows["tokens"]),
            "skills_per_task": _mean(rows["skills"]),
            "none_recall": _mean(empty[~needed]),
            "none_precision": _mean(right[empty]),
            "hit_at_1": _mean(rows["hit"][needed]),
            "recall_at_5": _mean(rows["recall"][needed]),
            "regret": _mean(rows["regret"]),
        }
        for group, which in (("seen", rows["seen"]), ("new", needed & ~rows["seen"])):
            for name, column in (
                ("utility", "reward"),
                ("success", "success"),
                ("hit_at_1", "hit"),
            ):
                result[f"{name}/{group}"] = _mean(rows[column][which & needed])
        return result


def play(agent: Agent, config: EnvConfig, seed: int, sessions: int) -> Metrics:
    """Let ``agent`` play ``sessions`` sessions, the same for every agent with the same ``seed``.

    Metrics are means over tasks. ``return`` counts a task that a spent budget left undone as 0,
    ``utility`` leaves it out. ``none_recall``: share of the tasks made for no skill for which none
    was loaded; ``none_precision``: share of the empty choices that the oracle would have made too.
    ``regret``: expected reward of the oracle's choice less that of the agent's. ``/new``: tasks
    made for a skill that no training task is made for.
    """
    driver = Driver(config.model_copy(update={"slots": agent.slots}), sessions)
    generators = [np.random.default_rng([seed, i]) for i in range(sessions)]
    driver.sessions.reset(np.arange(sessions), generators)
    pool = driver.pool
    seen = pool.relevant[pool.split == "train"].any(0)
    tally, oracle = Tally(driver, seen), Oracle()
    alive = np.ones(sessions, bool)
    for _ in range(config.horizon):
        obs = driver.observe()
        choice, best = agent.act(obs, driver), oracle.act(obs, driver)
        task = driver.sessions.task
        relevant = pool.relevant[task[:, None], driver.sessions.slot_skills()]
        ranked = np.take_along_axis(relevant, choice.ranking, 1)
        gained = expected(driver, obs, choice.picks)
        step = driver.step(subset.to_mask(choice.picks, config.candidates))
        empty: NDArray[Any] = np.all(step.picks < 0, axis=1)
        none_right: NDArray[Any] = np.all(best.picks < 0, axis=1)
        tally.add(
            {
                "alive": alive.copy(),
                "reward": step.reward.astype(np.float64),
                "success": step.outcomes.success.astype(np.float64),
                "tokens": step.outcomes.tokens,
                "skills": (step.picks >= 0).sum(1),
                "empty": empty,
                "needed": pool.topic[task] >= 0,
                "none_right": none_right,
                "hit": ranked[:, 0],
                "recall": _recall(pool.relevant[task], pool.origin, driver, choice.ranking[:, :5]),
                "regret": np.maximum(expected(driver, obs, best.picks) - gained, 0),
                "seen": np.where(pool.topic[task] >= 0, seen[pool.topic[task]], False),
            }
        )
        alive &= ~(step.terminated | step.truncated)
    return tally.metrics()


def _recall(
    relevant: NDArray[np.bool_],
    origin: NDArray[np.int64],
    driver: Driver,
    top: NDArray[np.int64],
) -> Floats:
    """Share of the needed skills that stand among the ``top`` slots (B, n), twins counting once."""
    skills = np.take_along_axis(driver.sessions.slot_skills(), top, 1)
    found = np.zeros_like(relevant)
    fits = np.take_along_axis(relevant, skills, 1)
    rows = np.broadcast_to(np.arange(len(top))[:, None], top.shape)
    found[rows[fits], origin[skills[fits]]] = True
    needed = (relevant & (origin == np.arange(len(origin)))).sum(1)
    share: Floats = found.sum(1) / np.maximum(needed, 1)
    return share


def _mean(values: NDArray[Any]) -> float:
    return float(values.mean()) if len(values) else math.nan


def tune(name: str, config: RunConfig) -> Agent:
    """The baseline ``name`` with the level and k that earn most on the train split.

    The level is searched over quantiles of the best slot's score with one skill, then k.
    """
    slots, score = TUNED[name]
    env = config.environment(split="train", slots=slots)
    seed, sessions = config.evaluate.first_seed - 1, config.evaluate.tune_sessions

    def earned(level: float, k: int) -> float:
        return play(Threshold(name, slots, score, level, k), env, seed, sessions)["return"]

    driver = Driver(env, sessions)
    driver.sessions.reset(
        np.arange(sessions), [np.random.default_rng([seed, i]) for i in range(sessions)]
    )
    obs = driver.observe()
    best = np.where(obs["action_mask"], score(obs["features"]), -np.inf).max(1)
    levels = np.quantile(best[np.isfinite(best)], np.linspace(0.05, 0.95, 10))
    level = float(max(levels, key=lambda value: earned(float(value), 1)))
    sizes = range(1, config.env.max_skills + 1)
    return Threshold(name, slots, score, level, max(sizes, key=lambda k: earned(level, k)))


def line_up(config: RunConfig, weights: Mapping[str, NDArray[Any]] | None) -> list[Agent]:
    """All agents of a comparison; the learned one only with ``weights``."""
    agents: list[Agent] = [
        baselines.NoSkills(),
        baselines.Random(np.random.default_rng(config.evaluate.first_seed)),
        *(tune(name, config) for name in TUNED),
    ]
    if weights is not None:
        agents.append(baselines.Learned(weights))
    return [*agents, baselines.Informed(), baselines.Oracle()]


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
        """Share of the gap in return, from the best such baseline to the oracle, that is closed."""
        low = self.interval(self.best_baseline(), "return").mean
        gap = self.interval("oracle", "return").mean - low
        return (self.interval(agent, "return").mean - low) / gap

    def to_json(self) -> dict[str, Any]:
        """The comparison as JSON values; NaN becomes null."""
        agents = {
            name: {metric: _json(self.interval(name, metric)) for metric in runs[0]}
            for name, runs in self.runs.items()
        }
        result = {
            "suite": self.suite,
            "split": self.split,
            "episodes": self.episodes,
            "agents": agents,
            "best_baseline": self.best_baseline(),
            "gap_closed": {name: self.closed(name) for name in self.runs},
        }
        if "learned" in self.runs:
            names = [self.best_baseline(), "evidence"]
            result["lead_of_learned"] = {n: _json(self.lead("learned", n)) for n in names}
        return result

    def table(self) -> str:
        """The main metrics as text: mean and half-width of the 95 % interval."""
        shown = ("return", "success", "tokens", "skills_per_task", "none_recall", "hit_at_1")
        lines = ["agent     " + "".join(f"{name:>17s}" for name in shown) + "   gap closed"]
        for agent in self.runs:
            cells = [self.interval(agent, name) for name in shown]
            text = "".join(_cell(name, cell) for name, cell in zip(shown, cells, strict=True))
            lines.append(f"{agent:10s}{text}{self.closed(agent):12.0%}")
        return "\n".join(lines)


def _cell(metric: str, interval: Interval) -> str:
    digits = 0 if metric == "tokens" else 3
    if math.isnan(interval.mean):
        return f"{'-':>17s}"
    half = interval.high - interval.mean
    return f"{interval.mean:10.{digits}f} ±{half:5.{digits}f}"


def _json(interval: Interval) -> dict[str, float | None]:
    values = {"mean": interval.mean, "low": interval.low, "high": interval.high}
    return {k: None if math.isnan(v) else v for k, v in values.items()}


def compare(
    config: RunConfig,
    weights: Mapping[str, NDArray[Any]] | None,
    split: str | None = None,
    progress: Callable[[str], None] | None = None,
) -> Comparison:
    """Play every agent on ``split`` (by default the configured one) in the same worlds.

    Raises:
        ConfigError: the split is that of training.
    """
    split = split or config.evaluate.split
    if split == "train":
        raise ConfigError("the train split is for training; evaluate on validation or test")
    env, e = config.environment(split=split), config.evaluate
    runs: dict[str, list[Metrics]] = {}
    for agent in line_up(config, weights):
        if progress is not None:
            progress(agent.name)
        seeds = range(e.first_seed, e.first_seed + e.seeds)
        runs[agent.name] = [play(agent, env, seed, e.sessions) for seed in seeds]
    return Comparison(config.suite.path, split, e.seeds * e.sessions, runs)
