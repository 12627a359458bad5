"""The REST backend against a small server in memory, and everything that goes wrong on the way."""

from __future__ import annotations

import itertools
import logging
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from letta_gym.errors import BackendError
from letta_gym.feedback.outcome import Outcome
from letta_gym.letta import owner
from letta_gym.letta.blocks import OWNER, PREFIX
from letta_gym.letta.cleaning import OWNER_TAG, TAG
from letta_gym.letta.failures import RetryConfig
from letta_gym.letta.grading import ContainsGrader
from letta_gym.letta.rest import RestConfig, rest_backend
from letta_gym.letta.rollout import Rollout
from letta_gym.library.skills import Skill
from tests.fake_letta import HANDLE, FakeLetta
from tests.faults import Fault, FaultyProxy, Plan

ROOT = Path(__file__).parent.parent
GONE = f"{socket.gethostname()}/1/0/dead"  # process 1 runs, but began at another time
ELSEWHERE = "another-machine/1/0/beef"


@pytest.fixture
def fake() -> Iterator[FakeLetta]:
    with FakeLetta() as server:
        yield server


def skill(family: str, code: str, variant: str = "a") -> Skill:
    name = f"{family}-{variant}"
    body = f"PROCEDURE {family}: answer {code}"
    return Skill(name, name, f"how to do {family} tasks", body, tokens=50)


def rollout(family: str, *skills: Skill, expected: str = "42") -> Rollout:
    text = f"TASK {family}: as always"
    return Rollout(text, skills, ContainsGrader(expected=f"ANSWER {expected}"))


def config(url: str, **fields: object) -> RestConfig:
    usual = {
        "base_url": url,
        "model": None if "agent" in fields else HANDLE,
        "deadline": 5.0,
        "retries": RetryConfig(wait=0.01, longest_wait=0.05),
    }
    return RestConfig.model_validate(usual | fields)


def carried_out(live: RestConfig, *rollouts: Rollout) -> list[Outcome]:
    with rest_backend(live) as backend:
        return backend.run(rollouts)


def timed(live: RestConfig, asked: Rollout) -> tuple[Outcome, float]:
    """The outcome of one rollout, and the seconds it took."""
    with rest_backend(live) as backend:
        started = time.perf_counter()
        (outcome,) = backend.run([asked])
        return outcome, time.perf_counter() - started


def spoiling(*faults: Fault, path: str = "/messages") -> Plan:
    """Spoils so many requests whose path ends in ``path``, in this order."""
    left = iter(faults)
    return lambda method, at: next(left, None) if method == "POST" and at.endswith(path) else None


def add_block(fake: FakeLetta, label: str, mark: str | None = None, value: str = "") -> str:
    """Put a block on the server, made by whoever has ``mark``; returns its id."""
    metadata = None if mark is None else {OWNER: mark}
    return str(fake._create_block({"label": label, "value": value, "metadata": metadata})["id"])


def expect_clean(fake: FakeLetta, *agents: str) -> None:
    assert sorted(fake.agents) == sorted(agents)
    assert [b["label"] for b in fake.blocks.values() if b["label"].startswith(PREFIX)] == []


# --- what reaches the agent -----------------------------------------------------------------------


@pytest.mark.parametrize("present", ["preloaded", "listed"])
def test_the_chosen_skills_reach_an_agent_of_its_own_and_nothing_is_left(
    fake: FakeLetta, present: str
) -> None:
    right, wrong = skill("add", "42"), skill("add", "13")
    rollouts = [rollout("add", right), rollout("add", wrong), rollout("add")]

    with rest_backend(config(fake.url, present=present)) as backend:
        outcomes = backend.run(rollouts)

    assert [outcome.success for outcome in outcomes] == [1, 0, 0]
    assert [outcome.loaded for outcome in outcomes] == [("add-a",), ("add-a",), ()]
    assert [outcome.tokens for outcome in outcomes] == [50, 50, 0]
    assert [outcome.response for outcome in outcomes][2] == "I do not know how to do add."
    assert all(outcome.evidence and outcome.stop_reason == "end_turn" for outcome in outcomes)
    expect_clean(fake)


