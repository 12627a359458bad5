"""The reward of an outcome: named parts, each with its weight."""

from __future__ import annotations

from dataclasses import replace

from pydantic import Field

from letta_gym.config import Section
from letta_gym.errors import ConfigError
from letta_gym.feedback.outcome import Outcome


class RewardConfig(Section):
    """Weights of the parts; a part of weight 0 is left out.

    ``tokens`` is what ``token_budget`` tokens of loaded skills cost: with the defaults 0.04 for
    every 1,000, as in the mock. ``steps`` and ``tool_errors`` are prices each. ``human`` weighs
    feedback in [-1, 1] that a person gives later.
    """

    success: float = Field(default=1.0, ge=0)
    tokens: float = Field(default=1.0, ge=0)
    token_budget: float = Field(default=25_000, gt=0)
    steps: float = Field(default=0.0, ge=0)
    tool_errors: float = Field(default=0.0, ge=0)
    human: float = Field(default=1.0, ge=0)

    @property
    def token_price(self) -> float:
        """Price of one token of a loaded skill."""
        return self.tokens / self.token_budget


def priced(outcome: Outcome, config: RewardConfig) -> Outcome:
    """The outcome with the parts of its reward; none where it is no evidence."""
    if not outcome.evidence or outcome.success is None:
        return replace(outcome, reward_parts={})
    parts = {
        "success": config.success * outcome.success,
        "tokens": -config.token_price * (outcome.tokens or 0),
        "steps": -config.steps * (outcome.steps or 0),
        "tool_errors": -config.tool_errors * (outcome.tool_errors or 0),
    }
    weights = config.model_dump()
    kept = {name: value for name, value in parts.items() if weights[name]}
    kept |= {name: value for name, value in outcome.reward_parts.items() if name == "human"}
    return replace(outcome, reward_parts=kept)


def with_feedback(outcome: Outcome, feedback: float, config: RewardConfig) -> Outcome:
    """The outcome after a person judged it.

    Where nobody graded it, the feedback is the grade: -1 is failure, 1 is success. Without a
    response the infrastructure failed, and the outcome stays no evidence.

    Args:
        outcome: what came of the task.
        feedback: in [-1, 1].
        config: the weights.

    Raises:
        ConfigError: the feedback is out of range.
    """
    if not -1 <= feedback <= 1:
        raise ConfigError(f"feedback must lie in [-1, 1]; got {feedback!r}")
    if outcome.response is None:
        return outcome
    if outcome.success is None:
        outcome = replace(
            outcome, success=(feedback + 1) / 2, evidence=True, source="human", reward_parts={}
        )
        return priced(outcome, config)
    parts = {**outcome.reward_parts, "human": config.human * feedback}
    return replace(outcome, reward_parts=parts)
