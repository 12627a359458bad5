"""Rows of a table kept together by owner, in pages, so that an owner's rows are read at once.

A page is :data:`PAGE` rows of one owner. Only an owner's last page has rows to spare, so a row is
added or taken away without moving others about, and little room is wasted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]
Int = NDArray[np.int64]

PAGE = 8
"""Rows of a page: a table is read page by page, and half of an owner's last page lies idle."""


@dataclass(frozen=True, eq=False, slots=True)
class Plan:
    """How to read some owners' rows.

    Attributes:
        pages: the pages to read, shape (P,); None means all that are in use, in their order.
        order: for the owners one after the other, which of the pages read, shape (Q,).
        starts: where in ``order`` each owner that has pages begins, shape (K,).
        which: position of that owner among those asked for, shape (K,).
    """

    pages: Int | None
    order: Int
    starts: Int
    which: Int

    def combine(self, how: np.ufunc, values: Float) -> Float:
        """Combine what was said of each row that was read, for each owner that has pages.

        Args:
            how: maximum, or add.
            values: shape (2, b, R); of an owner's idle rows it must be what changes nothing.

        Returns:
            shape (2, b, K).
        """
        if self.pages is not None:
            return cast(Float, how.reduceat(values, self.starts * PAGE, axis=2))
        paged = values.reshape(*values.shape[:2], -1, PAGE)
        if values.shape[1] == 1:
            rows = paged.take(self.order, 2).reshape(2, 1, -1)
            return cast(Float, how.reduceat(rows, self.starts * PAGE, axis=2))
        # One place of all pages after the other: NumPy is slow at reducing a short last axis.
        whole = how(paged[..., 0], paged[..., 1])
        for place in range(2, PAGE):
            how(whole, paged[..., place], out=whole)
        return cast(Float, how.reduceat(whole[..., self.order], self.starts, axis=2))


class Pages:
    """Says which rows of a table belong to which owner; owners are small whole numbers.

    Attributes:
        used: pages that the table must have room for.
    """

    def __init__(self) -> None:
        self.used = 0
        self._free: list[int] = []
        self._of: dict[int, list[int]] = {}
        self._count: dict[int, int] = {}

    def count(self, owner: int) -> int:
        """Number of rows of ``owner``."""
        return self._count.get(owner, 0)

    def rows(self, owner: int) -> Int:
        """The rows of ``owner``, shape (n,)."""
        pages = np.array(self._of.get(owner, []), np.int64)
        return (pages[:, None] * PAGE + np.arange(PAGE)).ravel()[: self.count(owner)]

    def append(self, owner: int) -> tuple[int, bool]:
        """A new row of ``owner``, and whether it begins a page."""
        count = self.count(owner)
        fresh = count % PAGE == 0
        if fresh:
            self._of.setdefault(owner, []).append(self._page())
        self._count[owner] = count + 1
        return self._of[owner][-1] * PAGE + count % PAGE, fresh

    def extend(self, owner: int, count: int) -> Int:
        """``count`` rows of an ``owner`` that has none yet, shape (count,)."""
        pages = [self._page() for _ in range(-(-count // PAGE))]
        self._of[owner], self._count[owner] = pages, count
        return self.rows(owner)

    def remove(self, owner: int) -> tuple[int, bool]:
        """Give up the last row of ``owner``: that row, and whether its page is free now."""
        count = self._count[owner] - 1
        pages = self._of[owner]
        row = pages[-1] * PAGE + count % PAGE
        emptied = count % PAGE == 0
        if emptied:
            self._free.append(pages.pop())
        if count:
            self._count[owner] = count
        else:
            del self._count[owner], self._of[owner]
        return row, emptied

    def plan(self, owners: Int) -> Plan:
        """How to read the rows of ``owners`` (n,), some of which may have none.

        All pages are read where half of them are asked for: copying the others out costs more.
        """
        found = [self._of.get(owner, []) for owner in owners.tolist()]
        lengths = np.array([len(pages) for pages in found], np.int64)
        pages = np.array([page for of in found for page in of], np.int64)
        which = np.flatnonzero(lengths)
        starts = (lengths.cumsum() - lengths)[which]
        if 2 * len(pages) >= self.used:
            return Plan(None, pages, starts, which)
        return Plan(pages, np.arange(len(pages)), starts, which)

    def _page(self) -> int:
        if self._free:
            return self._free.pop()
        self.used += 1
        return self.used - 1
