"""What an outcome accepts, and what its reward is."""

from __future__ import annotations

import math
from typing import Any

import pytest

from letta_gym.errors import ConfigError
from letta_gym.feedback.outcome import Outcome


def test_the_reward_is_the_sum_of_its_parts() -> None:
    outcome = Outcome(0.75, reward_parts={"success": 0.75, "tokens": -0.25})

    assert outcome.reward == 0.5


def test_without_parts_there_is_no_reward() -> None:
    assert Outcome(0.75).reward is None


def test_what_nobody_graded_is_no_evidence() -> None:
    with pytest.raises(ConfigError, match="evidence=False"):
        Outcome(None)

    assert Outcome(None, evidence=False).success is None


@pytest.mark.parametrize(
    "fields",
    [
        {"success": 1.5},
        {"success": math.nan},
        {"success": 1.0, "tokens": -1.0},
        {"success": 1.0, "latency": math.inf},
        {"success": 1.0, "steps": -1},
        {"success": 1.0, "tool_errors": -2},
        {"success": 1.0, "reward_parts": {"success": math.nan}},
    ],
)
def test_numbers_out_of_range_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="must"):
        Outcome(**fields)
