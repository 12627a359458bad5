"""The embedding cache: same bits, less work, several processes."""

from __future__ import annotations

import multiprocessing
import sqlite3
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from letta_gym.errors import EmbeddingError
from letta_gym.library.cache import EmbeddingCache
from letta_gym.library.vectors import EmbedderIdentity, snap, text_hash


class CountingEmbedder:
    """Random directions fixed by each text; remembers what it was asked for."""

    def __init__(self, weights: str = "w", **options: object) -> None:
        self.identity = EmbedderIdentity("counting", text_hash(weights), 8, options)
        self.asked: list[str] = []

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.asked.extend(texts)
        seeds = [int(text_hash(self.identity.key + text)[:16], 16) for text in texts]
        rows = [np.random.default_rng(seed).standard_normal(8) for seed in seeds]
        return snap(np.array(rows).reshape(-1, 8))


def race(folder: Path, barrier: Barrier, start: int) -> None:
    """Make new caches at the same moment as the other processes, and use one of them."""
    for attempt in range(20):
        barrier.wait(timeout=60)
        cache = EmbeddingCache(folder / f"{attempt}.db", CountingEmbedder())
    for number in range(start, start + 25):
        expected = CountingEmbedder().encode([str(number)])
        assert np.array_equal(cache.encode([str(number)]), expected)


def test_each_text_is_embedded_once_and_keeps_its_bits(tmp_path: Path) -> None:
    embedder = CountingEmbedder()
    cache = EmbeddingCache(tmp_path / "sub" / "cache.db", embedder)
    first = cache.encode(["b", "a", "b"])
    second = cache.encode(["a", "c"])
    assert embedder.asked == ["b", "a", "c"]
    expected = CountingEmbedder().encode(["b", "a", "b", "a", "c"])
    assert np.array_equal(np.concatenate([first, second]), expected)
    assert cache.identity == embedder.identity


def test_the_cache_outlives_the_process(tmp_path: Path) -> None:
    EmbeddingCache(tmp_path / "cache.db", CountingEmbedder()).encode(["a"])
    later = CountingEmbedder()
    EmbeddingCache(tmp_path / "cache.db", later).encode(["a"])
    assert later.asked == []


def test_other_weights_and_options_have_vectors_of_their_own(tmp_path: Path) -> None:
    for embedder in [
        CountingEmbedder(),
        CountingEmbedder("other weights"),
        CountingEmbedder(max_tokens=128),
        CountingEmbedder(max_tokens=256),
    ]:
        vectors = EmbeddingCache(tmp_path / "cache.db", embedder).encode(["a"])
        assert embedder.asked == ["a"]
        assert np.array_equal(vectors, embedder.encode(["a"]))


def test_thousands_of_texts_fit_in_one_call(tmp_path: Path) -> None:
    embedder = CountingEmbedder()
    cache = EmbeddingCache(tmp_path / "cache.db", embedder)
    texts = [str(i) for i in range(1203)]
    assert np.array_equal(cache.encode(texts), cache.encode(texts))
    assert len(embedder.asked) == 1203


def test_no_text_gives_an_empty_matrix(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path / "cache.db", CountingEmbedder())
    assert cache.encode([]).shape == (0, 8)


def test_several_processes_make_and_share_one_file(tmp_path: Path) -> None:
    starts = [0, 10, 20, 0]
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(len(starts))
    racers = [context.Process(target=race, args=(tmp_path, barrier, start)) for start in starts]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(timeout=120)
    assert [racer.exitcode for racer in racers] == [0, 0, 0, 0]
    late = CountingEmbedder()
    EmbeddingCache(tmp_path / "19.db", late).encode([str(i) for i in range(45)])
    assert late.asked == []


def test_several_threads_share_one_cache(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path / "cache.db", CountingEmbedder())
    texts = [[str(i % 30), str(i % 7)] for i in range(60)]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(cache.encode, texts))
    for pair, result in zip(texts, results, strict=True):
        assert np.array_equal(result, CountingEmbedder().encode(pair))


def test_a_row_of_the_wrong_size_is_embedded_again(tmp_path: Path) -> None:
    path = tmp_path / "cache.db"
    expected = EmbeddingCache(path, CountingEmbedder()).encode(["a"])
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE vectors SET vector = x'00'")
    for asked in (["a"], []):
        embedder = CountingEmbedder()
        assert np.array_equal(EmbeddingCache(path, embedder).encode(["a"]), expected)
        assert embedder.asked == asked


def test_a_file_that_is_no_database_is_an_embedding_error(tmp_path: Path) -> None:
    path = tmp_path / "cache.db"
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(EmbeddingError, match="delete it: it only saves time"):
        EmbeddingCache(path, CountingEmbedder())
