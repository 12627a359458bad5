"""Snapped vectors: exact dot products, and a file that notices damage and stale texts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from letta_gym.errors import EmbeddingError
from letta_gym.library.vectors import (
    GRID,
    EmbedderIdentity,
    SuiteVectors,
    VectorTable,
    from_units,
    snap,
    text_hash,
    to_units,
)

Float = NDArray[np.float32]


def random_rows(n: int, dimension: int, seed: int = 0) -> Float:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, dimension)).astype(np.float32)


def table(*texts: str, dimension: int = 8, seed: int = 0) -> VectorTable:
    ids = tuple(f"id-{text}" for text in texts)
    matrix = snap(random_rows(len(texts), dimension, seed))
    return VectorTable(ids, matrix, tuple(text_hash(text) for text in texts))


def suite_vectors() -> SuiteVectors:
    identity = EmbedderIdentity("model", "ab" * 32, 8, {"max_tokens": 256})
    return SuiteVectors(identity, snap(random_rows(5, 8, 9)), table("a", "b"), table("x", "y", "z"))


@pytest.mark.parametrize("dimension", [1, 3, 16, 384, 1024])
def test_dot_products_are_the_same_bits_in_any_product_and_order(dimension: int) -> None:
    a, b = snap(random_rows(70, dimension)), snap(random_rows(90, dimension, 1))
    product = a @ b.T
    exact = a.astype(np.float64) @ b.astype(np.float64).T
    assert product.dtype == np.float32
    assert np.array_equal(product.astype(np.float64), exact)
    assert np.array_equal(product, np.stack([b @ row for row in a]))
    assert np.array_equal(product, (a[:, None] * b[None]).sum(axis=2))
    order = np.random.default_rng(2).permutation(dimension)
    assert np.array_equal(product, np.ascontiguousarray(a[:, order]) @ b[:, order].T)


def test_without_the_grid_the_order_does_change_the_bits() -> None:
    rows = random_rows(70, 384)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    assert not np.array_equal(rows @ rows.T, (rows[:, None] * rows[None]).sum(axis=2))


@pytest.mark.parametrize("dimension", [2, 5, 100, 384, 4096])
def test_no_row_is_longer_than_one_even_when_every_component_rounds_up(dimension: int) -> None:
    target = np.floor(4094 / np.sqrt(dimension)) + 0.51  # the component that rounds up the most
    rest = np.sqrt(max(4094.0**2 - (dimension - 1) * target**2, 0.0))
    adversary = np.append(np.full(dimension - 1, target), rest)
    rows = snap(np.stack([adversary, np.ones(dimension), np.arange(1.0, dimension + 1)]))
    assert (np.square(rows.astype(np.float64)).sum(axis=1) <= 1.0).all()


def test_rounding_down_saves_the_length_where_rounding_would_pass_it() -> None:
    dimension = 384
    row = np.full(dimension, np.floor(4094 / np.sqrt(dimension)) + 0.5001)
    row[-1] = np.sqrt(4094.0**2 - np.square(row[:-1]).sum())
    assert np.square(np.rint(row)).sum() > GRID**2
    units = to_units(snap(row[None]))[0]
    assert np.array_equal(units, np.trunc(row * (4094 / np.linalg.norm(row))))


def test_a_row_keeps_its_direction_and_nearly_its_length() -> None:
    rows = random_rows(200, 384)
    snapped = snap(rows).astype(np.float64)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    assert np.abs(snapped - unit * 4094 / 4096).max() <= 2.0**-13 + 1e-9
    assert np.allclose((snapped * snapped).sum(axis=1), (4094 / 4096) ** 2, atol=1e-3)


@pytest.mark.parametrize("scale", [1e-300, 1e-30, 1.0, 1e30, 1e300])
def test_the_scale_of_a_row_does_not_matter(scale: float) -> None:
    rows = random_rows(4, 16).astype(np.float64)
    assert np.array_equal(snap(rows * scale), snap(rows))


@pytest.mark.parametrize(
    "rows",
    [
        [[0.0, 0.0]],
        [[1.0, np.nan]],
        [[1.0, 0.0], [np.inf, 1.0]],
        [1.0, 2.0],
        np.zeros((2, 0)),
        [["a"]],
        [[1.0], [1.0, 2.0]],
    ],
)
def test_rows_without_a_direction_and_other_shapes_are_refused(rows: object) -> None:
    with pytest.raises(EmbeddingError):
        snap(rows)  # type: ignore[arg-type]


def test_the_message_names_the_rows_that_are_wrong() -> None:
    with pytest.raises(EmbeddingError, match=r"rows \[1, 3\] \(2 in all\)"):
        snap([[1.0], [0.0], [2.0], [np.nan]])


def test_no_row_gives_an_empty_matrix_of_the_same_width() -> None:
    assert snap(np.zeros((0, 7))).shape == (0, 7)


def test_units_are_exact_and_refuse_what_is_off_the_grid() -> None:
    rows = snap(random_rows(50, 64))
    assert to_units(rows).dtype == np.int16
    assert np.array_equal(from_units(to_units(rows)), rows)
    with pytest.raises(EmbeddingError, match="snap"):
        to_units(rows + np.float32(1e-5))
    with pytest.raises(EmbeddingError, match="snap"):
        to_units(np.ones((1, 2), np.float32))
    with pytest.raises(EmbeddingError, match="snap"):
        to_units(np.full((1, 2), np.nan, np.float32))


def test_a_table_selects_by_id_in_the_order_asked_for() -> None:
    vectors = table("a", "b", "c")
    chosen = vectors.select({"id-c": "c", "id-a": "a"})
    assert chosen.ids == ("id-c", "id-a")
    assert np.array_equal(chosen.matrix, vectors.matrix[[2, 0]])
    assert np.array_equal(vectors["id-b"], vectors.matrix[1])
    assert "id-b" in vectors
    assert "b" not in vectors


def test_selecting_names_missing_ids_and_changed_texts() -> None:
    with pytest.raises(EmbeddingError, match=r"1 without a vector: new; 1 with a .* text: id-b"):
        table("a", "b").select({"id-a": "a", "id-b": "changed", "new": "new"})


def test_a_table_is_read_only_and_keeps_its_own_copy() -> None:
    matrix = snap(random_rows(1, 4))
    vectors = VectorTable(("a",), matrix, (text_hash("a"),))
    matrix[0, 0] = 0.25
    assert vectors.matrix[0, 0] != 0.25
    with pytest.raises(ValueError, match="read-only"):
        vectors.matrix[0, 0] = 0.5


def test_tables_refuse_shapes_that_disagree_and_double_ids() -> None:
    rows, hashes = snap(random_rows(2, 4)), (text_hash("a"), text_hash("b"))
    with pytest.raises(EmbeddingError, match="3 ids need 3 vectors"):
        VectorTable(("a", "b", "c"), rows, hashes)
    with pytest.raises(EmbeddingError, match="unique"):
        VectorTable(("a", "a"), rows, hashes)
    with pytest.raises(EmbeddingError, match="shape"):
        VectorTable(("a", "b"), rows[0], hashes)


def test_saved_vectors_come_back_bit_for_bit(tmp_path: Path) -> None:
    vectors = suite_vectors()
    vectors.save(tmp_path / "v.safetensors")
    loaded = SuiteVectors.load(tmp_path / "v.safetensors")
    assert loaded.identity == vectors.identity
    assert np.array_equal(loaded.probes, vectors.probes)
    for mine, theirs in [(loaded.skills, vectors.skills), (loaded.tasks, vectors.tasks)]:
        assert mine.ids == theirs.ids
        assert mine.text_hashes == theirs.text_hashes
        assert mine.matrix.dtype == np.float32
        assert np.array_equal(mine.matrix, theirs.matrix)
    loaded.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (
        tmp_path / "v.safetensors"
    ).read_bytes()


def test_the_file_keeps_half_the_size_of_float32(tmp_path: Path) -> None:
    ids = [str(i) for i in range(300)]
    many = table(*ids, dimension=384)
    identity = EmbedderIdentity("model", "ab" * 32, 384)
    SuiteVectors(identity, many.matrix[:5], many, many).save(tmp_path / "v")
    assert (tmp_path / "v").stat().st_size < 0.6 * 2 * many.matrix.nbytes


def test_tables_without_rows_survive_the_file(tmp_path: Path) -> None:
    empty = VectorTable((), np.zeros((0, 8), np.float32), ())
    identity = EmbedderIdentity("model", "ab" * 32, 8)
    SuiteVectors(identity, snap(random_rows(5, 8)), empty, empty).save(tmp_path / "v")
    assert SuiteVectors.load(tmp_path / "v").tasks.matrix.shape == (0, 8)


def test_a_flipped_bit_anywhere_is_an_embedding_error(tmp_path: Path) -> None:
    path = tmp_path / "v.safetensors"
    suite_vectors().save(path)
    data = path.read_bytes()
    for position in range(0, len(data), 3):
        damaged = bytearray(data)
        damaged[position] ^= 1 << (position % 8)
        path.write_bytes(damaged)
        with pytest.raises(EmbeddingError, match="damaged"):
            SuiteVectors.load(path)


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(EmbeddingError, match="No such file"):
        SuiteVectors.load(tmp_path / "none")


def test_vectors_of_another_dimension_than_the_embedder_are_refused() -> None:
    identity = EmbedderIdentity("model", "ab" * 32, 9)
    with pytest.raises(EmbeddingError, match=r"probes must have shape \(n, 9\)"):
        SuiteVectors(identity, snap(random_rows(5, 8)), table("a"), table("b"))


def test_identities_with_other_options_have_other_keys() -> None:
    first = EmbedderIdentity("m", "0", 8, {"a": 1, "b": 2})
    same = EmbedderIdentity("m", "0", 8, {"b": 2, "a": 1})
    other = EmbedderIdentity("m", "0", 8, {"a": 1, "b": 3})
    assert first.key == same.key
    assert first == same
    assert first.key != other.key
