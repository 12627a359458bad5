"""Charts: what is drawn is where the numbers say, and nothing covers anything else."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any, TypeAlias
from xml.etree import ElementTree

import numpy as np
import pytest
from numpy.typing import NDArray

from agents.canvas import ACCENT, PALETTE, PLAIN, WIDTH, Canvas, shortened, text_width
from agents.canvas import font as canvas_font
from agents.chart import (
    CHART_HEIGHT,
    Axis,
    Row,
    draw_line_chart,
    interval_chart,
    line_chart,
    nice_step,
    number,
    spread,
)
from agents.svg import Svg
from letta_gym.errors import LettaGymError

Picture: TypeAlias = NDArray[np.uint8]
Box: TypeAlias = tuple[float, float, float, float]

SVG = "{http://www.w3.org/2000/svg}"
LONG = "learned with rehearsal, averaged weights (EMA 0.99) and a very long name indeed"


def plain_rows(means: list[float], half_width: float = 0.1) -> list[Row]:
    return [Row(f"agent {i}", m, m - half_width, m + half_width) for i, m in enumerate(means)]


def columns(picture: Picture, color: tuple[int, int, int], rows: slice) -> NDArray[np.intp]:
    """Return the columns that hold a colour within some rows of pixels."""
    return np.flatnonzero((picture[rows] == color).all(axis=2).any(axis=0))


def band(i: int, half_height: int) -> slice:
    """Return the rows of pixels around the middle of the i-th line of an interval chart."""
    middle = 96 + 38 * i + 19
    return slice(middle - half_height, middle + half_height + 1)


AWKWARD: dict[str, Callable[[], Picture]] = {
    "one row": lambda: interval_chart([Row("a", -0.12, -0.31, 0.07, True)], "One", "return"),
    "ten rows": lambda: interval_chart(plain_rows([i - 5.0 for i in range(10)]), "Ten", "return"),
    "long names": lambda: interval_chart(
        [Row(f"{LONG} {i}", i, i - 1, i + 1) for i in range(3)], LONG * 3, LONG * 3
    ),
    "line breaks": lambda: interval_chart([Row("two\nlines", 1, 0, 2)], "a\nb", "c\n\nd"),
    "no width": lambda: interval_chart([Row("a", 1, 1, 1), Row("b", 1, 1, 1)], "Flat", "success"),
    "zeros": lambda: interval_chart([Row("a", 0, 0, 0)], "Nothing", "success"),
    "large": lambda: interval_chart(
        [Row(LONG, -987654321.5, -999999999.25, 123456789.125)], "Large", "tokens"
    ),
    "huge": lambda: interval_chart([Row(LONG, 1e30, -1e30, 2e30)], "Huge", "tokens"),
    "tiny": lambda: interval_chart([Row("a", 1e-12, 0, 2e-12)], "Tiny", "seconds"),
    "far from zero": lambda: interval_chart([Row("a", 1e6, 1e6 - 1, 1e6 + 1)], "Far", "tokens"),
    "eight curves that end alike": lambda: line_chart(
        {f"{LONG} {i}": ([0, 1, 2], [i, 1, 1]) for i in range(8)}, LONG * 3, LONG * 3, LONG * 3
    ),
    "eight curves that end low": lambda: line_chart(
        {f"{i}": ([0, 1e7], [i, -1000.0]) for i in range(8)}, "Low", "decisions", "return"
    ),
    "one point": lambda: line_chart({"a": ([3], [3])}, "Point", "x", "y"),
    "steps far from zero": lambda: line_chart(
        {"a": ([1e6, 1e6 + 5], [1e6, 1e6 + 3])}, "Far", "x", "y"
    ),
}


@pytest.mark.parametrize("draw", AWKWARD.values(), ids=AWKWARD.keys())
def test_no_text_covers_another_or_leaves_the_picture(
    draw: Callable[[], Picture], monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[tuple[str, Box]] = []
    original = Canvas.text

    def text(
        self: Canvas,
        at: Any,
        text: str,
        size: int,
        color: Any,
        anchor: str,
        width: float = math.inf,
    ) -> None:
        line = shortened(text, size, width)
        box = canvas_font(size * 3).getbbox(line, anchor=anchor)
        left, top, right, bottom = (float(edge) / 3 for edge in box)
        written.append((line, (at[0] + left, at[1] + top, at[0] + right, at[1] + bottom)))
        original(self, at, text, size, color, anchor, width)

    monkeypatch.setattr(Canvas, "text", text)
    height = draw().shape[0]

    for line, (left, top, right, bottom) in written:
        assert 8 <= left <= right <= WIDTH - 8, line
        assert 4 <= top <= bottom <= height - 4, line
    for (line, a), (other, b) in itertools.combinations(written, 2):
        apart = a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
        assert apart, f"{line!r} covers {other!r}"


def test_discs_lie_in_proportion_to_the_means() -> None:
    picture = interval_chart(plain_rows([-2.0, 0.0, 1.0], half_width=0), "Title", "unit")
    at = [columns(picture, PLAIN, band(i, 3)).mean() for i in range(3)]
    assert at[1] - at[0] == pytest.approx(2 * (at[2] - at[1]), abs=1)
    assert at[2] - at[1] > 50


def test_a_bar_reaches_from_low_to_high() -> None:
    rows = [Row("wide", 0, -3, 1), Row("left", -3, -3, -3), Row("right", 1, 1, 1)]
    picture = interval_chart(rows, "Title", "unit")
    wide, left, right = (columns(picture, PLAIN, band(i, 6)) for i in range(3))
    assert wide[0] == pytest.approx(left.mean(), abs=2)
    assert wide[-1] == pytest.approx(right.mean(), abs=2)
    assert np.diff(wide).max() == 1  # without a gap


def test_only_the_highlighted_row_has_the_accent_colour() -> None:
    rows = [Row("a", 1, 0, 2), Row("b", 1, 0, 2, highlight=True), Row("c", 1, 0, 2)]
    picture = interval_chart(rows, "Title", "unit")
    assert [columns(picture, ACCENT, band(i, 15)).size > 0 for i in range(3)] == [
        False,
        True,
        False,
    ]
    assert [columns(picture, PLAIN, band(i, 15)).size > 0 for i in range(3)] == [True, False, True]


@pytest.mark.parametrize("scale", [1, 2])
def test_a_picture_has_scale_pixels_to_a_point(scale: int) -> None:
    picture = interval_chart(plain_rows([1.0, 2.0]), "Title", "unit", scale=scale)
    curves = line_chart({"a": ([0, 1], [0, 1])}, "Title", "x", "y", scale=scale)
    assert picture.dtype == curves.dtype == np.uint8
    assert picture.shape == ((96 + 2 * 38 + 64) * scale, 900 * scale, 3)
    assert curves.shape == (460 * scale, 900 * scale, 3)


def test_the_same_numbers_give_the_same_pixels() -> None:
    first, second = (interval_chart(plain_rows([1.0, 2.0]), "Title", "unit") for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_a_curve_is_broken_where_a_number_is_not_finite() -> None:
    y = np.zeros(11)
    whole = line_chart({"a": (np.arange(11), y)}, "Title", "x", "y")
    y[4:7] = np.nan, np.inf, np.nan
    broken = line_chart({"a": (np.arange(11), y)}, "Title", "x", "y")
    middle = slice(236, 253)  # y = 0 is half way up
    kept = columns(broken, PALETTE[0], middle)
    all_columns = columns(whole, PALETTE[0], middle)
    gap = np.setdiff1d(all_columns, kept)
    # From x = 3 to x = 7 of 10, and the label is no part of it.
    assert gap.size == pytest.approx(0.4 * (all_columns[all_columns < 800].size), rel=0.05)
    assert np.diff(gap).max() == 1


def test_each_curve_and_its_name_have_a_colour_of_their_own() -> None:
    picture = line_chart({"up": ([0, 1], [0, 1]), "down": ([0, 1], [1, 0])}, "Title", "x", "y")
    for color, (top, bottom) in zip(PALETTE[:2], [(80, 110), (380, 410)], strict=True):
        name = (picture[top:bottom, 820:] == color).all(axis=2)
        assert name.any()
    assert not (picture == PALETTE[2]).all(axis=2).any()


@pytest.mark.parametrize(
    ("low", "high", "step"),
    [(0, 1, 0.2), (0, 6, 1), (-3, 9, 2), (0, 150, 25), (0, 2.9e-5, 5e-6), (1e6, 1e6 + 30, 5)],
)
def test_steps_are_round_numbers(low: float, high: float, step: float) -> None:
    assert nice_step(low, high, 6) == pytest.approx(step)


@pytest.mark.parametrize("tight", [False, True])
@pytest.mark.parametrize(("low", "high"), [(-0.31, 0.07), (3, 3), (0, 0), (12, 99_000), (-5, -4.9)])
def test_an_axis_holds_its_numbers_and_tells_its_marks_apart(
    low: float, high: float, tight: bool
) -> None:
    axis = Axis.over(low, high, 100, 700, tight=tight)
    assert 100 <= axis(low) <= axis(high) <= 700
    assert all(100 - 1e-6 <= axis(mark) <= 700 + 1e-6 for mark in axis.marks)
    assert 2 <= len(set(axis.labels)) == len(axis.labels) <= 8
    if not tight:
        assert (axis(axis.marks[0]), axis(axis.marks[-1])) == pytest.approx((100, 700))


def test_marks_from_ten_thousand_on_are_written_in_thousands() -> None:
    assert Axis.over(0, 20_000, 0, 700).labels == ["0", "5k", "10k", "15k", "20k"]
    assert Axis.over(0, 8_000, 0, 700).labels == ["0", "2,000", "4,000", "6,000", "8,000"]


@pytest.mark.parametrize(
    ("value", "resolution", "text"),
    [
        (0.8071, 0.001, "0.807"),
        (-0.0004, 0.001, "0.000"),
        (-1.26, 0.1, "-1.3"),
        (18250.4, 100, "18,250"),
        (0.25, 0.25, "0.25"),
        (1.5e-12, 1e-13, "1.5e-12"),
    ],
)
def test_numbers_have_the_decimals_of_their_resolution(
    value: float, resolution: float, text: str
) -> None:
    assert number(value, resolution) == text


def test_names_at_one_height_are_spread_around_it() -> None:
    assert spread([100, 100, 100], 20, 0, 400) == pytest.approx([80, 100, 120])
    assert spread([300, 50], 20, 0, 400) == [300, 50]  # far enough apart already
    assert spread([399, 400], 20, 0, 400) == pytest.approx([380, 400])  # none leaves the picture


def test_spread_heights_keep_order_and_gap() -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        heights = rng.uniform(90, 400, 8)
        moved = np.array(spread(heights.tolist(), 20, 90, 400))
        order = np.argsort(heights)
        assert np.diff(moved[order]).min() >= 20 - 1e-9
        assert moved.min() >= 90 - 1e-9
        assert moved.max() <= 400 + 1e-9


def test_a_long_text_loses_its_middle_and_keeps_its_ends() -> None:
    text = shortened("learned with rehearsal, seed 12", 15, 120)
    assert text_width(text, 15) <= 121
    assert text.startswith("learned")
    assert text.endswith("seed 12")
    assert "..." in text


def test_letters_that_the_font_lacks_are_replaced() -> None:
    assert shortened("caf\u00e9 \u2212 1\u20132", 15, math.inf) == "cafe - 1-2"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (Row("bad", math.nan, 0, 1), "bad: expected finite numbers"),
        (Row("bad", 0, -math.inf, 1), "bad: expected finite numbers"),
        (Row("bad", 1, 2, 0), "low <= high"),
    ],
)
def test_an_impossible_interval_is_refused_by_name(row: Row, message: str) -> None:
    with pytest.raises(LettaGymError, match=message):
        interval_chart([Row("good", 1, 0, 2), row], "Title", "unit")


def test_a_chart_without_rows_is_refused() -> None:
    with pytest.raises(LettaGymError, match="at least one row"):
        interval_chart([], "Title", "unit")


@pytest.mark.parametrize(
    ("series", "message"),
    [
        ({}, "1 to 8 curves; got 0"),
        ({str(i): ([0], [0]) for i in range(9)}, "1 to 8 curves; got 9"),
        ({"bad": ([0, 1], [0])}, "bad: expected x and y of one shape"),
        ({"bad": ([[0, 1]], [[0, 1]])}, "bad: expected x and y of one shape"),
        ({"good": ([0], [0]), "bad": ([0, 1], [math.nan, math.inf])}, "bad: expected at least one"),
        ({"bad": ([], [])}, "bad: expected at least one"),
    ],
)
def test_impossible_curves_are_refused(series: dict[str, Any], message: str) -> None:
    with pytest.raises(LettaGymError, match=message):
        line_chart(series, "Title", "x", "y")


def test_a_scale_below_one_is_refused() -> None:
    with pytest.raises(LettaGymError, match="at least 1; got 0"):
        interval_chart(plain_rows([1.0]), "Title", "unit", scale=0)


def test_a_chart_as_svg_holds_the_curves_and_the_names() -> None:
    picture = Svg(CHART_HEIGHT)
    draw_line_chart(picture, {"a & b": ([0, 1], [0, 1]), "c": ([0, 1], [1, 0])}, "T", "x", "y")
    root = ElementTree.fromstring(picture.source())
    texts = {text.text: text for text in root.iter(f"{SVG}text")}
    curves = [
        line.attrib["points"].split()
        for line in root.iter(f"{SVG}polyline")
        if line.attrib["stroke-width"] == "2.2"
    ]

    assert {"a & b", "c", "T", "x", "y"} <= set(texts)
    (up, down) = ([tuple(map(float, point.split(","))) for point in curve] for curve in curves)
    assert up[0][0] == down[0][0] < up[1][0] == down[1][0]
    assert up[0][1] == down[1][1] > up[1][1] == down[0][1]
    assert {texts["a & b"].attrib["fill"], texts["c"].attrib["fill"]} == {
        f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in PALETTE[:2]
    }
