"""Training over HTTP: one run at a time, which survives its service, and whose end is told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

import train
from letta_gym.errors import ConfigError
from letta_gym.service import training as service_training
from letta_gym.service.config import ServeConfig
from letta_gym.service.recipes import assignments
from letta_gym.store.jobs import NewJob
from letta_gym.store.keys import RIGHTS
from letta_gym.store.store import Store
from tests.services import TASK, bearer, config, running, service_of

ROOT = Path(__file__).parent.parent
SECONDS = 15.0  # within which a dead run is marked
TINY = {
    "env.horizon": 8,
    "env.history": [5, 10],
    "train.steps": 256,
    "train.checkpoint_every": 10,
    "train.evaluate": False,
    "train.ppo.num_envs": 16,
    "train.ppo.num_steps": 4,
    "train.ppo.num_minibatches": 2,
    "train.ppo.update_epochs": 2,
    "policy.hidden": 4,
}
LONG = {**TINY, "train.steps": 40_000}

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the drills read /proc")


def settings(folder: Path, **sections: dict[str, Any]) -> ServeConfig:
    return config(folder, training={"heartbeat": 0.5, "lease": 5.0}, **sections)


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    with running(settings(tmp_path)) as client:
        yield client


def start(client: TestClient, changes: dict[str, Any], **more: Any) -> Any:
    return client.post("/training/run", json={"config": "mock", "set": changes}, **more)


def look(client: TestClient, run: int) -> dict[str, Any]:
    found: dict[str, Any] = client.get(f"/training/runs/{run}").json()
    return found


def wait(
    client: TestClient, run: int, done: Callable[[dict[str, Any]], bool], seconds: float = 120.0
) -> dict[str, Any]:
    deadline = time.monotonic() + seconds
    while not done(found := look(client, run)):
        assert time.monotonic() < deadline, found
        time.sleep(0.1)
    return found


def ended(run: dict[str, Any]) -> bool:
    return str(run["status"]) != "running"


def going(run: dict[str, Any]) -> bool:
    assert run["status"] == "running", run
    return int(run["step"]) > 0


def finished(client: TestClient, run: int) -> dict[str, Any]:
    found = wait(client, run, ended)
    assert (found["status"], found["error"]) == ("finished", None)
    return found


def processes(folder: Path, word: str) -> list[int]:
    """Processes whose command names ``folder`` and ``word``."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_text().split("\0")
        except OSError:  # it has just ended
            continue
        if any(str(folder) in part for part in command) and word in command:
            found.append(int(path.parent.name))
    return found


def kill(folder: Path, word: str) -> None:
    (process,) = processes(folder, word)
    os.kill(process, signal.SIGKILL)


def unbroken(folder: Path, changes: dict[str, Any]) -> str:
    """Digest of the policy of a run that nobody stopped."""
    options = [f"--set={one}" for one in assignments(changes, "mock")]
    arguments = ["--config", str(ROOT / "configs/mock.yaml"), "--run-dir", str(folder), *options]
    assert train.main(arguments) == 0
    digest = json.loads((folder / "summary.json").read_text())["digest"]
    assert isinstance(digest, str)
    return digest


# --- runs -----------------------------------------------------------------------------------------


def test_of_simultaneous_starts_one_runs_and_its_policy_may_choose(
    client: TestClient, tmp_path: Path
) -> None:
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: start(client, LONG | {"train.steps": 5_000}), range(4)))
    assert sorted(answer.status_code for answer in answers) == [201, 409, 409, 409]
    (run,) = [answer.json() for answer in answers if answer.status_code == 201]
    assert any("is under way" in one.json()["detail"] for one in answers if one.is_error)
    assert (run["status"], run["steps"]) == ("running", 5_000)
    assert client.post("/tasks/select", json={"task": TASK}).status_code == 200

    done = finished(client, run["id"])
    assert done["step"] >= done["steps"] == 5_000
    assert done["hyper_parameters"]["train.ppo.num_envs"] == 16
    curves = done["curves"]
    assert len(curves["selection/success"]["values"]) > 5
    assert {"greedy/return", "untrained/return"} <= set(curves)
    assert len(list((tmp_path / "training").iterdir())) == 1

    digest = done["policy_digest"]
    assert client.get(f"/policies/{digest}").json()["status"] == "candidate"
    forced = client.post(f"/policies/{digest}/promote", json={"force": True})
    assert forced.json()["status"] == "active"
    chosen = client.post("/tasks/select", json={"task": TASK}).json()
    assert (chosen["policy_digest"], chosen["fallback"]) == (digest, False)

    listed = client.get("/training/runs").json()["items"]
    assert [(one["id"], one["status"]) for one in listed] == [(run["id"], "finished")]
    again = client.post(f"/training/runs/{run['id']}/resume")
    assert (again.status_code, "is finished; start a new one" in again.text) == (409, True)
    assert client.post(f"/training/runs/{run['id']}/cancel").status_code == 409


