"""The protocol of whoever improves a policy from what happened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from letta_gym.feedback.decision import Decision
from letta_gym.feedback.outcome import Outcome


@dataclass(frozen=True, slots=True)
class Experience:
    """A decision, and what came of it: always evidence."""

    decision: Decision
    outcome: Outcome


class Learner(Protocol):
    """Improves a policy by gradients; evidence enters the memory without one."""

    def learn(self, experiences: Sequence[Experience]) -> object:
        """Learn from each of ``experiences``, oldest first; the result is the learner's own.

        A :class:`letta_gym.selection.policy.Policy` as result is the one to choose with from now.
        """
        ...
