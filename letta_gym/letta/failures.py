"""Failures of the infrastructure: what kind, whether the task may have run, whether to try again.

A failure is never evidence about a skill. It is retried within one deadline for the whole rollout,
and what remains becomes an outcome with ``evidence=False``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from enum import StrEnum
from typing import Literal, TypeVar

import numpy as np
from pydantic import Field

from letta_gym.config import Section
from letta_gym.errors import BackendError, MissingExtraError

T = TypeVar("T")

log = logging.getLogger(__name__)


class Kind(StrEnum):
    """What failed."""

    REFUSED = "refused"  # nobody answers at the address
    TIMEOUT = "timeout"
    BROKEN = "broken"  # the connection broke in mid-reply
    BUSY = "busy"  # 409, 429, 503: come back later
    SERVER = "server"  # other 5xx
    MODEL = "model"  # the agent's model cannot be reached, or answers nonsense
    MALFORMED = "malformed"  # a reply that is no reply of this protocol
    CREDIT = "credit"  # insufficient credits
    DENIED = "denied"  # other 4xx: wrong key, wrong model, wrong request
    CANCELLED = "cancelled"
    PAUSED = "paused"  # the circuit breaker is open
    FOREIGN = "foreign"  # the agent used a skill that was not chosen


PASSING = frozenset(Kind) - {Kind.DENIED, Kind.PAUSED, Kind.FOREIGN}
"""Kinds that may be gone at the next try."""


class InfrastructureError(BackendError):
    """The infrastructure failed in one try.

    Attributes:
        kind: what failed.
        may_have_run: whether the task may have been carried out all the same; never False unless
            that is certain.
        retry_after: seconds the other side asked to wait.
    """

    def __init__(
        self, kind: Kind, message: str, *, may_have_run: bool, retry_after: float | None = None
    ) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind, self.may_have_run, self.retry_after = kind, may_have_run, retry_after


def of_status(
    status: int,
    message: str,
    *,
    sent: bool,
    retry_after: str | float | None = None,
    in_mid_run: bool = False,
) -> InfrastructureError:
    """The failure that an HTTP status of at least 400 tells.

    Args:
        status: the status.
        message: what the other side said.
        sent: whether the request was the one that carries the task out.
        retry_after: value of the header of that name; a date instead of seconds is not read.
        in_mid_run: the status is that of the agent's model, which the server hands on.
    """
    match status:
        case 402:
            kind = Kind.CREDIT
        case 408:
            kind = Kind.TIMEOUT
        case 409 | 429 | 503:
            kind = Kind.BUSY
        case _:
            kind = Kind.SERVER if status >= 500 else Kind.DENIED
    if in_mid_run and kind is Kind.SERVER:
        kind = Kind.MODEL
    # A status below 500 is given before the agent starts; after a 5xx nobody knows.
    ran = sent and (in_mid_run or status >= 500 or status == 408)
    return InfrastructureError(
        kind, f"HTTP {status}: {message}", may_have_run=ran, retry_after=_seconds(retry_after)
    )


def _seconds(text: str | float | None) -> float | None:
    try:
        seconds = float(text) if text is not None else None
    except ValueError:
        return None
    return seconds if seconds is not None and 0 <= seconds < float("inf") else None


class Deadline:
    """The moment at which a rollout must be over, by the running loop's clock."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.at = asyncio.get_running_loop().time() + seconds

    @property
    def left(self) -> float:
        """Seconds until then, at least 0."""
        return max(0.0, self.at - asyncio.get_running_loop().time())


class RetryConfig(Section):
    """How failures are retried within a rollout's deadline.

    ``repeat``: whether a rollout that may have run already is tried again. "fresh" does so only
    where each rollout has an agent of its own that is thrown away.
    """

    attempts: int = Field(default=4, ge=1)
    wait: float = Field(default=0.5, gt=0)  # seconds before the second try, doubled from then on
    longest_wait: float = Field(default=10.0, gt=0)
    repeat: Literal["fresh", "never", "always"] = "fresh"


