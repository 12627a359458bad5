"""Requests over Ray actors: each has one outcome, whatever dies, and four do nearly four's work."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from benchmarks import ray as benchmark
from benchmarks.ray import Sleeps, asked
from letta_gym.errors import BackendError
from letta_gym.feedback.outcome import Outcome
from letta_gym.letta.backend import Outcomes, Requests
from letta_gym.letta.ray_backend import RayBackend, RayConfig

pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """Ray on this machine, without a dashboard."""
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    # Actors cannot import a file of tests, so its classes travel with their code.
    for module in (sys.modules[__name__], benchmark):
        ray.cloudpickle.register_pickle_by_value(module)
    yield
    ray.shutdown()


class Refuses(Sleeps):
    """Cannot carry out odd tasks, and says what came of the even ones."""

    def execute(self, requests: Requests) -> Outcomes:
        if requests.tasks[0] % 2:
            raise BackendError(f"task {requests.tasks[0]} is odd")
        out = super().execute(requests)
        detail = (Outcome(float(out.success[0]), response="done"),)
        return Outcomes(out.success, out.loaded, out.tokens, out.expected, out.evidence, detail)


class DiesOf(Sleeps):
    """Its process ends whenever task 3 comes."""

    def execute(self, requests: Requests) -> Outcomes:
        if requests.tasks[0] == 3:
            os._exit(1)
        return super().execute(requests)


def expect_each_once(out: Outcomes, count: int) -> None:
    """Every request has its own outcome, in its own place."""
    np.testing.assert_array_equal(out.success, (np.arange(count) / 1000).astype(np.float32))
    np.testing.assert_array_equal(out.tokens, np.arange(count) % 7)
    assert out.loaded.tolist() == [[True, False]] * count
    assert out.evidence.all()


def test_four_actors_carry_out_nearly_four_times_as_much(tmp_path: Path) -> None:
    one, four = benchmark.best_rates(tmp_path, 40)

    print(f"rollouts a second: one actor {one:.1f}, four actors {four:.1f}: {four / one:.2f}")
    assert four >= 3.4 * one


def test_a_killed_actor_loses_no_outcome_and_doubles_none(tmp_path: Path) -> None:
    out, died = benchmark.one_killed(tmp_path, 400)

    assert died == 1
    expect_each_once(out, 400)


def test_a_backend_goes_on_after_an_actor_died(tmp_path: Path) -> None:
    config = RayConfig(actors=2, retries=1, in_flight=1)
    with RayBackend(lambda: DiesOf(tmp_path, 0.0), config) as backend:
        backend.execute(asked(12))
        out = backend.execute(asked(3))

    expect_each_once(out, 3)


def test_a_task_that_kills_its_actors_is_given_up_and_the_others_are_not(tmp_path: Path) -> None:
    config = RayConfig(actors=2, retries=1, in_flight=1)
    with RayBackend(lambda: DiesOf(tmp_path, 0.0), config) as backend:
        out = backend.execute(asked(12))

    assert out.evidence.tolist() == [task != 3 for task in range(12)]
    assert backend.died == 2


def test_a_request_that_a_backend_refuses_is_no_evidence(tmp_path: Path) -> None:
    with RayBackend(lambda: Refuses(tmp_path, 0.0), RayConfig(actors=2)) as backend:
        out = backend.execute(asked(6))
        assert out.evidence.tolist() == [True, False] * 3
        assert [d.error for d in out.details][1] == "task 1 is odd"
        assert out.details[2].response == "done"
        with pytest.raises(BackendError, match="no request could be carried out: task 1 is odd"):
            backend.execute(Requests(*(part[1:2] for part in vars_of(asked(2)))))


def vars_of(requests: Requests) -> tuple[Any, Any, Any]:
    return requests.rows, requests.tasks, requests.skills


def test_an_actor_never_holds_more_than_its_share(tmp_path: Path) -> None:
    most = 0
    with RayBackend(lambda: Sleeps(tmp_path, 0.0), RayConfig(actors=2, in_flight=3)) as backend:
        send = backend._send

        def counted(job: Any, requests: Any, flying: dict[Any, Any], load: list[int]) -> None:
            nonlocal most
            send(job, requests, flying, load)
            most = max(most, *load)

        backend._send = counted  # type: ignore[method-assign]
        expect_each_once(backend.execute(asked(40)), 40)

    assert most == 3


def test_no_requests_have_no_outcomes_and_a_closed_backend_says_so(tmp_path: Path) -> None:
    backend = RayBackend(lambda: Sleeps(tmp_path), RayConfig(actors=1))
    assert len(backend.execute(asked(0)).success) == 0
    backend.close()
    with pytest.raises(BackendError, match="closed"):
        backend.execute(asked(1))
    backend.close()


def test_a_backend_that_cannot_be_made_is_an_error_at_once() -> None:
    def make() -> Any:
        raise ValueError("no key for the server")

    with pytest.raises(BackendError, match="cannot be made in an actor") as caught:
        RayBackend(make, RayConfig(actors=2))
    assert "no key for the server" in str(caught.value)
