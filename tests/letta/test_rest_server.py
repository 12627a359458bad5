"""The REST backend against a real Letta V1 server."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from letta_gym.letta.failures import RetryConfig
from letta_gym.letta.grading import ContainsGrader
from letta_gym.letta.rest import RestConfig, rest_backend
from letta_gym.letta.rollout import Rollout
from letta_gym.library.skills import Skill
from tests.letta.contents import Contents
from tests.letta.servers import ROOT, LettaServer
from tests.side_by_side import side_by_side

COUNT = 48


@pytest.fixture
def contents(server: LettaServer) -> Iterator[Contents]:
    with Contents(server.url, server.model) as found:
        yield found


def config(server: LettaServer, **fields: object) -> RestConfig:
    model = None if "agent" in fields else server.model
    usual = {"base_url": server.url, "model": model, "deadline": 120.0, "concurrency": 8}
    return RestConfig.model_validate(usual | fields)


def skill(family: str, code: str, variant: str) -> Skill:
    name = f"{family}-{variant}"
    body = f"PROCEDURE {family}: answer {code}"
    return Skill(name, name, f"how to do {family} tasks", body, tokens=50)


def rollout(family: str, *skills: Skill, expected: str = "42") -> Rollout:
    return Rollout(f"TASK {family}: go on", skills, ContainsGrader(expected=f"ANSWER {expected}"))


@pytest.mark.parametrize("present", ["preloaded", "listed"])
def test_rollouts_with_different_skills_side_by_side_are_graded_as_the_model_must_answer(
    server: LettaServer, contents: Contents, present: str
) -> None:
    rollouts, must = side_by_side(COUNT)

    with rest_backend(config(server, present=present)) as backend:
        outcomes = backend.run(rollouts)

    assert [outcome.success for outcome in outcomes] == must
    assert 0 < sum(must) < COUNT
    assert all(outcome.evidence for outcome in outcomes)
    loaded = [outcome.loaded for outcome in outcomes]
    chosen = [tuple(s.id for s in one.skills) for one in rollouts]
    assert loaded == (chosen if present == "preloaded" else [ids[1:] for ids in chosen])
    assert {outcome.steps for outcome in outcomes} == {1 if present == "preloaded" else 2}
    assert all(outcome.usage and outcome.run_id and outcome.step_ids for outcome in outcomes)
    assert contents.ours() == []


def test_an_agent_without_skills_is_told_nothing(server: LettaServer, contents: Contents) -> None:
    with rest_backend(config(server)) as backend:
        (outcome,) = backend.run([rollout("family0")])

    assert (outcome.success, outcome.loaded) == (0, ())
    assert outcome.response == "I do not know how to do family0."


@pytest.mark.parametrize("present", ["preloaded", "listed"])
def test_a_long_lived_agent_serves_tasks_and_stays_what_it_was(
    server: LettaServer, contents: Contents, present: str
) -> None:
    agent = contents.new_agent(("persona", "I am Ada."), ("human", "This is Bob."))
    blocks, prompt = contents.blocks(agent), contents.prompt(agent)

    with rest_backend(config(server, agent=agent, present=present)) as backend:
        outcomes = backend.run(
            [
                rollout("one", skill("one", "11", "a"), expected="11"),
                rollout("two", skill("two", "22", "a"), skill("one", "33", "b"), expected="22"),
                rollout("three"),
            ]
        )

    assert [outcome.success for outcome in outcomes] == [1, 1, 0]
    assert contents.blocks(agent) == blocks
    assert contents.prompt(agent) == prompt
    tasks = [text for text in contents.said_to(agent) if "TASK" in text]
    assert [text.split()[1] for text in tasks] == ["one:", "two:", "three:"]
    assert contents.ours() == []


def test_the_reward_stands_as_feedback_on_the_step(server: LettaServer, contents: Contents) -> None:
    agent = contents.new_agent()

    with rest_backend(config(server, agent=agent, feedback=True)) as backend:
        (outcome,) = backend.run([rollout("add", skill("add", "42", "a"))])

    step = contents.step(outcome.step_ids[0])
    assert step["feedback"] == "positive"
    assert "reward:0.998" in step["tags"]


def test_a_model_that_fails_is_no_evidence(server: LettaServer, contents: Contents) -> None:
    fails = Rollout("TASK add: go on. FAULT status 500", (skill("add", "42", "a"),))

    with rest_backend(config(server, retries=RetryConfig(attempts=1))) as backend:
        (outcome,) = backend.run([fails])

    assert (outcome.success, outcome.evidence, outcome.may_have_run) == (None, False, True)
    assert str(outcome.error).startswith("model: HTTP 500")
    assert contents.ours() == []


def test_a_model_that_is_slow_is_left_at_the_deadline(
    server: LettaServer, contents: Contents
) -> None:
    slow = Rollout("TASK add: go on. FAULT sleep 20", (skill("add", "42", "a"),))

    with rest_backend(config(server, deadline=4.0)) as backend:
        start = time.perf_counter()
        (outcome,) = backend.run([slow])
        took = time.perf_counter() - start

    assert 4.0 <= took < 5.5
    assert (outcome.evidence, outcome.may_have_run) == (False, True)
    assert contents.ours() == []


def test_after_a_kill_at_any_moment_the_next_start_restores_the_agent(server: LettaServer) -> None:
    command = [sys.executable, "-m", "tests.letta.drill", server.url, server.model, "20", "7"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["restored"] == result["kills"] == 20, done.stderr
    assert result["dirty"] > 0, "no kill came at a moment that left anything"
