"""Trains a policy as a run: progress, TensorBoard, checkpoints, the policy file, a summary."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits
from tqdm import tqdm

import letta_gym
from agents.calibration import calibrated
from agents.chart import Row, interval_chart
from agents.checkpoint import load_checkpoint, save_checkpoint
from agents.config import RunConfig
from agents.evaluation import Comparison, compare, held_out
from agents.interrupt import HeldInterrupt
from agents.ppo import PPO, Metrics
from agents.skill_policy import SkillPolicy
from agents.tensorboard import TensorBoard
from letta_gym.config import dump
from letta_gym.envs.vector import SkillSelectionVectorEnv
from letta_gym.errors import CheckpointError, ConfigError
from letta_gym.files import write_atomically
from letta_gym.selection.policy import Policy

POLICY, CHECKPOINT, CONFIG, SUMMARY = (
    "policy.safetensors",
    "checkpoint/latest.safetensors",
    "config.yaml",
    "summary.json",
)


class SelectionMeter:
    """Means of what the policy did between two reports, by TensorBoard tag."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._tasks = 0

    def add(
        self,
        infos: Mapping[str, Any],
        rewards: NDArray[Any],
        terminated: NDArray[Any],
        truncated: NDArray[Any],
    ) -> None:
        """Note one step of all sessions."""
        picked = infos["picks"] >= 0
        step = {
            "selection/reward": float(rewards.sum()),
            "selection/success": float(infos["success"].sum()),
            "selection/token_cost": float(infos["token_cost"].sum()),
            "selection/tokens": float(infos["tokens"].sum()),
            "selection/skills_per_task": float(picked.sum()),
            "selection/empty_choices": float((~picked.any(1)).sum()),
            "selection/new_skills_tried": float(infos["new_skills"].sum()),
        }
        for tag, value in step.items():
            self._sums[tag] = self._sums.get(tag, 0.0) + value
        self._tasks += len(rewards)

    def flush(self) -> Metrics:
        """Means per task since the last call."""
        means = {tag: value / self._tasks for tag, value in self._sums.items()}
        self._sums, self._tasks = {}, 0
        return means


