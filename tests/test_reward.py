"""The reward: its parts, their weights, and feedback that comes later."""

from __future__ import annotations

import pytest

from letta_gym.errors import ConfigError
from letta_gym.feedback.outcome import Outcome
from letta_gym.letta.reward import RewardConfig, priced, with_feedback

DONE = Outcome(0.5, tokens=5000, steps=3, tool_errors=1, response="done")
UNGRADED = Outcome(None, tokens=5000, evidence=False, response="done")
BROKEN = Outcome(None, evidence=False, error="refused: nobody answers")


def test_each_part_is_its_weight_times_what_happened() -> None:
    config = RewardConfig(success=2, tokens=0.5, token_budget=10_000, steps=0.1, tool_errors=0.2)

    outcome = priced(DONE, config)

    assert outcome.reward_parts == pytest.approx(
        {"success": 1.0, "tokens": -0.25, "steps": -0.3, "tool_errors": -0.2}
    )
    assert outcome.reward == pytest.approx(0.25)


def test_a_part_without_weight_is_left_out() -> None:
    assert set(priced(DONE, RewardConfig()).reward_parts) == {"success", "tokens"}
    assert priced(DONE, RewardConfig()).reward == pytest.approx(0.5 - 0.04 * 5)


@pytest.mark.parametrize("outcome", [UNGRADED, BROKEN])
def test_what_is_no_evidence_has_no_reward(outcome: Outcome) -> None:
    assert priced(outcome, RewardConfig()).reward is None


def test_feedback_is_a_part_of_its_own_beside_a_grade() -> None:
    config = RewardConfig(human=0.5)

    outcome = with_feedback(priced(DONE, config), -1, config)

    assert outcome.success == 0.5
    assert outcome.reward_parts["human"] == -0.5
    assert priced(outcome, config).reward_parts == outcome.reward_parts


def test_feedback_grades_what_nobody_graded() -> None:
    outcome = with_feedback(UNGRADED, 0.5, RewardConfig())

    assert (outcome.success, outcome.evidence, outcome.source) == (0.75, True, "human")
    assert outcome.reward_parts == pytest.approx({"success": 0.75, "tokens": -0.2})


def test_feedback_makes_no_evidence_of_a_broken_rollout() -> None:
    assert with_feedback(BROKEN, 1, RewardConfig()) == BROKEN


@pytest.mark.parametrize("feedback", [-1.1, 2, float("nan")])
def test_feedback_out_of_range_is_refused(feedback: float) -> None:
    with pytest.raises(ConfigError, match=r"\[-1, 1\]"):
        with_feedback(DONE, feedback, RewardConfig())
