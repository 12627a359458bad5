"""Small labelled suites with vectors, for tests: a few topics, and tasks that lie near them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from letta_gym.library.passages import described
from letta_gym.library.skills import Skill, SkillLibrary
from letta_gym.library.suite import Suite
from letta_gym.library.tasks import Task
from letta_gym.library.vectors import EmbedderIdentity, SuiteVectors, VectorTable, snap, text_hash

DIMENSION = 16
WORDS = [
    "amber",
    "birch",
    "cedar",
    "delta",
    "ember",
    "frost",
    "grove",
    "haven",
    "inlet",
    "joule",
    "knoll",
    "lemon",
]


def make_suite(
    tasks: int = 300,
    skills: int = 12,
    *,
    seed: int = 0,
    noise: float = 0.7,
    shift: float = 1.0,
    none_share: float = 0.1,
    pair_share: float = 0.0,
    candidates: int = 0,
    measured: bool = False,
) -> Suite:
    """A suite of ``skills`` topics.

    Tasks of a topic lie around a point that is ``shift`` away from the skill's vector, so that
    outcomes tell more than retrieval. A third is the split "test".

    Args:
        tasks, skills: how many.
        seed: of everything.
        noise: length of a task's own part.
        shift: length of the part that all tasks of a topic share and its skill does not.
        none_share, pair_share: tasks that need no skill, or two.
        candidates: own candidates of each task; 0 for the whole library.
        measured: give each task measured outcomes of all skills.
    """
    rng = np.random.default_rng(seed)
    own = unit(rng.standard_normal((skills, DIMENSION)))
    topics = unit(own + shift * unit(rng.standard_normal(own.shape)))
    ids = [f"{WORDS[i % len(WORDS)]}-{i}" for i in range(skills)]
    library = SkillLibrary(
        Skill(skill_id, skill_id, f"Does {skill_id}", f"Steps of {skill_id}.", tokens=10 + 5 * i)
        for i, skill_id in enumerate(ids)
    )
    made, vectors = [], []
    for number in range(tasks):
        kind = rng.random()
        wanted = rng.permutation(skills)[: 2 if kind > 1 - pair_share else 1]
        relevant = [] if kind < none_share else [ids[i] for i in wanted]
        centre = topics[wanted].sum(0) if relevant else unit(rng.standard_normal(DIMENSION))
        vectors.append(centre + noise * unit(rng.standard_normal(DIMENSION)))
        more: dict[str, Any] = {}
        if candidates:
            others = [i for i in rng.permutation(ids) if i not in relevant]
            more["candidates"] = sorted([*relevant, *others[: candidates - len(relevant)]])
        if measured:
            more["outcomes"] = {i: float(i in relevant) * 0.5 + 0.25 for i in ids}
        split = "test" if number % 3 == 0 else "train"
        made.append(Task(f"t{number}", f"task {number}", tuple(relevant), split=split, **more))
    return Suite("small", library, tuple(made), _vectors(library, made, own, np.array(vectors)))


def write_suite(folder: Path, suite: Suite) -> Path:
    """Write ``suite`` as a folder in the suite format, vectors included."""
    folder.mkdir(parents=True, exist_ok=True)
    skills = [
        {"id": s.id, "name": s.name, "description": s.description, "body": s.body}
        | {"tokens": s.tokens}
        for s in suite.library
    ]
    tasks = [
        {"id": t.id, "task": t.text, "relevant": list(t.relevant), "split": t.split}
        | ({} if t.candidates is None else {"candidates": list(t.candidates)})
        | ({} if t.outcomes is None else {"outcomes": dict(t.outcomes)})
        | dict(t.metadata)
        for t in suite.tasks
    ]
    for name, records in (("skills.jsonl", skills), ("tasks.jsonl", tasks)):
        text = "".join(json.dumps(record) + "\n" for record in records)
        (folder / name).write_text(text, encoding="utf-8")
    suite.write_vectors(folder)
    return folder


def unit(rows: Any) -> Any:
    """Rows of length 1."""
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def _vectors(library: SkillLibrary, tasks: list[Task], own: Any, asked: Any) -> SuiteVectors:
    identity = EmbedderIdentity("small", text_hash("small"), DIMENSION)
    hashes = tuple(text_hash(described(skill)) for skill in library)
    return SuiteVectors(
        identity,
        snap(np.eye(3, DIMENSION)),
        VectorTable(library.ids, snap(own), hashes),
        VectorTable(
            tuple(task.id for task in tasks),
            snap(asked),
            tuple(text_hash(task.text) for task in tasks),
        ),
    )
