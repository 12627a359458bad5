"""What is learned from outcomes on task sets that nobody here wrote.

``python -m benchmarks.learning --suites DIR`` (or ``SUITES=DIR``): a folder that holds the suites
``metatool``, ``bfcl`` and ``llmrouter`` with vectors (``letta-gym embed DIR/metatool``). Every
constant is that of
``configs/replay.yaml``; what a suite needs besides stands in :data:`CHANGES`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from agents import baselines
from agents.baselines import Agent, Learned, Threshold
from agents.config import read
from agents.evaluation import Interval, compare
from agents.kinds import read_run
from agents.replay_config import ReplayRunConfig
from agents.stream import StreamTrainer
from agents.suite_comparison import SuiteComparison, compare_on_suite, deployment, played, trained
from agents.trial import Metrics, Rows, look, metrics, trial, tune
from benchmarks import columns
from benchmarks.figures import RESULTS, Figure, at_least, below, bounds, measured, report
from letta_gym.envs.replay import ReplayDriver
from letta_gym.errors import LettaGymError
from letta_gym.feedback.evidence import EvidenceConfig
from letta_gym.feedback.memory import OutcomeMemory
from letta_gym.library.vectors import snap
from letta_gym.selection.opening import likeness
from letta_gym.selection.policy import Policy
from letta_gym.selection.policy_file import DEFAULT

ROOT = Path(__file__).parent.parent
CONFIG = ROOT / "configs/replay.yaml"

CHANGES: Mapping[str, tuple[str, ...]] = {
    # Which tools are new decides more than anything else: twice as many draws.
    "metatool": ("evaluate.splits=10",),
    # 834 functions, of which each task offers 8; 454 train tasks, so they are asked several times.
    "bfcl": (
        *("env.new_skills=0", "env.candidates=8", "env.validation=0.15", "train.slots=0"),
        *("train.passes=10", "train.ppo.num_envs=32", "train.rehearsal.batch=32"),
    ),
    # Two tools a task, never trained on; all 199 are known from tasks of their own.
    "subsets": ("env.new_skills=0", "evaluate.split=test_multi", "evaluate.splits=2"),
    "two_passes": ("train.passes=2",),
}

COMPARED: Mapping[str, str] = {"hit_at_1": "hit", "success": "success", "utility": "utility"}
"""Metrics that the package's policy is compared in with retrieval -> their rows of each task."""

Figures = dict[str, Figure]


def config(suites: Path, suite: str, changes: tuple[str, ...]) -> ReplayRunConfig:
    """The run on one suite."""
    made = read_run(CONFIG, [f"suite.path={suites / suite}", *changes])
    assert isinstance(made, ReplayRunConfig)
    return made


def metatool(suites: Path) -> Figures:
    """Seen and new tools on the test split, beside every opponent."""
    result = compare_on_suite(
        config(suites, "metatool", CHANGES["metatool"]), train=True, progress=say
    )
    print(f"\nmetatool, {result.split} split\n{result.table()}\n")
    keep("metatool", result)
    seen, new = result.interval("learned", "hit_at_1/seen"), "hit_at_1/new@0"
    over_cosine = result.lead("learned", "cosine", new)
    worst = min(
        a[new] - b[new] for a, b in zip(result.runs["learned"], result.runs["cosine"], strict=True)
    )
    figures = {
        "seen_hit_at_1": at_least(seen.mean, 0.80),
        "new_at_0_over_cosine_mean": at_least(over_cosine.mean, 0.03),
        "new_at_0_over_cosine_worst": at_least(worst, -0.02),
        "new_at_20_hit_at_1": at_least(result.interval("learned", "hit_at_1/new@20").mean, 0.66),
        "new_at_50_hit_at_1": at_least(result.interval("learned", "hit_at_1/new@50").mean, 0.71),
    }
    for other in ("evidence", "linucb"):
        lead = summed(result, "learned", other)
        figures[f"sum_over_{other}_mean"] = Figure(lead.mean)
        figures[f"sum_over_{other}_low"] = Figure(lead.low, "> 0", lead.low > 0)
    for name in ("cosine", "hybrid", "evidence", "linucb", "knn", "labelled_knn"):
        for group in ("seen", "new@0", "new@20", "new@50"):
            value = result.interval(name, f"hit_at_1/{group}").mean
            figures[f"{name}_{group.replace('@', '_at_')}"] = Figure(value)
    return figures


def summed(result: SuiteComparison, agent: str, other: str) -> Interval:
    """Paired difference of the sum of Hit@1 on seen and on new skills."""

    def total(run: Metrics) -> float:
        return run["hit_at_1/seen"] + run["hit_at_1/new@0"]

    pairs = zip(result.runs[agent], result.runs[other], strict=True)
    return Interval.of([total(a) - total(b) for a, b in pairs])


def two_passes(suites: Path) -> Figures:
    """Seen tools after every task was asked twice."""
    c = config(suites, "metatool", CHANGES["two_passes"])
    e = c.evaluate
    runs = [trained(c, seed) for seed in range(e.first_split, e.first_split + e.splits)]
    seen = Interval.of([run["hit_at_1/seen"] for run in runs])
    return {"two_passes_seen_hit_at_1": at_least(seen.mean, 0.82)}


