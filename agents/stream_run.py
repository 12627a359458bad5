"""Trains a policy on a labelled suite as a run: one pass over its stream, with rehearsal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from agents.baselines import Learned
from agents.chart import Row, interval_chart, line_chart
from agents.ppo import Metrics
from agents.replay_config import ReplayRunConfig
from agents.run import BaseRun, flat
from agents.stream import StreamTrainer
from agents.suite_comparison import SuiteComparison, compare_on_suite, deployment
from agents.tensorboard import TensorBoard
from agents.trial import look, metrics
from letta_gym.errors import ConfigError
from letta_gym.selection.policy import Policy

CURVES = ("hit_at_1", "success", "utility")


class StreamRun(BaseRun):
    """One training run on a labelled suite, in its folder; see :class:`agents.run.BaseRun`.

    It trains on the first split of the evaluation.

    Attributes:
        trainer: does the work.
        curves: outcomes so far, and the metrics of :data:`CURVES` on the validation split, one row
            of each look.
    """

    def __init__(self, config: ReplayRunConfig, folder: Path, *, resume: bool = False) -> None:
        self.config = config
        super().__init__(config, folder, resume=resume)

    def prepare(self) -> None:
        """Make the trainer."""
        if self.config.train.evaluate and self.config.evaluate.split == "train":
            raise ConfigError("the train split is for training; evaluate on validation or test")
        first = self.config.evaluate.first_split
        self.trainer = StreamTrainer(self.config, first, self.meter.add)
        self.steps, self.ppo, self.model = self.trainer.steps, self.trainer.ppo, self.trainer.model
        self.curves: list[list[float]] = []

    def learn(self) -> Metrics:
        """One update on the stream and, when it is time, a rehearsal."""
        return self.trainer.learn()

    def looked_at(self, board: TensorBoard) -> None:
        """Look at the validation tasks where the learning curve has a point."""
        points, done = self.config.train.curve_points, self.ppo.global_step
        batch = self.config.train.ppo.batch_size
        due = {math.ceil(self.steps * 2.0**-i / batch) * batch for i in range(points)}
        if done not in due:
            return
        found = self._validate()
        if found is None:
            return
        self.curves.append([float(done), *(found[name] for name in CURVES)])
        board.scalars({f"validation/{name}": found[name] for name in CURVES}, done)

    def _validate(self) -> Metrics | None:
        tasks = self.trainer.driver.sessions.tasks("validation", new=False)
        if not len(tasks):
            return None
        driver = deployment(self.config, self.trainer.split_seed)
        driver.sessions.memory = self.trainer.driver.sessions.memory  # it learns nothing there
        return metrics(look(Learned(self.ppo.parameters.as_dict()), driver, tasks))

    def export(self) -> Policy:
        """Averaged weights if they are kept."""
        return self.trainer.policy()

    def publish(self, result: SuiteComparison, board: TensorBoard) -> None:
        """The table, Hit@1 with intervals, the learning curve, and final metrics."""
        step = self.ppo.global_step
        for group in ("seen", "new@0"):
            metric = f"hit_at_1/{group}"
            rows = [
                Row(name, i.mean, i.low, i.high, highlight=name == "learned")
                for name in result.runs
                for i in [result.interval(name, metric)]
                if not math.isnan(i.mean)
            ]
            if rows:
                title = f"Hit@1 on {group} skills, {result.split} split"
                board.image(f"evaluation/{metric}", interval_chart(rows, title, "Hit@1"), step)
        if len(self.curves) > 1:
            outcomes, *values = np.array(self.curves).T
            series = {name: (outcomes, column) for name, column in zip(CURVES, values, strict=True)}
            chart = line_chart(series, "Learning on the stream", "outcomes", "validation tasks")
            board.image("validation/curve", chart, step)
        learned = result.runs["learned"][0]
        finals = {f"eval/{m}": result.interval("learned", m).mean for m in learned}
        finals = {tag: value for tag, value in finals.items() if not math.isnan(value)}
        board.text("evaluation", f"```\n{result.table()}\n```", step)
        board.hparams(flat(self.config.model_dump(mode="json")), finals)

    def state(self) -> dict[str, Any]:
        """What a resumed run needs, beside the configuration."""
        return self.trainer.state() | {"curves": self.curves}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Continue from :meth:`state`."""
        self.trainer.restore(saved)
        self.curves = [list(row) for row in saved["curves"]]


def evaluate_stream_run(run: StreamRun) -> SuiteComparison:
    """Train on the other splits too, and compare with the opponents; on one thread."""
    total = run.config.evaluate.splits * 10
    with threadpool_limits(1), tqdm(total=total, unit="agent", leave=False, disable=None) as bar:

        def progress(name: str) -> None:
            bar.set_postfix_str(name)
            bar.update()

        return compare_on_suite(run.config, train=True, first=run.trainer, progress=progress)
