"""A stream of tasks that skills are chosen for under one budget of tokens."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from letta_gym.errors import ConfigError

if TYPE_CHECKING:
    from letta_gym.selection.runtime import Selection, SkillSelector

Float = NDArray[np.float32]

UNLIMITED = 1e9  # tokens; far beyond any context


class Session:
    """A stream of tasks under one token budget; its selector keeps the evidence."""

    def __init__(self, selector: SkillSelector, token_budget: float, horizon: int) -> None:
        if not token_budget > 0 or horizon < 1:
            raise ConfigError(
                "a session needs a token budget above 0 and a horizon of at least 1 task; "
                f"got {token_budget} and {horizon}"
            )
        self._selector = selector
        self.token_budget = self.tokens_left = min(float(token_budget), UNLIMITED)
        self.horizon = self.tasks_left = horizon

    def select(
        self,
        text: str,
        k: int = 3,
        *,
        explore: bool = False,
        embedding: Float | None = None,
        available: Collection[str] | None = None,
    ) -> Selection:
        """Choose for the next task; see :meth:`SkillSelector.select`."""
        return self._selector._choose(self, text, k, explore, embedding, available)
