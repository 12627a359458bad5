"""Graders and suites of letta-evals; `make test-letta` runs this where letta-evals is installed."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from letta_gym.errors import ConfigError, SuiteError
from letta_gym.letta.evals import EvalsGrader, read_evals_suite
from letta_gym.letta.grading import Answer, Grade
from letta_gym.library.skills import Skill, SkillLibrary

LIBRARY = SkillLibrary([Skill("add", "add", "adds numbers", "how to add")])

SUITE = """
name: sums
dataset: sums.jsonl
target:
  kind: letta_code
graders:
  found:
    kind: tool
    function: contains
  clean:
    kind: tool
    function: own.py:is_short
reward:
  kind: metric
  metric_key: found
"""

OWN = """
from letta_evals.decorators import grader
from letta_evals.models import GradeResult, Sample


@grader
def is_short(sample: Sample, submission: str) -> GradeResult:
    if submission == "raise":
        raise ValueError("cannot be graded")
    return GradeResult(score=1.0 if len(submission) < 10 else 0.25, rationale="by its length")
"""


def graded(grader: EvalsGrader, response: str, **metadata: Any) -> Grade:
    return asyncio.run(grader.grade(Answer("6 times 7?", response, metadata)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "suite.yaml").write_text(SUITE)
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "sums.jsonl").write_text(
        '{"input": "What is 6 times 7?", "ground_truth": "42"}\n'
        '{"id": "b", "input": "What is 1 plus 1?", "ground_truth": "2"}\n'
    )
    return tmp_path


def test_a_grader_of_letta_evals_grades_the_response() -> None:
    grader = EvalsGrader(grader={"kind": "tool", "function": "contains"})

    assert graded(grader, "it is 42", expected="42").success == 1
    assert graded(grader, "it is 43", expected="42").success == 0


def test_without_ground_truth_there_is_no_grade() -> None:
    grader = EvalsGrader(grader={"kind": "tool", "function": "exact_match"})

    assert graded(grader, "it is 42").success is None


def test_a_suite_gives_its_tasks_and_its_graders(folder: Path) -> None:
    suite, graders = read_evals_suite(folder / "suite.yaml", LIBRARY)

    assert [(task.text, task.metadata["expected"]) for task in suite.tasks] == [
        ("What is 6 times 7?", "42"),
        ("What is 1 plus 1?", "2"),
    ]
    assert graded(graders["found"], "42", **suite.tasks[0].metadata).success == 1
    assert graded(graders["clean"], "a rather long answer") == Grade(0.25, "by its length")


def test_a_grader_that_raises_leaves_the_answer_ungraded(folder: Path) -> None:
    _, graders = read_evals_suite(folder / "suite.yaml", LIBRARY)

    grade = graded(graders["clean"], "raise")

    assert grade.success is None
    assert "cannot be graded" in grade.reason


@pytest.mark.parametrize(
    "spec",
    [
        {"kind": "tool", "function": "no_such_function"},
        {"kind": "tool", "functoin": "contains"},
        {"kind": "model_judge"},
    ],
)
def test_a_grader_that_letta_evals_refuses_is_found_at_the_start(spec: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="letta-evals refuses"):
        asyncio.run(EvalsGrader(grader=spec).check())


def test_a_malformed_suite_is_named(folder: Path) -> None:
    (folder / "suite.yaml").write_text(SUITE + "surprise: 1\ngate: 2\n")

    with pytest.raises(SuiteError, match="is no suite of letta-evals"):
        read_evals_suite(folder / "suite.yaml", LIBRARY)