def test_a_killed_run_is_marked_in_time_and_resumed_bit_for_bit(
    client: TestClient, tmp_path: Path
) -> None:
    run = start(client, LONG).json()["id"]
    folder = tmp_path / "training"

    wait(client, run, going)
    kill(folder, "--run-dir")
    failed = wait(client, run, ended, SECONDS)
    assert (failed["status"], failed["resumable"]) == ("failed", True)
    assert "ended by SIGKILL; resume the run" in failed["error"]

    assert client.post(f"/training/runs/{run}/resume").json()["attempts"] == 2
    reached = failed["step"]
    wait(client, run, lambda one: going(one) and one["step"] > reached)
    kill(folder, "letta_gym.service.supervisor")
    lost = wait(client, run, ended, SECONDS)
    assert (lost["status"], lost["resumable"]) == ("lost", True)
    assert processes(folder, "--run-dir") == []

    assert client.post(f"/training/runs/{run}/resume").status_code == 200
    reached = lost["step"]
    wait(client, run, lambda one: going(one) and one["step"] > reached)
    assert client.post(f"/training/runs/{run}/cancel").json()["cancelling"] is True
    cancelled = wait(client, run, ended)
    assert (cancelled["status"], cancelled["error"]) == ("cancelled", None)
    assert cancelled["step"] < cancelled["steps"]

    assert client.post(f"/training/runs/{run}/resume").status_code == 200
    done = finished(client, run)
    assert done["policy_digest"] == unbroken(tmp_path / "unbroken", LONG)
    assert done["attempts"] == 4


def test_a_lease_that_runs_out_is_noticed_in_time_by_another_process(tmp_path: Path) -> None:
    """The supervisor dies while no service runs; the next one says so. The settings are ours."""
    changes = config(tmp_path)
    with running(changes) as client:
        run = start(client, LONG).json()["id"]
        wait(client, run, going)
    kill(tmp_path / "training", "letta_gym.service.supervisor")
    killed = time.monotonic()
    with running(changes) as client:
        assert wait(client, run, ended)["status"] == "lost"
        assert time.monotonic() - killed < SECONDS
        other = start(client, TINY).json()["id"]
        finished(client, other)


def test_a_run_goes_on_while_the_service_is_restarted(tmp_path: Path) -> None:
    with running(settings(tmp_path)) as client:
        run = start(client, LONG).json()["id"]
        wait(client, run, going)
    with running(settings(tmp_path)) as client:
        assert look(client, run)["status"] == "running"
        assert start(client, TINY).status_code == 409
        done = finished(client, run)
        assert done["attempts"] == 1
        assert client.get(f"/policies/{done['policy_digest']}").json()["status"] == "candidate"


def test_a_run_can_be_followed_as_a_stream(client: TestClient) -> None:
    run = start(client, TINY).json()["id"]
    with client.stream("GET", f"/training/runs/{run}/events") as stream:
        assert stream.headers["Content-Type"].startswith("text/event-stream")
        events = [one.split("\n") for one in "".join(stream.iter_text()).split("\n\n") if one]
    kinds = [line for event in events for line in event if line.startswith("event")]
    steps = [int(event[0].removeprefix("id: ")) for event in events if event[0].startswith("id")]
    last = json.loads(events[-1][-1].removeprefix("data: "))
    assert {"event: metrics", "event: status"} == set(kinds)
    assert steps == sorted(steps)
    assert set(steps) == {64, 128, 192, 256}
    assert last["status"] == "finished"

    headers = {"Last-Event-ID": "128"}
    with client.stream("GET", f"/training/runs/{run}/events", headers=headers) as stream:
        rest = "".join(stream.iter_text())
    assert "id: 192\n" in rest
    assert "id: 128\n" not in rest


