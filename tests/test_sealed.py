"""Sealed files: readable by any safetensors reader, closed to any change."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load

from letta_gym.sealed import SealError, digest_of, seal, unseal

TENSORS: dict[str, NDArray[Any]] = {
    "bytes": np.arange(3, dtype=np.uint8),
    "matrix": np.arange(6, dtype=np.float32).reshape(2, 3),
    "units": np.array([-1, 300], np.int16),
    "empty": np.zeros((0, 4), np.float32),
    "scalar": np.array(2.5, np.float32),
}
HEADER = {"name": "Zürich", "values": [1, 2.5, None]}


def test_tensors_and_header_come_back() -> None:
    tensors, header = unseal(seal(TENSORS, HEADER))
    assert header == HEADER
    assert set(tensors) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert np.array_equal(tensors[name], tensor)
        assert tensors[name].shape == tensor.shape


def test_a_sealed_file_is_an_ordinary_safetensors_file() -> None:
    assert np.array_equal(load(seal(TENSORS, HEADER))["matrix"], TENSORS["matrix"])


def test_the_digest_is_the_sha256_of_the_bytes_with_its_own_place_blanked() -> None:
    data = seal(TENSORS, HEADER)
    digest = digest_of(data)
    assert hashlib.sha256(data.replace(digest.encode(), b"0" * 64)).hexdigest() == digest


def test_the_order_of_names_and_the_memory_layout_do_not_matter() -> None:
    turned = {name: np.asfortranarray(t) for name, t in reversed(TENSORS.items())}
    turned["scalar"] = TENSORS["scalar"]
    assert seal(turned, dict(reversed(HEADER.items()))) == seal(TENSORS, HEADER)


def test_every_kind_of_change_is_noticed() -> None:
    data = seal(TENSORS, HEADER)
    for position in range(len(data)):
        for bit in range(8):
            damaged = bytearray(data)
            damaged[position] ^= 1 << bit
            with pytest.raises(SealError):
                unseal(bytes(damaged))
    for changed in [b"", data[:7], data[:-1], data + b"\0", data[8:], b"\xff" * 100]:
        with pytest.raises(SealError):
            unseal(changed)


def test_a_safetensors_file_without_a_seal_is_refused() -> None:
    data = seal(TENSORS, HEADER)
    size = int.from_bytes(data[:8], "little")
    entries = json.loads(data[8 : 8 + size])
    del entries["__metadata__"]
    head = json.dumps(entries).encode().ljust(size)
    with pytest.raises(SealError, match="no sealed header"):
        unseal(data[:8] + head + data[8 + size :])


def test_other_dtypes_and_headers_that_are_not_json_are_refused() -> None:
    with pytest.raises(SealError, match="float64"):
        seal({"x": np.zeros(2)}, {})
    with pytest.raises(SealError, match="not JSON"):
        seal({}, {"x": float("nan")})
    with pytest.raises(SealError, match="not JSON"):
        seal({}, {"x": object()})
