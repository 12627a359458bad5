"""Trains a policy on a real Letta as a run, and compares it there with the retrieval ranking."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from agents import baselines
from agents.baselines import Choice, Learned, Threshold
from agents.chart import Row, interval_chart
from agents.evaluation import Interval, as_json
from agents.live_config import LiveRunConfig
from agents.ppo import PPO, Metrics
from agents.run import BaseRun
from agents.skill_policy import SkillPolicy
from agents.tensorboard import TensorBoard
from letta_gym.envs.live import LiveDriver, LiveVectorEnv
from letta_gym.errors import ConfigError
from letta_gym.feedback import memory_file
from letta_gym.selection import subset
from letta_gym.selection.policy import Policy

MEMORY = "memory.safetensors"


class Chooser(Protocol):
    """An agent as it is evaluated here."""

    @property
    def name(self) -> str: ...

    def act(self, obs: Mapping[str, NDArray[Any]], driver: LiveDriver) -> Choice: ...


class LiveRun(BaseRun):
    """One training run on a real Letta, in its folder; see :class:`agents.run.BaseRun`.

    The memory of the deployment lies beside the policy: with it the runtime goes on from what was
    learned here.

    Raises:
        BackendError: Letta cannot be reached, or fails and ``env.masking`` is off.
    """

    def __init__(self, config: LiveRunConfig, folder: Path, *, resume: bool = False) -> None:
        self.config = config
        self._no_evidence: Mapping[str, int] = {}
        try:
            super().__init__(config, folder, resume=resume)
        except BaseException:
            self.close()
            raise

    def prepare(self) -> None:
        """Connect, and make the learner."""
        config, self.steps = self.config, self.config.train.steps
        rng = np.random.default_rng(config.seed)
        start = None if config.train.start is None else self._start(config.train.start)
        self.env = LiveVectorEnv(config.train.ppo.num_envs, **config.keywords())
        self.model = SkillPolicy(
            rng,
            config.env.max_skills,
            hidden=config.policy.hidden,
            sharpness=config.policy.sharpness,
            threshold=config.policy.threshold,
            rank=config.policy.bilinear,
            dimension=self.driver.dimension,
        )
        self._opening = None if start is None else start.opening
        if start is not None:
            self._go_on_from(start)
        self.ppo = PPO(
            self.env,
            self.model,
            config.train.ppo,
            rng,
            total_steps=self.steps,
            on_step=self.meter.add,
        )

    @property
    def driver(self) -> LiveDriver:
        """Drives the deployment."""
        return self.env.driver

    def learn(self) -> Metrics:
        """Collect and update once; the metrics count what was no evidence so far."""
        metrics = super().learn()
        return metrics | {f"backend/{name}": float(n) for name, n in self._counts().items()}

    def _counts(self) -> dict[str, int]:
        return self.driver.sessions.counts() | {"skipped_updates": self.ppo.num_skipped}

    def train(self) -> float:
        """Train to the end, and note what was no evidence; returns the seconds it took."""
        seconds = super().train()
        self._no_evidence = self._counts()
        return seconds

    def remarks(self) -> dict[str, Any]:
        """What was no evidence in training."""
        return {"no_evidence": self._no_evidence}

    def _start(self, path: str) -> Policy:
        policy = Policy.load(path)
        for name in ("evidence", "retrieval"):
            if getattr(policy, name) != getattr(self.config, name):
                raise ConfigError(
                    f"{path} was trained with other constants of {name}; write those of its run, "
                    "see its config.yaml, or start from another policy"
                )
        return policy

    def _go_on_from(self, policy: Policy) -> None:
        mine = self.model.parameters
        theirs = {name: array.shape for name, array in policy.weights.items()}
        if theirs != {name: array.shape for name, array in mine.items()}:
            raise ConfigError(
                f"{self.config.train.start} is another network than policy.hidden and "
                "policy.bilinear say; write those of its run"
            )
        for name, array in policy.weights.items():
            mine[name][...] = array

    def export(self) -> Policy:
        """Averaged weights if they are kept."""
        vectors, config = self.driver.pool.suite.vectors, self.driver.config
        assert vectors is not None
        return Policy(
            weights=self.ppo.parameters.as_dict(),
            evidence=config.evidence,
            retrieval=config.retrieval,
            token_price=config.token_price / 1000,
            max_skills=config.max_skills,
            slots=config.candidates,
            embedder=vectors.identity,
            probes=vectors.probes,
            opening=self._opening,
        )

    def compare(self) -> LiveComparison:
        """The policy beside retrieval, evidence and the oracle, on the same tasks; no learning."""
        config = self.config.evaluate
        sessions = self.driver.sessions
        rng = np.random.default_rng([self.config.seed, 1])
        pool = sessions.tasks(config.split)
        if not len(pool):
            raise ConfigError(f"the suite has no task of the split {config.split!r}")
        tasks = rng.permutation(np.resize(rng.permutation(pool), config.tasks))
        agents: list[Chooser] = [
            Threshold("retrieval", "evidence", baselines.hybrid, -np.inf, 1),
            Threshold("evidence", "evidence", baselines.evidence, -np.inf, 1),
            Learned(self.ppo.parameters.as_dict()),
            LabelOracle(),
        ]
        runs = {agent.name: self._look(agent, tasks) for agent in agents}
        return LiveComparison(self.driver.pool.suite.name, config.split, runs)

    def _look(self, agent: Chooser, tasks: NDArray[np.int64]) -> list[dict[str, float]]:
        """What came of each task that was carried out and graded."""
        s, size = self.driver.sessions, self.config.evaluate.batch
        s.learning, found = False, []
        for first in range(0, len(tasks), size):
            s.show(tasks[first : first + size])
            obs = self.driver.observe()
            choice = agent.act(obs, self.driver)
            step = self.driver.step(subset.to_mask(choice.picks, self.driver.config.candidates))
            chosen = (step.picks >= 0).sum(1)
            found += [
                {
                    "success": float(step.outcomes.success[i]),
                    "return": float(step.reward[i]),
                    "tokens": float(step.outcomes.tokens[i]),
                    "skills_per_task": float(chosen[i]),
                }
                for i in np.flatnonzero(step.outcomes.evidence)
            ]
        s.learning = True
        return found

    def finish(self, seconds: float, comparison: Any) -> dict[str, Any]:
        """Write everything that every run writes, and the memory."""
        memory_file.save(self.driver.sessions.memory, self.folder / MEMORY)
        return super().finish(seconds, comparison)

    def publish(self, result: LiveComparison, board: TensorBoard) -> None:
        """The table, and success with intervals."""
        rows = [
            Row(name, i.mean, i.low, i.high, highlight=name == "learned")
            for name in result.runs
            for i in [result.interval(name, "success")]
        ]
        title = f"Success on a real Letta, {result.split} split"
        chart = interval_chart(rows, title, "success")
        board.image("evaluation/success", chart, self.ppo.global_step)
        board.text("evaluation", f"```\n{result.table()}\n```", self.ppo.global_step)

    def close(self) -> None:
        """Let Letta go, with nothing of ours left on it."""
        if hasattr(self, "env"):
            self.env.close()


class LabelOracle:
    """Chooses the skills that the suite calls relevant."""

    name = "oracle"

    def act(self, obs: Mapping[str, NDArray[Any]], driver: LiveDriver) -> Choice:
        """The relevant skills of each task, as far as they are on offer."""
        s = driver.sessions
        fits = np.take_along_axis(s.labels.relevant[s.task], s.slot_skills(), 1)
        usable = fits & obs["action_mask"].astype(bool)
        level = np.full(driver.config.max_skills, 0.5)
        return baselines.cut(usable.astype(np.float64), level, driver.config.max_skills)


@dataclass(frozen=True, slots=True)
class LiveComparison:
    """What came of the tasks that each agent decided, one row of figures a task."""

    suite: str
    split: str
    runs: Mapping[str, Sequence[Mapping[str, float]]]

    @property
    def episodes(self) -> int:
        """Most tasks of one agent that were carried out and graded."""
        return max(len(rows) for rows in self.runs.values())

    def interval(self, agent: str, metric: str) -> Interval:
        """Mean and 95 % interval over tasks."""
        return Interval.of([row[metric] for row in self.runs[agent]])

    def to_json(self) -> dict[str, Any]:
        """The comparison as JSON values; NaN becomes null."""
        names = next((rows[0] for rows in self.runs.values() if rows), {})
        agents = {
            agent: {metric: as_json(self.interval(agent, metric)) for metric in names}
            for agent in self.runs
        }
        return {
            "suite": self.suite,
            "split": self.split,
            "episodes": self.episodes,
            "agents": agents,
        }

    def table(self) -> str:
        """One line for each agent."""
        lines = [f"{'agent':<12}{'success':>18}{'return':>18}{'skills':>8}{'tasks':>7}"]
        for agent, rows in self.runs.items():
            cells = "".join(
                f"{i.mean:>10.3f} ± {(i.high - i.low) / 2:.3f}"
                for i in (self.interval(agent, m) for m in ("success", "return"))
            )
            skills = self.interval(agent, "skills_per_task").mean
            lines.append(f"{agent:<12}{cells}{skills:>8.2f}{len(rows):>7}")
        return "\n".join(lines)
