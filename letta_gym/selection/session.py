"""Tasks to choose skills for: one alone, or a stream under one budget of tokens."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from letta_gym.errors import ConfigError

if TYPE_CHECKING:
    from letta_gym.selection.choice import Selection
    from letta_gym.selection.runtime import SkillSelector

Float = NDArray[np.float32]

UNLIMITED = 1e9  # tokens; far beyond any context


class Query(NamedTuple):
    """A task to choose skills for; see :meth:`SkillSelector.select`."""

    text: str
    k: int = 3
    token_budget: float | None = None
    explore: bool = False
    embedding: Float | None = None
    available: Collection[str] | None = None


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
        query = Query(text, k, None, explore, embedding, available)
        return self._selector._choose([query], [self])[0]
