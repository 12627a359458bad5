"""Policies on trial in the service: in the shadow, as a canary, at the gate, and back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from letta_gym.errors import StoreError
from letta_gym.selection.session import Query
from letta_gym.service import shadow
from letta_gym.service.shadow import Shadows
from tests.services import TASK, another_policy, config, running, service_of

EAGER = {"daily_budget": 10**6}
GATE = {"min_effective": 20.0}
STOPS = 1e6  # level of stopping of a policy that loads nothing


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    with running(config(tmp_path, exploration=EAGER, gate=GATE)) as client:
        yield client


def select(client: TestClient, **body: Any) -> dict[str, Any]:
    answer = client.post("/tasks/select", json={"task": TASK, **body})
    assert answer.status_code == 200, answer.text
    chosen: dict[str, Any] = answer.json()
    return chosen


def upload(client: TestClient, threshold: float, sharpness: float = 1.0) -> str:
    answer = client.post("/policies", content=another_policy(client, threshold, sharpness))
    assert answer.status_code == 201, answer.text
    return str(answer.json()["digest"])


def move(client: TestClient, digest: str, where: str, **body: Any) -> dict[str, Any]:
    answer = client.post(f"/policies/{digest}/{where}", json=body)
    assert answer.status_code == 200, answer.text
    moved: dict[str, Any] = answer.json()
    return moved


def problem(client: TestClient, digest: str, where: str, **body: Any) -> dict[str, Any]:
    answer = client.post(f"/policies/{digest}/{where}", json=body)
    assert answer.status_code == 409, answer.text
    said: dict[str, Any] = answer.json()
    return said


def statuses(client: TestClient) -> dict[str, str]:
    return {one["digest"]: one["status"] for one in client.get("/policies").json()["items"]}


def soon(found: Callable[[], bool]) -> None:
    """Wait until something that happens beside the requests has happened."""
    deadline = time.monotonic() + 10
    while not found():
        assert time.monotonic() < deadline, "it did not happen within 10 s"
        time.sleep(0.02)


def judged(client: TestClient, n: int, good: Callable[[dict[str, Any]], bool]) -> None:
    """Explored choices of one skill at most, with outcomes."""
    for _ in range(n):
        chosen = select(client, k=1, explore=True)
        say = {"success": 0.9 if good(chosen) else 0.1}
        client.post(f"/tasks/{chosen['decision_id']}/feedback", json=say)


# --- in the shadow --------------------------------------------------------------------------------


def test_a_policy_in_the_shadow_chooses_beside_and_is_not_used(client: TestClient) -> None:
    digest = upload(client, STOPS)
    active = select(client)["policy_digest"]
    assert move(client, digest, "shadow")["status"] == "shadow"
    chosen = [select(client) for _ in range(4)]
    of = service_of(client)
    soon(lambda: digest in of.shadows.found and of.shadows.found[digest].choices == 4)

    assert {one["policy_digest"] for one in chosen} == {active}
    assert all(one["skills"] for one in chosen)
    made = [one.decision for one in of.store.history().decisions(policy=digest)]
    assert [one.mode for one in made] == ["shadow"] * 4
    assert {one.task_hash for one in made} == {
        one.decision.task_hash for one in of.store.history().decisions(policy=active)
    }
    seen = client.get(f"/policies/{digest}").json()["in_shadow"]
    assert seen == {"choices": 4, "same": 0, "left_out": 0}
    shown = {one["decision_id"] for one in client.get("/tasks").json()["items"]}
    assert shown.isdisjoint(one.id for one in made)
    refused = client.post(f"/tasks/{made[0].id}/feedback", json={"success": 1.0})
    assert (refused.status_code, "in the shadow" in refused.json()["detail"]) == (409, True)

    assert move(client, digest, "rollback")["status"] == "candidate"
    select(client)
    time.sleep(0.1)
    assert of.shadows.found[digest].choices == 4


def test_one_policy_at_a_time_is_in_the_shadow(client: TestClient) -> None:
    first, second = upload(client, STOPS), upload(client, 0.5)
    move(client, first, "shadow")
    move(client, second, "shadow")
    assert (statuses(client)[first], statuses(client)[second]) == ("candidate", "shadow")


class Slow:
    """Counts choices and takes a while for each, on a clock of its own."""

    def __init__(self, digest: str = "d") -> None:
        self.now, self.chosen = 0.0, 0
        self.policy = type("Policy", (), {"digest": digest, "max_skills": 3})()

    def __call__(self) -> float:
        return self.now

    def select_many(self, queries: Any) -> Any:
        self.chosen += 1
        self.now += 0.004
        return [type("Selection", (), {"decision_id": "x", "skills": ()})()]

    async def kept(self, decision_id: str) -> None:
        if self.chosen == 2:
            raise StoreError("the disk is full")


def test_the_shadow_takes_a_tenth_of_the_time_and_leaves_the_rest_out() -> None:
    slow, query = Slow(), Query("task", 3, embedding=np.zeros(2, np.float32))
    (made,) = slow.select_many([query])
    slow.now, slow.chosen = 0.0, 0

    async def work() -> tuple[Shadows, float, float]:
        shadows = Shadows(slow)
        start = time.perf_counter()
        for _ in range(shadow._WAITING + 36):
            shadows.put(slow, slow, query, made)  # type: ignore[arg-type]
        offered = time.perf_counter() - start
        await asyncio.sleep(0.5)
        await shadows.close()
        return shadows, offered, time.perf_counter() - start

    shadows, offered, whole = asyncio.run(work())
    found = shadows.found["d"]
    assert offered < 0.1
    assert found.left_out == 36 + 1  # and the one that could not be kept
    assert 2 < found.choices <= whole * 0.1 / 0.004 + 2
    assert found.same == found.choices


# --- a canary -------------------------------------------------------------------------------------


def test_a_canary_serves_its_share_and_the_decisions_name_it(client: TestClient) -> None:
    digest = upload(client, STOPS)
    active = select(client)["policy_digest"]
    moved = move(client, digest, "promote", share=0.3)
    assert (moved["status"], moved["share"]) == ("canary", 0.3)
    chosen = [select(client) for _ in range(200)]
    by_canary = [one for one in chosen if one["policy_digest"] == digest]

    assert 0.17 < len(by_canary) / 200 < 0.43
    assert {one["policy_digest"] for one in chosen} == {active, digest}
    assert all(bool(one["skills"]) == (one["policy_digest"] == active) for one in chosen)
    assert all(one["fallback"] == (one["policy_digest"] == active) for one in chosen)
    store = service_of(client).store
    assert {one.decision.mode for one in store.history().decisions(policy=digest)} == {"canary"}
    say = {"success": 1.0}
    for one in (by_canary[0], chosen[-1]):
        kept = client.post(f"/tasks/{one['decision_id']}/feedback", json=say)
        assert kept.json()["kept_as"] == "outcome"
    assert "chooses already" in problem(client, digest, "shadow")["detail"]

    assert move(client, digest, "rollback")["status"] == "candidate"
    assert {select(client)["policy_digest"] for _ in range(20)} == {active}


def test_trials_go_on_after_a_restart(tmp_path: Path) -> None:
    settings = config(tmp_path)
    with running(settings) as first:
        canary, beside = upload(first, STOPS), upload(first, 0.5)
        move(first, canary, "promote", share=0.9)
        move(first, beside, "shadow")
    with running(settings) as second:
        chosen = {select(second)["policy_digest"] for _ in range(20)}
        assert canary in chosen
        soon(lambda: beside in service_of(second).shadows.found)
    (tmp_path / "policies" / f"{canary}.safetensors").unlink()
    with running(settings) as third:  # the active one serves all the same
        assert canary not in {select(third)["policy_digest"] for _ in range(20)}


# --- the gate -------------------------------------------------------------------------------------


def test_the_gate_refuses_with_figures_and_an_admin_may_force(client: TestClient) -> None:
    baseline = select(client)["policy_digest"]
    digest = upload(client, STOPS)
    assert "holds 0 explored decisions" in problem(client, digest, "promote")["detail"]
    judged(client, 60, lambda chosen: bool(chosen["skills"]))  # and it loads none
    refused = problem(client, digest, "promote")
    assert refused["detail"].startswith("refused: ")
    figures = refused["figures"]
    assert figures == client.get(f"/policies/{digest}/comparison").json()
    assert figures["gain"]["low"] <= figures["gain"]["value"] <= figures["gain"]["high"]
    assert (figures["promoted"], figures["candidate"] < figures["incumbent"]) == (False, True)
    assert statuses(client) == {baseline: "active", digest: "candidate"}

    assert move(client, digest, "promote", force=True)["status"] == "active"
    chosen = select(client)
    assert (chosen["policy_digest"], chosen["fallback"]) == (digest, False)
    assert "is the active one already" in problem(client, digest, "promote")["detail"]
    assert move(client, digest, "rollback")["digest"] == baseline
    chosen = select(client)
    assert (chosen["policy_digest"], chosen["fallback"]) == (baseline, True)
    assert statuses(client) == {baseline: "active", digest: "retired"}
    assert "nothing to stop" in problem(client, digest, "rollback")["detail"]

    entries = [
        (one.action, one.actor, one.detail)
        for one in service_of(client).store.policies.audit()
        if one.action in ("switch", "refuse")
    ]
    assert [action for action, _, _ in entries] == ["switch", "refuse", "switch", "switch"]
    assert {actor for _, actor, _ in entries[1:]} == {"local"}
    assert (entries[2][2]["forced"], entries[2][2]["gain"]["value"] < 0) == (True, True)
    assert entries[3][2]["reason"] == "rollback"


def test_the_gate_lets_pass_what_the_log_speaks_for(client: TestClient) -> None:
    best = select(client, k=1)
    sharp, right = best["policy_digest"], best["skills"][0]["id"]
    loose = upload(client, 0.0, sharpness=0.05)
    move(client, loose, "promote", force=True)
    judged(client, 400, lambda chosen: right in [one["id"] for one in chosen["skills"]])
    figures = client.get(f"/policies/{sharp}/comparison").json()
    assert (figures["promoted"], figures["decisions"]) == (True, 400), figures
    assert figures["gain"]["low"] > 0.005
    assert move(client, sharp, "promote")["status"] == "active"
    assert select(client)["policy_digest"] == sharp


@pytest.mark.parametrize(
    "body", [{"share": 0}, {"share": 1}, {"share": 0.5, "force": True}, {"forced": True}]
)
def test_what_cannot_be_meant_is_refused(client: TestClient, body: dict[str, Any]) -> None:
    digest = client.get("/policies").json()["active"]
    assert client.post(f"/policies/{digest}/promote", json=body).status_code == 422


def test_an_unknown_policy_is_not_found(client: TestClient) -> None:
    ghost = "0" * 64
    for where in ("shadow", "promote", "rollback"):
        assert client.post(f"/policies/{ghost}/{where}").status_code == 404
    assert client.get(f"/policies/{ghost}/comparison").status_code == 404
