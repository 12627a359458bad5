"""How fast the environment, PPO and the runtime are, each beside a peer measured in between.

Everything runs on one BLAS thread. A rate is by processor time, which other work on the machine
hardly touches, and the best of several interleaved repeats; a ratio is that of two such rates.
PPO of Stable-Baselines3 has 16 environments in its own ``DummyVecEnv`` and a network of its default
size; ``sb3_batched`` gives it the batched environment instead, which tells what the environment
makes out and what the learner. ``torch`` is the same network, loss, batch and batched environment
as ours with torch's autograd and optimiser.
"""

from __future__ import annotations

import os

os.environ |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode

from agents.config import RunConfig, read
from agents.ppo import PPO
from agents.skill_policy import SkillPolicy
from benchmarks.figures import Figure, at_least, below, report
from benchmarks.runtime import (
    ROOT,
    choices,
    first_choice,
    library_of_64,
    medians,
    remember,
    untrained,
)
from letta_gym.envs.vector import SkillSelectionVectorEnv
from letta_gym.library.passages import described
from letta_gym.library.skills import SkillLibrary
from letta_gym.library.suite import Suite, bundled_suite
from letta_gym.library.vectors import SuiteVectors, VectorTable, snap, text_hash
from letta_gym.selection.runtime import SkillSelector
from letta_gym.selection.session import Query
from letta_gym.selection.shelf import Shelf

ID = "letta_gym/MockSkillSelection-v0"
BATCHES, PEER, STEPS, REPEATS = (16, 64, 256, 1024), 256, 64, 3
LIBRARIES, OUTCOMES, SLOTS = (1_000, 10_000, 100_000), 5_000, 64
AT_ONCE = 16  # tasks in one call


def rates(runs: Mapping[str, Callable[[], int]], repeats: int = REPEATS) -> dict[str, float]:
    """Units of work in a second of processor time, of functions that return how much they did."""
    best = dict.fromkeys(runs, 0.0)
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.process_time()
            done = run()
            best[name] = max(best[name], done / (time.process_time() - start))
    return best


def played(env: Any, count: int, steps: int) -> Callable[[], int]:
    """Plays ``steps`` random actions in every environment of a batch, resets included."""
    rng = np.random.default_rng(0)
    env.reset(seed=0)
    slots = env.single_action_space.n
    actions = (rng.random((steps, count, slots)) < 0.1).astype(np.int8)

    def run() -> int:
        for action in actions:
            env.step(action)
        return count * steps

    return run


def played_alone(obs: str) -> Callable[[], int]:
    """Plays one whole session of the single environment."""
    env = gymnasium.make(ID, obs=obs)
    actions = (np.random.default_rng(0).random((STEPS, 12)) < 0.1).astype(np.int8)

    def run() -> int:
        env.reset()
        for action in actions:
            env.step(action)
        return len(actions)

    env.reset(seed=0)
    return run


def environments(obs: str) -> dict[str, float]:
    """Decisions a second: single, Sync of :data:`PEER`, and batches; sessions of 64 tasks."""
    sync = gymnasium.make_vec(
        ID,
        num_envs=PEER,
        vectorization_mode="sync",
        vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP},
        obs=obs,
    )
    runs = {"single": played_alone(obs), f"sync_{PEER}": played(sync, PEER, 8)}
    for count in BATCHES:
        runs[f"batched_{count}"] = played(SkillSelectionVectorEnv(count, obs=obs), count, STEPS)
    return rates(runs)


def learner(config: RunConfig, seed: int = 0) -> PPO:
    """Our PPO as ``config`` has it."""
    env = SkillSelectionVectorEnv(
        config.train.ppo.num_envs, **config.environment(split="train").model_dump()
    )
    rng, start = np.random.default_rng(seed), config.policy
    model = SkillPolicy(
        rng,
        config.env.max_skills,
        hidden=start.hidden,
        sharpness=start.sharpness,
        threshold=start.threshold,
    )
    return PPO(env, model, config.train.ppo, rng, total_steps=config.train.steps)


def training() -> dict[str, float]:
    """Steps a second of PPO, update included: ours, the same in torch, and Stable-Baselines3."""
    import torch

    from benchmarks.peers import TorchPPO, batched_sb3, sb3_ppo

    torch.set_num_threads(1)
    config = read(ROOT / "configs/mock.yaml", [])
    ours, theirs = learner(config), TorchPPO(learner(config))
    theirs.updated()

    def update() -> int:
        ours.collect()
        ours.update()
        return config.train.ppo.batch_size

    def sb3(model: Any, steps: int) -> Callable[[], int]:
        def run() -> int:
            model.learn(steps, reset_num_timesteps=False)
            return steps

        return run

    runs = {
        "ours": update,
        "torch": theirs.updated,
        "sb3": sb3(sb3_ppo(16, 128), 2048),
        "sb3_batched": sb3(batched_sb3(16, 128), 2048),
    }
    return rates(runs)


