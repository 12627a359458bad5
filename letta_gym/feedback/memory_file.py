"""The file of an outcome memory: its outcomes in one sealed safetensors file.

Task vectors are kept as whole numbers of the grid, half the size and exact. A memory that was saved
and loaded goes on as if nothing had happened, the draws of its reservoirs included.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from letta_gym.config import resolve
from letta_gym.errors import ConfigError, EmbeddingError, MemoryFileError
from letta_gym.feedback.entries import Entries, MemoryConfig
from letta_gym.feedback.evidence import EvidenceConfig
from letta_gym.feedback.memory import OutcomeMemory
from letta_gym.files import write_atomically
from letta_gym.library.vectors import from_units, to_units
from letta_gym.sealed import SealError, Tensors, seal, unseal

FORMAT: Final = "letta_gym.outcome_memory/1"


def save(memory: OutcomeMemory, path: Path | str) -> None:
    """Write ``memory`` atomically: a reader finds the old file or the new one, never a part.

    Raises:
        MemoryFileError: a task vector is not on the grid.
    """
    entries = memory.entries()
    try:
        vectors = to_units(entries.vectors)
    except EmbeddingError as error:
        raise MemoryFileError(f"the memory cannot be written: {error}") from error
    tensors: Tensors = {
        "vectors": vectors,
        "success": entries.success,
        "fit": entries.fit,
        "key": entries.key,
        "note": entries.note,
        "serial": entries.serial,
    }
    header = {
        "format": FORMAT,
        "dimension": memory.dimension,
        "limits": memory.limits.model_dump(mode="json"),
        "keys": list(entries.keys),
        "state": memory.state(),
    }
    write_atomically(path, seal(tensors, header))


def load(
    path: Path | str, config: EvidenceConfig, *, dimension: int | None = None
) -> OutcomeMemory:
    """Read what :func:`save` wrote.

    Args:
        path: the file.
        config: constants of the evidence; they are no part of the file.
        dimension: length that the task vectors must have; None for any.

    Raises:
        MemoryFileError: the file is missing, damaged, of another format or dimension.
    """
    try:
        tensors, header = unseal(Path(path).read_bytes())
    except OSError as error:
        raise MemoryFileError(f"cannot read the outcomes {path}: {error.strerror}") from error
    except SealError as error:
        raise MemoryFileError(
            f"{path} is damaged, or no file of outcomes: {error}; restore it from a copy"
        ) from error
    if header.get("format") != FORMAT:
        raise MemoryFileError(f"{path} must have the format {FORMAT!r}; got {header.get('format')}")
    try:
        entries = Entries(
            tuple(header["keys"]),
            tensors["key"],
            from_units(tensors["vectors"]),
            tensors["success"],
            tensors["fit"],
            tensors["note"],
            tensors["serial"],
        )
        length, limits = int(header["dimension"]), resolve(MemoryConfig, header["limits"])
        memory = OutcomeMemory.restored(length, config, limits, entries, header["state"])
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        raise MemoryFileError(f"{path} lacks or misstates a part: {error}") from error
    if dimension is not None and length != dimension:
        raise MemoryFileError(
            f"{path} holds task vectors of {length} dimensions; expected {dimension}: it was made "
            "with another embedder"
        )
    return memory
