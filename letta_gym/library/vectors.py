"""Embedding vectors on a grid that makes their dot products exact, and the file that keeps them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from letta_gym.errors import EmbeddingError
from letta_gym.files import write_atomically
from letta_gym.sealed import SealError, seal, unseal

GRID = 4096
"""Every component of a snapped vector is a whole multiple of 1 / GRID."""

_LENGTH = 4094  # two steps short of GRID, so that rounding practically never passes length 1
_FORMAT = "letta_gym.suite_vectors/1"

Float = NDArray[np.float32]


def snap(vectors: ArrayLike) -> Float:
    """Normalise each row, then round it to the grid: ``rint(v / |v| * 4094) / 4096``.

    Why: floating-point addition is not associative, so a dot product usually depends on the order
    in which a BLAS adds, hence on the matrix's shape, the library and the machine. Here every
    component is an integer multiple of 2**-12 and no row is longer than 1. A product of two
    components is an integer multiple of 2**-24, and by Cauchy-Schwarz the magnitudes of all the
    products in one dot product add up to at most 2**24 such units. Integers up to 2**24 are exact
    in float32, so every partial sum is exact in *any* order, with or without fused
    multiply-add: one row times one row has the same bits as the same entry of a large product.

    The price is small: a component moves by at most 2**-13, and the cosine of a vector with itself
    is about (4094 / 4096)**2 = 0.999.

    Args:
        vectors: array-like, shape (n, D), any real dtype, D >= 1; rows need not be normalised.

    Returns:
        float32 array, shape (n, D); rows are at most 1 long.

    Raises:
        EmbeddingError: not two-dimensional, not numeric, or a row is zero or not finite.
    """
    try:
        rows = np.asarray(vectors, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise EmbeddingError(f"vectors must be an (n, D) array of numbers: {error}") from error
    if rows.ndim != 2 or rows.shape[1] == 0:
        raise EmbeddingError(f"vectors must have shape (n, D) with D >= 1; got {rows.shape}")
    largest = np.abs(rows).max(axis=1, initial=0.0, keepdims=True)
    wrong = np.flatnonzero(~(np.isfinite(largest) & (largest > 0)))
    if wrong.size:
        raise EmbeddingError(
            f"rows {wrong[:5].tolist()} ({wrong.size} in all) are zero or not finite; "
            "a vector needs a direction, so embed a text that is not empty"
        )
    rows = rows / largest  # squares of huge or tiny numbers would leave the range of float64
    rows *= _LENGTH / np.sqrt((rows * rows).sum(axis=1, keepdims=True))
    units = np.rint(rows)
    # Rounding can lengthen a row by sqrt(D) / 2 steps at worst; cutting off never does.
    units = np.where((units * units).sum(axis=1, keepdims=True) <= GRID**2, units, np.trunc(rows))
    snapped: Float = (units / GRID).astype(np.float32)
    return snapped


def is_snapped(vector: NDArray[Any]) -> bool:
    """Whether ``vector``, shape (D,), came out of :func:`snap`.

    Such a vector is taken as it is: snapping it again could move a component by a step.
    """
    if vector.dtype != np.float32:
        return False
    units = vector * np.float32(GRID)
    # Rounding and cutting shorten a row of a few thousand components by 2 % at worst.
    return bool(0.95 < vector @ vector <= 1) and not np.count_nonzero(np.rint(units) != units)


def to_units(matrix: Float) -> NDArray[np.int16]:
    """Snapped vectors (n, D) as whole numbers of 1 / GRID: half the size, and exact.

    Raises:
        EmbeddingError: a component is off the grid or a row is longer than 1.
    """
    units = matrix.astype(np.float64) * GRID
    if not np.array_equal(units, np.rint(units)) or ((units * units).sum(axis=1) > GRID**2).any():
        raise EmbeddingError("vectors are off the grid; pass them through snap() first")
    return units.astype(np.int16)


def from_units(units: NDArray[np.int16]) -> Float:
    """The float32 vectors (n, D) of :func:`to_units`."""
    return units.astype(np.float32) / np.float32(GRID)


def to_utf8(text: str) -> bytes:
    """The UTF-8 of a text to embed; :class:`EmbeddingError` when it is no text, or has none."""
    try:
        return text.encode()
    except (AttributeError, UnicodeEncodeError) as error:
        raise EmbeddingError(f"only valid Unicode text can be embedded; got {text!r}") from error


def text_hash(text: str) -> str:
    """SHA-256 of a text's UTF-8, in hexadecimal: tells whether a stored vector is still right."""
    return hashlib.sha256(to_utf8(text)).hexdigest()


@dataclass(frozen=True)
class EmbedderIdentity:
    """What decides an embedder's vectors.

    ``id`` names the model, ``weights_sha256`` its weights, ``dimension`` is D, and ``options``
    holds every further setting that changes a vector (truncation, pooling), as JSON values.
    """

    id: str
    weights_sha256: str
    dimension: int
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def key(self) -> str:
        """One canonical line of JSON: equal for equal identities, and a key for caches."""
        return json.dumps(self.to_json(), sort_keys=True)

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return {
            "id": self.id,
            "weights_sha256": self.weights_sha256,
            "dimension": self.dimension,
            "options": dict(self.options),
        }

    def __str__(self) -> str:
        return f"{self.id} (weights {self.weights_sha256[:12]}, {self.dimension} dimensions)"