async def retried(
    attempt: Callable[[], Awaitable[T]],
    config: RetryConfig,
    deadline: Deadline,
    *,
    repeatable: bool,
    rng: np.random.Generator,
) -> T:
    """Call ``attempt`` until it succeeds, fails for good, or the next wait would pass the deadline.

    Waits double, jittered by a half, and are never shorter than what the other side asked for.

    Args:
        attempt: one try.
        config: how often, and how long to wait.
        deadline: of all tries together; each is expected to stop at it by itself.
        repeatable: whether a try that may have run may be followed by another.
        rng: source of the jitter.

    Raises:
        InfrastructureError: the last one.
    """
    try:
        import tenacity
    except ImportError as error:
        raise MissingExtraError("letta", "carrying tasks out with a real agent") from error

    def again(error: BaseException) -> bool:
        return (
            isinstance(error, InfrastructureError)
            and error.kind in PASSING
            and (repeatable or not error.may_have_run)
        )

    def wait(state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        asked = (error.retry_after or 0.0) if isinstance(error, InfrastructureError) else 0.0
        doubled = min(config.wait * 2.0 ** (state.attempt_number - 1), config.longest_wait)
        return max(asked, doubled * (0.75 + 0.5 * float(rng.random())))

    def too_late(state: tenacity.RetryCallState) -> bool:
        return state.attempt_number >= config.attempts or state.upcoming_sleep >= deadline.left

    retrying = tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception(again), wait=wait, stop=too_late, reraise=True
    )
    return await retrying(attempt)


class BreakerConfig(Section):
    """After ``failures`` in a row a backend is left alone for ``pause`` seconds."""

    failures: int = Field(default=5, ge=1)
    pause: float = Field(default=5.0, gt=0)  # seconds


class Breaker:
    """A circuit breaker: stops asking a backend that fails in a row, and says so.

    Args:
        config: when it opens, and for how long.
        name: of the backend, for the log.
    """

    def __init__(self, config: BreakerConfig, name: str) -> None:
        self.config, self.name = config, name
        self.in_a_row = 0
        self.opened = 0
        self._closed_at = 0.0  # by the loop's clock: until then nobody passes
        self._probe: asyncio.Event | None = None

    async def passed(self, deadline: Deadline) -> None:
        """Wait until the backend may be asked; when it was paused, one caller goes ahead alone.

        Raises:
            InfrastructureError: the deadline comes first.
        """
        loop = asyncio.get_running_loop()
        while self.in_a_row >= self.config.failures:
            pause = self._closed_at - loop.time()
            if pause <= 0 and self._probe is None:
                self._probe = asyncio.Event()
                return
            if pause >= deadline.left or not deadline.left:
                raise InfrastructureError(
                    Kind.PAUSED,
                    f"the {self.name} backend failed {self.in_a_row} times in a row and is left "
                    f"alone for {self.config.pause:g} s; see the log for what failed",
                    may_have_run=False,
                )
            if pause > 0:
                await asyncio.sleep(pause)
            elif self._probe is not None:
                await _within(self._probe.wait(), deadline.left)

    def succeeded(self) -> None:
        """The backend answered."""
        if self.in_a_row >= self.config.failures:
            log.warning("the %s backend answers again", self.name)
        self.in_a_row = 0
        self.release()

    def failed(self, failure: InfrastructureError) -> None:
        """The backend failed; opens the breaker when it was once too often."""
        self.in_a_row += 1
        if self.in_a_row >= self.config.failures:
            self._closed_at = asyncio.get_running_loop().time() + self.config.pause
            if self.in_a_row == self.config.failures or self._probe is not None:
                self.opened += 1
                log.warning(
                    "the %s backend failed %d times in a row, last with %s; pausing %g s",
                    *(self.name, self.in_a_row, failure, self.config.pause),
                )
        self.release()

    def release(self) -> None:
        """Whoever went ahead is done, however it ended; harmless to call again."""
        if self._probe is not None:
            self._probe.set()
            self._probe = None


async def _within(awaitable: Awaitable[object], seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(awaitable, seconds)
