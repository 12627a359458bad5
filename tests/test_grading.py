"""Graders: what they call right, wrong and ungraded, and what a task may bring along."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import pytest
from pydantic import TypeAdapter

from letta_gym.errors import ConfigError, MissingExtraError
from letta_gym.letta.evals import EvalsGrader
from letta_gym.letta.grading import (
    Answer,
    ContainsGrader,
    ExactGrader,
    FunctionGrader,
    Grade,
    Grader,
    JsonSchemaGrader,
    PythonGrader,
    RegexGrader,
    grader_of,
)
from letta_gym.letta.judge import JudgeGrader
from letta_gym.letta.live import AnyGrader
from letta_gym.library.tasks import Task
from tests.stub_llm import MODEL, StubLLM

SCHEMA = {
    "type": "object",
    "properties": {"total": {"type": "integer"}},
    "required": ["total"],
}


def judged(grader: Grader, response: str, **metadata: Any) -> float | None:
    return asyncio.run(grader.grade(Answer("the task", response, metadata))).success


@pytest.mark.parametrize(
    ("response", "success"),
    [(" 42\n", 1.0), ("forty-two", 1.0), ("42!", 0.0), ("", 0.0)],
)
def test_an_exact_answer_is_one_of_the_expected_texts(response: str, success: float) -> None:
    assert judged(ExactGrader(expected=("42", "forty-two")), response) == success


def test_what_is_expected_comes_from_the_task_where_the_grader_does_not_say() -> None:
    assert judged(ExactGrader(), "Paris", expected="Paris") == 1
    assert judged(ExactGrader(expected="Rome"), "Paris", expected="Paris") == 0
    assert judged(ExactGrader(ignore_case=True), "PARIS", expected="Paris") == 1


@pytest.mark.parametrize("grader", [ExactGrader(), ContainsGrader()])
def test_where_nothing_is_expected_nothing_is_graded(grader: Grader) -> None:
    assert judged(grader, "anything") is None


def test_the_share_of_the_expected_texts_found_is_the_success() -> None:
    grader = ContainsGrader(expected=("alpha", "beta", "gamma", "delta"))

    assert judged(grader, "alpha, beta and delta") == 0.75


@pytest.mark.parametrize(
    ("expected", "response", "success"),
    [
        ("answer 4", "the answer 42", 0.0),
        ("answer 4", "the answer 4.", 1.0),
        ("C++", "in C++17", 1.0),
        ("€5", "it costs €50", 0.0),
    ],
)
def test_words_are_found_whole(expected: str, response: str, success: float) -> None:
    assert judged(ContainsGrader(expected=expected), response) == success


def test_a_pattern_is_searched() -> None:
    assert judged(RegexGrader(pattern=r"total: \d+$"), "so the total: 17") == 1
    assert judged(RegexGrader(pattern=r"total: \d+$"), "so the total: none") == 0


def test_a_pattern_that_explodes_is_given_up() -> None:
    assert judged(RegexGrader(pattern=r"^(\w|\w\w|_)+\1$"), "a_" * 2000 + "!") is None


@pytest.mark.parametrize(
    ("response", "success"),
    [
        ('{"total": 3}', 1.0),
        ('Here it is:\n```json\n{"total": "3"}\n```\nrather:\n```json\n{"total": 3}\n```', 1.0),
        ('{"total": "3"}', 0.0),
        ("{total: 3}", 0.0),
        ("[" * 100_000, 0.0),
    ],
)
def test_json_is_held_against_its_schema(response: str, success: float) -> None:
    assert judged(JsonSchemaGrader(schema=SCHEMA), response) == success


def test_a_schema_is_never_fetched() -> None:
    grader = JsonSchemaGrader(schema={"$ref": "http://127.0.0.1:9/schema.json"})

    assert judged(grader, "{}") is None


@pytest.mark.parametrize(
    "spec",
    [
        {"kind": "regex", "pattern": "("},
        {"kind": "json_schema", "schema": {"type": "no such type"}},
        {"kind": "contains", "expect": "42"},
        {"kind": "guess"},
    ],
)
def test_a_malformed_grader_of_a_task_is_named(spec: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="the grader of task 'add'"):
        grader_of(Task("add", "add", metadata={"grader": spec}), None)


@pytest.mark.parametrize(
    "spec",
    [
        {"kind": "python", "call": "os:getcwd"},
        {"kind": "judge", "base_url": "http://127.0.0.1:9/v1", "model": "m"},
        {"kind": "evals", "grader": {"kind": "tool", "function": "contains"}},
    ],
)
def test_a_task_brings_no_grader_that_runs_code_or_asks_a_model(spec: dict[str, Any]) -> None:
    TypeAdapter(AnyGrader).validate_python(spec)  # in the configuration it would do

    with pytest.raises(ConfigError, match="add"):
        grader_of(Task("add", "add", metadata={"grader": spec}), None)


def test_a_task_without_a_grader_gets_the_default() -> None:
    default = ExactGrader()
    own = {"kind": "contains", "expected": "7"}

    assert grader_of(Task("a", "a"), default) is default
    assert grader_of(Task("b", "b", metadata={"grader": own}), default) == ContainsGrader(
        expected="7"
    )


def test_a_function_grades_whether_plain_or_async() -> None:
    async def later(answer: Answer) -> Grade:
        return Grade(0.25, "a quarter")

    assert judged(FunctionGrader(lambda answer: answer.response == "yes"), "yes") == 1
    assert judged(FunctionGrader(later), "yes") == 0.25


@pytest.mark.parametrize("verdict", [1.5, float("nan"), "right", None])
def test_a_function_without_a_verdict_leaves_the_answer_ungraded(verdict: Any) -> None:
    assert judged(FunctionGrader(lambda answer: verdict), "yes") is None


def test_a_function_that_raises_leaves_the_answer_ungraded() -> None:
    def broken(answer: Answer) -> float:
        raise KeyError("missing")

    grade = asyncio.run(FunctionGrader(broken).grade(Answer("t", "r")))

    assert grade == Grade(None, "the grader raised KeyError: 'missing'")


def says_yes(answer: Answer) -> bool:
    return answer.response == "yes"


def test_a_function_is_named_by_module_and_name() -> None:
    assert judged(PythonGrader(call=f"{__name__}:says_yes"), "yes") == 1
    with pytest.raises(ConfigError, match="cannot be imported"):
        asyncio.run(PythonGrader(call=f"{__name__}:says_no").check())


def test_a_judge_gives_a_verdict_on_what_it_is_shown() -> None:
    with StubLLM() as stub:
        judge = JudgeGrader(base_url=stub.url, model=MODEL)

        assert judged(judge, "it is 42", expected="42") == 1
        assert judged(judge, "it is 43", expected="42") == 0
        shown = json.loads(stub.requests[0]["messages"][1]["content"])

    assert shown == {"task": "the task", "response": "it is 42", "expected": "42", "rubric": None}


def test_a_judge_that_gives_no_verdict_twice_leaves_the_answer_ungraded() -> None:
    with StubLLM() as stub:
        judge = JudgeGrader(base_url=stub.url, model=MODEL, rubric="mumble")

        assert judged(judge, "it is 42", expected="42") is None
        assert len(stub.requests) == 2
        assert stub.requests[1]["messages"][2]["content"] == "Well, it depends."


def test_the_key_of_a_judge_comes_from_the_environment_and_is_not_in_the_configuration(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("JUDGE_KEY", "not-to-be-seen")
    with StubLLM() as stub:
        judge = JudgeGrader(base_url=stub.url, model=MODEL, key_variable="JUDGE_KEY")
        judged(judge, "it is 42", expected="42")

        assert stub.headers[-1]["authorization"] == "Bearer not-to-be-seen"
    assert "not-to-be-seen" not in repr(judge)


def test_a_judge_that_cannot_be_asked_is_found_at_the_start_and_leaves_answers_ungraded() -> None:
    with StubLLM() as stub:
        wrong = JudgeGrader(base_url=stub.url, model="another")
        with pytest.raises(ConfigError, match="no model 'another'"):
            asyncio.run(wrong.check())
        asyncio.run(JudgeGrader(base_url=stub.url, model=MODEL).check())
    gone = JudgeGrader(base_url=stub.url, model=MODEL)

    assert judged(gone, "it is 42", expected="42") is None
    with pytest.raises(ConfigError, match="base_url"):
        asyncio.run(gone.check())


def test_a_grader_of_letta_evals_names_the_extra_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "letta_evals", None)
    grader = EvalsGrader(grader={"kind": "tool", "function": "contains"})

    with pytest.raises(MissingExtraError, match=r"letta-gym\[evals\]"):
        asyncio.run(grader.check())