class Run:
    """One training run in its folder.

    Args:
        config: what to do.
        folder: where ``policy.safetensors``, ``checkpoint/``, ``config.yaml``, ``summary.json`` and
            the TensorBoard events go.
        resume: continue from the folder's checkpoint.

    Raises:
        ConfigError: the folder holds another run and ``resume`` is false, or the run could not be
            evaluated at its end.
        CheckpointError: there is nothing to resume, or it belongs to another configuration.
        SuiteError: the suite is malformed, or lacks the split of the evaluation.
    """

    def __init__(self, config: RunConfig, folder: Path, *, resume: bool = False) -> None:
        self.config, self.folder = config, folder
        saved = self._saved() if resume else None
        if not resume and any((folder / name).exists() for name in (CHECKPOINT, POLICY, SUMMARY)):
            raise ConfigError(
                f"{folder} holds a run already; continue it with --resume, or choose another "
                "--run-dir"
            )
        if config.train.evaluate:
            held_out(config)
        changes = {} if config.train.new_share is None else {"new_share": config.train.new_share}
        env_config = config.environment(split="train", **changes)
        self.env = SkillSelectionVectorEnv(config.train.ppo.num_envs, **env_config.model_dump())
        rng = np.random.default_rng(config.seed)
        self.model = SkillPolicy(
            rng,
            config.env.max_skills,
            hidden=config.policy.hidden,
            sharpness=config.policy.sharpness,
            threshold=config.policy.threshold,
            rank=config.policy.bilinear,
            dimension=self.env.driver.dimension,
        )
        self.meter = SelectionMeter()
        self._policy: tuple[int, Policy] | None = None
        self.ppo = PPO(
            self.env,
            self.model,
            config.train.ppo,
            rng,
            total_steps=config.train.steps,
            on_step=self.meter.add,
        )
        if saved is not None:
            self.ppo.restore(saved["ppo"])
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / CONFIG, dump(config).encode())

    def _saved(self) -> dict[str, Any]:
        checkpoint = self.folder / CHECKPOINT
        if not checkpoint.exists():
            raise CheckpointError(
                f"there is no checkpoint at {checkpoint}; start the run without --resume"
            )
        saved = load_checkpoint(checkpoint)
        theirs, mine = _flat(saved.get("config", {})), _flat(_deciding(self.config))
        different = [key for key in {**mine, **theirs} if mine.get(key) != theirs.get(key)]
        if different:
            changes = (f"{key} is {mine.get(key)}, was {theirs.get(key)}" for key in different)
            raise CheckpointError(
                f"{checkpoint} belongs to another configuration: {'; '.join(changes)}. Restore the "
                "old values, or start a new run in another folder"
            )
        return saved

    def train(self) -> float:
        """Train to the end; returns the seconds it took.

        Raises:
            KeyboardInterrupt: Ctrl-C came. The update at hand is done and saved, so that a resumed
                run ends with the same bits.
        """
        start, steps = time.perf_counter(), self.config.train.steps
        done = self.ppo.global_step
        with (
            threadpool_limits(1),
            HeldInterrupt() as interrupt,
            # What is in the folder beyond the checkpoint will be done again, and show once.
            TensorBoard(self.folder, purge_step=done + 1 if done else 0) as board,
            tqdm(
                total=steps,
                initial=min(done, steps),
                unit="task",
                unit_scale=True,
                disable=None,
                file=sys.stderr,
            ) as bar,
        ):
            if not done:
                board.text("config", f"```yaml\n{dump(self.config)}```", 0)
            while self.ppo.global_step < steps and not interrupt.came:
                self.ppo.collect()
                self._report(self.ppo.update(), board, bar)
            self.save_checkpoint()
        if interrupt.came:
            raise KeyboardInterrupt
        return time.perf_counter() - start

    def _report(self, metrics: Metrics, board: TensorBoard, bar: tqdm[Any]) -> None:
        step, ppo = self.ppo.global_step, self.ppo
        selection = self.meter.flush()
        board.scalars(metrics | selection, step)
        if (ppo.num_updates - 1) % self.config.train.histogram_every == 0:
            for name, weights in self.model.parameters.items():
                board.histogram(f"weights/{name}", weights, step)
                board.histogram(f"gradients/{name}", self.model.parameters.gradients[name], step)
        if ppo.num_updates % self.config.train.checkpoint_every == 0:
            self.save_checkpoint()
        bar.set_postfix_str(
            f"success {selection['selection/success']:.3f}, "
            f"reward {selection['selection/reward']:.3f}, "
            f"skills {selection['selection/skills_per_task']:.2f}"
        )
        bar.update(min(step, self.config.train.steps) - bar.n)

    def save_checkpoint(self) -> None:
        """Write what :meth:`__init__` with ``resume`` continues from."""
        path = self.folder / CHECKPOINT
        path.parent.mkdir(parents=True, exist_ok=True)
        save_checkpoint(path, {"config": _deciding(self.config), "ppo": self.ppo.state()})

    def policy(self) -> Policy:
        """The policy as trained so far: averaged weights if they are kept, calibrated."""
        if self._policy is None or self._policy[0] != self.ppo.global_step:
            self._policy = self.ppo.global_step, self._export()
        return self._policy[1]

    def _export(self) -> Policy:
        vectors = self.env.driver.pool.suite.vectors
        assert vectors is not None
        return Policy(
            weights=calibrated(self.ppo.parameters.as_dict(), self.config),
            evidence=self.config.evidence,
            retrieval=self.config.retrieval,
            token_price=self.config.env.token_price / 1000,
            max_skills=self.config.env.max_skills,
            slots=self.config.env.candidates,
            embedder=vectors.identity,
            probes=vectors.probes,
        )

    def finish(self, seconds: float, comparison: Comparison | None) -> dict[str, Any]:
        """Write the policy file, the final TensorBoard pages and the summary; returns that."""
        evaluation = {} if comparison is None else comparison.to_json()
        file = self.policy().to_file(
            provenance={
                "letta_gym": letta_gym.__version__,
                "seed": self.config.seed,
                "steps": self.ppo.global_step,
                "config": self.config.model_dump(mode="json"),
            },
            evaluation=evaluation,
        )
        file.save(self.folder / POLICY)
        if comparison is not None:
            self._publish(comparison)
        summary = {
            "policy": POLICY,
            "digest": file.digest,
            "steps": self.ppo.global_step,
            "updates": self.ppo.num_updates,
            "seconds": seconds,
            "evaluation": evaluation,
        }
        text = json.dumps(summary, indent=2, allow_nan=False)
        write_atomically(self.folder / SUMMARY, f"{text}\n".encode())
        return summary

    def _publish(self, comparison: Comparison) -> None:
        rows = [
            Row(name, i.mean, i.low, i.high, highlight=name == "learned")
            for name in comparison.runs
            for i in [comparison.interval(name, "return")]
        ]
        learned = comparison.runs["learned"][0]
        finals = {f"eval/{m}": comparison.interval("learned", m).mean for m in learned}
        finals = {tag: value for tag, value in finals.items() if not math.isnan(value)}
        finals["eval/gap_closed"] = comparison.closed("learned")
        with TensorBoard(self.folder) as board:
            figure = interval_chart(rows, f"Return per task, {comparison.split} split", "reward")
            board.image("evaluation/return", figure, self.ppo.global_step)
            board.text("evaluation", f"```\n{comparison.table()}\n```", self.ppo.global_step)
            board.hparams(_flat(self.config.model_dump(mode="json")), finals)


def evaluate_run(run: Run) -> Comparison:
    """Compare the run's policy with the baselines, on one thread."""
    with threadpool_limits(1), tqdm(total=8, unit="agent", leave=False, disable=None) as bar:

        def progress(name: str) -> None:
            bar.set_postfix_str(name)
            bar.update()

        return compare(run.config, run.policy().weights, progress=progress)


def _deciding(config: RunConfig) -> dict[str, Any]:
    """The part of a configuration that a continued run must share."""
    dumped = config.model_dump(mode="json")
    del dumped["evaluate"]
    for key in ("checkpoint_every", "histogram_every", "evaluate"):
        del dumped["train"][key]
    return dumped


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    flat: dict[str, bool | int | float | str] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        elif value is not None:
            flat[f"{prefix}{key}"] = value if isinstance(value, bool | int | float) else str(value)
    return flat
