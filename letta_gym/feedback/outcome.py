"""What came of one decision."""

from __future__ import annotations

import math
from dataclasses import dataclass

from letta_gym.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one task.

    Attributes:
        success: graded result in [0, 1].
        loaded: ids of the skills that the agent really loaded; None means all that were chosen.
        tokens: tokens of the loaded skills; None means their listed cost.
        evidence: False where the infrastructure failed, which says nothing about any skill.
    """

    success: float
    loaded: tuple[str, ...] | None = None
    tokens: float | None = None
    evidence: bool = True

    def __post_init__(self) -> None:
        if not (math.isfinite(self.success) and 0 <= self.success <= 1):
            raise ConfigError(f"success must lie in [0, 1]; got {self.success!r}")
        if self.tokens is not None and not (math.isfinite(self.tokens) and self.tokens >= 0):
            raise ConfigError(f"tokens must be a number of at least 0; got {self.tokens!r}")
