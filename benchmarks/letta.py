"""Two real Lettas: pace, learning, faults and kills on a V1 server, and what Letta Code takes.

``make test-letta`` installs both. ``--url`` takes a running V1 server with the stub model instead
of starting one; ``--only`` measures some of the parts, and the figures of the others stay.
"""

from __future__ import annotations

import os

os.environ |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

import argparse
import asyncio
import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train
from agents.chart import line_chart
from agents.run import CONFIG, SUMMARY
from benchmarks import letta_code, letta_faults
from benchmarks.figures import RESULTS, Figure, at_least, equal, measured, report
from letta_gym.letta.rest import RestConfig, rest_backend
from letta_gym.letta.rollout import Rollout
from letta_gym.library.skills import Skill
from tests.letta.contents import Contents
from tests.letta.servers import ROOT, letta_server
from tests.look_alikes import make_look_alikes
from tests.side_by_side import side_by_side
from tests.small_suite import write_suite
from tests.stub_llm import MODEL

Figures = dict[str, Figure]

CONCURRENCY = 8
PACE_ROLLOUTS, PACE_ROUNDS = 24, 5
SIDE_BY_SIDE = 48
LEARNING_ROLLOUTS, FAULTY_ROLLOUTS = 480, 200
KILLS = 20
LEARNING = RESULTS / "letta-learning"
"""Where the run of the part ``learning`` is kept: configuration, summary, TensorBoard events."""
PICTURE = ROOT / "docs" / "letta-learning.png"


def rollouts(url: str, model: str) -> Figures:
    """Rollouts with different skills, 8 at once, each graded as the stub must answer."""
    asked, must = side_by_side(SIDE_BY_SIDE)
    figures: Figures = {}
    with Contents(url, model) as contents:
        for present in ("preloaded", "listed"):
            config = RestConfig.model_validate(
                {
                    "base_url": url,
                    "model": model,
                    "concurrency": CONCURRENCY,
                    "present": present,
                    "deadline": 300,
                }
            )
            with rest_backend(config) as backend:
                outcomes = backend.run(asked)
            right = sum(o.success == m for o, m in zip(outcomes, must, strict=True))
            figures |= {
                f"rest/graded_right/{present}": equal(right, SIDE_BY_SIDE),
                f"rest/left_on_the_server/{present}": equal(len(contents.ours()), 0),
            }
    return figures


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
        "rest/rollouts_per_s": Figure(PACE_ROLLOUTS / float(np.median(ours))),
        "rest/bare_client_rollouts_per_s": Figure(PACE_ROLLOUTS / float(np.median(bare))),
        "rest/share_of_bare_client": at_least(ratio, 0.85),
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
    """A policy that starts as the retrieval ranking, on look-alikes that outcomes tell apart.

    The run is that of ``train.py``; what it leaves is kept.
    """
    with _suite() as (folder, suite):
        config, run = folder / "letta.yaml", folder / "run"
        data = run_config(url, model, suite, steps=LEARNING_ROLLOUTS)
        config.write_text(yaml.safe_dump(data), encoding="utf-8")
        if code := train.main([f"--config={config}", f"--run-dir={run}"]):
            raise SystemExit(code)
        summary = json.loads((run / SUMMARY).read_text(encoding="utf-8"))
        shutil.rmtree(LEARNING, ignore_errors=True)
        LEARNING.mkdir(parents=True)
        for path in (run / SUMMARY, run / CONFIG, *run.glob("events.*")):
            shutil.copy(path, LEARNING)
    picture(summary)
    agents = summary["evaluation"]["agents"]
    success = {name: float(each["success"]["mean"]) for name, each in agents.items()}
    return {
        "learning/rollouts": Figure(summary["steps"], "<= 600", summary["steps"] <= 600),
        "learning/success_of_retrieval": Figure(
            success["retrieval"], "<= 0.5", success["retrieval"] <= 0.5
        ),
        "learning/success_of_evidence": Figure(success["evidence"]),
        "learning/success_of_learned": Figure(success["learned"]),
        "learning/success_of_oracle": Figure(success["oracle"]),
        "learning/learned_share_of_oracle": at_least(success["learned"] / success["oracle"], 0.9),
    }


def picture(summary: Mapping[str, Any]) -> None:
    """Draw the success in training, from the kept TensorBoard events, for the documentation."""
    events = EventAccumulator(str(LEARNING)).Reload().Scalars("selection/success")
    steps = np.array([0, *(event.step for event in events)])
    agents = summary["evaluation"]["agents"]
    base, best = (agents[name]["success"]["mean"] for name in ("retrieval", "oracle"))
    chart = line_chart(
        {
            "in training": (steps[1:], np.array([event.value for event in events])),
            "oracle": (steps, np.full(len(steps), best)),
            "retrieval ranking": (steps, np.full(len(steps), base)),
        },
        "Learning on a real Letta V1 server: which look-alike works",
        "rollouts",
        f"success; in training the mean of {steps[1]} rollouts, the others on 48 test tasks",
        scale=2,
    )
    Image.fromarray(chart).quantize(64).save(PICTURE, optimize=True)


def faults(url: str, model: str) -> Figures:
    """A training run in which a fifth of all calls go wrong in every way there is."""
    with _suite() as (folder, suite):
        data = run_config(url, model, suite, steps=FAULTY_ROLLOUTS)
        data["train"]["ppo"] |= {"num_envs": 4, "num_steps": 10}
        return letta_faults.faults(url, model, data, folder / "run")


def kills(url: str, model: str) -> Figures:
    """Processes that were killed in mid-task on a long-lived agent."""
    command = [sys.executable, "-m", "tests.letta.drill", url, model, str(KILLS), "0"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    result = json.loads(done.stdout)
    return {
        "killed/processes": equal(result["kills"], KILLS),
        "killed/that_left_something": Figure(result["dirty"]),
        "killed/agents_restored": equal(result["restored"], KILLS),
    }


def run_config(url: str, model: str, suite: Path, steps: int) -> dict[str, Any]:
    """A run on the REST backend, as ``train.py`` reads it."""
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


ON_V1: dict[str, Callable[[str, str], Figures]] = {
    "rollouts": rollouts,
    "pace": pace,
    "learning": learning,
    "faults": faults,
    "kills": kills,
}
ON_CODE: dict[str, Callable[[], Figures]] = {
    "code": letta_code.rollouts,
    "code-pace": letta_code.pace,
    "hook": letta_code.hook_times,
}
PARTS = (*ON_V1, *ON_CODE)


def main() -> int:
    """Measure, print and write the figures; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", metavar="URL", help="a running server with the stub model")
    parser.add_argument("--only", nargs="+", choices=PARTS, metavar="PART", default=list(PARTS))
    options = parser.parse_args()
    figures: Figures = {}
    on_v1 = [name for name in ON_V1 if name in options.only]
    with contextlib.ExitStack() as stack:
        url, model = options.url, f"vllm/{MODEL}"
        if url is None and on_v1:
            server = stack.enter_context(letta_server())
            url, model = server.url, server.model
        for name in on_v1:
            figures |= ON_V1[name](url, model)
    for name in ON_CODE:
        if name in options.only:
            figures |= ON_CODE[name]()
    before = measured("letta") if set(options.only) < set(PARTS) else {}
    report("letta", before | figures, ("letta-client", "websockets"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