def library(vectors: SuiteVectors, count: int) -> tuple[SkillLibrary, VectorTable]:
    """``count`` skills: those of the bundled library, moved a little and without a body."""
    rng = np.random.default_rng(0)
    own = list(bundled_suite().library)
    skills = [
        replace(own[i % len(own)], id=f"{own[i % len(own)].id}-{i}", name=f"s{i}", body="")
        for i in range(count)
    ]
    order = sorted(range(count), key=lambda i: skills[i].id)
    base = vectors.skills.matrix[np.arange(count) % len(own)]
    moved = base + 0.1 * rng.standard_normal(base.shape).astype(np.float32)
    skills, matrix = [skills[i] for i in order], snap(moved)[order]
    hashes = tuple(text_hash(described(skill)) for skill in skills)
    return SkillLibrary(skills), VectorTable(tuple(s.id for s in skills), matrix, hashes)


def searching(table: VectorTable, vectors: SuiteVectors) -> Callable[[int], None]:
    """The yardstick: the best 64 rows by their dot product, in plain NumPy."""
    matrix = np.ascontiguousarray(table.matrix)

    def search(i: int) -> None:
        scores = matrix @ vectors.tasks.matrix[i % len(vectors.tasks)]
        best = np.argpartition(-scores, SLOTS)[:SLOTS]
        best[np.argsort(-scores[best])]

    return search


def rounds(selector: SkillSelector, suite: Suite, vectors: SuiteVectors) -> Callable[[int], None]:
    """A function that chooses for the i-th tasks of the suite, :data:`AT_ONCE` of them."""
    tasks = zip(suite.tasks, vectors.tasks.matrix, strict=True)
    queries = [Query(task.text, embedding=vector) for task, vector in tasks]

    def choose(i: int) -> None:
        first = i * AT_ONCE % (len(queries) - AT_ONCE)
        selector.select_many(queries[first : first + AT_ONCE])

    return choose


def latency(vectors: SuiteVectors) -> dict[str, Figure]:
    """Median microseconds of one choice, and how often the time of bare top-k that is."""
    suite, policy = bundled_suite(), untrained(vectors, slots=SLOTS)
    skills, table = library_of_64(suite, vectors)
    small = SkillSelector(policy, Shelf(skills, policy, table))
    alone, together = medians(choices(small, suite, vectors), rounds(small, suite, vectors))
    figures = {
        "select_64_candidates_us": below(alone, 100),
        f"select_64_candidates_{AT_ONCE}_at_once_us": Figure(together / AT_ONCE),
    }
    for size in LIBRARIES:
        skills, table = library(vectors, size)
        empty, full = (SkillSelector(policy, Shelf(skills, policy, table)) for _ in range(2))
        remember(full, vectors, OUTCOMES)
        select, filled, bare = medians(
            choices(empty, suite, vectors),
            choices(full, suite, vectors),
            searching(table, vectors),
            calls=max(3, 100_000 // size),
        )
        name, target = f"{size // 1000}k", {10_000: 3.0, 100_000: 2.0}.get(size)
        ratio = select / bare
        figures |= {
            f"top_64_of_{name}_us": Figure(bare),
            f"select_of_{name}_us": Figure(select),
            f"select_over_top_k_{name}": Figure(ratio)
            if target is None
            else Figure(ratio, f"<= {target:g}", ratio <= target),
            f"select_over_top_k_{name}_{OUTCOMES}_outcomes": Figure(filled / bare),
        }
    return figures


def import_seconds() -> float:
    """Seconds from the start of a process to ``import letta_gym`` done; best of nine."""
    command = [sys.executable, "-c", "import letta_gym"]
    times = []
    for _ in range(9):
        start = time.perf_counter()
        subprocess.run(command, cwd=ROOT, check=True)
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    """Measure, print and write the figures."""
    vectors = bundled_suite().vectors
    assert vectors is not None
    figures: dict[str, Figure] = {}
    for obs, target in (("compact", 20), ("full", 8)):
        found = environments(obs)
        figures |= {f"decisions_per_s_{obs}_{name}": Figure(r) for name, r in found.items()}
        ratio = found[f"batched_{PEER}"] / found[f"sync_{PEER}"]
        figures[f"batched_over_sync_{PEER}_{obs}"] = at_least(ratio, target)
    most = max(float(figures[f"decisions_per_s_compact_batched_{n}"].value) for n in BATCHES)
    figures["decisions_per_s_compact_best"] = at_least(most, 100_000)
    trained = training()
    figures |= {f"ppo_steps_per_s_{name}": Figure(rate) for name, rate in trained.items()}
    figures["ppo_over_sb3"] = at_least(trained["ours"] / trained["sb3"], 4)
    figures["ppo_over_torch"] = at_least(trained["ours"] / trained["torch"], 1.8)
    figures["ppo_over_sb3_batched"] = Figure(trained["ours"] / trained["sb3_batched"])
    figures["import_s"] = Figure(import_seconds())
    figures["load_and_first_select_s"] = Figure(first_choice(vectors)[0])
    figures |= latency(vectors)
    report("speed", figures, ("gymnasium", "torch", "stable-baselines3"))


if __name__ == "__main__":
    main()
