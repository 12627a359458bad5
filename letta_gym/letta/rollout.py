"""One task for a real agent, what came back, and the seam to whoever carries it out.

A mock answers a batch of indices in one NumPy pass; a real Letta needs the text of the task and the
skills themselves. :class:`letta_gym.letta.live.LiveBackend` turns the one into the other and owns
what every real agent needs: concurrency, deadline, retries, grading and reward.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from letta_gym.letta.failures import Deadline, InfrastructureError
from letta_gym.library.skills import Skill

if TYPE_CHECKING:
    from letta_gym.letta.grading import Grader


@dataclass(frozen=True, slots=True)
class Rollout:
    """One task, and exactly the skills that the agent may see for it.

    Attributes:
        text: the task, as the agent gets it.
        skills: the chosen skills, best first.
        grader: who judges the answer; None where a person will, or nobody.
        metadata: the other keys of the task in its suite, such as "expected".
        id: unique name, safe in labels and folder names.
    """

    text: str
    skills: tuple[Skill, ...] = ()
    grader: Grader | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)
    id: str = field(default_factory=lambda: secrets.token_hex(8))


@dataclass(frozen=True, slots=True)
class Reply:
    """What an agent answered, before anyone judged it.

    Attributes:
        response: its final answer; empty where it gave none.
        loaded: ids of the skills whose body really reached its prompt.
        stop_reason: why it stopped, in its own words.
        steps: model calls it took.
        tool_errors: tool calls that failed.
        usage: tokens that the model read and wrote in all; None where nobody counted.
        run_id, step_ids: where Letta keeps the run.
        foreign: names of skills that it loaded though they were not chosen: such a reply says
            nothing about the choice.
    """

    response: str
    loaded: tuple[str, ...]
    stop_reason: str
    steps: int
    tool_errors: int = 0
    usage: int | None = None
    run_id: str | None = None
    step_ids: tuple[str, ...] = ()
    foreign: tuple[str, ...] = ()


class Attempt:
    """One try at a rollout.

    Attributes:
        rollout: what to carry out.
        deadline: when the whole rollout, earlier tries included, must be over.
        sent: set by the agent just before anything leaves that may carry the task out.
        failure: why it failed, where it did.
    """

    def __init__(self, rollout: Rollout, deadline: Deadline) -> None:
        self.rollout, self.deadline = rollout, deadline
        self.sent = False
        self.failure: InfrastructureError | None = None


class Agent(Protocol):
    """A real Letta of one kind: it knows how to show skills, send a task, and read the reply.

    Attributes:
        disposable: each rollout has an agent of its own that is thrown away, so that a rollout
            which may have run already can be repeated without a trace.
    """

    @property
    def disposable(self) -> bool: ...

    async def start(self) -> None:
        """Connect, check address, key and model, and remove what a killed process left.

        Raises:
            BackendError: it cannot work; the message has the remedy. Comes within 5 seconds.
        """
        ...

    async def carry_out(self, attempt: Attempt) -> Reply:
        """Carry the task out once, without retries; cancelled at the deadline.

        What was put in place for the rollout is removed again: after a reply by :meth:`release`,
        on failure by itself. Removal may go on in the background; :meth:`close` waits for it.

        Raises:
            InfrastructureError: the infrastructure failed.
        """
        ...

    async def feedback(self, run_id: str, step_ids: tuple[str, ...], reward: float) -> None:
        """Write a reward back to where Letta keeps the run; a no-op where it keeps none."""
        ...

    async def release(self, attempt: Attempt) -> None:
        """Nothing more is wanted of an attempt that gave a reply; over at its deadline."""
        ...

    async def close(self) -> None:
        """Finish what goes on in the background, and disconnect."""
        ...
