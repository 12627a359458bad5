"""The short way to a choice answers as the whole way does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from letta_gym.selection.choice import Selection
from letta_gym.service import express
from letta_gym.service.routes import tasks
from letta_gym.service.routes.tasks import SelectResponse
from tests.services import TASK, bearer, config, running, service_of

URL = "/tasks/select"
LONG_WAY = "/tasks/select?long=way"
"""A query sends a request the whole way; FastAPI does not mind one that no parameter takes."""


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    with running(config(tmp_path)) as client:
        yield client


BODIES: dict[str, tuple[bytes, str]] = {
    "a task": (json.dumps({"task": TASK}).encode(), "application/json"),
    "every key": (
        json.dumps(
            {
                "task": TASK,
                "k": 2,
                "token_budget": 900,
                "explore": False,
                "available": ["pdf-forms"],
            }
        ).encode(),
        "application/json",
    ),
    "a text for a number": (json.dumps({"task": TASK, "k": "2"}).encode(), "application/json"),
    "a lone surrogate": (b'{"task": "\\ud800 merge"}', "application/json"),
    "another charset": (json.dumps({"task": TASK}).encode(), "application/json; charset=utf-8"),
    "no JSON": (b"{", "application/json"),
    "another kind": (b"task=merge", "application/x-www-form-urlencoded"),
    "nothing": (b"", "application/json"),
    "white space": (b'{"task": "  "}', "application/json"),
    "too long": (json.dumps({"task": "x" * 20_001}).encode(), "application/json"),
    "an unknown key": (b'{"task": "merge", "kk": 3}', "application/json"),
    "too many": (b'{"task": "merge", "k": 99}', "application/json"),
    "not a number": (b'{"task": "merge", "token_budget": NaN}', "application/json"),
    "a NUL": (b'{"task": "a\\u0000b"}', "application/json"),
    "an unknown skill": (b'{"task": "merge", "available": ["none such"]}', "application/json"),
    "a wrong vector": (b'{"task": "merge", "embedding": [1.0, 2.0]}', "application/json"),
}


def answers(client: TestClient, content: bytes, headers: dict[str, str]) -> list[dict[str, Any]]:
    """The answers of both ways, without what differs between any two requests."""
    found = []
    for url in (URL, LONG_WAY):
        answer = client.post(url, content=content, headers=headers)
        body = answer.json()
        for own in ("decision_id", "request_id"):
            body.pop(own, None)
        kept = {n: v for n, v in answer.headers.items() if n not in ("x-request-id", "date")}
        kept.pop("content-length")
        found.append({"status": answer.status_code, "body": body, "headers": kept})
    return found


@pytest.mark.parametrize("what", BODIES)
def test_both_ways_answer_alike(client: TestClient, what: str) -> None:
    content, kind = BODIES[what]
    short, whole = answers(client, content, {"Content-Type": kind})
    assert short == whole


def test_the_short_way_is_taken_and_keeps_the_decision(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []

    def view(selection: Selection, fallback: bool) -> SelectResponse:
        taken.append(selection.decision_id)
        return tasks.view(selection, fallback)

    monkeypatch.setattr(express, "view", view)
    decision = client.post(URL, json={"task": TASK}).json()["decision_id"]
    assert client.post(LONG_WAY, json={"task": TASK}).status_code == 200
    assert taken == [decision]
    assert client.get(f"/tasks/{decision}").status_code == 200
    metrics = client.get("/metrics").text
    assert 'route="/tasks/select",status="200"' in metrics


def test_who_may_not_is_told_so_on_both_ways(tmp_path: Path) -> None:
    with running(config(tmp_path, access={"keys": True})) as client:
        keys = service_of(client).store.keys
        may = keys.make("may", ["select"], actor="test")
        reads = keys.make("reads", ["read"], actor="test")
        client.portal.call(service_of(client).access.refresh)  # type: ignore[union-attr]
        content = BODIES["a task"][0]
        statuses = []
        for headers in ({}, bearer("nonsense"), bearer(reads), bearer(may)):
            sent = {"Content-Type": "application/json", **headers}
            short, whole = answers(client, content, sent)
            assert short == whole
            statuses.append(short["status"])
        assert statuses == [401, 401, 403, 200]
        nobody = bearer(may, **{"Letta-Agent": "nobody", "Content-Type": "application/json"})
        short, whole = answers(client, content, nobody)
        assert short == whole
        assert short["status"] == 404


def test_a_request_that_does_not_fit_is_counted_once(tmp_path: Path) -> None:
    limits = {"rate": 0.001, "burst": 3}
    with running(config(tmp_path, limits=limits)) as client:
        bad = [client.post(URL, json={"k": 3}).status_code for _ in range(4)]
    assert bad == [422, 422, 422, 429]
