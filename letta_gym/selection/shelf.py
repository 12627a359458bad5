"""A library arranged for choosing: sorted by id, with vectors, costs and a lexical index."""

from __future__ import annotations

from collections.abc import Collection
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from letta_gym.errors import ConfigError, EmbeddingError, SkillError
from letta_gym.feedback.memory import ALONE
from letta_gym.library.embeddings import Embedder, default_embedder
from letta_gym.library.lexical import LexicalIndex
from letta_gym.library.passages import described, embed_skills
from letta_gym.library.skills import Skill, SkillLibrary
from letta_gym.library.suite import VECTORS_FILE
from letta_gym.library.vectors import SuiteVectors, VectorTable, text_hash
from letta_gym.selection.candidates import document
from letta_gym.selection.observation import alike_slots, look_alikes
from letta_gym.selection.opening import likeness
from letta_gym.selection.policy import Policy

Float = NDArray[np.float32]
Int = NDArray[np.int64]
Bool = NDArray[np.bool_]

_SMALL = 1024  # skills whose look-alikes are kept


class Shelf:
    """N skills with what choosing among them needs; follows changes of its library.

    Args:
        library: the skills. Whatever is added, replaced or removed there counts from the next
            choice on.
        policy: whose vectors the skills need.
        table: vectors that are known already; used where id and text are still the same.
        embedder: embeds the other skills, and tasks; by default whichever is installed, when it is
            first needed.

    Attributes:
        skills: the skills by ascending id, length N.
        ids: their ids.
        keys: by which the memory knows the case of no skill, then each skill (its content hash),
            length N + 1.
        vectors: snapped skill vectors, shape (N, D).
        tokens: cost of each skill, shape (N,).
        likeness: mean cosine between two skills.

    Raises:
        SkillError: the library is empty.
        EmbeddingError: the embedder or the table is not of the policy's model.
        MissingExtraError: a skill has to be embedded and no embedder is installed.
    """

    skills: tuple[Skill, ...]
    ids: tuple[str, ...]
    keys: tuple[str, ...]
    vectors: Float
    tokens: Float
    likeness: float

    def __init__(
        self,
        library: SkillLibrary,
        policy: Policy,
        table: VectorTable | None = None,
        embedder: Embedder | None = None,
    ) -> None:
        self.library = library
        self._policy = policy
        if embedder is not None:
            policy.check(embedder)
        self._embedder = embedder
        self._stored: dict[tuple[str, str], Float] = {}
        if table is not None:
            keys = zip(table.ids, table.text_hashes, strict=True)
            self._stored = dict(zip(keys, table.matrix, strict=True))
        self._current: dict[tuple[str, str], Float] = {}
        self._revision = -1
        self.refresh()

    @classmethod
    def open(
        cls, skills: Path | str | SkillLibrary, policy: Policy, embedder: Embedder | None = None
    ) -> Shelf:
        """Arrange a folder of ``SKILL.md`` or a library for ``policy``.

        Vectors stored in the folder are used where their text is still right and their embedder is
        the policy's; the rest are embedded.
        """
        if isinstance(skills, SkillLibrary):
            return cls(skills, policy, None, embedder)
        stored = Path(skills) / VECTORS_FILE
        table = None
        if stored.is_file():
            vectors = SuiteVectors.load(stored)
            same = policy.embedder.weights_sha256 == vectors.identity.weights_sha256
            table = vectors.skills if same else None
        return cls(SkillLibrary.from_folder(skills), policy, table, embedder)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def embedder(self) -> Embedder:
        """The embedder; made and checked against the policy's when it is first needed.

        Raises:
            MissingExtraError: none is installed.
            EmbeddingError: it is of another model than the policy's.
        """
        if self._embedder is None:
            embedder = default_embedder()
            self._policy.check(embedder)
            self._embedder = embedder
        return self._embedder

    def refresh(self) -> None:
        """Take in changes of the library; cheap when there are none."""
        revision = self.library.revision
        if revision == self._revision:
            return
        skills = tuple(sorted(self.library, key=lambda skill: skill.id))
        if not skills:
            raise SkillError("the library holds no skill to choose from; add one first")
        self._current = self._vectors_of(skills)
        self.skills = skills
        self.ids = tuple(skill.id for skill in skills)
        self.keys = (ALONE, *(skill.content_hash for skill in skills))
        self.vectors = np.stack(list(self._current.values()))
        self.likeness = likeness(self.vectors)
        self.tokens = np.array([skill.tokens for skill in skills], np.float32)
        self._row = {skill_id: i for i, skill_id in enumerate(self.ids)}
        self._index = LexicalIndex([document(skill) for skill in skills])
        self.__dict__.pop("_alike", None)
        self._revision = revision

    def lexical(self, text: str) -> Float:
        """TF-IDF cosine of ``text`` with every skill, shape (N,)."""
        return self._index.scores(text)

    def alike(self, rows: Int) -> Int:
        """Slots of the look-alikes of the skills ``rows`` (B, M), shape (W, B, M)."""
        if len(self) <= _SMALL:
            return alike_slots(self._alike, rows)
        tables = [look_alikes(self.vectors[row]) for row in rows]
        found = np.full((max(map(len, tables)), *rows.shape), rows.shape[1])
        for batch, table in enumerate(tables):
            found[: len(table), batch] = table
        return found

    def usable(self, available: Collection[str]) -> Bool:
        """Which skills may be chosen, shape (N,): those of ``available``.

        Raises:
            ConfigError: an id that the library lacks, or none at all.
        """
        usable = np.zeros(len(self), bool)
        for skill_id in available:
            if skill_id not in self._row:
                near = self.library.nearest(skill_id)
                raise ConfigError(f"the library has no skill {skill_id!r}; {near}")
            usable[self._row[skill_id]] = True
        if not usable.any():
            raise ConfigError("no skill is available; pass at least one id, or None for all")
        return usable

    @cached_property
    def _alike(self) -> Int:
        return look_alikes(self.vectors)

    def _vectors_of(self, skills: tuple[Skill, ...]) -> dict[tuple[str, str], Float]:
        # By id too: skills of one text may yet have vectors of their own.
        keys = {(skill.id, text_hash(described(skill))): skill for skill in skills}
        known = self._stored | self._current
        missing = [key for key in keys if key not in known]
        if missing:
            fresh = embed_skills(self.embedder, [keys[key] for key in missing])
            known |= dict(zip(missing, fresh, strict=True))
        rows = {key: known[key] for key in keys}
        shapes = {row.shape for row in rows.values()}
        if shapes != {(self._policy.dimension,)}:
            raise EmbeddingError(
                f"the policy knows vectors of {self._policy.dimension} dimensions; the skills' "
                f"have the shapes {sorted(shapes)}; embed them anew with the policy's embedder"
            )
        return rows
