"""A cache of embedding vectors on disk, shared by every process that embeds the same texts."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from letta_gym.errors import EmbeddingError
from letta_gym.library.embeddings import Embedder
from letta_gym.library.vectors import EmbedderIdentity, Float, from_units, text_hash, to_units

_WAIT_SECONDS = 30.0  # for another process's write, before giving up
_CHUNK = 500  # texts per query; SQLite allowed no more than 999 parameters for long

_SCHEMA = """
CREATE TABLE IF NOT EXISTS vectors (
    identity TEXT NOT NULL,
    text_sha256 TEXT NOT NULL,
    vector BLOB NOT NULL,
    PRIMARY KEY (identity, text_sha256)
) WITHOUT ROWID
"""


class EmbeddingCache:
    """An embedder that remembers: each text is embedded once per identity, then read from SQLite.

    Vectors are kept under the embedder's whole identity (weights and options) and the text's
    SHA-256; texts themselves are not stored. The file may be used by several processes and threads
    at once, for a connection lives only as long as one call.

    Args:
        path: the database file; it and its folder are made when missing.
        embedder: what embeds the texts that are not in the cache.

    Raises:
        EmbeddingError: the file is not such a database, or stays locked.
    """

    def __init__(self, path: Path | str, embedder: Embedder) -> None:
        self._path = Path(path)
        self._embedder = embedder
        self._key = embedder.identity.key
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._connect() as database:
            use_write_ahead_log(database)
            database.execute(_SCHEMA)

    @property
    def identity(self) -> EmbedderIdentity:
        """Identity of the embedder behind the cache."""
        return self._embedder.identity

    def encode(self, texts: Sequence[str]) -> Float:
        """Snapped vectors of ``texts``, float32, shape (n, D), the same bits as without the cache.

        Raises:
            EmbeddingError: the database is damaged or stays locked.
        """
        if isinstance(texts, str) or not texts:
            return self._embedder.encode(texts)
        hashes = [text_hash(text) for text in texts]
        wanted = dict(zip(hashes, texts, strict=True))
        known = self._read(list(wanted))
        new = [key for key in wanted if key not in known]
        if new:
            units = to_units(self._embedder.encode([wanted[key] for key in new]))
            known.update(zip(new, units, strict=True))
            self._write(new, units)
        return from_units(np.stack([known[key] for key in hashes]))

    def _read(self, hashes: Sequence[str]) -> dict[str, NDArray[np.int16]]:
        found: dict[str, NDArray[np.int16]] = {}
        with self._connect() as database:
            for start in range(0, len(hashes), _CHUNK):
                chunk = hashes[start : start + _CHUNK]
                marks = ", ".join("?" * len(chunk))
                rows = database.execute(
                    "SELECT text_sha256, vector FROM vectors "
                    f"WHERE identity = ? AND text_sha256 IN ({marks})",
                    (self._key, *chunk),
                )
                for key, blob in rows:
                    if len(blob) == 2 * self.identity.dimension:
                        found[key] = np.frombuffer(blob, "<i2")
        return found

    def _write(self, hashes: Sequence[str], units: NDArray[np.int16]) -> None:
        rows = [
            (self._key, key, row.astype("<i2").tobytes())
            for key, row in zip(hashes, units, strict=True)
        ]
        with self._connect() as database:
            database.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?, ?)", rows)

    @contextmanager
    def _connect(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self._path, timeout=_WAIT_SECONDS)) as database, database:
                yield database
        except sqlite3.Error as error:
            raise EmbeddingError(
                f"the embedding cache {self._path} cannot be used: {error}; "
                "if it is damaged, delete it: it only saves time"
            ) from error


def use_write_ahead_log(database: sqlite3.Connection) -> None:
    """Let readers go on during a write; SQLite's own waiting does not cover this one change."""
    deadline = time.monotonic() + _WAIT_SECONDS
    while True:
        try:
            database.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            busy = error.sqlite_errorcode == sqlite3.SQLITE_BUSY
            if not busy or time.monotonic() > deadline:
                raise
        time.sleep(0.01)