def test_of_the_listed_skills_only_those_count_that_the_agent_loaded(fake: FakeLetta) -> None:
    other, first, second = skill("sub", "7"), skill("add", "13"), skill("add", "42", "b")

    (outcome,) = carried_out(
        config(fake.url, present="listed"), rollout("add", other, first, second, expected="13")
    )

    assert outcome.loaded == ("add-a",)
    assert outcome.success == 1
    assert (outcome.steps, outcome.usage) == (2, 200)
    assert len(outcome.step_ids) == 2
    assert outcome.run_id is not None


def test_a_skill_that_was_not_listed_is_refused(fake: FakeLetta) -> None:
    listed = Skill("plus", "plus", "for add-secret and such", "nothing", tokens=5)

    (outcome,) = carried_out(config(fake.url, present="listed"), rollout("add", listed))

    assert outcome.loaded == ()
    assert outcome.tool_errors == 1
    assert outcome.success == 0


def test_two_skills_of_one_name_are_told_apart(fake: FakeLetta) -> None:
    one = Skill("one", "add", "how to do add tasks", "Think.", tokens=1)
    two = Skill("two", "add", "how to do add tasks", "PROCEDURE add: answer 42", tokens=1)

    (outcome,) = carried_out(config(fake.url), rollout("add", one, two))

    assert outcome.success == 1
    assert outcome.loaded == ("one", "two")


def test_many_rollouts_side_by_side_do_not_see_each_others_skills(fake: FakeLetta) -> None:
    skills = [skill("add", f"code{i}", f"v{i}") for i in range(24)]
    rollouts = [rollout("add", s, expected=f"code{i}") for i, s in enumerate(skills)]

    outcomes = carried_out(config(fake.url, concurrency=8), *rollouts, *rollouts)

    assert [outcome.success for outcome in outcomes] == [1] * 48
    expect_clean(fake)


def test_the_reward_is_written_to_each_step_before_the_agent_goes(fake: FakeLetta) -> None:
    good, bad = carried_out(
        config(fake.url, feedback=True),
        rollout("add", skill("add", "42")),
        rollout("add", skill("add", "13")),
    )

    assert fake.feedback == {
        good.step_ids[0]: {"feedback": "positive", "tags": ["reward:0.998"]},
        bad.step_ids[0]: {"feedback": "negative", "tags": ["reward:-0.002"]},
    }


# --- a person's long-lived agent ------------------------------------------------------------------


def test_a_long_lived_agent_gets_the_skills_for_one_task_and_is_given_back(fake: FakeLetta) -> None:
    persona = add_block(fake, "persona", value="I am Ada.")
    agent = fake.add_agent(block_ids=[persona])

    outcomes = carried_out(
        config(fake.url, agent=agent, concurrency=8),
        *(rollout("add", skill("add", f"c{i}"), expected=f"c{i}") for i in range(6)),
        rollout("add"),
    )

    assert [outcome.success for outcome in outcomes] == [1, 1, 1, 1, 1, 1, 0]
    assert fake.labels(agent) == ["persona"]
    assert fake.agents[agent]["system"] == "I am Ada.", "the prompt still has a skill in it"
    assert len([m for m in fake.agents[agent]["history"] if m["role"] == "user"]) == 7
    expect_clean(fake, agent)


def test_a_task_is_sent_once_to_a_long_lived_agent_whatever_comes_back(fake: FakeLetta) -> None:
    agent = fake.add_agent()
    with FaultyProxy(fake.url, spoiling(Fault.RESET)) as proxy:
        (outcome,) = carried_out(config(proxy.url, agent=agent), rollout("add", skill("add", "42")))

    assert len(fake.messages) == 1
    assert (outcome.evidence, outcome.may_have_run) == (False, True)
    expect_clean(fake, agent)