def test_a_start_that_is_sent_twice_starts_one_run(client: TestClient) -> None:
    headers = {"Idempotency-Key": "monday"}
    first, second = (start(client, TINY, headers=headers) for _ in range(2))
    assert (first.status_code, second.status_code) == (201, 201)
    assert first.json()["id"] == second.json()["id"]
    assert second.headers["Idempotent-Replayed"] == "true"
    assert second.headers["Location"] == f"/training/runs/{first.json()['id']}"
    finished(client, first.json()["id"])
    assert start(client, LONG, headers=headers).status_code == 422


def test_the_service_itself_imports_nothing_that_trains() -> None:
    heavy = "{'tensorboard', 'agents'}"
    code = f"import sys, letta_gym.service.app as _; print(*{heavy} & {{*sys.modules}})"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == ""


# --- from the log ---------------------------------------------------------------------------------


def test_a_policy_is_learned_from_the_log_of_the_service(client: TestClient) -> None:
    log = {"config": "from-log", "set": {"train.rounds": 3, "train.min_decisions": 20}}
    failed = wait(client, client.post("/training/run", json=log).json()["id"], ended)
    assert failed["status"] == "failed"
    assert "the log holds 0 explored decisions" in failed["error"]

    for number in range(24):
        chosen = client.post("/tasks/select", json={"task": TASK, "explore": True}).json()
        url = f"/tasks/{chosen['decision_id']}/feedback"
        assert client.post(url, json={"success": number % 2}).status_code == 200
    assert client.post(f"/training/runs/{failed['id']}/resume").status_code == 200
    done = finished(client, failed["id"])
    assert done["curves"]["log/snips"]["steps"] == [1, 2, 3]
    assert not {"store", "policy"} & set(done["hyper_parameters"])
    policy = client.get(f"/policies/{done['policy_digest']}").json()
    assert (policy["status"], policy["provenance"]["steps"]) == ("candidate", 24)
    assert len(service_of(client).store.runs.all()) == 1


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"config": "serve"}, "there is no configuration 'serve' to train; known are: mock"),
        ({"config": "../configs/mock"}, "there is no configuration '../configs/mock'"),
        ({"config": "mock", "set": {"suite.path": "etc"}}, "'suite.path' cannot be set here"),
        ({"config": "mock", "set": {"kind": "letta"}}, "'kind' cannot be set here"),
        ({"config": "from-log", "set": {"policy": "a"}}, "'policy' cannot be set here"),
        ({"config": "from-log", "set": {"store": "a"}}, "keys that begin with train."),
        ({"config": "mock", "set": {"env.world": "/etc/passwd"}}, "or one word; got '/etc/passwd'"),
        ({"config": "mock", "set": {"train.step": 5}}, "did you mean 'steps'?"),
        ({"config": "mock", "set": {"train.steps": "many"}}, "mock does not fit"),
        ({"config": "mock", "set": {"Train.steps": 5}}, "body.set"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(
    client: TestClient, body: dict[str, Any], said: str
) -> None:
    answer = client.post("/training/run", json=body)
    assert answer.status_code == 422
    assert said in answer.json()["detail"]
    assert client.get("/training/runs").json()["items"] == []


def test_a_value_never_becomes_a_file() -> None:
    with pytest.raises(ConfigError, match=r"'train.start' cannot be set here"):
        assignments({"train.start": "x"}, "letta")
    with pytest.raises(ConfigError, match="takes a number"):
        assignments({"train.steps": ["a.b"]}, "mock")
    assert assignments({"env.history": [1, 2]}, "mock") == ["env.history=[1, 2]"]


def test_without_a_checkout_the_remedy_is_told(
    client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_training, "_checkout", lambda: tmp_path)
    answer = start(client, TINY)
    assert answer.status_code == 501
    assert "name a command in service.train_command" in answer.json()["detail"]


@pytest.mark.parametrize("command", ["true", "/nothing/here"])
def test_a_command_that_is_no_trainer_is_refused(tmp_path: Path, command: str) -> None:
    with running(settings(tmp_path, service={"train_command": [command]})) as client:
        answer = start(client, TINY)
    assert answer.status_code == 501
    assert "must take the options of train.py" in answer.json()["detail"]


def test_a_command_of_ones_own_trains(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "train.py")]
    with running(settings(tmp_path, service={"train_command": command})) as client:
        finished(client, start(client, TINY).json()["id"])


