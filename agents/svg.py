"""A picture to draw on like :class:`agents.canvas.Canvas`, in which lines and text stay such."""

from __future__ import annotations

import math
from collections.abc import Sequence
from xml.sax.saxutils import escape

from agents.canvas import WHITE, WIDTH, Color, Point, shortened

_ANCHORS = {"l": "start", "m": "middle", "r": "end"}


class Svg:
    """A white picture, 900 points wide, in Scalable Vector Graphics."""

    def __init__(self, height: float) -> None:
        self._size = f"{WIDTH} {math.ceil(height)}"
        self._parts = [f'<rect width="100%" height="100%" fill="{_color(WHITE)}"/>']

    def line(self, points: Sequence[Point], color: Color, width: float) -> None:
        """Draw straight lines from point to point, with round joints."""
        at = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self._parts.append(
            f'<polyline points="{at}" fill="none" stroke="{_color(color)}" '
            f'stroke-width="{width:g}" stroke-linejoin="round"/>'
        )

    def disc(self, centre: Point, radius: float, color: Color) -> None:
        """Draw a filled circle."""
        x, y = centre
        self._parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" fill="{_color(color)}"/>'
        )

    def box(self, start: Point, end: Point, color: Color) -> None:
        """Draw a filled box with rounded corners."""
        (x, y), (right, bottom) = start, end
        self._parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{right - x:.1f}" height="{bottom - y:.1f}" '
            f'rx="6" fill="{_color(color)}"/>'
        )

    def text(
        self, at: Point, text: str, size: int, color: Color, anchor: str, width: float = math.inf
    ) -> None:
        """Write one line, shortened in its middle to ``width`` points; ``anchor`` as Pillow's."""
        x, y = at
        down = 0.35 * size if anchor[1] == "m" else 0.0
        self._parts.append(
            f'<text x="{x:.1f}" y="{y + down:.1f}" font-size="{size}" fill="{_color(color)}" '
            f'text-anchor="{_ANCHORS[anchor[0]]}">{escape(shortened(text, size, width))}</text>'
        )

    def source(self) -> str:
        """Return the picture as text."""
        parts = "\n".join(self._parts)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self._size}" role="img" '
            f'font-family="system-ui, sans-serif">\n{parts}\n</svg>\n'
        )


def _color(color: Color) -> str:
    return "#{:02x}{:02x}{:02x}".format(*color)
