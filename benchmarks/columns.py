"""What each column of the features adds: what is learned with it less what is learned without it.

On the mock each policy is trained like that of ``make train``, with fewer decisions, and earns on
tasks and worlds that it was not trained on. Differences are paired.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from agents.baselines import Learned
from agents.config import read
from agents.evaluation import Interval, earn, held_out
from agents.training import Run
from benchmarks.mock import CONFIG
from letta_gym.selection.observation import FEATURE

STEPS, SEEDS = 400_000, 5
SESSIONS, FIRST_SEED = 512, 80_000


def gains(
    measured: Callable[[tuple[str, ...]], Sequence[float]], say: Callable[[str], None]
) -> dict[str, Interval]:
    """What each column adds, by its name.

    Args:
        measured: runs without some columns, in an order that is always the same.
        say: told of each column.
    """
    whole, found = measured(()), {}
    for name in FEATURE:
        pairs = zip(whole, measured((name,)), strict=True)
        gain = Interval.of([with_it - without for with_it, without in pairs])
        say(f"{name} adds {gain.mean:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]")
        found[name] = gain
    return found


def on_mock(without: tuple[str, ...]) -> list[float]:
    """Reward per task of policies that were trained ``without`` some columns, by seed."""
    return [_earned(without, seed) for seed in range(SEEDS)]


def _earned(without: tuple[str, ...], seed: int) -> float:
    changes = [f"policy.without=[{','.join(without)}]", f"train.steps={STEPS}", f"seed={seed}"]
    config = read(CONFIG, [*changes, "train.evaluate=false"])
    with tempfile.TemporaryDirectory() as folder:
        run = Run(config, Path(folder))
        run.train()
        weights = run.export().weights
        run.close()
    return earn(Learned(weights), held_out(config, "test"), FIRST_SEED, SESSIONS)
