"""Executing a task learns from what came of it, and fails in words and on time."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from letta_gym.errors import ConfigError
from letta_gym.feedback.outcome import Outcome
from letta_gym.library.skills import Skill
from letta_gym.library.vectors import Float
from tests.services import TASK, config, running, service_of

Skills = Sequence[Skill]


class Scripted:
    """A carrier that does what a test says, and counts."""

    def __init__(self, act: Callable[[Skills], Outcome], seconds: float = 0.0) -> None:
        self.act, self.seconds, self.count = act, seconds, 0

    async def carry_out(self, task: str, vector: Float, skills: Skills) -> Outcome:
        self.count += 1
        await asyncio.sleep(self.seconds)
        return self.act(skills)

    def close(self) -> None:
        pass


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    limits = {"deadline": 0.5, "executing": 1, "waiting": 1}
    with running(config(tmp_path, letta=limits)) as client:
        yield client


def scripted(
    client: TestClient, act: Callable[[Skills], Outcome], seconds: float = 0.0
) -> Scripted:
    service_of(client).carrier = carrier = Scripted(act, seconds)
    return carrier


def execute(client: TestClient, key: str | None = None) -> Any:
    headers = {} if key is None else {"Idempotency-Key": key}
    return client.post("/tasks/execute", json={"task": TASK}, headers=headers)


def done(skills: Skills) -> Outcome:
    return Outcome(1.0, tuple(s.id for s in skills), response="Done.", latency=0.25)


def test_the_mock_carries_a_task_out_and_its_outcome_is_learned(tmp_path: Path) -> None:
    with running(config(tmp_path)) as client:
        answer = execute(client).json()
        assert answer["graded_by"] == "simulation"
        assert 0 <= answer["success"] <= 1
        assert answer["reward"] == pytest.approx(sum(answer["reward_parts"].values()))
        kept = client.get(f"/tasks/{answer['decision_id']}").json()["outcome"]
        assert (kept["success"], kept["source"]) == (answer["success"], "simulation")
        latest = [execute(client).json() for _ in range(6)][-1]
        look = client.get(f"/tasks/{latest['decision_id']}").json()
        assert any("outcomes" in " ".join(c["reasons"]) for c in look["explanation"])


def test_a_task_is_carried_out_with_exactly_the_chosen_skills(client: TestClient) -> None:
    seen: list[list[str]] = []

    def act(skills: Skills) -> Outcome:
        seen.append([skill.id for skill in skills])
        return done(skills)

    scripted(client, act)
    answer = execute(client).json()
    assert seen == [[skill["id"] for skill in answer["skills"]]] == [answer["loaded"]]
    assert (answer["response"], answer["latency"]) == ("Done.", 0.25)


def test_a_task_that_is_sent_twice_is_carried_out_once(client: TestClient) -> None:
    carrier = scripted(client, done)
    answers = [execute(client, "mine") for _ in range(3)]
    assert carrier.count == 1
    assert [one.json() for one in answers] == [answers[0].json()] * 3
    assert answers[2].headers["Idempotent-Replayed"] == "true"
    other = client.post(
        "/tasks/execute", json={"task": "Another"}, headers={"Idempotency-Key": "mine"}
    )
    assert other.status_code == 422


def test_a_task_that_is_under_way_is_not_begun_again(client: TestClient) -> None:
    carrier = scripted(client, done, seconds=0.3)
    with ThreadPoolExecutor(2) as pool:
        first, second = (pool.submit(execute, client, "mine") for _ in range(2))
        status = sorted([first.result(20).status_code, second.result(20).status_code])
    assert (status, carrier.count) == ([200, 409], 1)


def test_a_failed_infrastructure_is_told_and_teaches_nothing(client: TestClient) -> None:
    failure = Outcome(None, evidence=False, error="connection refused", may_have_run=True)
    scripted(client, lambda skills: failure)
    before = client.post("/tasks/select", json={"task": TASK}).json()["skills"]
    answer = execute(client, "mine")
    after = client.post("/tasks/select", json={"task": TASK}).json()["skills"]
    assert answer.status_code == 502
    assert "connection refused" in answer.json()["detail"]
    assert "may have been carried out all the same" in answer.json()["detail"]
    assert before == after
    assert client.get("/metrics/summary").json()["failures"] == 1
    carrier = scripted(client, done)
    assert execute(client, "mine").status_code == 200, "an error is not repeated"
    assert carrier.count == 1


def test_what_nobody_graded_waits_for_feedback(client: TestClient) -> None:
    scripted(client, lambda skills: Outcome(None, evidence=False, response="Perhaps."))
    answer = execute(client).json()
    assert (answer["success"], answer["response"]) == (None, "Perhaps.")
    url = f"/tasks/{answer['decision_id']}"
    assert client.get(url).json()["outcome"] is None
    said = client.post(f"{url}/feedback", json={"success": 1.0})
    assert said.json()["kept_as"] == "outcome"


def test_a_letta_that_does_not_answer_is_given_up_at_the_deadline(client: TestClient) -> None:
    scripted(client, done, seconds=60)
    client.post("/tasks/select", json={"task": TASK})
    began = time.perf_counter()
    answer = execute(client)
    taken = time.perf_counter() - began
    assert answer.status_code == 504
    assert "not over within 0.5 s" in answer.json()["detail"]
    assert 0.5 <= taken < 5


def test_choices_do_not_wait_for_letta_and_too_many_tasks_are_refused(client: TestClient) -> None:
    started, go_on = threading.Semaphore(0), threading.Event()

    class Stuck(Scripted):
        async def carry_out(self, task: str, vector: Float, skills: Skills) -> Outcome:
            started.release()
            await asyncio.to_thread(go_on.wait, 20)
            return done(skills)

    service = service_of(client)
    service.carrier = Stuck(done)
    service.queue._config = service.config.letta.model_copy(update={"deadline": 30.0})
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(execute, client)
        assert started.acquire(timeout=20)
        second = pool.submit(execute, client)
        deadline = time.monotonic() + 20
        while service.queue._inside < 2:
            assert time.monotonic() < deadline
        refused = execute(client)
        assert client.post("/tasks/select", json={"task": TASK}).status_code == 200
        go_on.set()
        assert [one.result(20).status_code for one in (first, second)] == [200, 200]
    assert (refused.status_code, refused.headers["Retry-After"]) == (503, "5")


def test_a_real_backend_needs_its_section(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the backend 'rest' needs the section letta\.rest"):
        config(tmp_path, letta={"backend": "rest"})
