"""Tasks: one JSON object a line, and an error with the line's number for everything else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from letta_gym.errors import SuiteError
from letta_gym.library.tasks import Task, read_tasks


def write(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "tasks.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def line(**fields: object) -> str:
    return json.dumps({"id": "t", "task": "do it", "relevant": [], **fields})


def test_every_key_of_the_format_is_read(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        line(
            relevant=["a"], candidates=["b", "a"], outcomes={"a": 1, "b": 0.5}, split="test", kind=3
        ),
    )
    assert read_tasks(path) == (
        Task("t", "do it", ("a",), ("b", "a"), {"a": 1.0, "b": 0.5}, "test", {"kind": 3}),
    )


def test_optional_keys_have_defaults_and_null_is_absence(tmp_path: Path) -> None:
    path = write(tmp_path, line(), line(id="u", candidates=None, outcomes=None))
    first, second = read_tasks(path)
    assert first == Task("t", "do it")
    assert (second.candidates, second.outcomes, second.split) == (None, None, "train")


def test_blank_lines_crlf_and_a_byte_order_mark_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "tasks.jsonl"
    second = '{"id": "u", "task": "a\u2028b", "relevant": []}'
    path.write_bytes(f"\ufeff{line()}\r\n\r\n{second}\r\n".encode())
    assert [task.text for task in read_tasks(path)] == ["do it", "a\u2028b"]


def test_a_task_names_every_skill_it_speaks_of() -> None:
    task = Task("t", "x", ("a",), ("b",), {"c": 1.0})
    assert task.skill_ids == {"a", "b", "c"}
    assert Task("t", "x").skill_ids == frozenset()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not JSON"),
        ("3", "must be a JSON object"),
        ('{"id": "t", "task": "x"}', r"missing: \['relevant'\]"),
        ('{"task": "x", "relevant": []}', r"missing: \['id'\]"),
        (line(id=""), "id must be text that is not empty"),
        (line(id=7), "id must be text"),
        (line(task="  "), "text must be text that is not empty"),
        (line(task=None), "text must be text"),
        (line(task="\ud800"), "not valid Unicode"),
        (line(split=""), "split must be text"),
        (line(relevant="a"), "relevant must be a list"),
        (line(relevant=None), "relevant must be a list"),
        (line(relevant=[1]), "relevant must be a list"),
        (line(relevant={"a": 1}), "relevant must be a list"),
        (line(relevant=["a", "a"]), "relevant names an id twice"),
        (line(candidates=["a", "b", "a"]), "candidates names an id twice"),
        (line(outcomes=["a"]), "outcomes must map"),
        (line(outcomes={"a": "good"}), "must be a finite number; got 'good'"),
        (line(outcomes={"a": True}), "must be a finite number"),
        (line(outcomes={"a": None}), "must be a finite number"),
        (line(outcomes={"a": float("nan")}), "NaN is not a JSON number"),
        (line().replace("[]", '[], "outcomes": {"a": 1e999}'), "must be a finite number"),
        (line(outcomes={"a": 10**400}), "must be a finite number"),
        (line(), "'t' occurs a second time"),
    ],
)
def test_malformed_lines_are_named_by_number(tmp_path: Path, text: str, words: str) -> None:
    path = write(tmp_path, line(), "", text)
    with pytest.raises(SuiteError, match=rf"tasks\.jsonl:3: .*{words}"):
        read_tasks(path)


def test_a_missing_or_empty_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SuiteError, match="cannot read"):
        read_tasks(tmp_path / "tasks.jsonl")
    with pytest.raises(SuiteError, match="holds no task"):
        read_tasks(write(tmp_path, "", ""))


def test_a_reward_made_by_hand_must_be_finite_too() -> None:
    with pytest.raises(SuiteError, match="must be a finite number"):
        Task("t", "x", outcomes={"a": float("nan")})
