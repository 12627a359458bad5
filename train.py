"""Train a skill-selection policy: ``python train.py --config configs/mock.yaml``."""

from __future__ import annotations

import argparse
import sys
from contextlib import closing
from pathlib import Path

from agents.config import RunConfig
from agents.evaluation import Comparison
from agents.kinds import read_run
from agents.live_config import LiveRunConfig
from agents.live_run import LiveComparison, LiveRun
from agents.log_config import LogRunConfig
from agents.replay_config import ReplayRunConfig
from agents.run import CHECKPOINT, POLICY
from agents.stream_run import StreamRun, evaluate_stream_run
from agents.suite_comparison import SuiteComparison
from agents.training import Run, evaluate_run
from letta_gym.errors import ConfigError, LettaGymError, MissingExtraError


def main(arguments: list[str] | None = None) -> int:
    """Train, compare with the baselines, and say what to do next; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", required=True, metavar="FILE", help="YAML configuration")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="assignments",
        help="change one key, such as train.steps=10000; may be given several times",
    )
    parser.add_argument("--run-dir", metavar="DIR", help="default: runs/<name of the config>")
    parser.add_argument("--resume", action="store_true", help="continue the run in --run-dir")
    parser.add_argument(
        "--check", action="store_true", help="print the configuration as JSON, and do no more"
    )
    options = parser.parse_args(arguments)
    folder = Path(options.run_dir or Path("runs") / Path(options.config).stem)
    try:
        config = read_run(options.config, options.assignments)
        if options.check:
            print(config.model_dump_json())
            return 0
        if isinstance(config, LogRunConfig):
            return learn_from_log(config, folder, options.resume)
        with closing(open_run(config, folder, options.resume)) as run:
            seconds = run.train()
            comparison = compared(run) if config.train.evaluate else None
            run.finish(seconds, comparison)
    except (LettaGymError, OSError) as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        saved = (folder / CHECKPOINT).exists()
        print(
            "\nstopped" + "; continue with the same command and --resume" * saved, file=sys.stderr
        )
        return 130
    print(f"trained on {run.ppo.global_step:,} tasks in {seconds:.0f} s")
    if comparison is not None:
        print(f"\n{comparison.split} split, {comparison.episodes} sessions, mean ± 95 % interval:")
        print(comparison.table())
    print(f"\npolicy: {folder / POLICY}")
    print("\nnext:\n  make tensorboard")
    print('  make try TASK="Turn this folder of scanned bills into a spreadsheet"')
    return 0


def learn_from_log(config: LogRunConfig, folder: Path, resume: bool) -> int:
    """Learn from the log of a store, and say what to do next; returns the exit code."""
    if resume:
        raise ConfigError("learning from a log takes a minute and cannot be resumed; start anew")
    try:
        from agents.log_learning import train
    except ModuleNotFoundError as error:
        raise MissingExtraError("serve", "learning from a store") from error
    _, count = train(config, folder)
    print(f"learned from {count:,} logged decisions\n\npolicy: {folder / POLICY}\n\nnext:")
    print(f"  letta-gym policy compare {folder / POLICY} --store {config.store}")
    return 0


def open_run(
    config: RunConfig | ReplayRunConfig | LiveRunConfig, folder: Path, resume: bool
) -> Run | StreamRun | LiveRun:
    """The run of a configuration of any kind."""
    if isinstance(config, LiveRunConfig):
        return LiveRun(config, folder, resume=resume)
    if isinstance(config, ReplayRunConfig):
        return StreamRun(config, folder, resume=resume)
    return Run(config, folder, resume=resume)


def compared(run: Run | StreamRun | LiveRun) -> Comparison | SuiteComparison | LiveComparison:
    """The run's policy beside its opponents."""
    if isinstance(run, LiveRun):
        return run.compare()
    return evaluate_stream_run(run) if isinstance(run, StreamRun) else evaluate_run(run)


if __name__ == "__main__":
    sys.exit(main())
