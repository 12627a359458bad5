"""A training run in its folder: progress, TensorBoard, checkpoints, the policy file, a summary."""

from __future__ import annotations

import json
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray
from threadpoolctl import threadpool_limits
from tqdm import tqdm

import letta_gym
from agents.checkpoint import load_checkpoint, save_checkpoint
from agents.interrupt import HeldInterrupt
from agents.ppo import PPO, Metrics
from agents.skill_policy import SkillPolicy
from agents.tensorboard import TensorBoard
from letta_gym.config import Section, dump
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


class Result(Protocol):
    """What a run keeps of its evaluation."""

    def to_json(self) -> dict[str, Any]:
        """The figures as JSON values."""
        ...


class BaseRun(ABC):
    """What the runs of all kinds share.

    Args:
        config: what to do.
        folder: where ``policy.safetensors``, ``checkpoint/``, ``config.yaml``, ``summary.json`` and
            the TensorBoard events go.
        resume: continue from the folder's checkpoint.

    Attributes:
        steps: decisions of the whole run.
        ppo: the learner.
        model: what it trains.

    Raises:
        ConfigError: the folder holds another run and ``resume`` is false.
        CheckpointError: there is nothing to resume, or it belongs to another configuration.
    """

    steps: int
    ppo: PPO
    model: SkillPolicy

    def __init__(self, config: Section, folder: Path, *, resume: bool = False) -> None:
        self._config, self.folder = config, folder
        saved = self._saved() if resume else None
        if not resume and any((folder / name).exists() for name in (CHECKPOINT, POLICY, SUMMARY)):
            raise ConfigError(
                f"{folder} holds a run already; continue it with --resume, or choose another "
                "--run-dir"
            )
        self.meter = SelectionMeter()
        self._policy: tuple[int, Policy] | None = None
        self.prepare()
        if saved is not None:
            self.restore(saved)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / CONFIG, dump(config).encode())

    # -- what the kinds differ in --------------------------------------------------------------

    @abstractmethod
    def prepare(self) -> None:
        """Make environment, model and learner."""

    def learn(self) -> Metrics:
        """Collect and update once."""
        self.ppo.collect()
        return self.ppo.update()

    def looked_at(self, board: TensorBoard) -> None:  # noqa: B027 - nothing by default
        """Called after each update; a place for evaluations along the way."""

    @abstractmethod
    def export(self) -> Policy:
        """The policy as trained so far."""

    @abstractmethod
    def publish(self, result: Any, board: TensorBoard) -> None:
        """Show the evaluation in TensorBoard."""

    def remarks(self) -> dict[str, Any]:
        """What the summary tells beside what it tells of every run."""
        return {}

    def state(self) -> dict[str, Any]:
        """What a resumed run needs, beside the configuration."""
        return {"ppo": self.ppo.state()}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Continue from :meth:`state`."""
        self.ppo.restore(saved["ppo"])

    def close(self) -> None:  # noqa: B027 - nothing by default
        """Let go of what the run holds outside of this process."""

    @property
    def every(self) -> Mapping[str, int]:
        """Updates between checkpoints and between histograms, by their keys."""
        train: Mapping[str, int] = self._config.model_dump()["train"]
        return train

    # -- what they share -----------------------------------------------------------------------

    def _saved(self) -> dict[str, Any]:
        checkpoint = self.folder / CHECKPOINT
        if not checkpoint.exists():
            raise CheckpointError(
                f"there is no checkpoint at {checkpoint}; start the run without --resume"
            )
        saved = load_checkpoint(checkpoint)
        theirs, mine = flat(saved.get("config", {})), flat(_deciding(self._config))
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
        start, steps = time.perf_counter(), self.steps
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
                board.text("config", f"```yaml\n{dump(self._config)}```", 0)
            while self.ppo.global_step < steps and not interrupt.came:
                self._report(self.learn(), board, bar)
                self.looked_at(board)
            self.save_checkpoint()
        if interrupt.came:
            raise KeyboardInterrupt
        return time.perf_counter() - start

    def _report(self, metrics: Metrics, board: TensorBoard, bar: tqdm[Any]) -> None:
        step, ppo = self.ppo.global_step, self.ppo
        selection = self.meter.flush()
        board.scalars(metrics | selection, step)
        if (ppo.num_updates - 1) % self.every["histogram_every"] == 0:
            for name, weights in self.model.parameters.items():
                board.histogram(f"weights/{name}", weights, step)
                board.histogram(f"gradients/{name}", self.model.parameters.gradients[name], step)
        if ppo.num_updates % self.every["checkpoint_every"] == 0:
            self.save_checkpoint()
        bar.set_postfix_str(
            f"success {selection['selection/success']:.3f}, "
            f"reward {selection['selection/reward']:.3f}, "
            f"skills {selection['selection/skills_per_task']:.2f}"
        )
        bar.update(min(step, self.steps) - bar.n)

    def save_checkpoint(self) -> None:
        """Write what :meth:`__init__` with ``resume`` continues from."""
        path = self.folder / CHECKPOINT
        path.parent.mkdir(parents=True, exist_ok=True)
        save_checkpoint(path, {"config": _deciding(self._config), **self.state()})

    def policy(self) -> Policy:
        """The policy as trained so far: averaged weights if they are kept, calibrated."""
        if self._policy is None or self._policy[0] != self.ppo.global_step:
            self._policy = self.ppo.global_step, self.export()
        return self._policy[1]

    def finish(self, seconds: float, comparison: Result | None) -> dict[str, Any]:
        """Write the policy file, the final TensorBoard pages and the summary; returns that."""
        evaluation = {} if comparison is None else comparison.to_json()
        file = self.policy().to_file(
            provenance={
                "letta_gym": letta_gym.__version__,
                "seed": self._config.model_dump()["seed"],
                "steps": self.ppo.global_step,
                "config": self._config.model_dump(mode="json"),
            },
            evaluation=evaluation,
        )
        file.save(self.folder / POLICY)
        if comparison is not None:
            with TensorBoard(self.folder) as board:
                self.publish(comparison, board)
        summary = {
            "policy": POLICY,
            "digest": file.digest,
            "steps": self.ppo.global_step,
            "updates": self.ppo.num_updates,
            "seconds": seconds,
            **self.remarks(),
            "evaluation": evaluation,
        }
        text = json.dumps(summary, indent=2, allow_nan=False)
        write_atomically(self.folder / SUMMARY, f"{text}\n".encode())
        return summary


def _deciding(config: Section) -> dict[str, Any]:
    """The part of a configuration that a continued run must share."""
    dumped = config.model_dump(mode="json")
    del dumped["evaluate"]
    for key in ("checkpoint_every", "histogram_every", "evaluate"):
        del dumped["train"][key]
    return dumped


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    """A nested configuration by dotted keys, without what is null."""
    leaves: dict[str, bool | int | float | str] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            leaves |= flat(value, f"{prefix}{key}.")
        elif value is not None:
            leaves[f"{prefix}{key}"] = (
                value if isinstance(value, bool | int | float) else str(value)
            )
    return leaves
