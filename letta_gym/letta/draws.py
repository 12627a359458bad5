"""A session's randomness, drawn in one block and handed out by name.

Drawing everything at reset makes a trajectory independent of how many sessions are stepped at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

Draws = Mapping[str, NDArray[np.float64]]


class Layout:
    """Names and lengths of a block's parts; names that end in ``_normal`` are standard normal."""

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self._parts = {
            normal: [(n, k) for n, k in sizes.items() if n.endswith("_normal") == normal]
            for normal in (False, True)
        }

    def draw(self, generators: Sequence[np.random.Generator]) -> dict[str, NDArray[np.float64]]:
        """One block from each generator: name -> array, shape (generators, length)."""
        uniform = np.empty((len(generators), self._size(False)))
        normal = np.empty((len(generators), self._size(True)))
        for g, u, z in zip(generators, uniform, normal, strict=True):
            g.random(out=u)
            g.standard_normal(out=z)
        return self._split(uniform, False) | self._split(normal, True)

    def _size(self, normal: bool) -> int:
        return sum(length for _, length in self._parts[normal])

    def _split(self, block: NDArray[np.float64], normal: bool) -> dict[str, NDArray[np.float64]]:
        parts = self._parts[normal]
        ends = list(accumulate(length for _, length in parts))
        return {
            name: block[:, end - length : end]
            for (name, length), end in zip(parts, ends, strict=True)
        }


def between(bounds: tuple[float, float], uniform: NDArray[np.float64]) -> NDArray[np.float32]:
    """Map uniforms in [0, 1) to the interval ``bounds``."""
    low, high = bounds
    return (low + (high - low) * uniform).astype(np.float32)
