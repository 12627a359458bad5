"""Column types that hold the same on every database."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Dialect, LargeBinary
from sqlalchemy.types import TypeDecorator

from letta_gym.library.vectors import from_units, to_units


class Floats(TypeDecorator[NDArray[np.float32]]):
    """An array of float32, flattened; the bytes are little-endian on every machine."""

    impl = LargeBinary
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> bytes | None:
        """Bytes of an array of any shape."""
        return None if value is None else np.asarray(value, "<f4").tobytes()

    def process_result_value(self, value: Any, dialect: Dialect) -> NDArray[np.float32] | None:
        """The array, shape (n,)."""
        return None if value is None else np.frombuffer(value, "<f4").astype(np.float32)


class Vector(TypeDecorator[NDArray[np.float32]]):
    """A snapped vector, shape (D,), as two bytes a component; what is read has the same bits."""

    impl = LargeBinary
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> bytes | None:
        """Bytes of a vector; :class:`EmbeddingError` when it is not snapped."""
        return None if value is None else to_units(value[None]).astype("<i2").tobytes()

    def process_result_value(self, value: Any, dialect: Dialect) -> NDArray[np.float32] | None:
        """The vector."""
        return None if value is None else from_units(np.frombuffer(value, "<i2").astype(np.int16))
