"""Real agents behind the batched backend protocol: concurrency, deadline, retries, grades, reward.

Whatever the kind of agent, one rollout goes the same way::

    circuit breaker -> attempt(s) within one deadline -> grade -> reward -> Outcome

An infrastructure failure ends as an outcome with ``evidence=False`` and ``error`` set; nothing is
invented. :meth:`LiveBackend.execute` may be called from any thread, also inside a running event
loop: the agent lives in a loop of its own.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future
from typing import Annotated, Any, Self, TypeVar

import numpy as np
from pydantic import Field

from letta_gym.config import Section
from letta_gym.errors import BackendError
from letta_gym.feedback.outcome import Outcome
from letta_gym.letta.backend import Outcomes, Requests
from letta_gym.letta.evals import EvalsGrader
from letta_gym.letta.failures import (
    Breaker,
    BreakerConfig,
    Deadline,
    InfrastructureError,
    Kind,
    RetryConfig,
    retried,
)
from letta_gym.letta.grading import (
    Answer,
    ContainsGrader,
    ExactGrader,
    Grade,
    Grader,
    JsonSchemaGrader,
    PythonGrader,
    RegexGrader,
    grader_of,
)
from letta_gym.letta.judge import JudgeGrader
from letta_gym.letta.reward import RewardConfig, priced
from letta_gym.letta.rollout import Agent, Attempt, Reply, Rollout
from letta_gym.library.suite import Suite

T = TypeVar("T")

log = logging.getLogger(__name__)

AnyGrader = Annotated[
    ExactGrader
    | ContainsGrader
    | RegexGrader
    | JsonSchemaGrader
    | PythonGrader
    | JudgeGrader
    | EvalsGrader,
    Field(discriminator="kind"),
]
"""Every grader that a configuration may name."""


class LiveConfig(Section):
    """What every real backend has.

    ``deadline``: seconds that one rollout may take from its turn to its grade, tries, waits and
    grading included. ``grader`` judges tasks that bring none of their own. ``feedback`` writes the
    reward back to where Letta keeps the run.
    """

    concurrency: int = Field(default=4, ge=1)
    deadline: float = Field(default=120.0, gt=0)
    grader: AnyGrader | None = None
    reward: RewardConfig = RewardConfig()
    retries: RetryConfig = RetryConfig()
    breaker: BreakerConfig = BreakerConfig()
    feedback: bool = False


class LiveBackend:
    """Carries tasks out with a real agent; a :class:`letta_gym.letta.backend.Backend`.

    Use it as a context manager, or call :meth:`close`.

    Args:
        agent: the kind of agent.
        config: concurrency, deadline, grading and so on.
        suite: the pool that requests are indices into; needed by :meth:`execute` only.
        grader: judges tasks that bring none of their own; by default that of the configuration.
        name: of the backend, for messages.
        seed: of the jitter between retries.

    Attributes:
        failed: outcomes so far whose infrastructure failed.
        ungraded: outcomes so far that nobody could grade.

    Raises:
        BackendError: the agent cannot work; the message has the remedy.
        ConfigError: a grader is malformed or cannot judge.
    """

    def __init__(
        self,
        agent: Agent,
        config: LiveConfig,
        suite: Suite | None = None,
        *,
        grader: Grader | None = None,
        name: str = "letta",
        seed: int = 0,
    ) -> None:
        self.agent, self.config, self.suite = agent, config, suite
        self.grader = config.grader if grader is None else grader
        self.failed = self.ungraded = 0
        self._graders = [] if suite is None else [grader_of(t, self.grader) for t in suite.tasks]
        self._skills = () if suite is None else tuple(suite.library)
        self._rng = np.random.default_rng(seed)
        self._breaker = Breaker(config.breaker, name)
        self._slots = asyncio.Semaphore(config.concurrency)
        self._loop = _Loop()
        try:
            self._loop.run(self._start())
        except BaseException:
            self._loop.stop()
            raise

    async def _start(self) -> None:
        if self.grader is not None:
            await self.grader.check()
        try:
            await self.agent.start()
        except BaseException:
            await self.agent.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove whatever is still in place, and disconnect; harmless to call again."""
        if self._loop.running:
            try:
                self._loop.run(self.agent.close())
            finally:
                self._loop.stop()

    @property
    def paused(self) -> int:
        """How often the circuit breaker opened."""
        return self._breaker.opened

    def execute(self, requests: Requests) -> Outcomes:
        """Carry out every request, ``concurrency`` at a time; ``details`` holds the outcomes.

        Raises:
            BackendError: the backend was made without a suite, or is closed.
        """
        return as_arrays(requests, self.run(self.rollouts(requests)), self._skills_of(requests))

    def rollouts(self, requests: Requests) -> list[Rollout]:
        """The tasks and skills that ``requests`` point to."""
        if self.suite is None:
            raise BackendError("this backend was made without a suite; pass suite=...")
        tasks, skills = self.suite.tasks, self._skills
        return [
            Rollout(
                text=tasks[task].text,
                skills=tuple(skills[i] for i in chosen if i >= 0),
                grader=self._graders[task],
                metadata=tasks[task].metadata,
            )
            for task, chosen in zip(requests.tasks.tolist(), requests.skills.tolist(), strict=True)
        ]

    def _skills_of(self, requests: Requests) -> list[list[str]]:
        return [[self._skills[i].id for i in row if i >= 0] for row in requests.skills.tolist()]

    def run(self, rollouts: Sequence[Rollout]) -> list[Outcome]:
        """Carry the rollouts out, ``concurrency`` at a time; the outcomes in the same order."""
        return self._loop.run(self._all(rollouts))

    async def run_async(self, rollouts: Sequence[Rollout]) -> list[Outcome]:
        """:meth:`run` for callers that have an event loop of their own."""
        return await asyncio.wrap_future(self._loop.submit(self._all(rollouts)))

    def write_back(self, outcome: Outcome) -> None:
        """Write a reward that came later to where Letta keeps the run, where ``feedback`` is on.

        What cannot be written is told in the log.
        """
        if self.config.feedback:
            self._loop.run(self._written_back(outcome, self.config.deadline))

    async def _all(self, rollouts: Sequence[Rollout]) -> list[Outcome]:
        return list(await asyncio.gather(*(self._one(rollout) for rollout in rollouts)))

    async def _one(self, rollout: Rollout) -> Outcome:
        async with self._slots:
            deadline = Deadline(self.config.deadline)
            tries: list[Attempt] = []
            try:
                reply, latency = await self._replied(rollout, deadline, tries)
            except InfrastructureError as failure:
                self.failed += 1
                ran = _may_have_run(tries)
                return Outcome(None, evidence=False, error=str(failure), may_have_run=ran)
            try:
                grade = await _graded(rollout, reply, deadline)
                outcome = _outcome(rollout, reply, grade, latency, _may_have_run(tries))
                outcome = priced(outcome, self.config.reward)
                if self.config.feedback:
                    await self._written_back(outcome, deadline.left)
            finally:
                await self.agent.release(tries[-1])
        self.ungraded += outcome.success is None
        return outcome

    async def _written_back(self, outcome: Outcome, seconds: float) -> None:
        run_id, reward = outcome.run_id, outcome.reward
        if run_id is None or reward is None:
            return
        try:
            async with asyncio.timeout(seconds):
                await self.agent.feedback(run_id, outcome.step_ids, reward)
        except (InfrastructureError, TimeoutError) as error:  # the outcome stands without it
            log.warning("the reward of run %s could not be written back: %s", run_id, error)

    async def _replied(
        self, rollout: Rollout, deadline: Deadline, tries: list[Attempt]
    ) -> tuple[Reply, float]:
        """The reply and the seconds it took; each try is appended to ``tries``."""
        started = 0.0

        async def attempt() -> Reply:
            nonlocal started
            await self._breaker.passed(deadline)
            tries.append(Attempt(rollout, deadline))
            started = time.perf_counter()
            return await self._guarded(tries[-1])

        repeat = self.config.retries.repeat
        reply = await retried(
            attempt,
            self.config.retries,
            deadline,
            repeatable=repeat == "always" or (repeat == "fresh" and self.agent.disposable),
            rng=self._rng,
        )
        return reply, time.perf_counter() - started

    async def _guarded(self, attempt: Attempt) -> Reply:
        """One attempt, over at the deadline, that tells the circuit breaker how it went."""
        deadline = attempt.deadline
        try:
            try:
                async with asyncio.timeout_at(deadline.at):
                    reply = await self.agent.carry_out(attempt)
            except TimeoutError as error:
                raise InfrastructureError(
                    Kind.TIMEOUT,
                    f"no reply within the deadline of {deadline.seconds:g} s",
                    may_have_run=attempt.sent,
                ) from error
            self._breaker.succeeded()
        except InfrastructureError as failure:
            attempt.failure = failure
            self._breaker.failed(failure)
            raise
        finally:
            self._breaker.release()
        if reply.foreign:
            await self.agent.release(attempt)
            attempt.failure = InfrastructureError(
                Kind.FOREIGN,
                f"the agent loaded {list(reply.foreign)}, which were not chosen",
                may_have_run=True,
            )
            raise attempt.failure
        return reply


