"""What came of one decision."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from letta_gym.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one task.

    Attributes:
        success: graded result in [0, 1]; None where nobody graded it, which is no evidence.
        loaded: ids of the skills that the agent really loaded; None means all that were chosen.
        tokens: tokens of the loaded skills; None means their listed cost.
        evidence: False where the infrastructure failed or nobody graded, which says nothing about
            any skill.
        reward_parts: named parts whose sum is the reward; empty where it was not priced.
        source: who judged, such as "grader", "human", "labels" or "simulation".
        steps: steps that the agent took.
        tool_errors: tool calls that failed.
        usage: tokens that the model read and wrote in all.
        latency: seconds from the request to the reply.
        stop_reason: why the agent stopped, in the words of its backend.
        error: what failed, where something did.
        response: the agent's final answer.
        run_id, step_ids: where the backend keeps the run, for feedback that arrives later.
        may_have_run: whether the task may have been carried out, besides what this outcome tells,
            by a try that failed.

    Raises:
        ConfigError: a number out of range, or evidence that nobody graded.
    """

    success: float | None
    loaded: tuple[str, ...] | None = None
    tokens: float | None = None
    evidence: bool = True
    reward_parts: Mapping[str, float] = field(default_factory=dict, hash=False)
    source: str = "grader"
    steps: int | None = None
    tool_errors: int | None = None
    usage: int | None = None
    latency: float | None = None
    stop_reason: str | None = None
    error: str | None = None
    response: str | None = None
    run_id: str | None = None
    step_ids: tuple[str, ...] = ()
    may_have_run: bool = False

    def __post_init__(self) -> None:
        if self.success is None:
            if self.evidence:
                raise ConfigError(
                    "an outcome that nobody graded (success=None) is no evidence; "
                    "pass evidence=False"
                )
        elif not (math.isfinite(self.success) and 0 <= self.success <= 1):
            raise ConfigError(f"success must lie in [0, 1]; got {self.success!r}")
        for name in ("tokens", "steps", "tool_errors", "usage", "latency"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"{name} must be a number of at least 0; got {value!r}")
        for part, value in self.reward_parts.items():
            if not math.isfinite(value):
                raise ConfigError(f"the reward part {part!r} must be finite; got {value!r}")

    @property
    def reward(self) -> float | None:
        """Sum of the parts of the reward; None where it was not priced."""
        return sum(self.reward_parts.values()) if self.reward_parts else None
