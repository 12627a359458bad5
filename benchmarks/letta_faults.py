"""A training run on a real Letta V1 server in which a fifth of all calls go wrong.

A part of ``python -m benchmarks.letta``. Every kind of fault is injected, at random, into every
kind of call: making an agent, sending the task, removing the agent.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from agents.live_config import LiveRunConfig
from agents.live_run import LiveRun
from agents.ppo import Metrics
from benchmarks.figures import Figure, at_least, below, equal
from letta_gym.config import resolve
from letta_gym.feedback.outcome import Outcome
from letta_gym.letta.backend import Outcomes, Requests
from letta_gym.letta.live import LiveBackend
from tests.faults import Fault, FaultyProxy
from tests.letta.contents import Contents

SHARE, DEADLINE = 0.2, 6.0


class Watch:
    """A backend that notes what a real one's outcomes were, and how long each step took.

    Attributes:
        seconds: of each step.
        outcomes: of every request, in order.
        wrong: outcomes that were evidence, but not what the stub model must answer.
    """

    def __init__(self, inner: LiveBackend) -> None:
        assert inner.suite is not None
        self.inner, self.tasks = inner, inner.suite.tasks
        self.skills = tuple(inner.suite.library)
        self.seconds: list[float] = []
        self.outcomes: list[Outcome] = []
        self.wrong = 0

    def execute(self, requests: Requests) -> Outcomes:
        """Let the real one carry the requests out."""
        started = time.perf_counter()
        out = self.inner.execute(requests)
        self.seconds.append(time.perf_counter() - started)
        self.outcomes += out.details
        for row, outcome in enumerate(out.details):
            relevant = self.tasks[int(requests.tasks[row])].relevant
            chosen = {self.skills[i].id for i in requests.skills[row].tolist() if i >= 0}
            must = float(bool(chosen & set(relevant)))
            self.wrong += outcome.evidence and outcome.success != must
        return out

    @property
    def evidence(self) -> int:
        """Outcomes that were evidence."""
        return sum(outcome.evidence for outcome in self.outcomes)


class WatchedRun(LiveRun):
    """A run that notes how many samples its updates learned from."""

    learned = 0

    def learn(self) -> Metrics:
        """Collect and update once."""
        metrics = super().learn()
        self.learned += int((self.ppo.rollout.weights > 0).sum())
        return metrics


def faults(url: str, model: str, config: Mapping[str, Any], folder: Path) -> dict[str, Figure]:
    """Train through a proxy that spoils calls, and count what came of it.

    Args:
        url: address of the server.
        model: handle of the stub model.
        config: of the run, whose suite is one of look-alikes and whose k is 1.
        folder: of the run.
    """
    rng, kinds = np.random.default_rng(0), list(Fault)
    started = False
    calls = 0

    def plan(method: str, path: str) -> Fault | None:
        nonlocal calls
        drawn, kind = rng.random(), kinds[rng.integers(len(kinds))]
        calls += started
        return kind if started and drawn < SHARE else None

    with (
        FaultyProxy(url, plan, late=2 * DEADLINE) as proxy,
        Contents(url, model) as contents,
    ):
        rest = {**config["rest"], "base_url": proxy.url, "deadline": DEADLINE, "concurrency": 4}
        run = WatchedRun(resolve(LiveRunConfig, {**config, "rest": rest}), folder)
        sessions = run.driver.sessions
        backend = sessions.backend
        assert isinstance(backend, LiveBackend)
        watch = sessions.backend = Watch(backend)
        started = True
        run.train()
        started = False
        sessions.backend = backend
        run.close()
        left = contents.ours()
    entered = len(sessions.memory) - watch.evidence
    return {
        "faulty/rollouts": at_least(run.ppo.global_step, config["train"]["steps"]),
        "faulty/share_of_calls": Figure(len(proxy.faults) / calls),
        "faulty/kinds_injected": equal(len({kind for kind, _, _ in proxy.faults}), len(kinds)),
        "faulty/rollouts_lost": Figure(sessions.failures + sessions.ungraded),
        "faulty/updates_skipped": Figure(run.ppo.num_skipped),
        "faulty/outcomes_in_memory": equal(entered, 0),
        "faulty/outcomes_in_updates": equal(run.learned - watch.evidence, 0),
        "faulty/outcomes_graded_wrong": equal(watch.wrong, 0),
        "faulty/longest_step_beyond_deadline_s": below(max(watch.seconds) - DEADLINE, 0.5),
        "faulty/left_on_the_server": equal(len(left), 0),
    }
