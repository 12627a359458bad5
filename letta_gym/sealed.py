"""Tensors with a header in one safetensors file, sealed with a digest of every byte.

The safetensors format has no checksum: most flipped bits load as other numbers. A sealed file is an
ordinary safetensors file whose metadata holds one string, ``letta_gym``: the JSON of
``{"header": ..., "sha256": ...}``. The digest is SHA-256 over the whole file with its own 64
characters written as zeros, so nothing in the file, padding included, can change unnoticed.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors

_KEY = "letta_gym"
_BLANK = "0" * 64
_DTYPES = {"float32": "F32", "int64": "I64", "int16": "I16", "uint8": "U8"}

Tensors = Mapping[str, NDArray[Any]]


class SealError(ValueError):
    """The bytes are not a sealed file, or not the bytes that were sealed."""


def seal(tensors: Tensors, header: Mapping[str, Any]) -> bytes:
    """Serialise ``tensors`` (float32, int64, int16 or uint8) and the JSON-able ``header``.

    The same content gives the same bytes on every machine. The layout is written here because the
    digest must not depend on the version of a library that is free to order metadata as it likes.

    Raises:
        SealError: a tensor has another dtype, or the header is not JSON (NaN is not).
    """
    blank = _serialise(tensors, _metadata(header, _BLANK))
    digest = hashlib.sha256(blank).hexdigest()
    return _serialise(tensors, _metadata(header, digest))


def unseal(data: bytes) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Return the tensors and the header of sealed ``data``.

    Raises:
        SealError: any byte differs from what :func:`seal` wrote.
    """
    header, digest = _read_metadata(data)
    size = _header_size(data)
    head = data[:size]
    if head.count(digest.encode()) != 1:
        raise SealError("the digest does not stand exactly once in the header")
    content = hashlib.sha256(head.replace(digest.encode(), _BLANK.encode()))
    content.update(memoryview(data)[size:])
    if content.hexdigest() != digest:
        raise SealError(f"the content has SHA-256 {content.hexdigest()}, the file says {digest}")
    try:
        return load_tensors(data), header
    except (SafetensorError, ValueError, KeyError) as error:
        raise SealError(f"not a safetensors file: {error}") from error


def digest_of(data: bytes) -> str:
    """SHA-256 that sealed ``data`` carries, in hexadecimal.

    Raises:
        SealError: ``data`` has no seal.
    """
    return _read_metadata(data)[1]


def _metadata(header: Mapping[str, Any], digest: str) -> str:
    try:
        return json.dumps(
            {"header": dict(header), "sha256": digest}, sort_keys=True, allow_nan=False
        )
    except (TypeError, ValueError) as error:
        raise SealError(f"the header is not JSON: {error}") from error


def _serialise(tensors: Tensors, metadata: str) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {_KEY: metadata}}
    chunks: list[bytes] = []
    offset = 0
    # Wide elements first keeps every tensor aligned, as the format asks for.
    for name in sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name)):
        tensor = tensors[name]
        if tensor.dtype.name not in _DTYPES:
            raise SealError(f"tensor {name!r} is {tensor.dtype}; expected one of {list(_DTYPES)}")
        chunk = tensor.astype(tensor.dtype.newbyteorder("<")).tobytes()
        entries[name] = {
            "dtype": _DTYPES[tensor.dtype.name],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + len(chunk)],
        }
        chunks.append(chunk)
        offset += len(chunk)
    head = json.dumps(entries, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    return struct.pack("<Q", len(head)) + head + b"".join(chunks)


def _header_size(data: bytes) -> int:
    if len(data) < 8:
        raise SealError(f"{len(data)} bytes is too short for a safetensors file")
    return 8 + int(struct.unpack_from("<Q", data)[0])


def _read_metadata(data: bytes) -> tuple[dict[str, Any], str]:
    try:
        entries = json.loads(data[8 : _header_size(data)])
        seal_ = json.loads(entries["__metadata__"][_KEY])
        header, digest = seal_["header"], seal_["sha256"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise SealError(f"no sealed header: {type(error).__name__}: {error}") from error
    if not isinstance(header, dict) or not isinstance(digest, str) or len(digest) != len(_BLANK):
        raise SealError("the sealed header has another form")
    return header, digest
