"""Figures as pixels, drawn with Pillow alone: intervals of several agents, and learning curves.

Lengths are in points, of which a figure is 900 wide; ``scale`` is the number of pixels to a point.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from agents.canvas import (
    ACCENT,
    AXIS,
    GREY,
    GRID,
    INK,
    PALETTE,
    PLAIN,
    TINT,
    WIDTH,
    Canvas,
    Color,
    Point,
    pale,
    widest,
)
from letta_gym.errors import LettaGymError

Curve: TypeAlias = NDArray[np.float64]

MARGIN, CHART_HEIGHT = 30, 460.0


class Surface(Protocol):
    """What a chart is drawn on: a :class:`agents.canvas.Canvas` or a :class:`agents.svg.Svg`."""

    def line(self, points: Sequence[Point], color: Color, width: float) -> None:
        """Draw straight lines from point to point."""
        ...

    def disc(self, centre: Point, radius: float, color: Color) -> None:
        """Draw a filled circle."""
        ...

    def box(self, start: Point, end: Point, color: Color) -> None:
        """Draw a filled box."""
        ...

    def text(
        self, at: Point, text: str, size: int, color: Color, anchor: str, width: float = math.inf
    ) -> None:
        """Write one line of at most ``width`` points."""
        ...


@dataclass(frozen=True, slots=True)
class Row:
    """One line of an interval chart; the numbers are in the chart's unit."""

    name: str
    mean: float
    low: float  # ends of the 95 % interval
    high: float
    highlight: bool = False


def interval_chart(
    rows: Sequence[Row], title: str, unit: str, *, scale: int = 1
) -> NDArray[np.uint8]:
    """Draw one mean with its 95 % interval for each row, top to bottom.

    Returns:
        RGB picture, array, shape (H, 900 * scale, 3)

    Raises:
        LettaGymError: there are no rows, or an interval is not finite or ends before it begins.
    """
    check_rows(rows)
    low = min(min(row.low, row.mean) for row in rows)
    high = max(max(row.high, row.mean) for row in rows)
    resolution = label_resolution(rows)
    means = [number(row.mean, resolution) for row in rows]
    intervals = [f"[{number(r.low, resolution)}, {number(r.high, resolution)}]" for r in rows]

    names_end = MARGIN + min(310.0, widest([row.name for row in rows], 15))
    means_end = WIDTH - MARGIN - widest(intervals, 13) - 12
    axis = Axis.over(low, high, names_end + 32, means_end - widest(means, 15) - 32)
    top, row_height = 96.0, 38.0
    bottom = top + row_height * len(rows)

    canvas = Canvas(bottom + 64, scale)
    draw_heading(canvas, title, "Mean and 95 % interval")
    heights = [top + row_height * (i + 0.5) for i in range(len(rows))]
    for y in (y for y, row in zip(heights, rows, strict=True) if row.highlight):
        canvas.box((MARGIN - 12, y - 17), (WIDTH - MARGIN + 12, y + 17), TINT)
    for mark in axis.marks:
        x = axis(mark)
        canvas.line([(x, top - 2), (x, bottom + 4)], AXIS if mark == 0 else GRID, 1)
    draw_x_labels(canvas, axis, bottom, unit)
    for row, y, mean, interval in zip(rows, heights, means, intervals, strict=True):
        canvas.text((MARGIN, y), row.name, 15, INK, "lm", names_end - MARGIN)
        draw_interval(canvas, axis, row, y)
        canvas.text((means_end, y), mean, 15, ACCENT if row.highlight else INK, "rm")
        canvas.text((WIDTH - MARGIN, y), interval, 13, GREY, "rm")
    return canvas.pixels()


def line_chart(
    series: Mapping[str, tuple[ArrayLike, ArrayLike]],
    title: str,
    x_label: str,
    y_label: str,
    *,
    scale: int = 1,
) -> NDArray[np.uint8]:
    """Draw one curve for each name, and write the name at its end.

    Args:
        series: name to (x, y), array-like of one shape (N,); the curve is broken where a number
            is not finite
        title: what the picture shows
        x_label: quantity and unit of the horizontal axis
        y_label: quantity and unit of the vertical axis
        scale: pixels to a point

    Returns:
        RGB picture, array, shape (460 * scale, 900 * scale, 3)

    Raises:
        LettaGymError: there are no curves or more than eight, or one has no finite point.
    """
    canvas = Canvas(CHART_HEIGHT, scale)
    draw_line_chart(canvas, series, title, x_label, y_label)
    return canvas.pixels()


