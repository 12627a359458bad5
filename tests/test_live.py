"""Real agents behind the backend protocol: deadline, retries, circuit breaker, grades, reward."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable

import numpy as np
import pytest

from letta_gym.errors import BackendError, ConfigError
from letta_gym.feedback.outcome import Outcome
from letta_gym.letta.backend import Requests
from letta_gym.letta.failures import (
    BreakerConfig,
    InfrastructureError,
    Kind,
    RetryConfig,
    of_status,
)
from letta_gym.letta.grading import ExactGrader
from letta_gym.letta.live import LiveBackend, LiveConfig
from letta_gym.letta.reward import RewardConfig
from letta_gym.letta.rollout import Attempt, Reply, Rollout
from letta_gym.library.skills import Skill, SkillLibrary
from letta_gym.library.suite import Suite
from letta_gym.library.tasks import Task

Script = Callable[[int, Attempt], Awaitable[Reply]]

ADD = Skill("add", "add", "adds", "how to add", tokens=300)
SUM = Skill("sum", "sum", "sums", "how to sum", tokens=700)
SUITE = Suite(
    "sums",
    SkillLibrary([ADD, SUM]),
    (Task("one", "1 + 1", metadata={"expected": "2"}), Task("two", "2 + 2")),
)
NO_WAIT = RetryConfig(wait=0.001, longest_wait=0.002)


def config(**fields: object) -> LiveConfig:
    usual = {"retries": NO_WAIT, "grader": ExactGrader(), "deadline": 5.0}
    return LiveConfig.model_validate(usual | fields)


class ScriptedAgent:
    """Answers each try as its script says; notes what happened to it."""

    def __init__(self, script: Script, *, disposable: bool = True) -> None:
        self.script, self.disposable = script, disposable
        self.tries: list[Attempt] = []
        self.running = self.most_running = 0
        self.closed = 0
        self.released: list[Attempt] = []
        self.rewards: list[tuple[str, tuple[str, ...], float]] = []

    async def start(self) -> None:
        """Nothing to connect to."""

    async def carry_out(self, attempt: Attempt) -> Reply:
        self.tries.append(attempt)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            return await self.script(len(self.tries), attempt)
        finally:
            self.running -= 1

    async def feedback(self, run_id: str, step_ids: tuple[str, ...], reward: float) -> None:
        self.rewards.append((run_id, step_ids, reward))

    async def release(self, attempt: Attempt) -> None:
        self.released.append(attempt)

    async def close(self) -> None:
        self.closed += 1


def reply(response: str, *loaded: str) -> Reply:
    return Reply(
        response, loaded, "end_turn", steps=2, usage=900, run_id="run-1", step_ids=("step-1",)
    )


async def right(number: int, attempt: Attempt) -> Reply:
    attempt.sent = True
    return reply("2", *(skill.id for skill in attempt.rollout.skills))


def failing(*failures: InfrastructureError) -> Script:
    """Fails so, one after the other, and answers from then on."""

    async def script(number: int, attempt: Attempt) -> Reply:
        if number <= len(failures):
            attempt.sent = failures[number - 1].may_have_run
            raise failures[number - 1]
        return await right(number, attempt)

    return script


def failure(kind: Kind, *, ran: bool = False) -> InfrastructureError:
    return InfrastructureError(kind, "as scripted", may_have_run=ran)


def carried_out(agent: ScriptedAgent, live: LiveConfig, count: int = 1) -> list[Outcome]:
    task = SUITE.tasks[0]
    rollouts = [Rollout(task.text, (ADD,), live.grader, task.metadata) for _ in range(count)]
    with LiveBackend(agent, live) as backend:
        return backend.run(rollouts)


def test_a_rollout_becomes_an_outcome_with_everything_that_is_known_of_it() -> None:
    reward = RewardConfig(steps=0.1)

    (outcome,) = carried_out(ScriptedAgent(right), config(reward=reward))

    assert outcome.success == 1
    assert outcome.loaded == ("add",)
    assert (outcome.tokens, outcome.usage, outcome.steps) == (300, 900, 2)
    assert outcome.reward == pytest.approx(1 - 0.04 * 0.3 - 0.2)
    assert (outcome.run_id, outcome.step_ids, outcome.stop_reason) == (
        *("run-1", ("step-1",)),
        "end_turn",
    )
    assert outcome.latency is not None
    assert outcome.evidence
    assert not outcome.may_have_run


def test_requests_are_indices_into_the_suite_and_outcomes_are_arrays() -> None:
    seen: dict[str, tuple[str, ...]] = {}

    async def script(number: int, attempt: Attempt) -> Reply:
        rollout = attempt.rollout
        seen[rollout.text] = tuple(skill.body for skill in rollout.skills)
        return reply("2", *(["sum"] if rollout.skills else []))

    requests = Requests(np.arange(2), np.array([0, 1]), np.array([[1, -1, 0], [-1, -1, -1]]))
    with LiveBackend(ScriptedAgent(script), config(), SUITE) as backend:
        out = backend.execute(requests)

    assert seen == {"1 + 1": ("how to sum", "how to add"), "2 + 2": ()}
    assert out.success.tolist() == [1, 0]
    assert out.evidence.tolist() == [True, False]  # nothing is expected of the second task
    assert out.loaded.tolist() == [[True, False, False], [False, False, False]]
    assert out.tokens.tolist() == [700, 0]
    assert [one.response for one in out.details] == ["2", "2"]
    assert backend.ungraded == 1


def test_rollouts_run_side_by_side_but_no_more_than_allowed() -> None:
    async def slow(number: int, attempt: Attempt) -> Reply:
        await asyncio.sleep(0.02)
        return await right(number, attempt)

    agent = ScriptedAgent(slow)
    outcomes = carried_out(agent, config(concurrency=3), count=9)

    assert [outcome.success for outcome in outcomes] == [1] * 9
    assert agent.most_running == 3


@pytest.mark.parametrize("kind", ["refused", "timeout", "broken", "busy", "server", "malformed"])
def test_what_may_pass_is_tried_again(kind: str) -> None:
    agent = ScriptedAgent(failing(failure(Kind(kind)), failure(Kind(kind))))

    (outcome,) = carried_out(agent, config())

    assert outcome.success == 1
    assert len(agent.tries) == 3
    assert not outcome.may_have_run


def test_what_will_not_pass_is_not_tried_again() -> None:
    agent = ScriptedAgent(failing(failure(Kind.DENIED)))

    (outcome,) = carried_out(agent, config())

    assert len(agent.tries) == 1
    assert (outcome.success, outcome.evidence, outcome.reward) == (None, False, None)
    assert outcome.error == "denied: as scripted"


@pytest.mark.parametrize(
    ("repeat", "disposable", "tries"),
    [("fresh", True, 2), ("fresh", False, 1), ("always", False, 2), ("never", True, 1)],
)
def test_a_task_that_may_have_run_is_repeated_only_as_allowed_and_is_marked(
    repeat: str, disposable: bool, tries: int
) -> None:
    agent = ScriptedAgent(failing(failure(Kind.TIMEOUT, ran=True)), disposable=disposable)
    retries = NO_WAIT.model_copy(update={"repeat": repeat})

    (outcome,) = carried_out(agent, config(retries=retries))

    assert len(agent.tries) == tries
    assert outcome.may_have_run
    assert outcome.evidence == (tries == 2)


def test_a_wait_that_the_other_side_asks_for_is_kept() -> None:
    busy = of_status(429, "slow down", sent=True, retry_after="0.2")
    agent = ScriptedAgent(failing(busy))
    started = time.perf_counter()

    (outcome,) = carried_out(agent, config())

    assert time.perf_counter() - started >= 0.2
    assert outcome.success == 1
    assert not outcome.may_have_run


@pytest.mark.parametrize("sent", [False, True])
def test_one_deadline_holds_for_all_tries_together(sent: bool) -> None:
    async def hang(number: int, attempt: Attempt) -> Reply:
        attempt.sent = sent
        if number == 1:
            await asyncio.sleep(0.15)
            raise failure(Kind.BUSY)
        await asyncio.sleep(60)
        raise AssertionError("was not cancelled")

    agent = ScriptedAgent(hang)
    started = time.perf_counter()
    (outcome,) = carried_out(agent, config(deadline=0.3))

    assert 0.3 <= time.perf_counter() - started < 0.8
    assert len(agent.tries) == 2
    assert outcome.error is not None
    assert outcome.error.startswith("timeout: no reply within the deadline of 0.3 s")
    assert outcome.may_have_run == sent


def test_a_wait_beyond_the_deadline_is_not_begun() -> None:
    agent = ScriptedAgent(failing(of_status(429, "slow down", sent=True, retry_after="60")))
    started = time.perf_counter()

    (outcome,) = carried_out(agent, config())

    assert time.perf_counter() - started < 1
    assert outcome.error == "busy: HTTP 429: slow down"


def test_a_backend_that_fails_in_a_row_is_paused_then_tried_by_one_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def script(number: int, attempt: Attempt) -> Reply:
        if number <= 3:
            raise failure(Kind.REFUSED)
        await asyncio.sleep(0.05)
        return await right(number, attempt)

    agent = ScriptedAgent(script)
    live = config(concurrency=3, breaker=BreakerConfig(failures=3, pause=0.2))
    starts: list[float] = []
    inner = agent.carry_out

    async def noted(attempt: Attempt) -> Reply:
        starts.append(time.perf_counter())
        return await inner(attempt)

    agent.carry_out = noted  # type: ignore[method-assign]
    with caplog.at_level(logging.WARNING):
        outcomes = carried_out(agent, live, count=3)

    assert [outcome.success for outcome in outcomes] == [1, 1, 1]
    assert starts[3] - starts[2] >= 0.19, "the pause was not kept"
    assert starts[4] - starts[3] >= 0.04, "more than one went ahead"
    assert "3 times in a row" in caplog.text
    assert "answers again" in caplog.text


def test_a_pause_beyond_the_deadline_is_an_infrastructure_failure_that_says_so() -> None:
    agent = ScriptedAgent(failing(*[failure(Kind.REFUSED)] * 50))
    live = config(concurrency=1, deadline=0.5, breaker=BreakerConfig(failures=2, pause=30))

    with LiveBackend(agent, live) as backend:
        outcomes = backend.run([Rollout("1 + 1") for _ in range(3)])

        assert (backend.failed, backend.paused) == (3, 1)
    assert len(agent.tries) == 2
    assert "left alone for 30 s" in str(outcomes[2].error)


def test_a_reply_in_which_a_foreign_skill_was_used_is_no_evidence() -> None:
    async def script(number: int, attempt: Attempt) -> Reply:
        return Reply("2", ("add",), "end_turn", steps=1, foreign=("bundled-one",))

    (outcome,) = carried_out(ScriptedAgent(script), config())

    assert not outcome.evidence
    assert "bundled-one" in str(outcome.error)


def test_a_grader_that_is_too_slow_leaves_the_outcome_ungraded() -> None:
    class SlowGrader:
        async def check(self) -> None: ...

        async def grade(self, answer: object) -> None:
            await asyncio.sleep(60)

    rollout = Rollout("1 + 1", (ADD,), SlowGrader())  # type: ignore[arg-type]
    with LiveBackend(ScriptedAgent(right), config(deadline=0.2)) as backend:
        (outcome,) = backend.run([rollout])

    assert (outcome.success, outcome.evidence, outcome.response) == (None, False, "2")
    assert outcome.error == "the grader gave no verdict before the deadline"


def test_an_attempt_that_gave_a_reply_is_released_once_and_no_other() -> None:
    agent = ScriptedAgent(failing(failure(Kind.BUSY)))

    carried_out(agent, config())

    assert agent.released == agent.tries[1:]


def test_the_reward_is_written_back_only_where_that_is_wanted() -> None:
    silent, told = ScriptedAgent(right), ScriptedAgent(right)

    carried_out(silent, config())
    (outcome,) = carried_out(told, config(feedback=True))

    assert silent.rewards == []
    assert told.rewards == [("run-1", ("step-1",), outcome.reward)]


def test_it_works_inside_a_running_event_loop_and_from_it() -> None:
    async def main() -> tuple[Outcome, Outcome]:
        with LiveBackend(ScriptedAgent(right), config()) as backend:
            rollout = Rollout("1 + 1", (), ExactGrader(expected="2"))
            return backend.run([rollout])[0], (await backend.run_async([rollout]))[0]

    first, second = asyncio.run(main())

    assert (first.success, second.success) == (1, 1)


def test_an_agent_that_cannot_start_is_closed_and_its_error_is_raised() -> None:
    class Unusable(ScriptedAgent):
        async def start(self) -> None:
            raise BackendError("nobody answers at http://127.0.0.1:9")

    agent = Unusable(right)
    before = threading.active_count()
    with pytest.raises(BackendError, match="nobody answers"):
        LiveBackend(agent, config())

    assert agent.closed == 1
    assert threading.active_count() == before


def test_a_closed_backend_says_so() -> None:
    backend = LiveBackend(ScriptedAgent(right), config())
    backend.close()
    backend.close()

    with pytest.raises(BackendError, match="closed"):
        backend.run([Rollout("1 + 1")])


def test_a_malformed_grader_of_the_suite_is_found_at_the_start() -> None:
    bad = Task("bad", "1 + 1", metadata={"grader": {"kind": "exacd"}})

    with pytest.raises(ConfigError, match="'bad'"):
        LiveBackend(ScriptedAgent(right), config(), Suite("s", SUITE.library, (bad,)))


@pytest.mark.parametrize(
    ("status", "kind", "ran"),
    [
        (402, Kind.CREDIT, False),
        (404, Kind.DENIED, False),
        (408, Kind.TIMEOUT, True),
        (429, Kind.BUSY, False),
        (500, Kind.SERVER, True),
        (503, Kind.BUSY, True),
    ],
)
def test_a_status_tells_what_failed_and_whether_the_task_may_have_run(
    status: int, kind: Kind, ran: bool
) -> None:
    told = of_status(status, "", sent=True, retry_after="Wed, 21 Oct 2026 07:28:00 GMT")

    assert (told.kind, told.may_have_run, told.retry_after) == (kind, ran, None)
    assert not of_status(status, "", sent=False).may_have_run
    assert of_status(status, "", sent=True, in_mid_run=True).may_have_run
