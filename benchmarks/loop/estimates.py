"""Off-policy estimates on a suite in which the outcome of every choice is known.

On ``llmrouter`` (9 arms, 6,108 tasks) the true value of any policy is a sum. Half of the training
tasks shape two policies: the logging one, a softmax over the arms' average rewards, and the one to
be judged, a softmax over the averages of each kind of task. The other half is the world: logs of
2,000 decisions are drawn from it with replacement, and every estimate is compared with the truth.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.figures import Figure, below
from letta_gym.feedback.offpolicy import (
    Evaluation,
    LoggedRewards,
    Ridge,
    evaluate,
    folds,
    unsupported_mass,
)
from letta_gym.library.suite import Suite

Double = NDArray[np.float64]
Int = NDArray[np.int64]

LOGS, DECISIONS, FOLDS = 200, 2_000, 5
LOGGING_SHARPNESS, TARGET_SHARPNESS = 3.0, 8.0


@dataclass(frozen=True, eq=False)
class World:
    """Tasks with the reward of every arm and two policies; arrays (tasks, arms), kinds (tasks,)."""

    reward: Double
    kind: Int
    logging: Double
    target: Double

    @property
    def value(self) -> float:
        """True value of the policy to be judged."""
        return float((self.target * self.reward).sum(axis=1).mean())

    def log(self, rng: np.random.Generator) -> LoggedRewards:
        """One log, with a cross-fitted model of the reward."""
        task = rng.integers(len(self.reward), size=DECISIONS)
        logging, target = self.logging[task], self.target[task]
        arm = (logging.cumsum(axis=1) < rng.random((DECISIONS, 1))).sum(axis=1)
        reward = self.reward[task, arm]
        predicted = self._predictions(self.kind[task], arm, reward, rng)
        rows = np.arange(DECISIONS)
        return LoggedRewards(
            reward,
            np.log(logging[rows, arm]),
            np.log(target[rows, arm]),
            predicted[rows, arm],
            (target * predicted).sum(axis=1),
            unsupported_mass(target, logging),
        )

    def _predictions(self, kind: Int, arm: Int, reward: Double, rng: np.random.Generator) -> Double:
        """Reward of every arm for every decision, by models of the other folds, (n, arms)."""
        kinds, arms = int(self.kind.max()) + 1, self.reward.shape[1]
        fold = folds(DECISIONS, FOLDS, rng)
        predicted = np.zeros((DECISIONS, arms))
        for left_out in range(FOLDS):
            mine = fold == left_out
            model = Ridge(_inputs(kind[~mine], arm[~mine], kinds, arms), reward[~mine])
            for each in range(arms):
                inputs = _inputs(kind[mine], np.full(mine.sum(), each), kinds, arms)
                predicted[mine, each] = model.predict(inputs)
        return predicted


def _inputs(kind: Int, arm: Int, kinds: int, arms: int) -> Double:
    """The arm, the kind of task, and both together, one-hot, shape (n, d)."""
    return np.concatenate(
        [np.eye(arms)[arm], np.eye(kinds)[kind], np.eye(kinds * arms)[kind * arms + arm]], axis=1
    )


def figures(suites: Path | None) -> dict[str, Figure]:
    """All of this part; none without the suite."""
    world = world_of(suites)
    if world is None:
        return {}
    rng = np.random.default_rng(0)
    found = [evaluate(world.log(rng), rng) for _ in range(LOGS)]
    figures = {
        "ope_true_value": Figure(world.value),
        "ope_logging_value": Figure(float((world.logging * world.reward).sum(1).mean())),
        "ope_effective_share": Figure(_mean(found, "effective") / DECISIONS),
        "ope_largest_weight": Figure(_mean(found, "largest_weight")),
    }
    for name in ("ips", "snips", "dm", "dr", "sndr"):
        each = [one.estimates[name] for one in found]
        covered = float(np.mean([one.low <= world.value <= one.high for one in each]))
        aimed = name in ("snips", "dr")
        holds = 0.92 <= covered <= 0.98 if aimed else None
        target = "0.92..0.98" if aimed else None
        figures[f"ope_{name}_coverage"] = Figure(covered, target, holds)
    errors = {
        name: float(np.mean([(one.estimates[name].value - world.value) ** 2 for one in found]))
        for name in ("ips", "snips", "dm", "dr", "sndr")
    }
    for name, error in errors.items():
        figures[f"ope_{name}_rmse"] = (
            below(error**0.5, errors["ips"] ** 0.5) if name == "dr" else Figure(error**0.5)
        )
    return figures | _violations(world, rng)


def _violations(world: World, rng: np.random.Generator) -> dict[str, Figure]:
    """What is reported when the logging policy never takes the best arm of half of the kinds."""
    blind = world.kind % 2 == 0
    logging = world.logging.copy()
    logging[blind, world.target[blind].argmax(axis=1)] = 0
    logging /= logging.sum(axis=1, keepdims=True)
    forced = World(world.reward, world.kind, logging, world.target)
    found = evaluate(forced.log(rng), rng).diagnostics
    whole = evaluate(world.log(rng), rng).diagnostics
    assert found.violations is not None
    share, expected = found.violations / DECISIONS, float(blind.mean())
    return {
        "ope_violations_without": Figure(int(whole.violations or 0), "0", whole.violations == 0),
        "ope_violations_forced_share": Figure(
            share, f"{expected:.3f} +- 0.04", abs(share - expected) < 0.04
        ),
        "ope_violations_forced_mean_weight": Figure(found.mean_weight),
    }


def world_of(suites: Path | None) -> World | None:
    """The world of the suite ``llmrouter`` in a folder of suites; None, and a word, without it."""
    if suites is None or not (suites / "llmrouter").is_dir():
        print("No llmrouter: pass the folder that holds the suite, --suites DIR.")
        return None
    suite = Suite.load(suites / "llmrouter")
    arms = suite.library.ids
    tasks = [task for task in suite.tasks if task.split == "train"]
    reward = np.array([[(task.outcomes or {})[arm] for arm in arms] for task in tasks])
    names = sorted({str(task.metadata["task_name"]) for task in tasks})
    kind = np.array([names.index(str(task.metadata["task_name"])) for task in tasks])
    shaping = np.random.default_rng(1).random(len(tasks)) < 0.5
    averages = np.array([reward[shaping & (kind == k)].mean(axis=0) for k in range(len(names))])
    overall = np.broadcast_to(reward[shaping].mean(axis=0), reward.shape)
    rest = ~shaping
    return World(
        reward[rest],
        kind[rest],
        softmax(LOGGING_SHARPNESS * overall)[rest],
        softmax(TARGET_SHARPNESS * averages[kind])[rest],
    )


def softmax(scores: Double) -> Double:
    """Probabilities, rows that sum to 1."""
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    shares: Double = weights / weights.sum(axis=1, keepdims=True)
    return shares


def _mean(found: list[Evaluation], name: str) -> float:
    return float(np.mean([getattr(one.diagnostics, name) for one in found]))