def draw_line_chart(
    canvas: Surface,
    series: Mapping[str, tuple[ArrayLike, ArrayLike]],
    title: str,
    x_label: str,
    y_label: str,
) -> None:
    """Draw :func:`line_chart` on a picture of :data:`CHART_HEIGHT`."""
    curves = check_curves(series)
    points = np.concatenate([curve[np.isfinite(curve).all(axis=1)] for curve in curves.values()])
    (x_low, y_low), (x_high, y_high) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
    top, bottom = 92.0, 396.0
    y_axis = Axis.over(y_low, y_high, bottom, top)
    names_width = min(230.0, widest(list(curves), 14))
    start = MARGIN + widest(y_axis.labels, 13) + 14
    x_axis = Axis.over(x_low, x_high, start, WIDTH - MARGIN - names_width - 32, tight=True)

    draw_heading(canvas, title, y_label)
    for mark, label in zip(y_axis.marks, y_axis.labels, strict=True):
        color = AXIS if mark == 0 else GRID
        canvas.line([(start, y_axis(mark)), (x_axis.end, y_axis(mark))], color, 1)
        canvas.text((start - 12, y_axis(mark)), label, 13, GREY, "rm")
    canvas.line([(start, bottom), (x_axis.end, bottom)], AXIS, 1)
    for mark in x_axis.marks:
        canvas.line([(x_axis(mark), bottom), (x_axis(mark), bottom + 5)], AXIS, 1)
    draw_x_labels(canvas, x_axis, bottom, x_label)
    draw_curves(canvas, curves, (x_axis, y_axis), names_width)


def draw_heading(canvas: Surface, title: str, subtitle: str) -> None:
    """Write the title and the line below it."""
    canvas.text((MARGIN, 36), title, 21, INK, "ls", WIDTH - 2 * MARGIN)
    canvas.text((MARGIN, 62), subtitle, 14, GREY, "ls", WIDTH - 2 * MARGIN)


def draw_x_labels(canvas: Surface, axis: Axis, bottom: float, title: str) -> None:
    """Write the numbers of a horizontal axis, and its title below them."""
    for mark, label in zip(axis.marks, axis.labels, strict=True):
        canvas.text((axis(mark), bottom + 18), label, 13, GREY, "mm")
    width = axis.end - axis.start
    canvas.text((axis.start + width / 2, bottom + 43), title, 14, GREY, "mm", width)


def draw_interval(canvas: Surface, axis: Axis, row: Row, y: float) -> None:
    """Draw a bar with end caps from low to high, and a disc at the mean."""
    color = ACCENT if row.highlight else PLAIN
    canvas.line([(axis(row.low), y), (axis(row.high), y)], color, 2.4)
    for x in (axis(row.low), axis(row.high)):
        canvas.line([(x, y - 7), (x, y + 7)], color, 2)  # seen beside a disc that hides the bar
    canvas.disc((axis(row.mean), y), 5, color)


def draw_curves(
    canvas: Surface, curves: Mapping[str, Curve], axes: tuple[Axis, Axis], names_width: float
) -> None:
    """Draw the curves, and their names right of the axes, near the heights of their ends."""
    x_axis, y_axis = axes
    ends: list[Point] = []
    for curve, color in zip(curves.values(), PALETTE, strict=False):
        parts = [[(x_axis(x), y_axis(y)) for x, y in part] for part in finite_parts(curve)]
        for part in parts:
            if len(part) > 1:
                canvas.line(part, color, 2.2)
            else:
                canvas.disc(part[0], 2.2, color)
        canvas.disc(parts[-1][-1], 4, color)
        ends.append(parts[-1][-1])
    heights = spread([y for _, y in ends], 20, y_axis.end, y_axis.start)
    for name, (x, y), height, color in zip(curves, ends, heights, PALETTE, strict=False):
        canvas.line([(x + 8, y), (x_axis.end + 26, height)], pale(color), 1)
        canvas.text((x_axis.end + 32, height), name, 14, color, "lm", names_width)


@dataclass(frozen=True, slots=True)
class Axis:
    """A linear map from numbers to points, with marks at round numbers."""

    low: float
    high: float
    start: float  # where low is; points
    end: float  # where high is
    marks: list[float]
    labels: list[str]

    @classmethod
    def over(
        cls, low: float, high: float, start: float, end: float, *, tight: bool = False
    ) -> Axis:
        """Return an axis for the numbers from low to high, with as many marks as have room.

        It reaches from mark to mark; a ``tight`` one only to marks near low and high.
        """
        low, high = widened(low, high)
        length = abs(end - start)
        for intervals in range(
            6, 2 if tight else 0, -1
        ):  # a tight axis of fewer may miss all marks
            step = nice_step(low, high, intervals)
            slack = 0.05 * (high - low) / step if tight else 1 - 1e-9  # in steps
            first, last = math.ceil(low / step - slack), math.floor(high / step + slack)
            marks = [i * step for i in range(first, last + 1)]
            labels = mark_labels(marks, step)
            beside = widest(labels, 13) if start < end else 18  # upright axes stack their numbers
            if len(marks) * (beside + 18) <= length:
                break
        return cls(min(low, marks[0]), max(high, marks[-1]), start, end, marks, labels)

    def __call__(self, value: float) -> float:
        """Return where a number is, in points."""
        share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