def bfcl(suites: Path) -> Figures:
    """Choosing nothing where nothing fits."""
    result = compare_on_suite(config(suites, "bfcl", CHANGES["bfcl"]), train=True, progress=say)
    print(f"\nbfcl, {result.split} split\n{result.table()}\n")
    keep("bfcl", result)
    figures = {
        f"bfcl_{name}": at_least(result.interval("learned", name).mean, target)
        for name, target in (("none_recall", 0.8), ("none_precision", 0.8), ("hit_at_1", 0.85))
    }
    for name in ("none_recall", "none_precision", "hit_at_1"):
        figures[f"bfcl_cosine_{name}"] = Figure(result.interval("cosine", name).mean)
    return figures


def subsets(suites: Path) -> Figures:
    """Both tools of a task among the first two, by a policy that was never shown such a task."""
    c = config(suites, "metatool", CHANGES["subsets"])
    cosine = Threshold("cosine", "retrieval", baselines.cosine, 0, 1)
    evidence = Threshold("evidence", "evidence", baselines.evidence, 0, 1)
    found: dict[str, list[float]] = {"learned": [], "cosine": [], "evidence": []}
    for seed in range(c.evaluate.splits):
        agents: list[Agent[ReplayDriver]] = [cosine, evidence]
        for agent in agents:
            driver = played(agent, c, seed)
            found[agent.name].append(trial(agent, driver, c)["recall_at_2"])
        found["learned"].append(trained(c, seed)["recall_at_2"])
    mean = {name: float(np.mean(values)) for name, values in found.items()}
    return {
        "two_tools_recall_over_cosine": at_least(mean["learned"] - mean["cosine"], 0.12),
        **{f"two_tools_recall_{name}": Figure(value) for name, value in mean.items()},
    }


def pairs(suites: Path) -> Figures:
    """Tasks of the bundled suite's test split that need two skills, served on the mock.

    The package's policy, which was trained with ``configs/mock.yaml``, beside the baselines, whose
    level and k are tuned on the train split. Utility is success less the price of the tokens.
    """
    result = compare(read(ROOT / "configs/mock.yaml", []), Policy.load(DEFAULT).weights)
    metric = "utility/pairs"
    mine = result.interval("learned", metric)
    figures = {"pairs_utility_learned": Figure(mine.mean)}
    for name in ("none", "random", "cosine", "hybrid", "evidence"):
        its = result.interval(name, metric)
        apart = mine.low - its.high
        figures[f"pairs_utility_{name}"] = Figure(its.mean)
        figures[f"pairs_utility_low_over_{name}_high"] = Figure(apart, "> 0", apart > 0)
        figures[f"pairs_utility_over_{name}_low"] = Figure(result.lead("learned", name, metric).low)
    return figures


def throughput(suites: Path) -> Figures:
    """Real outcomes in one pass with rehearsal, embeddings given, by the second.

    The target is one of a thread's own time, which other work on the machine does not change.
    """
    trainer = StreamTrainer(config(suites, "metatool", CHANGES["metatool"]), 0)
    start, own = time.perf_counter(), time.process_time()
    trainer.train()
    passed, used = time.perf_counter() - start, time.process_time() - own
    return {
        "outcomes_per_second_of_one_thread": at_least(trainer.steps / used, 2000),
        "outcomes_per_second_elapsed": Figure(trainer.steps / passed),
    }


def memory(suites: Path) -> Figures:
    """Evidence of one task from 200 skills' outcomes; the best of many calls."""
    rng = np.random.default_rng(0)
    vectors = snap(rng.standard_normal((50_000, 384)))
    figures = {}
    for outcomes, asked, target in ((5_000, 200, 0.5), (50_000, 64, 5.0), (50_000, 200, None)):
        kept = OutcomeMemory(384, EvidenceConfig())
        skill, success = rng.integers(200, size=outcomes), rng.integers(2, size=outcomes)
        for i in range(outcomes):
            kept.add(str(skill[i]), vectors[i], float(success[i]))
        keys = tuple(str(i) for i in range(asked))
        took = []
        for i in range(200):
            start = time.perf_counter()
            kept.tables(vectors[i : i + 1], keys)
            took.append((time.perf_counter() - start) * 1e3)
        name = f"evidence_{asked}_skills_{outcomes}_outcomes_ms"
        figures[name] = Figure(min(took)) if target is None else below(min(took), target)
    return figures


def ablation(suites: Path) -> Figures:
    """What each column of the features adds to the sum of Hit@1 on seen and new tools; five draws.

    ``closed_form`` is also the score that training begins with.
    """

    def sums(without: tuple[str, ...]) -> list[float]:
        changes = (f"policy.without=[{','.join(without)}]", "evaluate.levels=[]")
        c = config(suites, "metatool", changes)
        runs = [trained(c, split) for split in range(c.evaluate.splits)]
        return [run["hit_at_1/seen"] + run["hit_at_1/new@0"] for run in runs]

    return added("gain_of", columns.gains(sums, say))


