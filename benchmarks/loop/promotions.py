"""The gate on 200 candidates whose true value is known, half of them worse than what runs.

The world is that of :mod:`benchmarks.loop.estimates`: the incumbent is its logging policy.
Candidates are softmax policies over a mixture of the arms' averages by kind of task, their
negative, and noise. Each is judged by a log of its own of up to 20,000 decisions of the incumbent,
at growing lengths.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.figures import Figure, at_least
from benchmarks.loop.estimates import World, softmax, world_of
from letta_gym.feedback.offpolicy import LoggedRewards
from letta_gym.feedback.promotion import GateConfig, rule

Double = NDArray[np.float64]

CANDIDATES, LENGTHS = 200, (1_000, 2_500, 5_000, 10_000, 20_000)
CLEARLY = 0.05  # gain from which a candidate ought to be promoted
GATE = GateConfig()


@dataclass(frozen=True, eq=False)
class Candidate:
    """Probabilities of the arms, shape (tasks, arms), and the true gain over the incumbent."""

    target: Double
    gain: float


def figures(suites: Path | None) -> dict[str, Figure]:
    """All of this part; none without the suite."""
    world = world_of(suites)
    if world is None:
        return {}
    rng = np.random.default_rng(2)
    candidates = _candidates(world, rng)
    promoted = np.array([_promoted(world, one.target, rng) for one in candidates])
    gain = np.array([one.gain for one in candidates])
    worse, clearly = gain < 0, gain >= CLEARLY
    ever = promoted.max(axis=1)  # at any look
    wrong = float(ever[worse].mean())
    found: dict[str, Figure] = {
        "promotion_candidates_worse": Figure(int(worse.sum())),
        "promotion_candidates_clearly_better": Figure(int(clearly.sum())),
        "promotion_worse_promoted": Figure(wrong, "<= 0.05", wrong <= 0.05),
        "promotion_clearly_better_promoted": at_least(float(promoted[clearly, -1].mean()), 0.8),
    }
    for column, length in enumerate(LENGTHS):
        share = float(promoted[clearly, column].mean())
        found[f"promotion_clearly_better_promoted_{length}"] = Figure(share)
    return found


def _candidates(world: World, rng: np.random.Generator) -> list[Candidate]:
    """As many worse ones as better ones."""
    truth = float((world.logging * world.reward).sum(axis=1).mean())
    groups: tuple[list[Candidate], list[Candidate]] = [], []
    while min(map(len, groups)) < CANDIDATES // 2:
        noise = rng.standard_normal((int(world.kind.max()) + 1, world.reward.shape[1]))
        lean, sharp, loud = rng.uniform(-1, 1), rng.uniform(1, 6), rng.uniform(0, 1)
        scores = lean * np.log(world.target) / 8 + np.log(world.logging) / 3
        target = softmax(sharp * (scores + 0.3 * loud * noise[world.kind]))
        gain = float((target * world.reward).sum(axis=1).mean()) - truth
        group = groups[1 if gain < 0 else 0]
        if len(group) < CANDIDATES // 2:
            group.append(Candidate(target, gain))
    return [*groups[0], *groups[1]]


def _promoted(world: World, target: Double, rng: np.random.Generator) -> list[bool]:
    """Whether the gate opens, at each length of one log."""
    n = LENGTHS[-1]
    task = rng.integers(len(world.reward), size=n)
    arm = (world.logging[task].cumsum(axis=1) < rng.random((n, 1))).sum(axis=1)
    logged = np.log(world.logging[task, arm]), np.log(target[task, arm])
    reward = world.reward[task, arm]
    return [
        rule(LoggedRewards(reward[:m], logged[0][:m], logged[1][:m]), GATE).promoted
        for m in LENGTHS
    ]
