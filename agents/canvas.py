"""A picture to draw on, with Pillow alone: smooth lines and shapes, text that fits, colours.

Lengths are in points, of which a picture is 900 wide; ``scale`` is the number of pixels to a point.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from letta_gym.errors import LettaGymError

Color: TypeAlias = tuple[int, int, int]
Point: TypeAlias = tuple[float, float]

WIDTH = 900

WHITE: Color = (255, 255, 255)
INK: Color = (23, 29, 41)
GREY: Color = (94, 104, 122)
GRID: Color = (228, 231, 237)
AXIS: Color = (150, 159, 174)
PLAIN: Color = (104, 120, 146)
ACCENT: Color = (199, 74, 10)
TINT: Color = (253, 243, 236)
PALETTE: tuple[Color, ...] = (  # told apart by the colour-blind too, and legible as text
    (199, 74, 10),
    (0, 105, 170),
    (0, 128, 98),
    (170, 72, 133),
    (146, 104, 0),
    (23, 29, 41),
    (116, 84, 196),
    (20, 140, 165),
)

ELLIPSIS = "..."
_HYPHENS = str.maketrans(dict.fromkeys("\N{MINUS SIGN}\N{EN DASH}\N{EM DASH}", "-"))
_OVERSAMPLING = 3  # Pillow's shapes have jagged edges; shrinking the picture smooths them


class Canvas:
    """A white picture, 900 points wide, for shapes and text with smooth edges."""

    def __init__(self, height: float, scale: int) -> None:
        if scale < 1:
            raise LettaGymError(
                f"scale is the number of pixels to a point, at least 1; got {scale}"
            )
        self._unit = scale * _OVERSAMPLING
        size = (WIDTH * self._unit, math.ceil(height) * self._unit)
        self._image = Image.new("RGB", size, WHITE)
        self._draw = ImageDraw.Draw(self._image)

    def line(self, points: Sequence[Point], color: Color, width: float) -> None:
        """Draw straight lines from point to point, with round joints."""
        at = [self._at(point) for point in points]
        self._draw.line(at, color, round(width * self._unit), joint="curve")

    def disc(self, centre: Point, radius: float, color: Color) -> None:
        """Draw a filled circle."""
        self._draw.circle(self._at(centre), radius * self._unit, color)

    def box(self, start: Point, end: Point, color: Color) -> None:
        """Draw a filled box with rounded corners."""
        self._draw.rounded_rectangle((self._at(start), self._at(end)), 6 * self._unit, color)

    def text(
        self, at: Point, text: str, size: int, color: Color, anchor: str, width: float = math.inf
    ) -> None:
        """Write one line, shortened in its middle to ``width`` points.

        ``anchor`` says, in Pillow's two letters, which point of the line ``at`` is.
        """
        line = shortened(text, size, width)
        self._draw.text(self._at(at), line, color, font(size * self._unit), anchor)

    def pixels(self) -> NDArray[np.uint8]:
        """Return the picture, array, shape (H, W, 3)."""
        return np.array(self._image.reduce(_OVERSAMPLING), dtype=np.uint8)

    def _at(self, point: Point) -> Point:
        return point[0] * self._unit, point[1] * self._unit


def pale(color: Color) -> Color:
    """Return a light tint of a colour."""
    red, green, blue = (255 - (255 - part) * 2 // 5 for part in color)
    return red, green, blue


@lru_cache(maxsize=32)
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return Pillow's own font."""
    return ImageFont.load_default(size)


def text_width(text: str, size: int) -> float:
    """Return the width of one line in points."""
    return font(size * _OVERSAMPLING).getlength(text) / _OVERSAMPLING


def widest(texts: Sequence[str], size: int) -> float:
    """Return the width of the longest of some lines in points."""
    return max((text_width(one_line(text), size) for text in texts), default=0.0)


def one_line(text: str) -> str:
    """Return the text with single blanks for white space, in letters that the font has.

    Pillow's font knows little more than ASCII: accents and ligatures are taken apart, dashes and
    the minus sign become hyphens.
    """
    letters = unicodedata.normalize("NFKD", text).translate(_HYPHENS)
    return " ".join("".join(c for c in letters if not unicodedata.combining(c)).split())


def shortened(text: str, size: int, width: float) -> str:
    """Return the text as one line of at most ``width`` points, without its middle if need be."""
    line = one_line(text)
    if text_width(line, size) <= width + 0.1:
        return line
    shorter = (cut(line, kept) for kept in range(len(line) - 1, 0, -1))
    return next((text for text in shorter if text_width(text, size) <= width), ELLIPSIS)


def cut(line: str, kept: int) -> str:
    """Return the line with an ellipsis for all but ``kept`` characters at its two ends."""
    return line[: kept - kept // 2].rstrip() + ELLIPSIS + line[len(line) - kept // 2 :].lstrip()
