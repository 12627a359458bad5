"""What Ray brings: rollouts over actors around a backend that takes its time, and one that dies.

Rates are by the clock, the best of three that alternate.

``python -m benchmarks.ray``, in the environment of ``make test-ray``.
"""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import ray

from benchmarks.figures import Figure, at_least, equal, report
from letta_gym.letta.backend import Outcomes, Requests
from letta_gym.letta.ray_backend import RayBackend, RayConfig

ACTORS, SECONDS, EACH = 4, 0.05, 60
ROLLOUTS, KILLED_SECONDS, KILL_AFTER = 400, 0.02, 0.7


class Sleeps:
    """Takes its time and answers with the number of the task; notes who it is in a folder."""

    def __init__(self, folder: Path, seconds: float = SECONDS) -> None:
        self.folder, self.seconds = folder, seconds

    def execute(self, requests: Requests) -> Outcomes:
        """Sleep for each request."""
        (self.folder / str(os.getpid())).touch()
        time.sleep(self.seconds * len(requests.rows))
        chosen = requests.skills >= 0
        return Outcomes(
            success=(requests.tasks / 1000).astype(np.float32),
            loaded=chosen,
            tokens=np.where(chosen, requests.skills, 0).sum(1).astype(np.float32),
            expected=np.full(len(requests.rows), np.nan, np.float32),
            evidence=np.ones(len(requests.rows), bool),
        )


def asked(count: int) -> Requests:
    """Requests of the tasks 0 to ``count`` - 1, with one skill each."""
    tasks = np.arange(count)
    return Requests(tasks, tasks, np.stack([tasks % 7, np.full(count, -1)], 1))


def rollouts_per_second(actors: int, folder: Path, count: int) -> float:
    """Of ``count`` rollouts by actors that are up."""
    with RayBackend(lambda: Sleeps(folder), RayConfig(actors=actors)) as backend:
        backend.execute(asked(2 * actors))
        start = time.perf_counter()
        backend.execute(asked(count))
        return count / (time.perf_counter() - start)


def best_rates(folder: Path, count: int, repeats: int = 3) -> tuple[float, float]:
    """Rollouts a second of one actor with ``count``, and of four with four times as many."""
    pairs = [
        [rollouts_per_second(actors, folder, actors * count) for actors in (1, ACTORS)]
        for _ in range(repeats)
    ]
    one, four = (max(rates) for rates in zip(*pairs, strict=True))
    return one, four


def one_killed(folder: Path, count: int) -> tuple[Outcomes, int]:
    """What comes of ``count`` rollouts while one of four actors is killed, and how many died."""
    config = RayConfig(actors=ACTORS)
    with RayBackend(lambda: Sleeps(folder, KILLED_SECONDS), config) as backend:
        backend.execute(asked(2 * ACTORS))
        victim = int(next(folder.iterdir()).name)
        timer = threading.Timer(KILL_AFTER, os.kill, (victim, signal.SIGKILL))
        timer.start()
        out = backend.execute(asked(count))
        timer.join()
        return out, backend.died


def main() -> None:
    """Measure, print and write the figures."""
    ray.init(num_cpus=ACTORS, include_dashboard=False, log_to_driver=False)
    folders = [Path(tempfile.mkdtemp()) for _ in range(2)]
    one, four = best_rates(folders[0], EACH)
    out, died = one_killed(folders[1], ROLLOUTS)
    answers = np.rint(out.success[out.evidence] * 1000)
    figures = {
        "rollouts_per_s_one_actor": Figure(one),
        "rollouts_per_s_four_actors": Figure(four),
        "four_actors_over_one": at_least(four / one, 3.4),
        "killed_actors": equal(died, 1),
        "killed_outcomes": equal(len(answers), ROLLOUTS),
        "killed_distinct_outcomes": equal(len(np.unique(answers)), ROLLOUTS),
    }
    ray.shutdown()
    report("ray", figures, ("ray",))


if __name__ == "__main__":
    main()
