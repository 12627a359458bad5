"""The service chooses, learns at once, keeps what it acknowledged, and says what is wrong."""

from __future__ import annotations

import asyncio
import io
import logging
import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from letta_gym.errors import ConfigError, MissingExtraError, StoreError
from letta_gym.feedback.outcome import Outcome
from letta_gym.library import passages
from letta_gym.library.suite import bundled_suite
from letta_gym.selection.policy_file import PolicyFile
from letta_gym.service import embedding
from letta_gym.service.access import ANYBODY
from letta_gym.service.desk import Ask
from letta_gym.service.telemetry import REQUEST_ID, configure_logging
from tests.services import TASK, another_policy, config, running, service_of

NOVEL = "Zap the frobnicators before lunch"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with running(config(tmp_path_factory.mktemp("service"))) as client:
        yield client


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[TestClient]:
    with running(config(tmp_path)) as client:
        yield client


def select(client: TestClient, task: str = TASK, **more: Any) -> dict[str, Any]:
    answer = client.post("/tasks/select", json={"task": task, **more})
    assert answer.status_code == 200, answer.text
    chosen: dict[str, Any] = answer.json()
    return chosen


def ids(chosen: dict[str, Any]) -> list[str]:
    return [skill["id"] for skill in chosen["skills"]]


# --- choosing -------------------------------------------------------------------------------------


def test_without_a_policy_the_marked_baseline_chooses_by_retrieval(client: TestClient) -> None:
    chosen = select(client)
    assert chosen["fallback"] is True
    assert {"pdf-generation", "pdf-extraction"} & set(ids(chosen))
    (policy,) = client.get("/policies").json()["items"]
    assert (policy["digest"], policy["status"]) == (chosen["policy_digest"], "active")
    assert policy["fallback"] is True


def test_the_arguments_of_a_choice_hold(client: TestClient) -> None:
    assert len(select(client, k=1)["skills"]) <= 1
    assert ids(select(client, available=["translation", "testing"])) in ([], ["translation"])
    assert select(client, token_budget=1)["skills"] == []
    explored = [select(client, explore=True) for _ in range(5)]
    assert all(one["explored"] and one["log_propensity"] < 0 for one in explored)


