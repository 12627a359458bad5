"""Skills and evidence go from one agent to another, where somebody says so."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.services import config, running

TASK = "Feed and groom a dragon before it flies"
SKILL = {
    "name": "dragon-care",
    "description": "Feed, groom and fly a dragon.",
    "body": "Offer it coal first.",
    "scope": "team",
}


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    """Two agents of a team; one has done well with a skill of its own."""
    with running(config(tmp_path)) as client:
        for name in ("ada", "bob"):
            body = {"name": name, "team": "dragons", "scope": "team"}
            assert client.post("/agents", json=body).status_code == 201
        assert client.post("/skills", json=SKILL, headers=to("ada")).status_code == 201
        for _ in range(8):
            succeed(client, "ada")
        yield client


def to(agent: str) -> dict[str, str]:
    return {"Letta-Agent": agent}


def succeed(client: TestClient, agent: str) -> None:
    chosen = client.post("/tasks/select", json={"task": TASK}, headers=to(agent)).json()
    path = f"/tasks/{chosen['decision_id']}/feedback"
    assert client.post(path, json={"success": 1.0}, headers=to(agent)).status_code == 200


def bundle(client: TestClient, source: str, recipient: str) -> bytes:
    answer = client.get(f"/transfers/bundle?source={source}", headers=to(recipient))
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/octet-stream"
    return answer.content


def take(client: TestClient, data: bytes, agent: str, query: str = "") -> Any:
    return client.post(f"/transfers{query}", content=data, headers=to(agent))


def reasons(client: TestClient, agent: str) -> str:
    """What speaks for and against the skill when ``agent`` chooses."""
    chosen = client.post("/tasks/select", json={"task": TASK}, headers=to(agent)).json()
    seen = client.get(f"/tasks/{chosen['decision_id']}", headers=to(agent)).json()
    (one,) = [c for c in seen["explanation"] if c["skill"] == "dragon-care"]
    return " ".join(one["reasons"])


def test_what_did_well_for_others_on_like_tasks_is_recommended(client: TestClient) -> None:
    nothing = client.get("/transfers/recommendations", headers=to("bob")).json()
    assert nothing == {"tasks": 0, "items": []}
    own = {**SKILL, "body": "Sing to it."}  # which hides the team's
    assert client.post("/skills", json=own, headers=to("bob")).status_code == 201
    client.post("/tasks/select", json={"task": TASK}, headers=to("bob"))
    found = client.get("/transfers/recommendations", headers=to("bob")).json()
    assert found["tasks"] == 1
    (one,) = found["items"]
    assert (one["id"], one["agents"], one["known"]) == ("dragon-care", ["ada"], True)
    assert one["outcomes"] == pytest.approx(8.0, rel=0.02)
    assert 0 <= one["expected"]["low"] < one["expected"]["mean"] < one["expected"]["high"] <= 1
    theirs = client.get("/transfers/recommendations", headers=to("ada")).json()
    assert theirs["items"] == []


def test_a_bundle_brings_skill_and_evidence(client: TestClient) -> None:
    data = bundle(client, "ada", "bob")
    taken = take(client, data, "bob")
    assert taken.status_code == 200
    assert taken.json()["source"] == "ada"
    assert taken.json()["skills"] == {"dragon-care": "new"}
    assert client.get("/skills/dragon-care", headers=to("bob")).json()["owner"] == "bob"
    assert "outcomes" in reasons(client, "bob")
    again = take(client, data, "bob")
    assert again.json() == taken.json()
    listed = client.get("/transfers", headers=to("bob")).json()["items"]
    assert listed == [taken.json()]
    assert client.get("/transfers", headers=to("ada")).json()["items"] == []


def test_evidence_comes_for_a_skill_that_is_known_already(client: TestClient) -> None:
    assert "outcomes" not in reasons(client, "bob")
    taken = take(client, bundle(client, "ada", "bob"), "bob")
    assert taken.json()["skills"] == {"dragon-care": "same"}
    assert client.get("/skills/dragon-care", headers=to("bob")).json()["owner"] == "ada"
    assert "outcomes" in reasons(client, "bob")


@pytest.mark.parametrize(
    ("choice", "fate", "description"),
    [("keep", "kept", "Of bob."), ("take", "taken", SKILL["description"])],
)
def test_a_conflict_is_resolved_by_saying_so(
    client: TestClient, choice: str, fate: str, description: str
) -> None:
    own = {**SKILL, "description": "Of bob."}
    assert client.post("/skills", json=own, headers=to("bob")).status_code == 201
    data = bundle(client, "ada", "bob")
    refused = take(client, data, "bob")
    assert refused.status_code == 409
    assert "dragon-care" in refused.json()["detail"]
    assert [one["where"] for one in refused.json()["errors"]] == ["dragon-care"]
    assert client.get("/transfers", headers=to("bob")).json()["items"] == []
    done = take(client, data, "bob", f"?{choice}=dragon-care")
    assert done.json()["skills"] == {"dragon-care": fate}
    found = client.get("/skills/dragon-care", headers=to("bob")).json()
    assert (found["description"], found["owner"]) == (description, "bob")


def test_only_what_may_be_seen_is_packed(client: TestClient) -> None:
    stranger = {"name": "eve"}
    assert client.post("/agents", json=stranger).status_code == 201
    hidden = client.get("/transfers/bundle?source=ada", headers=to("eve"))
    assert hidden.status_code == 409
    own = client.get("/transfers/bundle", headers=to("ada"))
    assert own.status_code == 409  # nothing of ada's is shared with everybody
    assert client.get("/transfers/bundle?source=nobody", headers=to("bob")).status_code == 404


def test_what_is_no_bundle_is_refused_in_words(client: TestClient) -> None:
    data = bundle(client, "ada", "bob")
    for bad in (b"", b"no bundle", data[:-1], bytes([data[0] ^ 1]) + data[1:]):
        refused = take(client, bad, "bob")
        assert refused.status_code == 422
        assert "no bundle" in refused.json()["detail"]
    mine = take(client, data, "ada")
    assert mine.status_code == 409
    assert "itself" in mine.json()["detail"]
