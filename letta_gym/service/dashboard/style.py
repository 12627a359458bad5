"""How the dashboard looks, and the pieces of HTML that it is made of. Every text is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

CSS = Path(__file__).with_suffix(".css")
"""The style sheet."""

UNKNOWN = "\N{EN DASH}"
"""Stands where a figure is not known."""


def cards(*items: tuple[str, str, str]) -> str:
    """Figures side by side: label, figure and a note for each."""
    inside = "".join(
        f'<div class="lg-card"><span class="lg-label">{escape(label)}</span>'
        f"<b>{escape(figure)}</b><small>{escape(note)}</small></div>"
        for label, figure, note in items
    )
    return f'<div class="lg-cards">{inside}</div>'


def empty(title: str, what_to_do: str) -> str:
    """What stands where nothing is yet, and what to do about it."""
    return f'<div class="lg-empty"><strong>{escape(title)}</strong>{escape(what_to_do)}</div>'


def title(text: str) -> str:
    """A small heading."""
    return f'<div class="lg-title">{escape(text)}</div>'


def table(
    columns: Sequence[tuple[str, bool]], rows: Iterable[Sequence[str]], marked: Iterable[int] = ()
) -> str:
    """A table.

    Args:
        columns: heading of each, and whether it holds numbers.
        rows: cells as HTML: escape what is not yours.
        marked: numbers of the rows that stand out.
    """
    chosen = set(marked)

    def cell(tag: str, inside: str, number: bool) -> str:
        return f"<{tag}{' class=lg-num' if number else ''}>{inside}</{tag}>"

    head = "".join(cell("th", escape(name), number) for name, number in columns)
    body = "".join(
        f"<tr{' class=lg-on' if at in chosen else ''}>"
        + "".join(
            cell("td", inside, number) for inside, (_, number) in zip(row, columns, strict=True)
        )
        + "</tr>"
        for at, row in enumerate(rows)
    )
    return f'<div class="lg-scroll"><table class="lg-table"><tr>{head}</tr>{body}</table></div>'


def tag(text: str, kind: str = "") -> str:
    """A word in a frame; ``kind`` is "", "good" or "bad"."""
    return f'<span class="lg-tag {f"lg-{kind}" if kind else ""}">{escape(text)}</span>'


def bar(share: float) -> str:
    """A bar of a length in [0, 1]."""
    return f'<div class="lg-bar"><i style="width:{100 * min(max(share, 0), 1):.0f}%"></i></div>'


def percent(value: float | None) -> str:
    """A share."""
    return UNKNOWN if value is None else f"{100 * value:.0f} %"


def signed(value: float | None) -> str:
    """A difference of shares, in percentage points."""
    return UNKNOWN if value is None else f"{100 * value:+.0f} pp"


def number(value: float | None) -> str:
    """A number of things."""
    return UNKNOWN if value is None else f"{value:,.0f}"


def mean(value: Mapping[str, Any]) -> str:
    """A mean with its interval."""
    if not value["count"]:
        return UNKNOWN
    low, high = 100 * value["low"], 100 * value["high"]
    return f"{100 * value['mean']:.0f} % ({low:.0f} to {high:.0f})"