@dataclass(frozen=True, eq=False)
class VectorTable:
    """Vectors of n texts, by id.

    ``ids`` (n) are unique; ``matrix`` is float32, shape (n, D), snapped and read-only;
    ``text_hashes`` (n) are the :func:`text_hash` of what was embedded.

    Raises:
        EmbeddingError: shapes do not agree, an id occurs twice, or the matrix is off the grid.
    """

    ids: tuple[str, ...]
    matrix: Float
    text_hashes: tuple[str, ...]

    def __post_init__(self) -> None:
        matrix = np.array(self.matrix, dtype=np.float32)
        n = len(self.ids)
        if matrix.ndim != 2 or len(matrix) != n or len(self.text_hashes) != n:
            raise EmbeddingError(
                f"{n} ids need {n} vectors and {n} text hashes; "
                f"got a matrix of shape {matrix.shape} and {len(self.text_hashes)} hashes"
            )
        if len(set(self.ids)) != n:
            raise EmbeddingError("the ids of a vector table must be unique")
        to_units(matrix)
        matrix.setflags(write=False)
        object.__setattr__(self, "matrix", matrix)

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, id: object) -> bool:
        return id in self._rows

    def __getitem__(self, id: str) -> Float:
        """Vector of ``id``, shape (D,), read-only; ``KeyError`` when there is none."""
        row: Float = self.matrix[self._rows[id]]
        return row

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {id: row for row, id in enumerate(self.ids)}

    def select(self, texts: Mapping[str, str]) -> VectorTable:
        """The rows of ``texts`` (id -> text), in that order, after checking that none is stale.

        Raises:
            EmbeddingError: an id has no vector, or its text is not the one that was embedded.
        """
        missing = [id for id in texts if id not in self._rows]
        found = {id: self._rows[id] for id in texts if id in self._rows}
        stale = [id for id, row in found.items() if self.text_hashes[row] != text_hash(texts[id])]
        if missing or stale:
            counts = _count("without a vector", missing) + _count("with a changed text", stale)
            raise EmbeddingError("; ".join(counts))
        rows = list(found.values())
        hashes = tuple(self.text_hashes[row] for row in rows)
        return VectorTable(tuple(texts), self.matrix[rows], hashes)


@dataclass(frozen=True, eq=False)
class SuiteVectors:
    """Skill and task vectors of one suite, with the embedder they come from.

    ``probes`` are the embedder's vectors of a few fixed texts, float32, shape (P, D), snapped: they
    tell whether another build of the model may be used with these vectors.
    """

    identity: EmbedderIdentity
    probes: Float
    skills: VectorTable
    tasks: VectorTable

    def __post_init__(self) -> None:
        shapes = {
            "probes": np.shape(self.probes),
            "skills": self.skills.matrix.shape,
            "tasks": self.tasks.matrix.shape,
        }
        for name, shape in shapes.items():
            if len(shape) != 2 or shape[1] != self.identity.dimension:
                raise EmbeddingError(
                    f"{name} must have shape (n, {self.identity.dimension}), as the embedder "
                    f"{self.identity.id} gives; got {shape}"
                )

    def save(self, path: Path | str) -> None:
        """Write a sealed safetensors file (int16 units of 1 / GRID), atomically."""
        tensors: dict[str, NDArray[Any]] = {
            "probes": to_units(self.probes),
            "skills": to_units(self.skills.matrix),
            "skills_text_sha256": _pack(self.skills.text_hashes),
            "tasks": to_units(self.tasks.matrix),
            "tasks_text_sha256": _pack(self.tasks.text_hashes),
        }
        header = {
            "format": _FORMAT,
            "identity": self.identity.to_json(),
            "skills": list(self.skills.ids),
            "tasks": list(self.tasks.ids),
        }
        write_atomically(path, seal(tensors, header))

    @classmethod
    def load(cls, path: Path | str) -> SuiteVectors:
        """Read what :meth:`save` wrote.

        Raises:
            EmbeddingError: the file is missing, damaged, or of another format.
        """
        try:
            tensors, header = unseal(Path(path).read_bytes())
        except OSError as error:
            raise EmbeddingError(f"cannot read the vectors {path}: {error.strerror}") from error
        except SealError as error:
            raise EmbeddingError(f"{path} is damaged: {error}; embed the suite again") from error
        if header.get("format") != _FORMAT:
            raise EmbeddingError(
                f"{path} must have the format {_FORMAT!r}; got {header.get('format')!r}"
            )
        try:
            tables = [
                VectorTable(
                    tuple(header[name]),
                    from_units(tensors[name]),
                    _unpack(tensors[f"{name}_text_sha256"]),
                )
                for name in ("skills", "tasks")
            ]
            identity = EmbedderIdentity(**header["identity"])
            return cls(identity, from_units(tensors["probes"]), *tables)
        except (KeyError, TypeError) as error:
            raise EmbeddingError(f"{path} lacks a part of its format: {error}") from error


def _pack(hashes: Sequence[str]) -> NDArray[np.uint8]:
    return np.frombuffer(bytes.fromhex("".join(hashes)), np.uint8).reshape(-1, 32)


def _unpack(packed: NDArray[np.uint8]) -> tuple[str, ...]:
    return tuple(row.tobytes().hex() for row in packed)


def _count(what: str, ids: Sequence[str]) -> list[str]:
    if not ids:
        return []
    more = ", ..." if len(ids) > 5 else ""
    return [f"{len(ids)} {what}: {', '.join(ids[:5])}{more}"]
