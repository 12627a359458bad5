"""The kinds of run, told apart by the key ``kind`` of their configuration."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

from agents.config import RunConfig
from agents.live_config import LiveRunConfig
from agents.log_config import LogRunConfig
from agents.replay_config import ReplayRunConfig
from letta_gym.config import override, read_yaml, resolve

AnyRunConfig: TypeAlias = RunConfig | ReplayRunConfig | LiveRunConfig | LogRunConfig

KINDS: dict[str, type[AnyRunConfig]] = {
    "mock": RunConfig,
    "replay": ReplayRunConfig,
    "letta": LiveRunConfig,
    "log": LogRunConfig,
}


def read_run(path: Path | str, assignments: list[str]) -> AnyRunConfig:
    """Read a configuration file of any kind, and apply ``--set`` assignments.

    Raises:
        ConfigError: something does not fit; the message names the nearest known key.
    """
    data = override(read_yaml(path), assignments)
    schema = KINDS.get(str(data.get("kind")), RunConfig)  # which knows what to say of other kinds
    return resolve(schema, data, str(path))
