"""Compare a policy with the baselines: ``python evaluate.py --config FILE --policy FILE``."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from threadpoolctl import threadpool_limits

from agents.config import RunConfig
from agents.evaluation import Comparison, compare
from agents.kinds import read_run
from agents.live_config import LiveRunConfig
from agents.log_config import LogRunConfig
from agents.replay_config import ReplayRunConfig
from agents.suite_comparison import SuiteComparison, compare_on_suite
from letta_gym.errors import ConfigError, LettaGymError
from letta_gym.files import write_atomically
from letta_gym.selection import bilinear
from letta_gym.selection.network import Weights
from letta_gym.selection.policy import Policy


def main(arguments: list[str] | None = None) -> int:
    """Print one table, write the same as JSON; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", required=True, metavar="FILE", help="YAML configuration")
    parser.add_argument("--policy", metavar="FILE", help="policy file; without it only baselines")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="assignments"
    )
    parser.add_argument("--split", help="default: evaluate.split of the configuration")
    parser.add_argument("--json", metavar="OUT", help="write the figures to this file")
    options = parser.parse_args(arguments)
    try:
        config = read_run(options.config, options.assignments)
        if isinstance(config, LiveRunConfig):
            raise ConfigError(
                f"{options.config} is for a real Letta, where train.py evaluates at the end of its "
                "run; this command evaluates on the mock and on labelled suites"
            )
        if isinstance(config, LogRunConfig):
            raise ConfigError(
                f"{options.config} is about a log, in which nothing can be played out; judge a "
                "policy by it with: letta-gym policy compare"
            )
        policy = None if options.policy is None else checked(options.policy, config)
        with threadpool_limits(1):
            weights = None if policy is None else policy.weights
            result = compared(config, weights, options.split)
        print(f"{result.split} split, {result.episodes} sessions, mean ± 95 % interval:")
        print(result.table())
        if options.json:
            text = json.dumps(result.to_json(), indent=2, allow_nan=False)
            write_atomically(Path(options.json), f"{text}\n".encode())
    except (LettaGymError, OSError) as error:
        print(f"evaluate.py: {error}", file=sys.stderr)
        return 2
    return 0


def compared(
    config: RunConfig | ReplayRunConfig, weights: Weights | None, split: str | None
) -> Comparison | SuiteComparison:
    """The comparison of a configuration of either kind."""
    if isinstance(config, ReplayRunConfig):
        return compare_on_suite(config, weights, split)
    return compare(config, weights, split)


def checked(path: str, config: RunConfig | ReplayRunConfig) -> Policy:
    """The policy at ``path``, if it was trained on the features that ``config`` gives.

    Raises:
        PolicyFileError: the file does not load.
        ConfigError: its constants, or its embedder, are not those of the configuration.
        SuiteError: the suite is malformed or has no vectors.
    """
    policy = Policy.load(path)
    vectors = config.environment().pool().suite.vectors
    assert vectors is not None
    pairs = {
        "env.token_price (per token)": (policy.token_price, config.env.token_price / 1000),
        "policy.bilinear": (bilinear.rank(policy.weights), config.policy.bilinear),
        "suite.path (its vectors)": (str(policy.embedder), str(vectors.identity)),
    }
    for section in ("evidence", "retrieval"):
        theirs, mine = getattr(policy, section).model_dump(), getattr(config, section).model_dump()
        pairs |= {f"{section}.{key}": (theirs[key], mine[key]) for key in mine}
    different = [
        f"{key}: the policy has {theirs}, the configuration {mine}"
        for key, (theirs, mine) in pairs.items()
        if theirs != mine
    ]
    if different:
        raise ConfigError(
            f"{path} was trained with another configuration:\n  " + "\n  ".join(different) + "\n"
            "evaluate it with the config.yaml of its run"
        )
    return policy


if __name__ == "__main__":
    sys.exit(main())
