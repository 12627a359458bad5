"""Suites: tasks and library that belong together, and vectors that belong to both."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from letta_gym.errors import EmbeddingError, SkillError, SuiteError
from letta_gym.library.skills import Skill, SkillLibrary
from letta_gym.library.suite import Suite
from letta_gym.library.tasks import Task
from letta_gym.library.vectors import EmbedderIdentity, SuiteVectors, snap, text_hash


class HashEmbedder:
    """Random directions, fixed by each text and by the embedder's name."""

    def __init__(self, name: str = "hash") -> None:
        self.identity = EmbedderIdentity(name, text_hash(name), 8)
        self.calls = 0

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.calls += 1
        seeds = [int(text_hash(self.identity.id + text)[:16], 16) for text in texts]
        rows = [np.random.default_rng(seed).standard_normal(8) for seed in seeds]
        return snap(np.array(rows).reshape(-1, 8))


SKILLS = [
    {"id": "pdf", "name": "pdf", "description": "Fill in forms", "tokens": 5},
    {"id": "git", "name": "git", "description": "Find a commit"},
]
TASKS = [
    {"id": "t0", "task": "fill this form", "relevant": ["pdf"], "split": "test"},
    {"id": "t1", "task": "who broke it", "relevant": ["git"], "candidates": ["git", "pdf"]},
    {"id": "t2", "task": "say hello", "relevant": [], "split": "test"},
]


def lines(records: Sequence[object]) -> str:
    return "\n".join(json.dumps(record) for record in records) + "\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "office"
    folder.mkdir()
    (folder / "skills.jsonl").write_text(lines(SKILLS), "utf-8")
    (folder / "tasks.jsonl").write_text(lines(TASKS), "utf-8")
    return folder


def edit(folder: Path, name: str, old: str, new: str) -> None:
    text = (folder / name).read_text("utf-8")
    assert old in text
    (folder / name).write_text(text.replace(old, new), "utf-8")


def test_a_folder_is_loaded_with_its_name_order_and_splits(folder: Path) -> None:
    suite = Suite.load(folder)
    assert suite.name == "office"
    assert suite.library.ids == ("pdf", "git")
    assert [task.id for task in suite.tasks] == ["t0", "t1", "t2"]
    assert suite.vectors is None
    assert suite.splits == ("test", "train")
    assert suite.split("test").tolist() == [0, 2]
    assert suite.split("train").tolist() == [1]
    assert suite.split("test").dtype == np.int64
    with pytest.raises(SuiteError, match="no split 'dev'; it has: test, train"):
        suite.split("dev")


def test_a_tree_of_skill_files_serves_as_well(folder: Path) -> None:
    (folder / "skills.jsonl").unlink()
    for name in ("pdf", "git", "extra"):
        path = folder / "sub" / name / "SKILL.md"
        path.parent.mkdir(parents=True)
        path.write_text(f"---\nname: {name}\ndescription: d\n---\n", "utf-8")
    assert Suite.load(folder).library.ids == ("extra", "git", "pdf")


def test_skills_that_could_not_be_loaded_are_mentioned_when_they_are_missed(folder: Path) -> None:
    (folder / "skills.jsonl").unlink()
    for name, called in (("pdf", "pdf"), ("git", "gti")):
        path = folder / name / "SKILL.md"
        path.parent.mkdir(parents=True)
        path.write_text(f"---\nname: {called}\ndescription: d\n---\n", "utf-8")
    with pytest.raises(SuiteError, match=r"'t1' names the skill 'git'.*\(1 skills could not be"):
        Suite.load(folder)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"relevant": ["pdf"]', '"relevant": ["pfd"]'),
        ('"relevant": ["pdf"]', '"relevant": [], "candidates": ["pfd"]'),
        ('"relevant": ["pdf"]', '"relevant": [], "outcomes": {"pfd": 1}'),
    ],
)
def test_a_task_may_only_name_skills_of_the_library(folder: Path, old: str, new: str) -> None:
    edit(folder, "tasks.jsonl", old, new)
    with pytest.raises(SuiteError, match=r"'t0' names the skill 'pfd'.*did you mean 'pdf'\?"):
        Suite.load(folder)


def test_missing_parts_are_typed_errors(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SuiteError, match="does not exist"):
        Suite.load(tmp_path / "none")
    (folder / "skills.jsonl").unlink()
    with pytest.raises(SkillError, match=r"no SKILL\.md below"):
        Suite.load(folder)
    (folder / "tasks.jsonl").unlink()
    with pytest.raises(SuiteError, match=r"cannot read .*tasks\.jsonl"):
        Suite.load(folder)