def _may_have_run(tries: Sequence[Attempt]) -> bool:
    """Whether one of the tries that failed may have carried the task out."""
    return any(one.failure is not None and one.failure.may_have_run for one in tries)


def _outcome(
    rollout: Rollout, reply: Reply, grade: Grade | None, latency: float, ran: bool
) -> Outcome:
    success = None if grade is None else grade.success
    cost = {skill.id: skill.tokens for skill in rollout.skills}
    return Outcome(
        success=success,
        loaded=reply.loaded,
        tokens=sum(cost[skill_id] for skill_id in reply.loaded),
        evidence=success is not None,
        steps=reply.steps,
        tool_errors=reply.tool_errors,
        usage=reply.usage,
        latency=latency,
        stop_reason=reply.stop_reason,
        error=grade.reason if grade is not None and success is None else None,
        response=reply.response,
        run_id=reply.run_id,
        step_ids=reply.step_ids,
        may_have_run=ran,
    )


async def _graded(rollout: Rollout, reply: Reply, deadline: Deadline) -> Grade | None:
    if rollout.grader is None:
        return None
    answer = Answer(rollout.text, reply.response, rollout.metadata)
    try:
        async with asyncio.timeout_at(deadline.at):
            return await rollout.grader.grade(answer)
    except TimeoutError:
        return Grade(None, "the grader gave no verdict before the deadline")