def test_an_agent_in_use_by_another_process_is_not_judged(fake: FakeLetta) -> None:
    agent = fake.add_agent()
    with rest_backend(config(fake.url, agent=agent)) as backend:
        block = add_block(fake, f"{PREFIX}add", value="PROCEDURE add: answer 42")
        fake.agents[agent]["block_ids"].append(block)
        (outcome,) = backend.run([rollout("add", skill("add", "42"))])

    assert not outcome.evidence
    assert "does another process use it?" in str(outcome.error)
    assert fake.messages == []


def test_a_call_of_our_tool_that_was_never_answered_is_answered_at_the_start(
    fake: FakeLetta,
) -> None:
    agent = fake.add_agent()
    call = {"name": "Skill", "arguments": "{}", "tool_call_id": "call-1"}
    fake.agents[agent]["pending_approval"] = {"tool_calls": [call]}

    with rest_backend(config(fake.url, agent=agent, present="listed")):
        assert fake.agents[agent]["pending_approval"] is None


# --- what a killed process leaves -----------------------------------------------------------------


def test_only_what_was_left_behind_is_swept(fake: FakeLetta) -> None:
    alive = owner.new_mark()
    ours = {mark: add_block(fake, f"{PREFIX}x", mark) for mark in (GONE, alive, ELSEWHERE)}
    kept = [add_block(fake, "persona", value="I am Ada."), add_block(fake, "my_letta_gym_notes")]
    agent = fake.add_agent(block_ids=[*kept, *ours.values()])
    dead, living = (
        fake.add_agent(tags=[TAG, OWNER_TAG + mark], block_ids=[]) for mark in (GONE, alive)
    )

    backend = rest_backend(config(fake.url, agent=agent))

    # Of the other machine's process nobody knows whether it runs: its block is not deleted, but
    # does not stay on this agent, which serves one process.
    assert fake.agents[agent]["block_ids"] == [*kept, ours[alive]]
    assert ours[GONE] not in fake.blocks
    assert ours[ELSEWHERE] in fake.blocks
    assert (dead in fake.agents, living in fake.agents) == (False, True)
    assert fake.agents[agent]["system"] == "I am Ada.\n\n"
    backend.close()
    assert living in fake.agents


def test_what_a_killed_process_sent_last_may_land_late_and_goes_too(fake: FakeLetta) -> None:
    agent, asked = fake.add_agent(), rollout("add", skill("add", "42"))
    with rest_backend(config(fake.url, agent=agent)) as backend:
        late = add_block(fake, f"{PREFIX}late", GONE, "PROCEDURE add: answer 13")
        fake.agents[agent]["block_ids"].append(late)
        (first,), (second,) = backend.run([asked]), backend.run([asked])

        assert not first.evidence
        assert second.success == 1
        fake.agents[agent]["block_ids"].append(late)
    expect_clean(fake, agent)
    assert fake.labels(agent) == []


KILLED = """
import sys
from letta_gym.letta.rest import rest_backend
from tests.test_rest import config, rollout, skill

url, agent = sys.argv[1:]
backend = rest_backend(config(url, **({"agent": agent} if agent else {})))
backend.run([rollout("add", skill("add", "42"))])
"""


