"""Compares agents on a labelled suite, over several draws of which skills are new."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from agents import baselines, opponents
from agents.baselines import Agent, Threshold
from agents.evaluation import Interval, as_json, cell
from agents.replay_config import ReplayRunConfig
from agents.stream import StreamTrainer
from agents.trial import BLIND, Metrics, stream, trial
from letta_gym.envs.replay import ReplayDriver
from letta_gym.errors import ConfigError
from letta_gym.selection.network import Weights

Make = Callable[[int], tuple[Agent[ReplayDriver], ReplayDriver]]
"""Makes an agent that has learned on the stream of a split, and the driver of that deployment."""


def line_up(config: ReplayRunConfig) -> Iterator[Agent[ReplayDriver]]:
    """The opponents, made anew for each split."""
    e = config.evaluate
    yield baselines.NoSkills()
    yield baselines.Random(np.random.default_rng(config.seed))
    yield Threshold("cosine", "retrieval", baselines.cosine, 0, 1)
    yield Threshold("lexical", "retrieval", opponents.lexical, 0, 1)
    yield Threshold("hybrid", "retrieval", baselines.hybrid, 0, 1)
    yield Threshold("evidence", "evidence", baselines.evidence, 0, 1)
    yield opponents.LinUCB(e.linucb_alpha)
    yield opponents.Neighbours(e.neighbours)
    yield opponents.Labelled(e.neighbours)


def deployment(config: ReplayRunConfig, split_seed: int, slots: str = "evidence") -> ReplayDriver:
    """A new deployment on the stream of a split, with as many decisions at once as in training."""
    env = config.environment(split_seed=split_seed, split="train", library="seen", slots=slots)
    count = config.train.ppo.num_envs
    driver = ReplayDriver(env, count)
    generators = [np.random.default_rng([config.seed, split_seed])] * count
    driver.sessions.reset(np.arange(count), generators, True)
    return driver


def played(agent: Agent[ReplayDriver], config: ReplayRunConfig, split_seed: int) -> ReplayDriver:
    """The deployment of ``agent`` after the stream."""
    driver = deployment(config, split_seed, agent.slots)
    if agent.name not in BLIND:
        stream(agent, driver, config.train.passes)
    return driver


def trained(config: ReplayRunConfig, split_seed: int) -> Metrics:
    """Metrics of a policy that is trained on the stream of a split, with that one's memory."""
    trainer = StreamTrainer(config, split_seed)
    trainer.train()
    return tried(trainer)


def tried(trainer: StreamTrainer) -> Metrics:
    """Metrics of a policy that was trained; its deployment is copied and goes on from there.

    ``trained`` is 1 where training did better on validation tasks than the untrained weights.
    """
    config = trainer.config
    rng = np.random.default_rng([config.seed, trainer.split_seed, 2])
    weights, improved = trainer.chosen()
    agent = opponents.Sampled(weights, rng, config.evaluate.optimism)
    found = trial(agent, trainer.copied(), config)
    return found | {"trained": float(improved)}


@dataclass(frozen=True, slots=True)
class SuiteComparison:
    """Metrics of several agents on the same splits, one row of values a split."""

    suite: str
    split: str
    episodes: int
    runs: Mapping[str, Sequence[Metrics]]

    def interval(self, agent: str, metric: str) -> Interval:
        """Mean and 95 % interval over the splits."""
        return Interval.of([run[metric] for run in self.runs[agent]])

    def lead(self, agent: str, over: str, metric: str) -> Interval:
        """Paired difference of two agents on the same splits, with its 95 % interval."""
        pairs = zip(self.runs[agent], self.runs[over], strict=True)
        return Interval.of([a[metric] - b[metric] for a, b in pairs])

    def to_json(self) -> dict[str, Any]:
        """The comparison as JSON values; NaN becomes null."""
        agents = {
            name: {metric: as_json(self.interval(name, metric)) for metric in runs[0]}
            for name, runs in self.runs.items()
        }
        return {
            "suite": self.suite,
            "split": self.split,
            "episodes": self.episodes,
            "agents": agents,
        }

    def table(self) -> str:
        """The main metrics as text: mean and half-width of the 95 % interval."""
        known = next(iter(self.runs.values()))[0]
        groups = [m for m in known if m.startswith("hit_at_1/")]
        shown = ["utility", "success", "skills_per_task", "none_recall", "none_precision", *groups]
        short = {m: m.replace("hit_at_1/", "hit@1 ") for m in shown}
        lines = ["agent        " + "".join(f"{short[m]:>17s}" for m in shown)]
        for agent in self.runs:
            cells = "".join(cell(m, self.interval(agent, m)) for m in shown)
            lines.append(f"{agent:13s}{cells}")
        return "\n".join(lines)


def compare_on_suite(
    config: ReplayRunConfig,
    weights: Weights | None = None,
    split: str | None = None,
    *,
    train: bool = False,
    first: StreamTrainer | None = None,
    progress: Callable[[str], None] | None = None,
) -> SuiteComparison:
    """Let every agent learn and be looked at on each split.

    Args:
        config: what to do.
        weights: of a policy that is not trained any further; the agent "learned".
        split: whose tasks are decided; by default ``evaluate.split``.
        train: train a policy on each split instead; then that is "learned".
        first: the trainer of the first split, if it is there already.
        progress: called with what each agent came to.

    Raises:
        ConfigError: the split is that of training.
        SuiteError: the suite has no such split.
    """
    split = split or config.evaluate.split
    if split == "train":
        raise ConfigError("the train split is for training; evaluate on validation or test")
    changed = config.evaluate.model_copy(update={"split": split})
    config = config.model_copy(update={"evaluate": changed})
    e = config.evaluate
    runs: dict[str, list[Metrics]] = {}

    def note(name: str, found: Metrics) -> None:
        runs.setdefault(name, []).append(found)
        if progress is not None:
            hits = (f"{m[9:]} {v:.3f}" for m, v in found.items() if m.startswith("hit_at_1/"))
            progress(f"{name}: Hit@1 {', '.join(hits)}")

    tasks = len(deployment(config, e.first_split).sessions.tasks(split))
    for seed in range(e.first_split, e.first_split + e.splits):
        agents = list(line_up(config))
        if weights is not None:
            agents.append(opponents.Sampled(weights, np.random.default_rng([config.seed, seed, 2])))
        for agent in agents:
            driver = played(agent, config, seed)
            note(agent.name, trial(agent, driver, config))
        if train:
            ready = first is not None and first.split_seed == seed
            note("learned", tried(first) if ready and first is not None else trained(config, seed))
    return SuiteComparison(config.suite.path, split, tasks, runs)
