"""Tasks: what skills are chosen for, with the labels that a suite gives."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from letta_gym.errors import SuiteError
from letta_gym.library.jsonl import read_records


@dataclass(frozen=True, slots=True)
class Task:
    """One task of a suite.

    ``relevant`` are the ids of the skills that help, best first; empty means that none does.
    ``candidates`` restricts the choice to some ids; ``None`` leaves the whole library open.
    ``outcomes`` gives a measured reward for skill ids, where the suite knows them. ``metadata``
    carries every other key of the task's line.

    Raises:
        SuiteError: an empty id or text, a field of a wrong type, an id named twice, a reward that
            is not finite.
    """

    id: str
    text: str
    relevant: tuple[str, ...] = ()
    candidates: tuple[str, ...] | None = None
    outcomes: Mapping[str, float] | None = field(default=None, hash=False)
    split: str = "train"
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for key in ("id", "text", "split"):
            _check_text(self, key)
        object.__setattr__(self, "relevant", _ids(self, "relevant"))
        if self.candidates is not None:
            object.__setattr__(self, "candidates", _ids(self, "candidates"))
        if self.outcomes is not None:
            object.__setattr__(self, "outcomes", _rewards(self))

    @property
    def skill_ids(self) -> frozenset[str]:
        """Every skill id that the task names."""
        return (
            frozenset(self.relevant) | frozenset(self.candidates or ()) | set(self.outcomes or ())
        )


def read_tasks(path: Path | str) -> tuple[Task, ...]:
    """Read ``{"id", "task", "relevant", "candidates"?, "outcomes"?, "split"?, ...}``, one a line.

    Raises:
        SuiteError: the file is missing or holds no task, a line is malformed, or an id occurs
            twice; the message has the line's number.
    """
    tasks: dict[str, Task] = {}
    for where, record in read_records(path, SuiteError):
        try:
            task = _from_record(record)
        except SuiteError as error:
            raise SuiteError(f"{where}: {error}") from error
        if task.id in tasks:
            raise SuiteError(f"{where}: the task id {task.id!r} occurs a second time")
        tasks[task.id] = task
    if not tasks:
        raise SuiteError(f"{path} holds no task; expected one JSON object a line")
    return tuple(tasks.values())


def _from_record(record: Mapping[str, Any]) -> Task:
    rest = dict(record)
    missing = [key for key in ("id", "task", "relevant") if key not in rest]
    if missing:
        raise SuiteError(f"a task needs the keys 'id', 'task' and 'relevant'; missing: {missing}")
    return Task(
        id=rest.pop("id"),
        text=rest.pop("task"),
        relevant=rest.pop("relevant"),
        candidates=rest.pop("candidates", None),
        outcomes=rest.pop("outcomes", None),
        split=rest.pop("split", "train"),
        metadata=rest,
    )


def _check_text(task: Task, key: str) -> None:
    value = getattr(task, key)
    if not isinstance(value, str) or not value.strip():
        raise SuiteError(f"task {task.id!r}: {key} must be text that is not empty; got {value!r}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise SuiteError(f"task {task.id!r}: {key} is not valid Unicode: {error}") from error


def _ids(task: Task, key: str) -> tuple[str, ...]:
    value = getattr(task, key)
    if (
        isinstance(value, str)
        or not isinstance(value, Sequence)
        or not all(isinstance(id, str) for id in value)
    ):
        raise SuiteError(f"task {task.id!r}: {key} must be a list of skill ids; got {value!r}")
    if len(set(value)) != len(value):
        raise SuiteError(f"task {task.id!r}: {key} names an id twice: {list(value)}")
    return tuple(value)


def _rewards(task: Task) -> dict[str, float]:
    value = task.outcomes
    if not isinstance(value, Mapping):
        raise SuiteError(f"task {task.id!r}: outcomes must map skill ids to rewards; got {value!r}")
    for id, reward in value.items():
        number = isinstance(reward, (int, float)) and not isinstance(reward, bool)
        if not isinstance(id, str) or not number or not abs(reward) <= _LARGEST:
            raise SuiteError(
                f"task {task.id!r}: the outcome of {id!r} must be a finite number; got {reward!r}"
            )
    return {id: float(reward) for id, reward in value.items()}


_LARGEST = math.ldexp(1.0, 127)  # rewards are kept in float32