def test_exploration_stays_within_the_budget_of_the_agent(tmp_path: Path) -> None:
    eager = {"epsilon": 0.9, "untried": 0.05, "daily_budget": 6}
    with running(config(tmp_path, exploration=eager)) as client:
        best = ids(select(client))
        chosen = [set(ids(select(client, explore=True))) for _ in range(60)]
    assert sum(one != set(best) for one in chosen) == 6


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "body.task: Field required"),
        ({"task": " "}, "needs words"),
        ({"task": "x" * 20_001}, "at most 20,000 characters; got 20,001"),
        ({"task": TASK, "k": 9}, "k must lie in 1..3; got 9"),
        ({"task": TASK, "kk": 1}, "body.kk"),
        ({"task": TASK, "available": ["pdf-form"]}, "did you mean 'pdf-forms'"),
        ({"task": TASK, "embedding": [1.0, 2.0]}, r"has the shape (384,); got (2,)"),
        ({"task": TASK, "embedding": [0.0] * 384}, "has a direction"),
        ({"task": "a\x00b"}, "NUL"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(
    client: TestClient, body: dict[str, Any], said: str
) -> None:
    answer = client.post("/tasks/select", json=body)
    assert answer.status_code == 422
    assert said in answer.json()["detail"]


def test_an_embedding_takes_the_place_of_the_text(client: TestClient) -> None:
    suite = bundled_suite()
    assert suite.vectors is not None
    vector = suite.vectors.tasks[suite.tasks[0].id]
    given = select(client, "words that mean nothing", embedding=[10 * float(v) for v in vector])
    assert ids(select(client, suite.tasks[0].text))[0] == ids(given)[0]


def test_without_an_embedder_a_new_text_is_refused_with_the_remedy(
    fresh: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_installed() -> None:
        raise MissingExtraError("onnx", "embedding text")

    monkeypatch.setattr(service_of(fresh).embedder, "load", none_installed)
    refused = fresh.post("/tasks/select", json={"task": "never seen before"})
    skill = {"name": "new-one", "description": "Something never embedded"}
    unmade = fresh.post("/skills", json=skill)

    for answer in (refused, unmade):
        assert answer.status_code == 503
        assert "letta-gym[onnx]" in answer.json()["detail"]
    assert fresh.get("/skills/new-one").status_code == 404
    assert select(fresh, TASK, embedding=[1.0] * 384)["decision_id"]


def test_a_choice_does_not_wait_for_skills_that_are_embedded(
    fresh: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    select(fresh)
    embedding_now, go_on = threading.Event(), threading.Event()
    plain = passages.embed_skills

    def slow(*arguments: Any) -> Any:
        embedding_now.set()
        assert go_on.wait(20)
        return plain(*arguments)

    monkeypatch.setattr(embedding, "embed_skills", slow)
    skill = {"name": "slow-one", "description": TASK}
    with ThreadPoolExecutor(1) as pool:
        making = pool.submit(fresh.post, "/skills", json=skill)
        assert embedding_now.wait(20)
        chosen = select(fresh)
        assert not making.done()
        assert "slow-one" not in ids(chosen)
        go_on.set()
        assert making.result(20).status_code == 201
    assert "slow-one" in ids(select(fresh))


# --- skills ---------------------------------------------------------------------------------------


def test_the_very_next_choice_knows_a_skill_that_was_made_changed_and_removed(
    fresh: TestClient,
) -> None:
    body = {"name": "third-thing", "description": NOVEL, "body": "Zap them all."}
    assert "third-thing" not in ids(select(fresh, NOVEL))
    made = fresh.post("/skills", json=body)
    assert made.status_code == 201
    assert made.headers["Location"] == "/skills/third-thing"
    assert made.json()["skill_md"].startswith("---\nname: third-thing\n")
    assert ids(select(fresh, NOVEL)) == ["third-thing"]

    other = {"description": "Waters the plants on the balcony", "body": "Not on Sundays."}
    changed = fresh.put("/skills/third-thing", json=other)
    assert changed.json()["description"] == other["description"]
    assert ids(select(fresh, NOVEL))[:1] != ["third-thing"]

    fresh.put("/skills/third-thing", json={"description": NOVEL})
    assert ids(select(fresh, NOVEL)) == ["third-thing"]
    assert fresh.delete("/skills/third-thing").status_code == 204
    assert "third-thing" not in ids(select(fresh, NOVEL))
    assert fresh.delete("/skills/third-thing").status_code == 404


def test_a_name_that_is_taken_is_a_conflict(fresh: TestClient) -> None:
    body = {"name": "twice", "description": "Once"}
    assert [fresh.post("/skills", json=body).status_code for _ in range(2)] == [201, 409]


def test_an_own_skill_hides_the_shared_one_of_its_name(fresh: TestClient) -> None:
    shared = fresh.get("/skills/translation").json()
    own = {"name": "translation", "description": "Our own way to translate"}
    assert fresh.post("/skills", json=own).status_code == 201
    assert fresh.get("/skills/translation").json()["owner"] == "default"
    fresh.delete("/skills/translation")
    assert fresh.get("/skills/translation").json() == shared


def test_skills_are_listed_in_pages(client: TestClient) -> None:
    found: list[str] = []
    after = ""
    while True:
        page = client.get(f"/skills?limit=20{after}").json()
        found += [skill["id"] for skill in page["items"]]
        if page["next"] is None:
            break
        after = f"&after={page['next']}"
    assert found == sorted(found)
    assert len(found) == page["total"] >= 48
    words = client.get("/skills", params={"q": "PDF form"}).json()["items"]
    assert "pdf-forms" in [skill["id"] for skill in words]
    assert client.get("/skills?after=mine").status_code == 422


def archive(files: dict[str, str]) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as made:
        for name, text in files.items():
            made.writestr(name, text)
    return data.getvalue()


def skill_md(name: str, description: str = "Does things") -> str:
    return f"---\nname: {name}\ndescription: {description}\n---\n\nSteps.\n"


def test_an_archive_brings_its_skills_and_nothing_else(fresh: TestClient, tmp_path: Path) -> None:
    data = archive(
        {
            "tools/good-one/SKILL.md": skill_md("good-one", NOVEL),
            "tools/good-one/helper.py": "print()",
            "../evil/SKILL.md": skill_md("evil"),
            "/abs/SKILL.md": skill_md("abs"),
            "c:/drive/SKILL.md": skill_md("drive"),
            "wrong-name/SKILL.md": skill_md("another"),
            "SKILL.md": skill_md("top"),
        }
    )
    around = tmp_path.parent
    before = set(around.rglob("SKILL.md"))
    answer = fresh.post("/skills/import", content=data)

    assert answer.status_code == 200
    assert answer.json()["imported"] == ["good-one"]
    refused = {one["path"]: one["reason"] for one in answer.json()["refused"]}
    assert "leads out of the archive" in refused["../evil/SKILL.md"]
    assert set(refused) == {
        *("../evil/SKILL.md", "/abs/SKILL.md", "c:/drive/SKILL.md"),
        *("wrong-name/SKILL.md", "SKILL.md"),
    }
    assert set(around.rglob("SKILL.md")) == before
    assert ids(select(fresh, NOVEL)) == ["good-one"]


@pytest.mark.parametrize("data", [b"", b"no archive", archive({"a.txt": ""})])
def test_what_is_no_archive_of_skills_is_refused(client: TestClient, data: bytes) -> None:
    answer = client.post("/skills/import", content=data)
    assert answer.status_code == 422
    assert "archive" in answer.json()["detail"]


# --- feedback -------------------------------------------------------------------------------------


def test_the_next_choice_knows_an_outcome(fresh: TestClient) -> None:
    before = select(fresh, k=1)
    for _ in range(6):
        chosen = select(fresh, k=1)
        said = fresh.post(f"/tasks/{chosen['decision_id']}/feedback", json={"success": 0.0})
        assert said.json()["kept_as"] == "outcome"
    assert ids(select(fresh, k=1)) != ids(before)


def test_a_later_word_is_kept_beside_the_outcome(client: TestClient) -> None:
    url = f"/tasks/{select(client)['decision_id']}"
    words = [
        client.post(f"{url}/feedback", json={"success": s, "comment": "so"}).json()["kept_as"]
        for s in (1.0, 0.25)
    ]
    kept = client.get(url).json()
    assert words == ["outcome", "word"]
    assert kept["outcome"]["success"] == 1.0
    assert [(one["value"], one["comment"]) for one in kept["feedback"]] == [(0.25, "so")]


def test_feedback_grades_what_a_session_told_and_nobody_graded(client: TestClient) -> None:
    decision_id = select(client)["decision_id"]
    store = service_of(client).store
    logged = store.history().one(decision_id)
    assert logged is not None
    log = store.log(store.agents.get(logged.agent))
    first = logged.picks[0].skill
    log.recorded(decision_id, Outcome(None, (first,), evidence=False, source="session"))

    said = client.post(f"/tasks/{decision_id}/feedback", json={"success": 0.5})

    assert said.json()["kept_as"] == "outcome"
    graded = store.history().one(decision_id)
    assert graded is not None
    assert graded.outcome is not None
    assert graded.outcome.success == 0.5
    assert [pick.skill for pick in graded.picks if pick.loaded] == [first]


def test_feedback_that_is_sent_twice_counts_once(client: TestClient) -> None:
    url = f"/tasks/{select(client)['decision_id']}"
    key = {"Idempotency-Key": "my-name"}
    answers = [client.post(f"{url}/feedback", json={"success": 0.5}, headers=key) for _ in range(3)]
    other = client.post(f"{url}/feedback", json={"success": 0.6}, headers=key)

    assert [one.json()["kept_as"] for one in answers] == ["outcome"] * 3
    assert [one.headers.get("Idempotent-Replayed") for one in answers] == [None, "true", "true"]
    assert other.status_code == 422
    assert client.get(url).json()["feedback"] == []


def test_a_refused_request_may_be_sent_again_under_its_key(client: TestClient) -> None:
    url, key = f"/tasks/{select(client)['decision_id']}/feedback", {"Idempotency-Key": "again"}
    wrong = {"success": 1.0, "loaded": ["no-skill-of-mine"]}
    assert client.post(url, json=wrong, headers=key).status_code == 422
    assert client.post(url, json={"success": 1.0}, headers=key).status_code == 200


def test_feedback_on_an_unknown_decision_is_not_found(client: TestClient) -> None:
    assert client.post("/tasks/none-1/feedback", json={"success": 1.0}).status_code == 404


def test_a_decision_is_explained_from_the_store(client: TestClient) -> None:
    chosen = select(client)
    look = client.get(f"/tasks/{chosen['decision_id']}").json()
    shown = [one for one in look["explanation"] if one["chosen"]]
    assert [one["skill"] for one in shown] == ids(chosen)
    scores = [one["score"] for one in chosen["skills"]]
    assert [one["score"] for one in shown] == pytest.approx(scores, rel=1e-5)
    assert all(one["reasons"] for one in look["explanation"])
    assert (look["task"], look["agent"]) == (None, "default")


def test_what_was_learned_and_offered_outlives_the_process(tmp_path: Path) -> None:
    settings = config(tmp_path)
    body = {"name": "frobnication", "description": NOVEL, "body": "Zap them all."}
    with running(settings) as first:
        first.post("/skills", json=body)
        decision = select(first, NOVEL)["decision_id"]
        first.post(f"/tasks/{decision}/feedback", json={"success": 1.0})
        waiting = select(first, NOVEL)["decision_id"]
        score = select(first, NOVEL)["skills"][0]["score"]
    with running(settings) as second:
        again = select(second, NOVEL)["skills"][0]
        assert (again["id"], again["score"]) == ("frobnication", pytest.approx(score))
        late = second.post(f"/tasks/{waiting}/feedback", json={"success": 1.0})
        assert late.json()["kept_as"] == "outcome"
        assert second.get("/metrics/summary").json()["success"]["count"] == 2


# --- policies -------------------------------------------------------------------------------------


def test_a_promoted_policy_chooses_after_a_restart(tmp_path: Path) -> None:
    settings = config(tmp_path)
    with running(settings) as first:
        digest = first.post("/policies", content=another_policy(first, 0.5)).json()["digest"]
        first.post(f"/policies/{digest}/promote", json={"force": True})
    with running(settings) as second:
        assert select(second)["policy_digest"] == digest


def test_the_exported_policy_serves_in_the_place_of_the_baseline(tmp_path: Path) -> None:
    exported = tmp_path / "policy.safetensors"
    with running(config(tmp_path / "one")) as first:
        exported.write_bytes(another_policy(first, 0.5))
    with running(config(tmp_path / "one", service={"policy": str(exported)})) as second:
        assert select(second)["fallback"] is False


@pytest.mark.parametrize("data", [b"", b"no policy at all"])
def test_a_damaged_policy_is_refused(client: TestClient, data: bytes) -> None:
    answer = client.post("/policies", content=data)
    assert (answer.status_code, "no policy file" in answer.json()["detail"]) == (422, True)


def test_a_policy_of_another_embedder_is_refused(client: TestClient) -> None:
    file = PolicyFile.from_bytes(another_policy(client, 0.5))
    foreign = PolicyFile(file.header, file.tensors, file.probes[::-1].copy()).to_bytes()
    answer = client.post("/policies", content=foreign)
    assert answer.status_code == 422
    assert "their vectors of the probes disagree" in answer.json()["detail"]


def test_every_answer_names_the_policy_that_chose_while_policies_change(fresh: TestClient) -> None:
    loads = select(fresh)["policy_digest"]
    stops = fresh.post("/policies", content=another_policy(fresh, 1e6)).json()["digest"]
    over = threading.Event()
    seen: list[tuple[str, bool]] = []

    def ask() -> None:
        while not over.is_set():
            chosen = select(fresh)
            seen.append((chosen["policy_digest"], bool(chosen["skills"])))

    with ThreadPoolExecutor(3) as pool:
        asking = [pool.submit(ask) for _ in range(3)]
        for digest in (stops, loads) * 5:
            forced = fresh.post(f"/policies/{digest}/promote", json={"force": True})
            assert forced.status_code == 200
        over.set()
        for one in asking:
            one.result(20)
    assert set(seen) == {(loads, True), (stops, False)}


# --- the gate -------------------------------------------------------------------------------------


def test_every_answer_has_a_request_id_and_closed_headers(client: TestClient) -> None:
    mine = client.get("/policies", headers={"X-Request-Id": "my-own.id"})
    other = client.get("/no/such/path", headers={"X-Request-Id": "<script>"})
    assert mine.headers["X-Request-Id"] == "my-own.id"
    assert other.status_code == 404
    assert other.json()["request_id"] == other.headers["X-Request-Id"] != "<script>"
    for answer in (mine, other):
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")
        assert answer.headers["Cache-Control"] == "no-store"
        assert "Server" not in answer.headers


@pytest.mark.parametrize("said", [True, False], ids=["length known", "length unknown"])
def test_a_body_that_is_too_large_is_refused(client: TestClient, said: bool) -> None:
    big = b'{"task": "' + b"x" * (1 << 20) + b'"}'
    content = big if said else iter([big])
    answer = client.post("/tasks/select", content=content)
    assert (answer.status_code, answer.json()["title"]) == (413, "Content Too Large")
    assert client.post("/skills/import", content=big).status_code == 422, "an upload may be larger"


def test_too_many_requests_at_once_are_shed_and_health_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(config(tmp_path, limits={"waiting": 2})) as client:
        service = service_of(client)
        inside, go_on = threading.Semaphore(0), threading.Event()

        def slow() -> list[Any]:
            inside.release()
            assert go_on.wait(20)
            return []

        monkeypatch.setattr(service.registry, "all", slow)
        with ThreadPoolExecutor(2) as pool:
            asking = [pool.submit(client.get, "/policies") for _ in range(2)]
            assert all(inside.acquire(timeout=20) for _ in range(2))
            shed = client.get("/skills")
            assert (shed.status_code, shed.headers["Retry-After"]) == (503, "1")
            assert client.get("/health/live").status_code == 200
            go_on.set()
            assert [one.result(20).status_code for one in asking] == [200, 200]
        assert client.get("/skills").status_code == 200


def test_an_error_of_the_service_is_a_problem_that_its_log_explains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> None:
        raise ZeroDivisionError("nobody expected this")

    with running(config(tmp_path)) as client:
        monkeypatch.setattr(service_of(client).registry, "all", broken)
        answer = client.get("/policies")
    assert answer.status_code == 500
    assert "nobody expected" not in answer.text
    assert answer.json()["request_id"] == answer.headers["X-Request-Id"]
    assert "nobody expected this" in caplog.text


def test_every_line_of_the_log_names_its_request(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("letta_gym")
    before = logger.handlers[:], logger.level, logger.propagate
    try:
        configure_logging("info")
        token = REQUEST_ID.set("my-request")
        logging.getLogger("letta_gym.somewhere").info("hello")
        REQUEST_ID.reset(token)
    finally:
        logger.handlers[:], logger.level, logger.propagate = before
    assert "INFO [my-request] letta_gym.somewhere: hello" in capsys.readouterr().err


# --- what is acknowledged is kept -----------------------------------------------------------------


def test_a_choice_is_not_answered_before_it_is_on_the_database(
    fresh: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = service_of(fresh)
    select(fresh)
    writing, go_on = threading.Event(), threading.Event()
    plain = service.journal._write

    def slow(entries: Any) -> None:
        writing.set()
        assert go_on.wait(20)
        plain(entries)

    monkeypatch.setattr(service.journal, "_write", slow)
    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(select, fresh) for _ in range(4)]
        assert writing.wait(20)
        assert not any(one.done() for one in asking)
        go_on.set()
        answered = {one.result(20)["decision_id"] for one in asking}
    kept = {one.decision.id for one in service.store.history().decisions()}
    assert answered <= kept


def test_a_choice_that_cannot_be_kept_is_an_error_and_the_next_one_is_kept(
    fresh: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = service_of(fresh)
    plain = service.journal._write

    def broken(entries: Any) -> None:
        raise StoreError("the disk is full")

    monkeypatch.setattr(service.journal, "_write", broken)
    answer = fresh.post("/tasks/select", json={"task": TASK})
    assert (answer.status_code, answer.json()["detail"]) == (503, "the disk is full")
    monkeypatch.setattr(service.journal, "_write", plain)
    decision = select(fresh)["decision_id"]
    assert fresh.get(f"/tasks/{decision}").status_code == 200


def test_choices_of_many_callers_share_a_transaction(fresh: TestClient) -> None:
    select(fresh)
    service = service_of(fresh)

    async def together() -> int:
        desk = await service.desk(await service.agent(ANYBODY, None))
        vector = await service.tasks.of(TASK)
        made = await asyncio.gather(*(desk.select(Ask(TASK, vector)) for _ in range(20)))
        return len(made)

    assert fresh.portal is not None
    before = _batches(fresh)
    assert fresh.portal.call(together) == 20
    assert _batches(fresh) - before == 1


def test_who_asks_for_what_cannot_be_spoils_it_for_nobody(fresh: TestClient) -> None:
    service = service_of(fresh)
    asked: list[dict[str, Any]] = [
        {},
        {"k": 99},
        {"explore": True},
        {"available": ["nobody"]},
        {"available": ["git-operations"]},
    ]

    async def together() -> tuple[list[Any], list[Any]]:
        desk = await service.desk(await service.agent(ANYBODY, None))
        vector = await service.tasks.of(TASK)
        asks = [Ask(TASK, vector, **one) for one in asked]
        made = await asyncio.gather(*map(desk.select, asks), return_exceptions=True)
        gone = asyncio.ensure_future(desk.select(asks[0]))
        await asyncio.sleep(0)
        gone.cancel()
        return made, [await desk.select(asks[0]), gone]

    assert fresh.portal is not None
    made, (later, gone) = fresh.portal.call(together)
    assert [type(one) for one in made[1::2]] == [ConfigError, ConfigError]
    assert [made[0].explored, made[2].explored, made[4].explored] == [False, True, False]
    assert [skill.id for skill in later.skills] == [skill.id for skill in made[0].skills]
    assert gone.cancelled()
    for one in (made[0], made[2], made[4], later):
        assert fresh.get(f"/tasks/{one.decision_id}").status_code == 200


def _batches(client: TestClient) -> float:
    text = client.get("/metrics").text
    (line,) = [x for x in text.splitlines() if x.startswith("letta_gym_log_batch_decisions_count")]
    return float(line.split()[-1])


# --- health and figures ---------------------------------------------------------------------------


def test_health_says_whether_requests_are_served(tmp_path: Path) -> None:
    with running(config(tmp_path)) as client:
        service = service_of(client)
        ready = client.get("/health/ready").json()
        assert ready == {
            "status": "ready",
            "policy_digest": service.desks.policy.digest,
            "fallback": True,
        }
        service.waits_for = "the moon"
        waits = client.get("/health/ready")
        assert (waits.status_code, waits.json()["detail"]) == (503, "not ready: the moon")
        assert client.get("/skills").status_code == 503
        assert client.get("/health/live").json() == {"status": "alive"}


def test_figures_follow_from_what_happened(fresh: TestClient) -> None:
    for success in (1.0, 1.0, 0.0, 0.5):
        decision = select(fresh)["decision_id"]
        fresh.post(f"/tasks/{decision}/feedback", json={"success": success})
    alone = select(fresh, token_budget=1)["decision_id"]
    fresh.post(f"/tasks/{alone}/feedback", json={"success": 0.25})
    fresh.post(f"/tasks/{alone}/feedback", json={"success": 1.0})

    summary = fresh.get("/metrics/summary").json()
    assert (summary["decisions"], summary["coverage"]) == (5, 0.8)
    assert (summary["success"]["count"], summary["success"]["mean"]) == (5, pytest.approx(0.55))
    assert (summary["alone"]["count"], summary["alone"]["mean"]) == (1, 0.25)
    assert summary["uplift"] == pytest.approx(0.375)
    assert (summary["liked"], summary["disliked"], summary["failures"]) == (1, 0, 0)
    assert 0.9 < summary["tokens_saved"] < 1

    top = fresh.get("/skills/top").json()["items"]
    assert sum(one["chosen"] for one in top) >= 4
    (point,) = fresh.get("/metrics/trends/success").json()["points"]
    assert (point["count"], point["value"]) == (5, pytest.approx(0.55))
    (policy,) = fresh.get("/metrics/compare").json()["items"]
    assert (policy["decisions"], policy["active"], policy["fallback"]) == (5, True, True)
    glance = fresh.get("/metrics/dashboard").json()
    assert glance["summary"] == summary
    assert glance["harmful"] == []


def test_what_changes_state_is_in_the_audit(fresh: TestClient) -> None:
    fresh.post("/agents", json={"name": "ada", "team": "one"})
    fresh.put("/agents/ada", json={"team": "two", "scope": "team"})
    fresh.post("/skills", json={"name": "mine", "description": "Mine"})
    fresh.delete("/skills/mine")
    entries = service_of(fresh).store.policies.audit()
    said = [(one.actor, one.action, one.subject) for one in entries if one.actor == "local"]
    assert said == [
        ("local", "add agent", "ada"),
        ("local", "change agent", "ada"),
        ("local", "offer skill", "default/mine"),
        ("local", "withdraw skill", "default/mine"),
    ]


def test_a_skill_shows_its_versions_and_its_success(tmp_path: Path) -> None:
    with running(config(tmp_path)) as client:
        skill = {"name": "page-merger", "description": TASK, "body": "Use the merge tool."}
        assert client.post("/skills", json=skill).status_code == 201
        for success in (1.0, 0.0):
            chosen = client.post("/tasks/select", json={"task": TASK, "k": 1}).json()
            assert [one["id"] for one in chosen["skills"]] == ["page-merger"]
            said = {"success": success}
            client.post(f"/tasks/{chosen['decision_id']}/feedback", json=said)
        changed = {"description": TASK, "body": "Use another tool, with care."}
        assert client.put("/skills/page-merger", json=changed).status_code == 200

        history = client.get("/skills/page-merger/history").json()
        new, old = history["versions"]
        assert (new["current"], new["chosen"], new["success"]["count"]) == (True, 0, 0)
        assert (old["current"], old["chosen"], old["success"]["mean"]) == (False, 2, 0.5)
        (day,) = history["days"]
        assert (day["success"]["count"], day["success"]["mean"]) == (2, 0.5)
        (figures,) = [
            one
            for one in client.get("/metrics/skills").json()["items"]
            if one["id"] == "page-merger"
        ]
        assert figures["recent"] == figures["success"]
        assert client.get("/skills/none-such/history").status_code == 404
