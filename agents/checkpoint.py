"""Nested state (arrays and JSON values) as one safetensors file that notices every damaged bit.

The file holds the arrays under their paths (``optimizer/m``) and, in its header, one JSON document:
the SHA-256 of the file (taken with zeros in the digest's place) and the state, in which an array
is ``{"$array": path}``. It is written whole or not at all, and nothing in it is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from letta_gym.errors import CheckpointError
from letta_gym.files import write_atomically

FORMAT_VERSION = 1

_KEY = "letta_gym.checkpoint"
_ARRAY = "$array"
_BLANK = b"sha256:" + b"0" * 64
_DIGEST = re.compile(rb"sha256:([0-9a-f]{64})")  # the first of a file is its own
_DTYPES = frozenset(np.dtype(code) for code in "?bhiqBHIQefd")


def save_checkpoint(path: Path | str, state: Mapping[str, Any]) -> None:
    """Write ``state`` to ``path`` atomically.

    Args:
        path: file to write; an old one stays whole until the new one is complete
        state: nested mappings and lists of arrays and JSON values. Keys are strings without "/".
            Tuples come back as lists, NumPy scalars as Python numbers

    Raises:
        CheckpointError: the state holds something that a checkpoint cannot.
    """
    arrays: dict[str, NDArray[Any]] = {}
    document = {
        "digest": _BLANK.decode(),
        "format_version": FORMAT_VERSION,
        "state": _pack(state, "", arrays),
    }
    data = save_safetensors(arrays, metadata={_KEY: json.dumps(document)})
    digest = hashlib.sha256(data).hexdigest().encode()
    write_atomically(path, data.replace(_BLANK, b"sha256:" + digest, 1))


def load_checkpoint(path: Path | str) -> dict[str, Any]:
    """Return the state that :func:`save_checkpoint` wrote.

    Raises:
        CheckpointError: the file is missing, damaged, or of another format.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read the checkpoint {path}: {error.strerror}") from error
    _check_digest(path, data)
    try:
        header_size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + header_size])
        document = json.loads(header["__metadata__"][_KEY])
        arrays = load_safetensors(data)
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} is not a checkpoint: {error!r}") from error
    if document["format_version"] != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format version {document['format_version']}; expected {FORMAT_VERSION}. "
            "Continue it with the release that wrote it"
        )
    state: dict[str, Any] = _unpack(document["state"], arrays)
    return state


def _check_digest(path: Path | str, data: bytes) -> None:
    found = _DIGEST.search(data)
    if found is None:
        raise CheckpointError(f"{path} is not a checkpoint, or is damaged: it has no digest")
    blank = data[: found.start()] + _BLANK + data[found.end() :]
    actual = hashlib.sha256(blank).hexdigest()
    if actual.encode() != found[1]:
        raise CheckpointError(
            f"{path} is damaged: its SHA-256 is {actual}, expected {found[1].decode()}. "
            "Restore it from a copy, or start a new run"
        )


def _pack(value: Any, path: str, arrays: dict[str, NDArray[Any]]) -> Any:
    """Return ``value`` as JSON, with its arrays moved to ``arrays``."""
    if isinstance(value, np.ndarray):
        if value.dtype not in _DTYPES:
            raise CheckpointError(f"{path}: no checkpoint holds arrays of type {value.dtype}")
        arrays[path] = np.asarray(value, order="C")
        return {_ARRAY: path}
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str) or "/" in key or key == _ARRAY:
                raise CheckpointError(f"{path or 'state'}: {key!r} cannot be a checkpoint's key")
        return {
            key: _pack(item, f"{path}/{key}".lstrip("/"), arrays) for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_pack(item, f"{path}/{i}", arrays) for i, item in enumerate(value)]
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise CheckpointError(f"{path}: expected an array or a JSON value; got {type(value).__name__}")


def _unpack(value: Any, arrays: Mapping[str, NDArray[Any]]) -> Any:
    """Return the inverse of :func:`_pack`."""
    if isinstance(value, list):
        return [_unpack(item, arrays) for item in value]
    if not isinstance(value, dict):
        return value
    if _ARRAY in value:
        return arrays[value[_ARRAY]].copy()  # some releases give read-only views
    return {key: _unpack(item, arrays) for key, item in value.items()}
