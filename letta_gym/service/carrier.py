"""Who carries tasks out for the service: the offline mock, or a real Letta."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Literal, Protocol, Self

from pydantic import Field, model_validator

from letta_gym.config import Section
from letta_gym.feedback.outcome import Outcome
from letta_gym.letta.code import CodeConfig, code_backend
from letta_gym.letta.live import LiveBackend
from letta_gym.letta.mock import MockConfig
from letta_gym.letta.mock_letta import MockLetta
from letta_gym.letta.rest import RestConfig, rest_backend
from letta_gym.letta.reward import RewardConfig
from letta_gym.letta.rollout import Rollout
from letta_gym.library.skills import Skill
from letta_gym.library.suite import bundled_suite
from letta_gym.library.vectors import Float
from letta_gym.service.problems import ApiError

_GRACE = 0.1  # seconds beyond the deadline, for the backend's own answer to arrive


class LettaConfig(Section):
    """Who carries tasks out.

    ``backend``: "mock", "rest" or "code"; the latter two bring a section of their own.
    ``executing``, ``waiting``: tasks that are carried out at once, and that may wait for it.
    ``deadline``: seconds that a task may take in all, waiting included.
    ``reward``: of the mock; real backends have it in their section.
    """

    backend: Literal["mock", "rest", "code"] = "mock"
    executing: int = Field(default=8, ge=1)
    waiting: int = Field(default=64, ge=0)
    deadline: float = Field(default=120.0, gt=0)
    mock: MockConfig = MockConfig()
    reward: RewardConfig = RewardConfig()
    rest: RestConfig | None = None
    code: CodeConfig | None = None

    @model_validator(mode="after")
    def _has_the_section(self) -> Self:
        if self.backend != "mock" and getattr(self, self.backend) is None:
            raise ValueError(f"the backend {self.backend!r} needs the section letta.{self.backend}")
        return self


class Carrier(Protocol):
    """Carries one task out."""

    async def carry_out(self, task: str, vector: Float, skills: Sequence[Skill]) -> Outcome:
        """What came of ``task``, with exactly ``skills``; ``vector`` is the task's, shape (D,)."""
        ...

    def close(self) -> None:
        """Disconnect."""
        ...


class MockCarrier:
    """The offline mock."""

    def __init__(self, config: LettaConfig, seed: int) -> None:
        self._letta = MockLetta(
            bundled_suite(), config=config.mock, reward=config.reward, seed=seed
        )

    async def carry_out(self, task: str, vector: Float, skills: Sequence[Skill]) -> Outcome:
        """At once, on the event loop."""
        rollout = Rollout(task, tuple(skills))
        return self._letta.carry_out(rollout, vector)

    def close(self) -> None:
        """Nothing to do."""


class LiveCarrier:
    """A real Letta."""

    def __init__(self, backend: LiveBackend) -> None:
        self._backend = backend

    async def carry_out(self, task: str, vector: Float, skills: Sequence[Skill]) -> Outcome:
        """On the backend's own event loop."""
        rollout = Rollout(task, tuple(skills), self._backend.grader)
        (outcome,) = await self._backend.run_async([rollout])
        return outcome

    def close(self) -> None:
        """Disconnect."""
        self._backend.close()


def carrier_of(config: LettaConfig, seed: int) -> Carrier:
    """The carrier of a configuration; checks that a real Letta can be reached.

    Raises:
        BackendError: it cannot; the message has the remedy.
        MissingExtraError: what it needs is not installed.
    """
    if config.rest is not None and config.backend == "rest":
        return LiveCarrier(rest_backend(config.rest, seed=seed))
    if config.code is not None and config.backend == "code":
        return LiveCarrier(code_backend(config.code, seed=seed))
    return MockCarrier(config, seed)


class Queue:
    """Lets so many tasks be carried out at once, so many wait, and refuses the others."""

    def __init__(self, config: LettaConfig) -> None:
        self._config = config
        self._slots = asyncio.Semaphore(config.executing)
        self._inside = 0

    async def carry_out(
        self,
        carrier: Carrier,
        task: str,
        vector: Float,
        skills: Sequence[Skill],
    ) -> Outcome:
        """What came of ``task``.

        Raises:
            ApiError: 503, too many are waiting; 504, it was not over at the deadline.
        """
        c = self._config
        if self._inside >= c.executing + c.waiting:
            raise ApiError(
                503,
                f"{c.executing} tasks are being carried out and {c.waiting} wait; try again later",
                retry_after=5,
            )
        self._inside += 1
        try:
            async with asyncio.timeout(c.deadline + _GRACE), self._slots:
                return await carrier.carry_out(task, vector, skills)
        except TimeoutError as error:
            raise ApiError(
                504,
                f"the task was not over within {c.deadline:g} s; Letta may still be at it. "
                "Raise letta.deadline if tasks take so long",
            ) from error
        finally:
            self._inside -= 1
