"""Suites: a task set with its library, and optionally the vectors of both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from letta_gym.errors import EmbeddingError, SuiteError
from letta_gym.library.embeddings import PROBES, Embedder, check_same_model
from letta_gym.library.passages import described, embed_skills
from letta_gym.library.skills import SkillLibrary
from letta_gym.library.tasks import Task, read_tasks
from letta_gym.library.vectors import SuiteVectors, VectorTable, text_hash

TASKS_FILE = "tasks.jsonl"
SKILLS_FILE = "skills.jsonl"
VECTORS_FILE = "vectors.safetensors"

BUNDLED = Path(__file__).parent.parent / "bundled"
"""Folder of the suite that comes with the package."""


@dataclass(frozen=True, eq=False)
class Suite:
    """Tasks, the library that serves them, and the vectors of both when they are known.

    Row i of ``vectors.skills`` is skill i of the library, row i of ``vectors.tasks`` is task i.

    Raises:
        SuiteError: there is no task or no skill, a task id occurs twice, or a task names a skill
            that the library lacks.
        EmbeddingError: the vectors are not those of these skills and tasks, in this order.
    """

    name: str
    library: SkillLibrary
    tasks: tuple[Task, ...]
    vectors: SuiteVectors | None = None

    def __post_init__(self) -> None:
        if not self.tasks or not len(self.library):
            raise SuiteError(
                f"the suite {self.name!r} needs tasks and skills; "
                f"got {len(self.tasks)} and {len(self.library)}"
            )
        if len({task.id for task in self.tasks}) != len(self.tasks):
            raise SuiteError(f"the suite {self.name!r} has two tasks of the same id")
        for task in self.tasks:
            _check_ids(task, self.library)
        if self.vectors is not None:
            object.__setattr__(self, "vectors", self._aligned(self.vectors))

    @classmethod
    def load(
        cls,
        folder: Path | str,
        *,
        embedder: Embedder | None = None,
        stored_vectors: bool = True,
    ) -> Suite:
        """Load a suite folder.

        It holds ``tasks.jsonl`` and either ``skills.jsonl`` or a tree of ``SKILL.md`` (the former
        wins when both are there), and may hold ``vectors.safetensors``.

        Args:
            folder: the suite's folder; its name becomes the suite's.
            embedder: embeds the suite when no vectors are stored; otherwise the stored ones must
                come from the same model.
            stored_vectors: ``False`` ignores ``vectors.safetensors``, as for making it anew.

        Raises:
            SuiteError: the folder or a file of it is missing or malformed.
            SkillError: the skills are.
            EmbeddingError: the stored vectors are damaged, stale or of another model.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise SuiteError(f"the suite folder {folder} does not exist or is not a folder")
        tasks = read_tasks(folder / TASKS_FILE)
        skills_file = folder / SKILLS_FILE
        if skills_file.is_file():
            library = SkillLibrary.from_jsonl(skills_file)
        else:
            library = SkillLibrary.from_folder(folder)
        suite = cls(folder.resolve().name, library, tasks)
        vectors_file = folder / VECTORS_FILE
        if not stored_vectors or not vectors_file.is_file():
            return suite if embedder is None else suite.embed(embedder)
        vectors = SuiteVectors.load(vectors_file)
        if embedder is not None:
            check_same_model(vectors.identity, vectors.probes, embedder)
        try:
            return replace(suite, vectors=vectors)
        except EmbeddingError as error:
            raise EmbeddingError(
                f"{vectors_file} does not fit the suite: {error}; "
                f"make it anew with: letta-gym embed {folder}"
            ) from error

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits, in order of their first task."""
        return tuple(self._splits)

    def split(self, name: str) -> NDArray[np.int64]:
        """Positions in ``tasks`` of the split ``name``, ascending, shape (n,), read-only.

        Raises:
            SuiteError: there is no such split.
        """
        if name not in self._splits:
            known = ", ".join(self.splits)
            raise SuiteError(f"the suite {self.name!r} has no split {name!r}; it has: {known}")
        return self._splits[name]

    def embed(self, embedder: Embedder) -> Suite:
        """The same suite with the vectors that ``embedder`` gives."""
        skills = tuple(self.library)
        tasks = {task.id: task.text for task in self.tasks}
        vectors = SuiteVectors(
            identity=embedder.identity,
            probes=embedder.encode(PROBES),
            skills=VectorTable(
                tuple(skill.id for skill in skills),
                embed_skills(embedder, skills),
                tuple(text_hash(described(skill)) for skill in skills),
            ),
            tasks=VectorTable(
                tuple(tasks),
                embedder.encode(list(tasks.values())),
                tuple(text_hash(text) for text in tasks.values()),
            ),
        )
        return replace(self, vectors=vectors)

    def write_vectors(self, folder: Path | str) -> Path:
        """Write ``vectors.safetensors`` into ``folder``, where :meth:`load` finds it.

        Raises:
            EmbeddingError: the suite has no vectors.
        """
        if self.vectors is None:
            raise EmbeddingError(f"the suite {self.name!r} has no vectors; call embed() first")
        path = Path(folder) / VECTORS_FILE
        self.vectors.save(path)
        return path

    @cached_property
    def _splits(self) -> dict[str, NDArray[np.int64]]:
        positions: dict[str, list[int]] = {}
        for position, task in enumerate(self.tasks):
            positions.setdefault(task.split, []).append(position)
        arrays = {name: np.array(rows, np.int64) for name, rows in positions.items()}
        for array in arrays.values():
            array.setflags(write=False)
        return arrays

    def _aligned(self, vectors: SuiteVectors) -> SuiteVectors:
        skills = {skill.id: described(skill) for skill in self.library}
        tasks = {task.id: task.text for task in self.tasks}
        return replace(
            vectors,
            skills=_select(vectors.skills, skills, "skills"),
            tasks=_select(vectors.tasks, tasks, "tasks"),
        )


def bundled_suite(*, embedder: Embedder | None = None) -> Suite:
    """The suite that comes with the package: its skills, their tasks, and stored vectors."""
    return Suite.load(BUNDLED, embedder=embedder)


def _check_ids(task: Task, library: SkillLibrary) -> None:
    for id in sorted(task.skill_ids):
        if id in library:
            continue
        broken = f" ({len(library.problems)} skills could not be loaded)" * bool(library.problems)
        raise SuiteError(
            f"task {task.id!r} names the skill {id!r}, which the library lacks{broken}; "
            f"{library.nearest(id)}"
        )


def _select(table: VectorTable, texts: Mapping[str, str], what: str) -> VectorTable:
    try:
        return table.select(texts)
    except EmbeddingError as error:
        raise EmbeddingError(f"{what}: {error}") from error
