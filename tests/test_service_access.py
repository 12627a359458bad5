"""Who may call what, and sees what; the routes are those of the OpenAPI, so none can slip by."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from starlette.testclient import TestClient

from letta_gym import cli
from letta_gym.errors import ConfigError
from letta_gym.service.access import Access
from letta_gym.service.app import bare_app
from letta_gym.service.config import AccessConfig, LimitsConfig
from letta_gym.service.guard import RIGHT
from letta_gym.service.problems import ApiError
from letta_gym.store.keys import RIGHTS, digest_of
from letta_gym.store.store import Store
from tests.services import TASK, bearer, config, running, service_of

OPEN = {("get", "/health/live"), ("get", "/health/ready")}
OPENAPI: dict[str, Any] = bare_app().openapi()
ROUTES = [
    (method, path, operation.get(RIGHT))
    for path, operations in OPENAPI["paths"].items()
    for method, operation in operations.items()
]
GUARDED = [route for route in ROUTES if route[:2] not in OPEN]
VALUES = {
    "decision_id": "none-0",
    "digest": "0" * 64,
    "id": "pdf-forms",
    "name": "default",
    "run_id": "1",
}


@pytest.fixture(scope="module")
def keys() -> dict[str, str]:
    return {}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory, keys: dict[str, str]) -> Iterator[TestClient]:
    """A service with keys: one for each right lacking, one for each of three agents."""
    folder = tmp_path_factory.mktemp("access")
    settings = config(folder, access={"keys": True})
    with Store(settings.service.store) as store:
        make = store.keys.make
        for right in RIGHTS:
            rest = [one for one in RIGHTS if one != right]
            keys[f"no {right}"] = make(f"no {right}", rest, actor="test")
        keys["all"] = make("all", RIGHTS, actor="test")
        for name, team in (("ada", "one"), ("bob", "one"), ("eve", None)):
            agent = store.agents.ensure(name, team=team)
            keys[name] = make(name, ["read", "select", "write"], actor="test", agent=agent)
        keys["team"] = make("team", ["read", "select"], actor="test", team="one")
    with running(settings) as client:
        yield client


def send(client: TestClient, method: str, path: str, key: str | None) -> Any:
    url = path.format(**VALUES)
    headers = {} if key is None else bearer(key)
    return client.request(method.upper(), url, headers=headers)


# --- every route ----------------------------------------------------------------------------------


def test_only_health_is_open() -> None:
    assert len(GUARDED) > 20
    assert {(method, path) for method, path, right in ROUTES if right is None} == OPEN


@pytest.mark.parametrize(("method", "path", "right"), GUARDED)
def test_every_route_says_401_without_a_key_and_403_without_its_right(
    client: TestClient, keys: dict[str, str], method: str, path: str, right: str
) -> None:
    for key in (None, "lg_made_up"):
        answer = send(client, method, path, key)
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"] == "Bearer"
    refused = send(client, method, path, keys[f"no {right}"])
    assert refused.status_code == 403
    assert f"this needs {right!r}" in refused.json()["detail"]
    for problem in (answer, refused):
        assert problem.headers["Content-Type"] == "application/problem+json"
        assert problem.json()["request_id"] == problem.headers["X-Request-Id"]


@pytest.mark.parametrize(("method", "path", "right"), GUARDED)
def test_a_key_with_only_the_right_that_a_route_names_is_let_in(
    client: TestClient, keys: dict[str, str], method: str, path: str, right: str
) -> None:
    assert send(client, method, path, keys["all"]).status_code not in (401, 403)


def test_health_needs_no_key(client: TestClient) -> None:
    for method, path in OPEN:
        assert send(client, method, path, None).status_code == 200


def test_a_refused_caller_is_refused_before_its_body_is_read(client: TestClient) -> None:
    answer = client.post("/tasks/select", content=b"{ no json")
    assert answer.status_code == 401


# --- agents see their own -------------------------------------------------------------------------


def test_a_private_skill_is_seen_and_chosen_by_its_own_agent_only(
    client: TestClient, keys: dict[str, str]
) -> None:
    skill = {"name": "page-merger", "description": TASK, "body": "Use the merge tool."}
    made = client.post("/skills", json=skill, headers=bearer(keys["ada"]))
    assert (made.status_code, made.json()["owner"]) == (201, "ada")

    for name, sees in (("ada", True), ("bob", False), ("eve", False)):
        headers = bearer(keys[name])
        ids = {
            one["id"] for one in client.get("/skills?limit=500", headers=headers).json()["items"]
        }
        chosen = client.post("/tasks/select", json={"task": TASK}, headers=headers).json()
        assert ("page-merger" in ids) is sees
        assert ("page-merger" in [one["id"] for one in chosen["skills"]]) is sees
        status = client.get("/skills/page-merger", headers=headers).status_code
        assert status == (200 if sees else 404)


def test_a_skill_of_the_team_is_seen_by_the_team(client: TestClient, keys: dict[str, str]) -> None:
    skill = {"name": "team-skill", "description": "Does what the team does", "scope": "team"}
    assert client.post("/skills", json=skill, headers=bearer(keys["ada"])).status_code == 201

    status = {
        name: client.get("/skills/team-skill", headers=bearer(keys[name])).status_code
        for name in ("ada", "bob", "eve")
    }
    assert status == {"ada": 200, "bob": 200, "eve": 404}
    body = {"description": "Does something else"}
    refused = client.put("/skills/team-skill", json=body, headers=bearer(keys["bob"]))
    assert refused.status_code == 403
    assert "POST one of your own" in refused.json()["detail"]
    assert client.delete("/skills/team-skill", headers=bearer(keys["bob"])).status_code == 403


def test_decisions_outcomes_and_metrics_are_the_agents_own(
    client: TestClient, keys: dict[str, str]
) -> None:
    mine = client.post("/tasks/select", json={"task": TASK}, headers=bearer(keys["ada"]))
    decision = mine.json()["decision_id"]
    url = f"/tasks/{decision}"
    before = client.get("/metrics/summary", headers=bearer(keys["eve"])).json()["decisions"]

    for name in ("bob", "eve"):
        headers = bearer(keys[name])
        assert client.get(url, headers=headers).status_code == 404
        said = client.post(f"{url}/feedback", json={"success": 0.0}, headers=headers)
        assert said.status_code == 404
        listed = client.get("/tasks?limit=500", headers=headers).json()["items"]
        assert {one["agent"] for one in listed} <= {name}
    assert client.get(url, headers=bearer(keys["ada"])).json()["outcome"] is None
    assert client.get(url, headers=bearer(keys["all"])).status_code == 200
    after = client.get("/metrics/summary", headers=bearer(keys["eve"])).json()["decisions"]
    assert after == before


def test_an_agents_key_acts_for_no_other_agent(client: TestClient, keys: dict[str, str]) -> None:
    headers = bearer(keys["ada"], **{"Letta-Agent": "bob"})
    assert client.post("/tasks/select", json={"task": TASK}, headers=headers).status_code == 403


def test_a_teams_key_acts_for_the_agents_of_the_team(
    client: TestClient, keys: dict[str, str]
) -> None:
    def select(agent: str | None) -> int:
        named = {} if agent is None else {"Letta-Agent": agent}
        headers = bearer(keys["team"], **named)
        return client.post("/tasks/select", json={"task": TASK}, headers=headers).status_code

    assert [select(name) for name in ("ada", "bob", "eve", None)] == [200, 200, 403, 422]


def test_an_operator_that_names_an_unknown_agent_is_told(
    client: TestClient, keys: dict[str, str]
) -> None:
    headers = bearer(keys["all"], **{"Letta-Agent": "nobody"})
    answer = client.post("/tasks/select", json={"task": TASK}, headers=headers)
    assert (answer.status_code, "POST it to /agents" in answer.json()["detail"]) == (404, True)


def test_an_agent_that_changes_teams_sees_what_its_new_team_shares(
    client: TestClient, keys: dict[str, str]
) -> None:
    skill = {"name": "moving-skill", "description": "Moves along", "scope": "team"}
    client.post("/skills", json=skill, headers=bearer(keys["ada"]))
    url, eve = "/skills/moving-skill", bearer(keys["eve"])
    assert client.get(url, headers=eve).status_code == 404
    moved = client.put("/agents/eve", json={"team": "one"}, headers=bearer(keys["all"]))
    assert moved.json()["team"] == "one"
    assert client.get(url, headers=eve).status_code == 200
    client.put("/agents/eve", json={"team": None}, headers=bearer(keys["all"]))
    assert client.get(url, headers=eve).status_code == 404


# --- keys -----------------------------------------------------------------------------------------


def test_a_key_is_kept_as_its_hash_only(tmp_path: Path) -> None:
    with Store(tmp_path / "s.sqlite") as store:
        secret = store.keys.make("k", ["read"], actor="test")
        assert list(store.keys.held()) == [digest_of(secret)]
    assert secret.encode() not in (tmp_path / "s.sqlite").read_bytes()


def test_a_revoked_key_holds_no_more(tmp_path: Path) -> None:
    settings = config(tmp_path, access={"keys": True})
    with Store(settings.service.store) as store:
        key = store.keys.make("k", ["read"], actor="test")
    with running(settings) as client:
        assert client.get("/policies", headers=bearer(key)).status_code == 200
        service = service_of(client)
        service.store.keys.revoke("k", actor="test")
        asyncio.run(service.access.refresh())
        assert client.get("/policies", headers=bearer(key)).status_code == 401
        entries = [(one.action, one.subject) for one in service.store.policies.audit()]
    assert ("make key", "k") in entries
    assert ("revoke key", "k") in entries


def test_the_command_line_makes_lists_and_revokes_keys(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = f"--store={tmp_path / 's.sqlite'}"
    assert cli.main(["keys", "make", "one", "--rights=read,select", "--agent=ada", store]) == 0
    secret = capsys.readouterr().out.strip()
    assert cli.main(["keys", "list", store]) == 0
    assert capsys.readouterr().out == "one  read,select  agent ada\n"
    with Store(tmp_path / "s.sqlite") as opened:
        assert digest_of(secret) in opened.keys.held()
    assert cli.main(["keys", "revoke", "one", store]) == 0
    capsys.readouterr()
    assert cli.main(["keys", "list", store]) == 0
    assert capsys.readouterr().out == ""
    assert cli.main(["keys", "revoke", "one", store]) == 2
    assert cli.main(["keys", "make", "two", "--rights=fly", store]) == 2
    assert "rights are some of read, select" in capsys.readouterr().err


def test_keys_may_be_off_on_loopback_only(tmp_path: Path) -> None:
    config(tmp_path, service={"host": "127.0.0.1"})
    with pytest.raises(ConfigError, match=r"only on loopback; service.host is '0.0.0.0'"):
        config(tmp_path, service={"host": "0.0.0.0"})
    assert config(tmp_path, service={"host": "0.0.0.0"}, access={"keys": True}).access.keys


def test_the_rate_of_a_key_is_limited_and_fills_up_again(tmp_path: Path) -> None:
    now = 0.0
    with Store(tmp_path / "s.sqlite") as store:
        limits = LimitsConfig(rate=2.0, burst=3)
        access = Access(store, AccessConfig(), limits, clock=lambda: now)

        def let_in(count: int) -> None:
            for _ in range(count):
                access.count("k")
            with pytest.raises(ApiError, match="may send 2 requests per second") as refused:
                access.count("k")
            assert refused.value.status == 429
            assert refused.value.retry_after is not None
            assert 0 < refused.value.retry_after <= 0.5

        let_in(3)
        now = 1.0
        let_in(2)
        now = 100.0
        let_in(3)


def test_one_keys_rate_is_not_anothers(tmp_path: Path) -> None:
    settings = config(tmp_path, access={"keys": True}, limits={"rate": 0.001, "burst": 1})
    with Store(settings.service.store) as store:
        first, second = (store.keys.make(n, ["read"], actor="test") for n in ("one", "two"))
    with running(settings) as client:
        status = [
            client.get("/policies", headers=bearer(key)).status_code
            for key in (first, first, second)
        ]
        refused = client.get("/policies", headers=bearer(first))
    assert status == [200, 429, 200]
    assert int(refused.headers["Retry-After"]) >= 1


def test_other_origins_are_closed_unless_they_are_named(tmp_path: Path) -> None:
    page = {"Origin": "https://app.example.org"}
    with running(config(tmp_path / "closed")) as client:
        assert "Access-Control-Allow-Origin" not in client.get("/policies", headers=page).headers
    named = {"keys": False, "origins": ["https://app.example.org"]}
    with running(config(tmp_path / "open", access=named)) as client:
        allowed = client.get("/policies", headers=page).headers["Access-Control-Allow-Origin"]
        other = client.get("/policies", headers={"Origin": "https://evil.example.org"})
    assert allowed == "https://app.example.org"
    assert "Access-Control-Allow-Origin" not in other.headers
    with pytest.raises(ValidationError, match="an origin is written out"):
        AccessConfig(origins=("*",))


def test_the_openapi_is_served_to_whoever_may_read(
    client: TestClient, keys: dict[str, str]
) -> None:
    served = client.get("/openapi.json", headers=bearer(keys["ada"])).json()
    assert json.dumps(served, sort_keys=True) == json.dumps(OPENAPI, sort_keys=True)