def mock_ablation(suites: Path) -> Figures:
    """What each column adds to the reward of a task on the mock."""
    return added("mock_gain_of", columns.gains(columns.on_mock, say))


def added(prefix: str, gains: Mapping[str, Interval]) -> Figures:
    """Gains as figures."""
    figures: Figures = {}
    for name, gain in gains.items():
        figures |= bounds(gain, f"{prefix}_{name}")
    return figures


def default(suites: Path) -> Figures:
    """The package's policy on libraries that it never saw, before any outcome, beside retrieval.

    ``hybrid`` loads the first skill of hybrid retrieval whatever its score: like the policy, it
    knows no label of the suite. ``tuned_hybrid`` has a level below which it loads nothing, set by
    the labels of the suite's validation tasks; it is shown beside, without a target. Differences
    are paired over the test tasks.
    """
    policy, figures = Policy.load(DEFAULT), {}
    for suite in ("metatool", "bfcl", "llmrouter"):
        c = served(config(suites, suite, ("env.validation=0.15",)), policy)
        hybrid = Threshold("hybrid", "retrieval", baselines.hybrid, -math.inf, 1)
        tuned = Threshold("tuned_hybrid", "retrieval", baselines.hybrid, 0, 1)
        found = {}
        alike = likeness(c.environment().pool().skill_vectors)
        served_as = Learned(policy.weights, policy.opening, alike)
        for name, agent in (("hybrid", hybrid), ("tuned_hybrid", tuned), ("default", served_as)):
            driver = deployment(c, 0, agent.slots)
            if agent is tuned:
                tune(tuned, driver)
            driver.sessions.open_library()
            found[name] = look(agent, driver, driver.sessions.tasks("test"))
            shown = metrics(found[name])
            for metric in (*COMPARED, "skills_per_task", "none_recall", "none_precision"):
                figures[f"{name}_{suite}_{metric}"] = Figure(shown[metric])
        figures |= compared(found["default"], found["hybrid"], f"default_{suite}", "hybrid")
        beside = compared(
            found["default"], found["tuned_hybrid"], f"default_{suite}", "tuned_hybrid"
        )
        figures |= {key: Figure(figure.value) for key, figure in beside.items()}
    return figures


def compared(mine: Rows, others: Rows, name: str, other: str) -> Figures:
    """Mean paired differences; one holds whose 95 % interval does not lie below 0."""
    figures = {}
    for metric, row in COMPARED.items():
        which = mine["needed"] | (metric != "hit_at_1")
        over = Interval.of((mine[row][which].astype(float) - others[row][which]).tolist())
        figures[f"{name}_{metric}_over_{other}"] = Figure(over.mean, "high >= 0", over.high >= 0)
        figures[f"{name}_{metric}_over_{other}_high"] = Figure(over.high)
    return figures


def served(config: ReplayRunConfig, policy: Policy) -> ReplayRunConfig:
    """The run with the constants that a selector has with ``policy``."""
    terms = {
        "max_skills": policy.max_skills,
        "candidates": min(policy.slots, len(config.environment().pool().ids)),
        "token_price": policy.token_price * 1000,
        "new_skills": 0.0,
    }
    changes = {"evidence": policy.evidence, "retrieval": policy.retrieval}
    return config.model_copy(update={"env": config.env.model_copy(update=terms), **changes})


PARTS: Mapping[str, Callable[[Path], Figures]] = {
    "memory": memory,
    "throughput": throughput,
    "subsets": subsets,
    "pairs": pairs,
    "bfcl": bfcl,
    "metatool": metatool,
    "two_passes": two_passes,
    "ablation": ablation,
    "mock_ablation": mock_ablation,
    "default": default,
}


def keep(name: str, result: SuiteComparison) -> None:
    """Write the whole comparison beside the figures."""
    path = RESULTS / "learning" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = result.to_json() | {"suite": name}
    path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def say(what: str) -> None:
    """Tell what is being done."""
    print(what, file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and write the figures; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--suites", default=os.environ.get("SUITES"), metavar="DIR")
    parser.add_argument("--only", metavar="PARTS", help=f"some of: {','.join(PARTS)}")
    options = parser.parse_args(arguments)
    if not options.suites:
        print("benchmarks.learning: say where the suites are: --suites DIR", file=sys.stderr)
        return 2
    names = options.only.split(",") if options.only else list(PARTS)
    figures: Figures = {}
    try:
        with threadpool_limits(1):
            for name in names:
                say(name)
                figures |= PARTS[name](Path(options.suites))
    except LettaGymError as error:
        print(f"benchmarks.learning: {error}", file=sys.stderr)
        return 2
    if options.only:
        figures = measured("learning") | figures
    # What is a mean over nothing has no figure, nor keeps an older one.
    report("learning", {key: f for key, f in figures.items() if f.value == f.value}, ("gymnasium",))
    return 0


if __name__ == "__main__":
    sys.exit(main())