@pytest.mark.parametrize("long_lived", [True, False])
def test_after_a_kill_in_mid_task_the_next_start_puts_everything_right(
    fake: FakeLetta, long_lived: bool
) -> None:
    persona = add_block(fake, "persona", value="I am Ada.")
    agent = fake.add_agent(block_ids=[persona]) if long_lived else ""
    with FaultyProxy(fake.url, spoiling(Fault.LATE), late=60) as proxy:
        process = subprocess.Popen([sys.executable, "-c", KILLED, proxy.url, agent], cwd=ROOT)
        deadline = time.monotonic() + 30
        while not fake.messages and time.monotonic() < deadline:
            time.sleep(0.02)
        process.kill()
        process.wait()
    assert any(block["label"].startswith(PREFIX) for block in fake.blocks.values())

    with rest_backend(config(fake.url, **({"agent": agent} if agent else {}))):
        expect_clean(fake, *([agent] if agent else []))
    if agent:
        assert fake.labels(agent) == ["persona"]
        assert fake.agents[agent]["system"] == "I am Ada."


def test_a_mark_tells_whether_its_process_runs() -> None:
    mark = owner.new_mark()
    program = "from letta_gym.letta.owner import new_mark; print(new_mark())"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )

    assert owner.alive(mark) is True
    assert owner.alive(done.stdout.strip()) is False
    assert owner.alive(GONE) is False
    assert owner.alive(ELSEWHERE) is None
    assert owner.alive("") is None
    assert owner.new_mark() != mark


# --- faults ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", list(Fault))
@pytest.mark.parametrize("path", ["/messages", "/agents/", "/blocks/"])
def test_a_fault_that_passes_is_got_over(fake: FakeLetta, fault: Fault, path: str) -> None:
    plan = spoiling(fault, path=path)
    endless = fault in (Fault.DRIP, Fault.LATE)
    with FaultyProxy(fake.url, plan, late=60) as proxy:
        live = config(proxy.url, deadline=0.6 if endless else 5.0)
        outcome, took = timed(live, rollout("add", skill("add", "42")))

    assert [seen for seen, _, _ in proxy.faults] == [fault]
    carried = fault not in (Fault.BUSY, Fault.ERROR)
    if endless:
        assert 0.6 <= took < 1.6
        assert not outcome.evidence
        assert str(outcome.error).startswith("timeout")
        assert outcome.may_have_run == (path == "/messages")
    else:
        assert outcome.success == 1
        assert len(fake.messages) == (2 if path == "/messages" and carried else 1)
        assert outcome.may_have_run == (path == "/messages" and fault is not Fault.BUSY)
    expect_clean(fake)


@pytest.mark.parametrize("fault", [f for f in Fault if f not in (Fault.DRIP, Fault.LATE)])
def test_a_fault_that_stays_is_an_infrastructure_failure_within_the_deadline(
    fake: FakeLetta, fault: Fault
) -> None:
    with FaultyProxy(fake.url, spoiling(*[fault] * 1000)) as proxy:
        outcome, took = timed(config(proxy.url), rollout("add", skill("add", "42")))

    assert took < 5.5
    assert (outcome.success, outcome.evidence, outcome.reward) == (None, False, None)
    assert outcome.error is not None
    assert len(proxy.faults) == RetryConfig().attempts
    expect_clean(fake)


@pytest.mark.parametrize("fault", [Fault.RESET, Fault.ERROR, Fault.BUSY, Fault.MALFORMED])
def test_removing_is_tried_until_it_succeeds(fake: FakeLetta, fault: Fault) -> None:
    agent = fake.add_agent()
    count = itertools.count()

    def plan(method: str, path: str) -> Fault | None:
        removes = method == "DELETE" or path.endswith("recompile") or "/detach/" in path
        return fault if removes and next(count) % 2 == 0 else None

    with FaultyProxy(fake.url, plan) as proxy:
        carried_out(config(proxy.url), rollout("add", skill("add", "42")))
        expect_clean(fake, agent)


