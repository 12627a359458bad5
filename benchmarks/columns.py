"""What each column of the features earns on the mock: training with it less training without it.

Each policy is trained like that of ``make train``, with fewer decisions, and earns on tasks and
worlds that it was not trained on. Differences are paired over the seeds of training.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from agents.baselines import Learned
from agents.config import read
from agents.evaluation import Interval, earn, held_out
from agents.training import Run
from letta_gym.selection.observation import FEATURE

CONFIG = Path(__file__).parent.parent / "configs/mock.yaml"
STEPS, SEEDS = 400_000, 5
SESSIONS, FIRST_SEED = 512, 80_000


def gains(say: Callable[[str], None]) -> dict[str, Interval]:
    """Reward per task that each column adds, by its name."""
    whole = [_earned((), seed) for seed in range(SEEDS)]
    found = {}
    for name in FEATURE:
        without = [_earned((name,), seed) for seed in range(SEEDS)]
        gain = Interval.of([a - b for a, b in zip(whole, without, strict=True)])
        say(f"{name} adds {gain.mean:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}] on the mock")
        found[name] = gain
    return found


def _earned(without: tuple[str, ...], seed: int) -> float:
    changes = [f"policy.without=[{','.join(without)}]", f"train.steps={STEPS}", f"seed={seed}"]
    config = read(CONFIG, [*changes, "train.evaluate=false"])
    with tempfile.TemporaryDirectory() as folder:
        run = Run(config, Path(folder))
        run.train()
        weights = run.export().weights
        run.close()
    return earn(Learned(weights), held_out(config, "test"), FIRST_SEED, SESSIONS)
