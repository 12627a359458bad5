"""Vectors of tasks and skills, made beside the event loop and remembered."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

import numpy as np

from letta_gym.library.cache import EmbeddingCache
from letta_gym.library.embeddings import Embedder, check_same_model, default_embedder
from letta_gym.library.passages import described, embed_skills
from letta_gym.library.skills import Skill
from letta_gym.library.vectors import EmbedderIdentity, Float, SuiteVectors, VectorTable, text_hash

_REMEMBERED = 10_000  # tasks; 15 MB of vectors with 384 dimensions


class LazyEmbedder:
    """The installed embedder with a cache on disk, loaded when a text is first to be embedded.

    Args:
        cache: file of the cached vectors.
        space: vectors that its own must be comparable with.
    """

    def __init__(self, cache: Path, space: SuiteVectors) -> None:
        self._cache, self._space = cache, space
        self._loaded: Embedder | None = None
        self._closed = False
        self._loading = Lock()

    def load(self) -> Embedder:
        """The embedder behind it.

        Raises:
            MissingExtraError: none is installed.
            EmbeddingError: it is of another model.
        """
        with self._loading:
            if self._loaded is None:
                inner = default_embedder()
                check_same_model(self._space.identity, self._space.probes, inner)
                loaded = EmbeddingCache(self._cache, inner)
                if self._closed:  # while it was loaded, or before: nobody keeps it
                    return loaded
                self._loaded = loaded
            return self._loaded

    def close(self) -> None:
        """Let go of the model, which takes more memory than everything else."""
        self._closed = True
        with self._loading:
            self._loaded = None

    @property
    def identity(self) -> EmbedderIdentity:
        """Identity of the embedder."""
        return self.load().identity

    def encode(self, texts: Sequence[str]) -> Float:
        """Snapped vectors of ``texts``, shape (n, D)."""
        return self.load().encode(texts)


class TaskVectors:
    """Vectors of tasks: at once for those of late, else in a thread of their own.

    A text that several callers ask for at once is embedded once.
    """

    def __init__(self, embedder: LazyEmbedder) -> None:
        self._embedder = embedder
        self._thread = ThreadPoolExecutor(1, "embedding")
        self._known: OrderedDict[str, Float] = OrderedDict()
        self._coming: dict[str, asyncio.Future[Float]] = {}

    def known(self, text: str) -> Float | None:
        """The vector of ``text``, shape (D,), where it was asked for of late."""
        key = text_hash(text)
        vector = self._known.get(key)
        if vector is not None:
            self._known.move_to_end(key)
        return vector

    async def of(self, text: str) -> Float:
        """The vector of ``text``, shape (D,).

        Raises:
            MissingExtraError: no embedder is installed.
            EmbeddingError: the text is not valid Unicode, or the cache cannot be used.
        """
        vector = self.known(text)
        if vector is not None:
            return vector
        key = text_hash(text)
        coming = self._coming.get(key)
        if coming is None:
            loop = asyncio.get_running_loop()
            coming = loop.run_in_executor(self._thread, self._embed, text)
            self._coming[key] = coming
            coming.add_done_callback(lambda done: self._arrived(key, done))
        return await asyncio.shield(coming)

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _embed(self, text: str) -> Float:
        row: Float = self._embedder.encode([text])[0]
        return row

    def _arrived(self, key: str, done: asyncio.Future[Float]) -> None:
        del self._coming[key]
        if done.cancelled() or done.exception() is not None:
            return
        self._known[key] = done.result()
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)


class SkillVectors:
    """Vectors of skills by what they say: those that were stored, then those that were made."""

    def __init__(self, embedder: LazyEmbedder, stored: VectorTable) -> None:
        self._embedder = embedder
        self._known = dict(zip(stored.text_hashes, stored.matrix, strict=True))

    def of(self, skills: Sequence[Skill]) -> VectorTable:
        """The vectors of ``skills``; takes long where some are new.

        Raises:
            MissingExtraError: a skill is new and no embedder is installed.
        """
        hashes = {skill.id: text_hash(described(skill)) for skill in skills}
        new = {hashes[skill.id]: skill for skill in skills if hashes[skill.id] not in self._known}
        if new:
            made = embed_skills(self._embedder, list(new.values()))
            self._known |= zip(new, made, strict=True)
        matrix = np.stack([self._known[key] for key in hashes.values()])
        return VectorTable(tuple(hashes), matrix, tuple(hashes.values()))
