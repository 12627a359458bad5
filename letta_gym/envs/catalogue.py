"""A suite as tables for replay: scores of every task and skill, who is new, which task is where."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from letta_gym.errors import SuiteError
from letta_gym.feedback.memory import ALONE
from letta_gym.library.lexical import LexicalIndex
from letta_gym.library.suite import Suite, bundled_suite
from letta_gym.selection.candidates import RetrievalConfig, document, fuse
from letta_gym.selection.observation import Scores, look_alikes

Float = NDArray[np.float32]
Int = NDArray[np.int64]
Bool = NDArray[np.bool_]

_VALIDATION_SEED = 0


@dataclass(frozen=True, eq=False, slots=True)
class Catalogue:
    """T tasks and N skills, the skills sorted by id.

    Attributes:
        suite: the suite itself.
        ids: of the skills, length N.
        keys: by which the memory knows the case of no skill, then each skill, length N + 1.
        task_vectors, skill_vectors: snapped, shapes (T, D) and (N, D).
        scores: of every task and skill, arrays (T, N).
        alike: look-alikes of each skill, padded with N, shape (W, N).
        own: which skills may be chosen for a task, shape (T, N); None where all may everywhere.
        tokens: cost of each skill, shape (N,).
        split: name of each task's split, shape (T,).
    """

    suite: Suite
    ids: tuple[str, ...]
    keys: tuple[str, ...]
    task_vectors: Float
    skill_vectors: Float
    scores: Scores
    alike: Int
    own: Bool | None
    tokens: Float
    split: NDArray[np.str_]

    @property
    def row(self) -> dict[str, int]:
        """Index of each skill by its id."""
        return {skill_id: i for i, skill_id in enumerate(self.ids)}


@lru_cache(maxsize=4)
def catalogue(path: str, retrieval: RetrievalConfig) -> Catalogue:
    """The tables of the suite in the folder ``path``, or of the "bundled" one.

    Raises:
        SuiteError: the suite is malformed or has no vectors.
    """
    return build(bundled_suite() if path == "bundled" else Suite.load(path), retrieval)


def build(suite: Suite, retrieval: RetrievalConfig) -> Catalogue:
    """Compute the tables of ``suite``.

    Raises:
        SuiteError: it has no vectors.
    """
    if suite.vectors is None:
        raise SuiteError(
            f"the suite {suite.name!r} has no vectors; make them with: letta-gym embed FOLDER"
        )
    skills = sorted(suite.library, key=lambda skill: skill.id)
    ids = tuple(skill.id for skill in skills)
    place = {skill_id: i for i, skill_id in enumerate(suite.library.ids)}
    vectors = suite.vectors.skills.matrix[[place[skill_id] for skill_id in ids]]
    tasks = suite.vectors.tasks.matrix
    index = LexicalIndex([document(skill) for skill in skills])
    dense = tasks @ vectors.T
    lexical = np.stack([index.scores(task.text) for task in suite.tasks])
    return Catalogue(
        suite=suite,
        ids=ids,
        keys=(ALONE, *(skill.content_hash for skill in skills)),
        task_vectors=tasks,
        skill_vectors=vectors,
        scores=Scores.of(dense, lexical, fuse(dense, lexical, retrieval)),
        alike=look_alikes(vectors),
        own=_own(suite, ids),
        tokens=np.array([skill.tokens for skill in skills], np.float32),
        split=np.array([task.split for task in suite.tasks]),
    )


def _own(suite: Suite, ids: tuple[str, ...]) -> Bool | None:
    if all(task.candidates is None for task in suite.tasks):
        return None
    row = {skill_id: i for i, skill_id in enumerate(ids)}
    own = np.ones((len(suite.tasks), len(ids)), bool)
    for t, task in enumerate(suite.tasks):
        if task.candidates is not None:
            own[t] = False
            own[t, [row[skill_id] for skill_id in task.candidates]] = True
    return own


def new_skills(count: int, share: float, seed: int) -> Bool:
    """Which of ``count`` skills do not exist during training, shape (count,), drawn by ``seed``."""
    new = np.zeros(count, bool)
    new[np.random.default_rng(seed).permutation(count)[: round(share * count)]] = True
    return new


def with_validation(split: NDArray[np.str_], share: float) -> NDArray[np.str_]:
    """Splits in which ``share`` of the train tasks serve for validation, if none did before.

    Which ones is the same everywhere, so that nothing is ever tuned on a task and trained on it.
    """
    if (split == "validation").any() or not share:
        return split
    train = np.flatnonzero(split == "train")
    drawn = np.random.default_rng(_VALIDATION_SEED).permutation(train)
    result = split.astype(object)
    result[drawn[: round(share * len(train))]] = "validation"
    return result.astype(np.str_)