def test_a_trainer_that_fails_is_quoted(tmp_path: Path) -> None:
    script = tmp_path / "trainer.py"
    script.write_text(
        "import sys\n"
        "if '--check' in sys.argv: print('{}'); sys.exit()\n"
        "sys.exit('train.py: the disk is full')\n"
    )
    command = [sys.executable, str(script)]
    with running(settings(tmp_path, service={"train_command": command})) as client:
        failed = wait(client, start(client, {}).json()["id"], ended)
    assert (failed["status"], failed["error"]) == ("failed", "the disk is full")


def test_a_lease_shorter_than_two_heartbeats_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must be at least twice"):
        config(tmp_path, training={"heartbeat": 2.0, "lease": 3.0})


# --- who sees what --------------------------------------------------------------------------------


def test_a_run_from_an_agents_log_is_seen_by_it_alone_and_stopped_by_who_started_it(
    tmp_path: Path,
) -> None:
    changes = settings(tmp_path, access={"keys": True})
    with Store(changes.service.store) as store:
        agents = {name: store.agents.ensure(name) for name in ("ada", "eve")}
        keys = {
            name: bearer(store.keys.make(name, ["read", "train"], actor="test", agent=agent))
            for name, agent in agents.items()
        }
        keys["all"] = bearer(store.keys.make("all", RIGHTS, actor="test"))
        for kind, agent in (("log", agents["ada"]), ("log", None), ("mock", None)):
            job = NewJob(kind, kind, {}, {}, str(tmp_path), agent=agent)
            run = store.jobs.begin(job, actor="ada", holder="h", lease=60)
            assert run is not None
            store.jobs.end(run, "h", "failed", error="a test")
    with running(changes) as client:
        for name, sees in (("ada", {1, 3}), ("eve", {3}), ("all", {1, 2, 3})):
            listed = client.get("/training/runs", headers=keys[name]).json()["items"]
            assert {one["id"] for one in listed} == sees
            for run in (1, 2, 3):
                for path in (f"/training/runs/{run}", f"/training/runs/{run}/events"):
                    code = client.get(path, headers=keys[name]).status_code
                    assert code == (200 if run in sees else 404)
        assert client.post("/training/runs/1/cancel", headers=keys["eve"]).status_code == 404
        assert client.post("/training/runs/3/cancel", headers=keys["eve"]).status_code == 403
        assert client.post("/training/runs/3/cancel", headers=keys["ada"]).status_code == 409
        page = client.get("/training/runs?limit=1", headers=keys["all"]).json()
        after = client.get(f"/training/runs?limit=1&after={page['next']}", headers=keys["all"])
        assert (page["items"][0]["id"], after.json()["items"][0]["id"]) == (3, 2)


def test_a_supervisor_that_was_late_takes_its_run_up_again_unless_it_is_anothers(
    tmp_path: Path,
) -> None:
    now = 1000.0
    with Store(config(tmp_path).service.store, lambda: now) as store:
        jobs, job = store.jobs, NewJob("mock", "mock", {}, {}, str(tmp_path))
        run = jobs.begin(job, actor="a", holder="first", lease=5)
        assert run is not None
        assert jobs.begin(job, actor="a", holder="x", lease=5) is None
        now += 6
        assert jobs.mark_lost() == [run]
        assert jobs.beat(run, "first", 5) == "go on"
        assert jobs.under_way() == run
        now += 6
        other = jobs.begin(job, actor="a", holder="other", lease=5)
        assert other is not None
        assert jobs.beat(run, "first", 5) == "leave"
        assert jobs.resume(run, actor="a", holder="second", lease=5) is False
        jobs.end(other, "other", "finished")
        assert jobs.resume(run, actor="a", holder="second", lease=5) is True
        assert jobs.beat(run, "first", 5) == "leave"
        assert jobs.end(run, "first", "finished") is False
        assert jobs.cancel(run, actor="a")
        assert jobs.beat(run, "second", 5) == "stop"
