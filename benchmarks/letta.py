"""What the REST backend does on a real Letta V1 server: pace, learning, faults, kills.

``make test-letta`` installs the server. ``--url`` takes a running one with the stub model instead
of starting one; ``--only`` measures some of the parts, and then writes nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml

import train
from agents.live_config import LiveRunConfig
from agents.live_run import LiveRun
from agents.run import SUMMARY
from benchmarks.figures import Figure, at_least, below, equal, report, table
from letta_gym.config import resolve
from letta_gym.letta.rest import RestConfig, rest_backend
from letta_gym.letta.rollout import Rollout
from letta_gym.library.skills import Skill
from tests.faults import Fault, FaultyProxy
from tests.letta.contents import Contents
from tests.letta.servers import ROOT, letta_server
from tests.look_alikes import make_look_alikes
from tests.small_suite import write_suite
from tests.stub_llm import MODEL

Figures = dict[str, Figure]

CONCURRENCY = 8
PACE_ROLLOUTS, PACE_ROUNDS = 24, 3
LEARNING_ROLLOUTS = 480
FAULTY_ROLLOUTS, FAULTY_SHARE, FAULTY_DEADLINE = 200, 0.2, 10.0
KILLS = 20


def pace(url: str, model: str) -> Figures:
    """Rollouts a second beside a bare client that makes the same calls, in turns."""
    skill = Skill("add", "add", "how to do add tasks", "PROCEDURE add: answer 42")
    config = RestConfig(base_url=url, model=model, concurrency=CONCURRENCY, deadline=300)
    ours, bare = [], []
    with rest_backend(config) as backend:
        backend.run([Rollout("TASK add: warm up", (skill,))])
        for _ in range(PACE_ROUNDS):
            start = time.perf_counter()
            backend.run([Rollout("TASK add: go on", (skill,)) for _ in range(PACE_ROLLOUTS)])
            ours.append(time.perf_counter() - start)
            bare.append(asyncio.run(_bare(url, model, skill)))
    ratio = float(np.median(np.array(bare) / np.array(ours)))
    return {
        "rollouts_per_second": Figure(PACE_ROLLOUTS / float(np.median(ours))),
        "bare_client_rollouts_per_second": Figure(PACE_ROLLOUTS / float(np.median(bare))),
        "share_of_bare_client": at_least(ratio, 0.85),
    }


async def _bare(url: str, model: str, skill: Skill) -> float:
    """Seconds that letta-client alone takes for the rollouts of one round."""
    from letta_client import AsyncLetta

    async with AsyncLetta(base_url=url, max_retries=0) as client:
        block = await client.blocks.create(label="bare", value=skill.body, read_only=True)
        slots = asyncio.Semaphore(CONCURRENCY)

        async def one() -> None:
            async with slots:
                agent = await client.agents.create(
                    model=model,
                    agent_type="letta_v1_agent",
                    block_ids=[block.id],
                    include_base_tools=False,
                )
                await client.agents.messages.create(agent.id, input="TASK add: go on")
                await client.agents.delete(agent.id)

        start = time.perf_counter()
        await asyncio.gather(*(one() for _ in range(PACE_ROLLOUTS)))
        took = time.perf_counter() - start
        await client.blocks.delete(block.id)
    return took


def learning(url: str, model: str) -> Figures:
    """A policy that starts as the retrieval ranking, on look-alikes that outcomes tell apart."""
    with _suite() as (folder, suite):
        config = folder / "letta.yaml"
        data = _run_config(url, model, suite, steps=LEARNING_ROLLOUTS)
        config.write_text(yaml.safe_dump(data), encoding="utf-8")
        if code := train.main([f"--config={config}", f"--run-dir={folder / 'run'}"]):
            raise SystemExit(code)
        summary = json.loads((folder / "run" / SUMMARY).read_text(encoding="utf-8"))
    agents = summary["evaluation"]["agents"]
    success = {name: float(each["success"]["mean"]) for name, each in agents.items()}
    return {
        "training_rollouts": Figure(summary["steps"], "<= 600", summary["steps"] <= 600),
        "success_of_retrieval": Figure(success["retrieval"], "<= 0.5", success["retrieval"] <= 0.5),
        "success_of_evidence": Figure(success["evidence"]),
        "success_of_learned": Figure(success["learned"]),
        "success_of_oracle": Figure(success["oracle"]),
        "learned_share_of_oracle": at_least(success["learned"] / success["oracle"], 0.9),
    }


def faults(url: str, model: str) -> Figures:
    """A training run in which a fifth of all calls go wrong in every way there is."""
    rng, kinds = np.random.default_rng(0), list(Fault)
    started = False

    def plan(method: str, path: str) -> Fault | None:
        drawn, kind = rng.random(), kinds[rng.integers(len(kinds))]
        return kind if started and drawn < FAULTY_SHARE else None

    with (
        _suite() as (folder, suite),
        FaultyProxy(url, plan, late=2 * FAULTY_DEADLINE) as proxy,
        Contents(url, model) as contents,
    ):
        data = _run_config(proxy.url, model, suite, steps=FAULTY_ROLLOUTS)
        data["rest"] |= {"deadline": FAULTY_DEADLINE, "breaker": {"failures": 50}, "concurrency": 4}
        data["train"]["ppo"] |= {"num_envs": 4, "num_steps": 10}
        run = LiveRun(resolve(LiveRunConfig, data), folder / "run")
        slowest = _longest_step(run)
        started = True
        run.train()
        started = False
        run.close()
        sessions = run.driver.sessions
        decided, known = len(sessions.journal()[0]), len(sessions.memory)
        left = contents.ours()
    lost = sessions.failures
    return {
        "faults_injected": Figure(len(proxy.faults)),
        "rollouts_lost_to_faults": Figure(lost),
        "faulty_outcomes_in_memory": equal(known - (decided - lost), 0),
        "longest_step_beyond_deadline_seconds": below(max(slowest) - FAULTY_DEADLINE, 0.5),
        "left_on_the_server": equal(len(left), 0),
    }


def _longest_step(run: LiveRun) -> list[float]:
    """Seconds of each step of the environment, noted from now on."""
    sessions, noted = run.driver.sessions, list[float]()
    inner = sessions.outcomes

    def timed(requests: Any) -> Any:
        start = time.perf_counter()
        out = inner(requests)
        noted.append(time.perf_counter() - start)
        return out

    sessions.outcomes = timed  # type: ignore[method-assign]
    return noted


def kills(url: str, model: str) -> Figures:
    """Processes that were killed in mid-task on a long-lived agent."""
    command = [sys.executable, "-m", "tests.letta.drill", url, model, str(KILLS), "0"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    result = json.loads(done.stdout)
    return {
        "kills": Figure(result["kills"]),
        "kills_that_left_something": Figure(result["dirty"]),
        "agents_restored": equal(result["restored"], KILLS),
    }


def _run_config(url: str, model: str, suite: Path, steps: int) -> dict[str, Any]:
    return {
        "kind": "letta",
        "suite": {"path": str(suite)},
        "env": {"max_skills": 1, "candidates": 12},
        "rest": {"base_url": url, "model": model, "concurrency": CONCURRENCY, "deadline": 300},
        "train": {
            "steps": steps,
            "ppo": {"num_envs": CONCURRENCY, "num_steps": 5, "gamma": 0.0, "learning_rate": 0.001},
        },
    }


@contextlib.contextmanager
def _suite() -> Iterator[tuple[Path, Path]]:
    """A scratch folder, and the suite of look-alikes in it."""
    folder = Path(tempfile.mkdtemp(prefix="letta-gym-"))
    try:
        yield folder, write_suite(folder / "look-alikes", make_look_alikes())
    finally:
        shutil.rmtree(folder)


PARTS: dict[str, Callable[[str, str], Figures]] = {
    "pace": pace,
    "learning": learning,
    "faults": faults,
    "kills": kills,
}


def main() -> int:
    """Measure, print and write the figures; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", metavar="URL", help="a running server with the stub model")
    parser.add_argument("--only", nargs="+", choices=PARTS, metavar="PART", default=list(PARTS))
    options = parser.parse_args()
    figures: Figures = {}
    with contextlib.ExitStack() as stack:
        url, model = options.url, f"vllm/{MODEL}"
        if url is None:
            server = stack.enter_context(letta_server())
            url, model = server.url, server.model
        for name in options.only:
            figures |= PARTS[name](url, model)
    if set(options.only) == set(PARTS):
        report("letta", figures, ("letta-client",))
    else:
        print(table(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
