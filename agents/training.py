"""Trains a policy on the mock as a run."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from agents.adam import Parameters
from agents.baselines import Learned
from agents.calibration import calibrated
from agents.chart import Row, interval_chart
from agents.config import RunConfig
from agents.evaluation import Comparison, compare, held_out, play
from agents.ppo import PPO, Metrics
from agents.run import CHECKPOINT, CONFIG, POLICY, SUMMARY, BaseRun, SelectionMeter, flat
from agents.skill_policy import SkillPolicy
from agents.tensorboard import TensorBoard
from letta_gym.envs.vector import SkillSelectionVectorEnv
from letta_gym.selection.opening import Opening
from letta_gym.selection.policy import Policy

__all__ = ["CHECKPOINT", "CONFIG", "POLICY", "SUMMARY", "Run", "SelectionMeter", "evaluate_run"]

LOOK_SESSIONS = 64
LOOKED_AT = ("return", "success")
"""What of both is written, as ``greedy/return``, ``untrained/return`` and so on."""


class Run(BaseRun):
    """One training run on the mock, in its folder; see :class:`agents.run.BaseRun`.

    Raises:
        ConfigError: the run could not be evaluated at its end, or see there.
        SuiteError: the suite is malformed, or lacks the split of the evaluation.
    """

    def __init__(self, config: RunConfig, folder: Path, *, resume: bool = False) -> None:
        self.config, self.steps = config, config.train.steps
        super().__init__(config, folder, resume=resume)

    def prepare(self) -> None:
        """Make environment, model and learner."""
        config = self.config
        if config.train.evaluate:
            held_out(config)
        changes = {} if config.train.new_share is None else {"new_share": config.train.new_share}
        self._env_config = config.environment(split="train", **changes)
        self._untrained: Metrics | None = None
        keywords = self._env_config.model_dump()
        self.env = SkillSelectionVectorEnv(config.train.ppo.num_envs, **keywords)
        rng = np.random.default_rng(config.seed)
        self.model = self._made_model(rng)
        self.ppo = PPO(
            self.env,
            self.model,
            config.train.ppo,
            rng,
            total_steps=config.train.steps,
            on_step=self.meter.add,
        )

    def _made_model(self, rng: np.random.Generator) -> SkillPolicy:
        config = self.config
        return SkillPolicy(
            rng,
            config.env.max_skills,
            hidden=config.policy.hidden,
            sharpness=config.policy.sharpness,
            threshold=config.policy.threshold,
            rank=config.policy.bilinear,
            dimension=self.env.driver.dimension,
            without=config.policy.without,
        )

    def looked_at(self, board: TensorBoard) -> None:
        """At first and at each checkpoint, play the policy as it would be exported, and the
        untrained one.

        Both act greedily in the same sessions on the train split, so the two curves can be
        compared, which those of training cannot: there the policy explores.
        """
        step, updates = self.ppo.global_step, self.ppo.num_updates
        if updates > 1 and updates % self.config.train.checkpoint_every and step < self.steps:
            return
        if self._untrained is None:
            self._untrained = self._looked(self._made_model(np.random.default_rng(0)).parameters)
        found = {"greedy": self._looked(self.ppo.parameters), "untrained": self._untrained}
        board.scalars(
            {f"{who}/{name}": did[name] for who, did in found.items() for name in LOOKED_AT}, step
        )

    def _looked(self, parameters: Parameters) -> Metrics:
        seed = self.config.evaluate.first_seed - 2  # that before the one that tunes
        return play(Learned(parameters.as_dict()), self._env_config, seed, LOOK_SESSIONS)

    def export(self) -> Policy:
        """Averaged weights if they are kept, calibrated."""
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
            opening=Opening(
                level=self.config.evidence.fit_level, scale=self.config.evidence.fit_scale
            ),
        )

    def publish(self, result: Comparison, board: TensorBoard) -> None:
        """The table, returns with intervals, and final metrics."""
        rows = [
            Row(name, i.mean, i.low, i.high, highlight=name == "learned")
            for name in result.runs
            for i in [result.interval(name, "return")]
        ]
        learned = result.runs["learned"][0]
        finals = {f"eval/{m}": result.interval("learned", m).mean for m in learned}
        finals = {tag: value for tag, value in finals.items() if not math.isnan(value)}
        finals["eval/gap_closed"] = result.closed("learned")
        figure = interval_chart(rows, f"Return per task, {result.split} split", "reward")
        board.image("evaluation/return", figure, self.ppo.global_step)
        board.text("evaluation", f"```\n{result.table()}\n```", self.ppo.global_step)
        board.hparams(flat(self.config.model_dump(mode="json")), finals)


def evaluate_run(run: Run) -> Comparison:
    """Compare the run's policy with the baselines, on one thread."""
    with (
        threadpool_limits(1),
        tqdm(
            total=8 + len(run.config.evaluate.also), unit="agent", leave=False, disable=None
        ) as bar,
    ):

        def progress(name: str) -> None:
            bar.set_postfix_str(name)
            bar.update()

        return compare(run.config, run.policy().weights, progress=progress)
