"""What one process changes is known to another one on the same database."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from letta_gym.selection.policy import Policy
from letta_gym.selection.policy_file import DEFAULT
from tests.services import bearer, config, running, service_of

WITHIN = 10.0  # seconds; the processes look every twentieth of one
SKILL = {
    "name": "dragon-care",
    "description": "Feed, groom and fly a dragon.",
    "body": "Offer it coal first.",
}
TASK = {"task": "Feed and groom a dragon before it flies"}


@pytest.fixture
def two(tmp_path: Path) -> Iterator[tuple[TestClient, TestClient]]:
    settings = config(tmp_path, service={"follow": 0.05})
    with running(settings) as first, running(settings) as second:
        yield first, second


def soon(what: Callable[[], bool]) -> bool:
    """Whether it becomes true in time."""
    deadline = time.monotonic() + WITHIN
    while not what():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def chosen(client: TestClient) -> list[tuple[str, int]]:
    """The chosen skills with their tokens."""
    answer = client.post("/tasks/select", json=TASK)
    assert answer.status_code == 200
    return [(skill["id"], skill["tokens"]) for skill in answer.json()["skills"]]


def test_a_skill_of_one_process_is_chosen_by_the_other(two: tuple[TestClient, TestClient]) -> None:
    first, second = two
    assert "dragon-care" not in dict(chosen(second))
    assert first.post("/skills", json=SKILL).status_code == 201
    assert "dragon-care" in dict(chosen(first))
    assert soon(lambda: "dragon-care" in dict(chosen(second)))
    before = chosen(first)
    changed = {"description": SKILL["description"], "body": "Offer it coal first. " * 20}
    assert first.put("/skills/dragon-care", json=changed).status_code == 200
    after = chosen(first)
    assert after != before
    assert soon(lambda: chosen(second) == after)
    assert second.delete("/skills/dragon-care").status_code == 204
    assert soon(lambda: first.get("/skills/dragon-care").status_code == 404)


def test_a_policy_that_one_process_promotes_chooses_in_the_other(
    two: tuple[TestClient, TestClient],
) -> None:
    first, second = two
    before = second.post("/tasks/select", json=TASK).json()
    assert before["fallback"]
    policy = Policy.load(DEFAULT)
    data = replace(policy, max_skills=2).to_file(provenance={"steps": 1}).to_bytes()
    digest = first.post("/policies", content=data).json()["digest"]
    assert first.post(f"/policies/{digest}/promote", json={"force": True}).status_code == 200

    def says() -> Any:
        answer = second.post("/tasks/select", json=TASK).json()
        return answer["policy_digest"], answer["fallback"]

    assert soon(lambda: says() == (digest, False))
    assert second.post(f"/policies/{digest}/rollback").status_code == 200
    assert soon(
        lambda: (
            first.post("/tasks/select", json=TASK).json()["policy_digest"]
            == before["policy_digest"]
        )
    )


def test_a_key_that_is_made_elsewhere_holds_as_soon(tmp_path: Path) -> None:
    settings = config(tmp_path, service={"follow": 0.05}, access={"keys": True, "refresh": 3600.0})
    with running(settings) as client:
        keys = service_of(client).store.keys
        secret = keys.make("late", ["select"], actor="test")

        def status() -> int:
            return client.post("/tasks/select", json=TASK, headers=bearer(secret)).status_code

        assert soon(lambda: status() == 200)
        keys.revoke("late", actor="test")
        assert soon(lambda: status() == 401)


def test_what_changed_nothing_rearranges_nothing(
    two: tuple[TestClient, TestClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = two
    desks = service_of(first).desks
    taken: list[object] = []
    for desk in desks._desks.values():
        monkeypatch.setattr(desk, "take", taken.append)
    service_of(first).store.note("somebody", "offer skill", "nothing", {})
    time.sleep(0.3)
    assert taken == []
    del second
