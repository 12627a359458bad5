"""A finite pool of tasks with every similarity computed once, so that a step only gathers."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from letta_gym.errors import SuiteError
from letta_gym.feedback.evidence import EvidenceConfig, kernel
from letta_gym.library.lexical import LexicalIndex
from letta_gym.library.passages import described
from letta_gym.library.skills import SkillLibrary
from letta_gym.library.suite import Suite
from letta_gym.library.vectors import SuiteVectors, VectorTable, snap, text_hash
from letta_gym.selection.candidates import RetrievalConfig, document, fuse
from letta_gym.selection.observation import look_alikes

Float = NDArray[np.float32]
Int = NDArray[np.int64]
Bool = NDArray[np.bool_]

TWIN = "~twin"
_TWIN_SEED = 0


@dataclass(frozen=True, eq=False, slots=True)
class Pool:
    """T tasks and N skills, the skills sorted by id.

    Attributes:
        suite: the suite itself, look-alikes included.
        origin: index of the skill that each skill is a look-alike of, or its own, shape (N,).
        scores: cosine, TF-IDF cosine and their fusion, shape (3, T, N); ``retrieval`` is the last.
        similarity, weight: cosine of two tasks and the evidence kernel of it, shape (T, T).
        alike: the look-alikes of each skill, padded with N, shape (W, N).
        relevant: for which skills a task is made, shape (T, N).
        topic: the first of them, or -1, shape (T,).
        tokens: cost of loading each skill, shape (N,).
        split: name of each task's split, shape (T,).
    """

    suite: Suite
    origin: Int
    task_vectors: Float
    skill_vectors: Float
    scores: Float
    similarity: Float
    weight: Float
    alike: Int
    relevant: Bool
    topic: Int
    tokens: Float
    split: NDArray[np.str_]

    @property
    def retrieval(self) -> Float:
        """Retrieval score of each skill for each task, shape (T, N)."""
        fused: Float = self.scores[-1]
        return fused

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of the skills, length N."""
        return self.suite.library.ids


def with_look_alikes(suite: Suite, cosine: float) -> Suite:
    """The suite with a second skill for each: the same text, its vector turned to ``cosine``.

    Real libraries hold near copies of a skill of which only one works. The new ids end in
    :data:`TWIN`; the library is sorted by id. The directions are drawn with a fixed seed, so that a
    suite has the same look-alikes everywhere.

    Raises:
        SuiteError: the suite has no vectors.
    """
    if suite.vectors is None:
        raise SuiteError(
            f"the suite {suite.name!r} has no vectors; make them with: letta-gym embed FOLDER"
        )
    rng = np.random.default_rng(_TWIN_SEED)
    table = suite.vectors.skills
    turned = rng.standard_normal(table.matrix.shape)
    turned -= (turned * table.matrix).sum(1, keepdims=True) * table.matrix
    turned /= np.linalg.norm(turned, axis=1, keepdims=True)
    twins = snap(cosine * table.matrix + np.sqrt(1 - cosine**2) * turned)
    skills = {skill.id: skill for skill in suite.library}
    # One more line break, so that a look-alike has its own content hash, hence its own evidence.
    skills |= {i + TWIN: replace(s, id=i + TWIN, body=s.body + "\n") for i, s in skills.items()}
    rows = dict(
        zip((*table.ids, *(i + TWIN for i in table.ids)), (*table.matrix, *twins), strict=True)
    )
    ids = tuple(sorted(skills))
    vectors = VectorTable(
        ids, np.stack([rows[i] for i in ids]), tuple(text_hash(described(skills[i])) for i in ids)
    )
    return replace(
        suite,
        library=SkillLibrary(skills[i] for i in ids),
        vectors=SuiteVectors(
            suite.vectors.identity, suite.vectors.probes, vectors, suite.vectors.tasks
        ),
    )


def build(
    suite: Suite, retrieval: RetrievalConfig, evidence: EvidenceConfig, twin_cosine: float
) -> Pool:
    """Compute the tables of a suite with its look-alikes.

    Raises:
        SuiteError: the suite has no vectors, or lacks a split.
    """
    suite = with_look_alikes(suite, twin_cosine)
    assert suite.vectors is not None
    ids = suite.library.ids
    row = {skill_id: i for i, skill_id in enumerate(ids)}
    relevant = np.zeros((len(suite.tasks), len(ids)), bool)
    topic = np.full(len(suite.tasks), -1)
    for t, task in enumerate(suite.tasks):
        for skill_id in task.relevant:
            relevant[t, [row[skill_id], row[skill_id + TWIN]]] = True
        if task.relevant:
            topic[t] = row[task.relevant[0]]
    tasks, skills = suite.vectors.tasks.matrix, suite.vectors.skills.matrix
    index = LexicalIndex([document(skill) for skill in suite.library])
    dense = tasks @ skills.T
    lexical = np.stack([index.scores(task.text) for task in suite.tasks])
    similarity = tasks @ tasks.T
    return Pool(
        suite=suite,
        origin=np.array([row[skill_id.removesuffix(TWIN)] for skill_id in ids]),
        task_vectors=tasks,
        skill_vectors=skills,
        scores=np.stack([dense, lexical, fuse(dense, lexical, retrieval)], dtype=np.float32),
        similarity=similarity,
        weight=kernel(similarity, evidence.bandwidth),
        alike=look_alikes(skills),
        relevant=relevant,
        topic=topic,
        tokens=np.array([skill.tokens for skill in suite.library], np.float32),
        split=np.array([task.split for task in suite.tasks]),
    )