def test_a_suite_made_by_hand_is_checked_too() -> None:
    library = SkillLibrary([Skill("a", "a", "d")])
    task = Task("t", "x", ("a",))
    assert len(Suite("s", library, (task,)).tasks) == 1
    with pytest.raises(SuiteError, match="needs tasks and skills"):
        Suite("s", library, ())
    with pytest.raises(SuiteError, match="two tasks of the same id"):
        Suite("s", library, (task, task))
    with pytest.raises(SuiteError, match="names the skill 'b'"):
        Suite("s", library, (Task("t", "x", ("b",)),))


def test_embedding_gives_a_row_to_each_skill_and_task_in_order(folder: Path) -> None:
    embedder = HashEmbedder()
    suite = Suite.load(folder, embedder=embedder)
    assert suite.vectors is not None
    assert suite.vectors.identity == embedder.identity
    assert suite.vectors.skills.ids == suite.library.ids
    expected = embedder.encode([skill.text for skill in suite.library])
    assert np.array_equal(suite.vectors.skills.matrix, expected)
    expected = embedder.encode([task.text for task in suite.tasks])
    assert np.array_equal(suite.vectors.tasks.matrix, expected)


def test_written_vectors_are_found_and_need_no_embedder(folder: Path) -> None:
    suite = Suite.load(folder, embedder=HashEmbedder())
    assert suite.vectors is not None
    assert suite.write_vectors(folder) == folder / "vectors.safetensors"
    loaded = Suite.load(folder)
    assert loaded.vectors is not None
    assert np.array_equal(loaded.vectors.skills.matrix, suite.vectors.skills.matrix)
    assert np.array_equal(loaded.vectors.tasks.matrix, suite.vectors.tasks.matrix)
    assert Suite.load(folder, stored_vectors=False).vectors is None


def test_stored_vectors_follow_the_order_of_the_files(folder: Path) -> None:
    before = Suite.load(folder, embedder=HashEmbedder())
    before.write_vectors(folder)
    (folder / "skills.jsonl").write_text(lines(SKILLS[::-1]), "utf-8")
    (folder / "tasks.jsonl").write_text(lines(TASKS[1:]), "utf-8")
    after = Suite.load(folder)
    assert before.vectors is not None
    assert after.vectors is not None
    assert np.array_equal(after.vectors.skills.matrix, before.vectors.skills.matrix[::-1])
    assert np.array_equal(after.vectors.tasks.matrix, before.vectors.tasks.matrix[1:])


def test_stale_vectors_name_the_ids_and_the_command(folder: Path) -> None:
    Suite.load(folder, embedder=HashEmbedder()).write_vectors(folder)
    edit(folder, "skills.jsonl", "Find a commit", "Find the commit")
    with pytest.raises(EmbeddingError, match=r"changed text: git; .*letta-gym embed .*office"):
        Suite.load(folder)
    assert Suite.load(folder, embedder=HashEmbedder(), stored_vectors=False).vectors is not None


def test_tasks_without_a_vector_are_noticed(folder: Path) -> None:
    Suite.load(folder, embedder=HashEmbedder()).write_vectors(folder)
    extra = {"id": "t9", "task": "new", "relevant": []}
    (folder / "tasks.jsonl").write_text(lines([*TASKS, extra]), "utf-8")
    with pytest.raises(EmbeddingError, match="tasks: 1 without a vector: t9"):
        Suite.load(folder)


def test_stored_vectors_are_used_when_the_embedder_is_the_same_model(folder: Path) -> None:
    Suite.load(folder, embedder=HashEmbedder()).write_vectors(folder)
    embedder = HashEmbedder()
    assert Suite.load(folder, embedder=embedder).vectors is not None
    assert embedder.calls == 0


def test_stored_vectors_of_another_model_are_refused(folder: Path) -> None:
    Suite.load(folder, embedder=HashEmbedder()).write_vectors(folder)
    with pytest.raises(EmbeddingError, match="lowest cosine"):
        Suite.load(folder, embedder=HashEmbedder("other"))


def test_damaged_vectors_are_refused(folder: Path) -> None:
    path = Suite.load(folder, embedder=HashEmbedder()).write_vectors(folder)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(EmbeddingError, match="damaged"):
        Suite.load(folder)


def test_vectors_can_only_be_written_once_there_are_some(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(EmbeddingError, match=r"call embed\(\) first"):
        Suite.load(folder).write_vectors(tmp_path)


def test_vectors_of_another_suite_do_not_fit(folder: Path) -> None:
    suite = Suite.load(folder, embedder=HashEmbedder())
    assert isinstance(suite.vectors, SuiteVectors)
    changed = SkillLibrary([Skill("pdf", "pdf", "changed"), Skill("git", "git", "Find a commit")])
    with pytest.raises(EmbeddingError, match="changed text: pdf"):
        replace(suite, library=changed)