def widened(low: float, high: float) -> tuple[float, float]:
    """Return the range, or one around it if it is too narrow to be divided."""
    size = max(abs(low), abs(high))
    if high - low > 1e-9 * size:
        return low, high
    margin = 0.1 * size or 1.0
    return low - margin, high + margin


def nice_step(low: float, high: float, intervals: int) -> float:
    """Return the smallest 1, 2, 2.5 or 5 times a power of ten that needs no more intervals."""
    least = (high - low) / intervals
    power = 10.0 ** math.floor(math.log10(least))
    return next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= least * (1 - 1e-9))


def label_resolution(rows: Sequence[Row]) -> float:
    """Return the last decimal worth writing: a tenth of a typical interval, or finer."""
    widths = [row.high - row.low for row in rows if row.high > row.low]
    size = max(abs(value) for row in rows for value in (row.mean, row.low, row.high)) or 1.0
    typical = max(float(np.median(widths)), 1e-5 * size) if widths else size / 10
    return 10.0 ** math.floor(math.log10(typical / 10) + 1e-9)


def number(value: float, resolution: float) -> str:
    """Return a number with as many decimals as its resolution has; from 1e9 on four digits."""
    scaled = (resolution * 10**d for d in range(10))
    exact = (d for d, x in enumerate(scaled) if abs(x - round(x)) < 1e-6 * x)
    decimals = next(exact, None)
    rough = decimals is None or abs(value) >= 1e9
    text = f"{value:.4g}" if rough else f"{value:,.{decimals}f}"
    return text if text.strip("-0.") else text.removeprefix("-")


def mark_labels(marks: Sequence[float], step: float) -> list[str]:
    """Return the numbers at marks, from ten thousand on in thousands (k), then millions (M)."""
    size = max(abs(mark) for mark in marks)
    unit, suffix = 1.0, ""
    for least, unit_, suffix_ in ((1e4, 1e3, "k"), (1e6, 1e6, "M"), (1e9, 1e9, "G")):
        if size >= least:
            unit, suffix = unit_, suffix_
    return [number(mark / unit, step / unit) + suffix if mark else "0" for mark in marks]


def spread(heights: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move heights as little as needed to lie ``gap`` apart, in their order, from low to high.

    Without its share of the gaps, i * gap, the i-th smallest must not be less than the one before
    it: isotonic regression (Ayer et al., 1955), which pools neighbours that violate the order.
    """
    order = np.argsort(heights, kind="stable")
    blocks: list[list[float]] = []
    for i, index in enumerate(order):
        blocks.append([heights[index] - i * gap])
        while len(blocks) > 1 and np.mean(blocks[-2]) > np.mean(blocks[-1]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    pooled = np.repeat([np.mean(block) for block in blocks], [len(block) for block in blocks])
    moved = np.empty(len(heights))
    steps = gap * np.arange(len(heights))
    moved[order] = np.clip(pooled, low, high - steps[-1]) + steps
    return moved.tolist()


def finite_parts(curve: Curve) -> list[list[Point]]:
    """Return the unbroken runs of finite points of a curve, array, shape (N, 2)."""
    groups = itertools.groupby(curve.tolist(), key=lambda point: all(map(math.isfinite, point)))
    return [[(x, y) for x, y in group] for is_finite, group in groups if is_finite]


def check_rows(rows: Sequence[Row]) -> None:
    """Raise LettaGymError unless there are rows, finite and each with low <= high."""
    if not rows:
        raise LettaGymError("an interval chart needs at least one row; got none")
    for row in rows:
        if not (np.isfinite([row.mean, row.low, row.high]).all() and row.low <= row.high):
            raise LettaGymError(
                f"{row.name}: expected finite numbers with low <= high; "
                f"got mean {row.mean}, interval [{row.low}, {row.high}]"
            )


def check_curves(series: Mapping[str, tuple[ArrayLike, ArrayLike]]) -> dict[str, Curve]:
    """Return each curve as an array, shape (N, 2).

    Raises:
        LettaGymError: there are none or more than colours, or one is malformed or nowhere finite.
    """
    if not 1 <= len(series) <= len(PALETTE):
        raise LettaGymError(
            f"a line chart shows 1 to {len(PALETTE)} curves; got {len(series)}. Draw several charts"
        )
    curves = {}
    for name, pair in series.items():
        x, y = (np.asarray(values, dtype=np.float64) for values in pair)
        if x.ndim != 1 or x.shape != y.shape:
            raise LettaGymError(
                f"{name}: expected x and y of one shape (N,); got {x.shape} and {y.shape}"
            )
        curves[name] = np.stack([x, y], axis=1)
        if not np.isfinite(curves[name]).all(axis=1).any():
            raise LettaGymError(f"{name}: expected at least one point with finite x and y")
    return curves