@pytest.mark.parametrize("reason", ["llm_api_error", "insufficient_credits", "error"])
def test_a_stop_that_tells_of_the_infrastructure_is_no_evidence(
    fake: FakeLetta, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = fake._converse

    def stopped(agent: dict[str, object], body: dict[str, object]) -> dict[str, object]:
        return inner(agent, body) | {"stop_reason": {"stop_reason": reason}}

    monkeypatch.setattr(fake, "_converse", stopped)

    (outcome,) = carried_out(config(fake.url), rollout("add", skill("add", "42")))

    assert not outcome.evidence
    assert reason in str(outcome.error)
    assert outcome.may_have_run


# --- start-up -------------------------------------------------------------------------------------


def test_nobody_at_the_address_is_found_at_the_start() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"

    with pytest.raises(BackendError, match="see base_url"):
        rest_backend(config(url))


def test_a_server_that_does_not_answer_is_found_within_five_seconds() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        started = time.perf_counter()
        with pytest.raises(BackendError, match="within 5 s"):
            rest_backend(config(f"http://127.0.0.1:{silent.getsockname()[1]}"))

        assert time.perf_counter() - started < 5.5


@pytest.mark.parametrize(("given", "says"), [(None, "is not set"), ("wrong", "is wrong")])
def test_a_wrong_key_is_found_at_the_start(
    given: str | None, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LETTA_API_KEY", raising=False)
    if given is not None:
        monkeypatch.setenv("LETTA_API_KEY", given)
    with FakeLetta(key="right") as fake:
        with pytest.raises(BackendError, match=f"LETTA_API_KEY {says}"):
            rest_backend(config(fake.url))
        monkeypatch.setenv("LETTA_API_KEY", "right")
        rest_backend(config(fake.url)).close()


@pytest.mark.parametrize("present", ["preloaded", "listed"])
@pytest.mark.parametrize("long_lived", [False, True])
def test_every_request_carries_the_key_and_the_project_as_letta_cloud_wants_them(
    monkeypatch: pytest.MonkeyPatch, present: str, long_lived: bool
) -> None:
    monkeypatch.setenv("LETTA_GYM_TEST_KEY", "open sesame")
    with FakeLetta(key="open sesame") as fake:
        who: dict[str, object] = {"agent": fake.add_agent()} if long_lived else {}
        cloud = config(
            fake.url,
            key_variable="LETTA_GYM_TEST_KEY",
            project="museum",
            present=present,
            feedback=True,
            **who,
        )
        (outcome,) = carried_out(cloud, rollout("add", skill("add", "42")))

    assert outcome.success == 1
    assert fake.feedback
    assert len(fake.headers) > 5
    for headers in fake.headers:
        assert headers["authorization"] == "Bearer open sesame"
        assert headers["x-project"] == "museum"


def test_no_other_key_is_sent_where_the_named_variable_is_unset(
    fake: FakeLetta, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LETTA_API_KEY", "for the cloud")
    monkeypatch.delenv("LETTA_GYM_TEST_KEY", raising=False)
    live = config(fake.url, key_variable="LETTA_GYM_TEST_KEY")

    (outcome,) = carried_out(live, rollout("add", skill("add", "42")))

    assert outcome.success == 1
    assert not any("authorization" in headers or "x-project" in headers for headers in fake.headers)


def test_a_wrong_model_or_agent_is_found_at_the_start(fake: FakeLetta) -> None:
    with pytest.raises(BackendError, match="no model 'vllm/stub-2'; it has: vllm/stub-1"):
        rest_backend(config(fake.url, model="vllm/stub-2"))
    with pytest.raises(BackendError, match="no agent 'agent-404'"):
        rest_backend(config(fake.url, agent="agent-404"))


@pytest.mark.parametrize("who", [{}, {"model": HANDLE, "agent": "agent-1"}])
def test_either_a_model_or_an_agent_is_named(who: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="name either model"):
        RestConfig.model_validate(who)


def test_the_log_of_a_run_holds_no_key(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("LETTA_API_KEY", "sk-secret")
    with caplog.at_level(logging.DEBUG), FakeLetta(key="sk-secret") as fake:
        carried_out(config(fake.url), rollout("add", skill("add", "42")))

    assert caplog.records
    assert "sk-secret" not in caplog.text
