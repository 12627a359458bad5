"""The configuration of the Ray backend; what needs Ray itself is tested by ``make test-ray``."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from agents.kinds import read_run
from agents.live_config import LiveRunConfig
from letta_gym.errors import MissingExtraError
from letta_gym.letta.ray_backend import RayBackend, RayConfig
from letta_gym.library.suite import bundled_suite

ROOT = Path(__file__).parent.parent


def test_the_configuration_of_the_checkout_spreads_its_rest_backend() -> None:
    config = read_run(ROOT / "configs/letta-ray.yaml", ["ray.actors=7"])

    assert isinstance(config, LiveRunConfig)
    assert config.environment().ray == RayConfig(actors=7)
    assert config.environment().rest == config.rest


def test_every_key_is_documented_with_its_default() -> None:
    page = (ROOT / "docs/letta.md").read_text(encoding="utf-8")
    defaults = RayConfig().model_dump()
    values = {key: "null" if value is None else str(value) for key, value in defaults.items()}
    missing = [key for key, value in values.items() if f"| `ray.{key}` | {value} |" not in page]

    assert {"actors", "address"} <= set(values)
    assert missing == []


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is installed here")
def test_without_ray_the_error_names_the_extra() -> None:
    config = read_run(ROOT / "configs/letta-ray.yaml", [])
    assert isinstance(config, LiveRunConfig)

    with pytest.raises(MissingExtraError, match=r"letta-gym\[ray\]"):
        config.environment().connect(bundled_suite())
    with pytest.raises(MissingExtraError, match="spreading rollouts"):
        RayBackend(lambda: None)  # type: ignore[arg-type, return-value]
