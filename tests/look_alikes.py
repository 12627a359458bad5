"""Suites of look-alikes for the stub model: one of several skills alike holds the right procedure.

Each family of tasks has some skills whose descriptions say the same. The body of one has the
procedure that leads to the expected answer, those of the others lead elsewhere. Neither the texts
nor the vectors tell which, so only outcomes can teach it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from letta_gym.library.passages import described
from letta_gym.library.skills import Skill, SkillLibrary
from letta_gym.library.suite import Suite
from letta_gym.library.tasks import Task
from letta_gym.library.vectors import EmbedderIdentity, SuiteVectors, VectorTable, snap, text_hash
from tests.small_suite import unit

DIMENSION = 32


def make_look_alikes(
    families: int = 8, alike: int = 4, tasks: int = 240, *, seed: int = 0
) -> Suite:
    """A suite of ``families`` x ``alike`` skills; a quarter of its tasks is the split "test"."""
    rng = np.random.default_rng(seed)
    centres = unit(rng.standard_normal((families, DIMENSION)))
    right = rng.integers(alike, size=families)
    skills, own = [], []
    for family in range(families):
        for variant in range(alike):
            code = f"right{family}" if variant == right[family] else f"wrong{family}x{variant}"
            name = f"family{family}-{'abcdefgh'[variant]}"
            body = f"PROCEDURE family{family}: answer {code}"
            text = f"Does the tasks of family{family}."
            skills.append(Skill(name, name, text, body, tokens=100))
            own.append(centres[family] + 0.3 * unit(rng.standard_normal(DIMENSION)))
    made, asked = [], []
    for number in range(tasks):
        family = int(rng.integers(families))
        relevant = f"family{family}-{'abcdefgh'[right[family]]}"
        split = "test" if number % 4 == 0 else "train"
        grader = {"kind": "contains", "expected": f"ANSWER right{family}"}
        text = f"TASK family{family}: number {number}"
        made.append(Task(f"t{number}", text, (relevant,), split=split, metadata={"grader": grader}))
        asked.append(centres[family] + 0.4 * unit(rng.standard_normal(DIMENSION)))
    library = SkillLibrary(skills)
    identity = EmbedderIdentity("look-alikes", text_hash("look-alikes"), DIMENSION)
    vectors = SuiteVectors(
        identity,
        snap(np.eye(3, DIMENSION)),
        VectorTable(library.ids, snap(unit(np.array(own))), tuple(map(_hash, library))),
        VectorTable(
            tuple(task.id for task in made),
            snap(unit(np.array(asked))),
            tuple(text_hash(task.text) for task in made),
        ),
    )
    return Suite("look-alikes", library, tuple(made), vectors)


class FamilyEmbedder:
    """Embeds a text that names a family as the first task of it."""

    def __init__(self, suite: Suite) -> None:
        assert suite.vectors is not None
        self.identity = suite.vectors.identity
        rows = zip(suite.tasks, suite.vectors.tasks.matrix, strict=True)
        self._rows: dict[str, Any] = {}
        for task, row in rows:
            self._rows.setdefault(_family(task.text), row)

    def encode(self, texts: Sequence[str]) -> Any:
        """Rows of the families that the texts name."""
        return np.stack([self._rows[_family(text)] for text in texts])


def _family(text: str) -> str:
    return str(re.findall(r"family\d+", text)[0])


def _hash(skill: Skill) -> str:
    return text_hash(described(skill))