def as_arrays(
    requests: Requests, outcomes: Sequence[Outcome], skills: Sequence[Sequence[str]]
) -> Outcomes:
    """Outcomes of B requests as arrays.

    Args:
        requests: what was asked for.
        outcomes: what came of each, length B.
        skills: ids of the chosen skills of each, in the order of ``requests.skills``, length B.
    """
    loaded = np.zeros(requests.skills.shape, bool)
    for row, (outcome, ids) in enumerate(zip(outcomes, skills, strict=True)):
        used = ids if outcome.loaded is None else outcome.loaded
        if outcome.evidence:
            on = iter([skill_id in used for skill_id in ids])
            loaded[row] = [index >= 0 and next(on) for index in requests.skills[row].tolist()]
    return Outcomes(
        success=np.array([outcome.success or 0.0 for outcome in outcomes], np.float32),
        loaded=loaded,
        tokens=np.array([outcome.tokens or 0.0 for outcome in outcomes], np.float32),
        expected=np.full(len(outcomes), np.nan, np.float32),
        evidence=np.array([outcome.evidence for outcome in outcomes], bool),
        details=tuple(outcomes),
    )


class _Loop:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="letta-gym", daemon=True
        )
        self._thread.start()

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        if not self.running:
            work.close()
            raise BackendError("the backend is closed; make a new one")
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run ``work`` in the loop; an interrupt of the waiting thread cancels it."""
        future = self.submit(work)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def stop(self) -> None:
        if self.running:
            self.run(_settled())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()


async def _settled() -> None:
    """Cancel whatever still runs in this loop, and let its connections close."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    await asyncio.sleep(0)
