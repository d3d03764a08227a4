"""The pen: draws flat shapes given in a thing's own 0..100 coordinates onto a tilted, zoomed picture.

Everything becomes a polygon with whole-number corners, so that tilting needs no resampling and the bytes do not
depend on the platform. With ``flat`` set, every shape takes that one value: the mask from which boxes and visibility
are measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from PIL import ImageDraw

from mmslm.data.scenes.palette import RGB, shade
from mmslm.data.scenes.pixelfont import HEIGHT, strokes

Points = Sequence[tuple[float, float]]


@lru_cache(maxsize=16)
def _circle(corners: int) -> tuple[tuple[float, float], ...]:
    return tuple((math.cos(2 * math.pi * k / corners), math.sin(2 * math.pi * k / corners)) for k in range(corners))


class Pen:
    """Draws on ``image`` (side x side pixels). ``tilt`` in degrees, ``zoom`` about the middle, ``shift`` in 0..1."""

    def __init__(
        self,
        draw: ImageDraw.ImageDraw,
        side: int,
        tilt: float = 0.0,
        zoom: float = 1.0,
        shift: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        self.draw = draw
        self.side = side
        self.flat: int | None = None
        angle = math.radians(tilt)
        self._cos = math.cos(angle) * zoom * side
        self._sin = math.sin(angle) * zoom * side
        self._cx = (0.5 + shift[0]) * side
        self._cy = (0.5 + shift[1]) * side
        self._edge = max(1, round(side * 0.008))
        self.place((0.0, 0.0, 1.0, 1.0))

    def place(self, box: tuple[float, float, float, float], flip: bool = False) -> None:
        """From now on 0..100 means this box of the picture; ``flip`` mirrors left and right."""
        left, top, right, bottom = box
        su, sv = (right - left) / 100, (bottom - top) / 100
        if flip:
            left, su = right, -su
        left -= 0.5
        top -= 0.5
        cos, sin = self._cos, self._sin
        self._a, self._b = cos * su, -sin * sv
        self._c = self._cx + cos * left - sin * top
        self._d, self._e = sin * su, cos * sv
        self._f = self._cy + sin * left + cos * top
        self.mirrored = flip
        self.aspect = abs(su) / sv if sv else 1.0

    def _map(self, points: Points) -> list[tuple[int, int]]:
        a, b, c, d, e, f = self._a, self._b, self._c, self._d, self._e, self._f
        return [(round(a * u + b * v + c), round(d * u + e * v + f)) for u, v in points]

    def poly(self, points: Points, fill: RGB, edge: bool = False) -> None:
        """A filled polygon; ``edge`` adds an outline in a darker tone."""
        corners = self._map(points)
        ink: Any = fill if self.flat is None else self.flat
        self.draw.polygon(corners, fill=ink)
        if edge and self.flat is None:
            self.draw.line([*corners, corners[0], corners[1]], fill=shade(fill, 55), width=self._edge)

    def rect(self, x0: float, y0: float, x1: float, y1: float, fill: RGB, edge: bool = False) -> None:
        """A filled box."""
        self.poly(((x0, y0), (x1, y0), (x1, y1), (x0, y1)), fill, edge)

    def round_rect(self, x0: float, y0: float, x1: float, y1: float, r: float, fill: RGB, edge: bool = False) -> None:
        """A filled box with cut corners; ``r`` in local units of the width."""
        s = r * self.aspect
        self.poly(
            (
                (x0 + r, y0), (x1 - r, y0), (x1 - 0.3 * r, y0 + 0.3 * s), (x1, y0 + s),
                (x1, y1 - s), (x1 - 0.3 * r, y1 - 0.3 * s), (x1 - r, y1), (x0 + r, y1),
                (x0 + 0.3 * r, y1 - 0.3 * s), (x0, y1 - s), (x0, y0 + s), (x0 + 0.3 * r, y0 + 0.3 * s),
            ),
            fill,
            edge,
        )  # fmt: skip

    def oval(self, x0: float, y0: float, x1: float, y1: float, fill: RGB, edge: bool = False) -> None:
        """A filled ellipse inside a box."""
        rx, ry, mx, my = (x1 - x0) / 2, (y1 - y0) / 2, (x0 + x1) / 2, (y0 + y1) / 2
        pixels = max(abs(rx * self._a) + abs(ry * self._b), abs(rx * self._d) + abs(ry * self._e))
        corners = 10 if pixels < 8 else 20 if pixels < 40 else 48
        self.poly([(mx + rx * x, my + ry * y) for x, y in _circle(corners)], fill, edge)

    def line(self, points: Points, width: float, fill: RGB) -> None:
        """An open line; ``width`` in local units of the height, at least one pixel."""
        pixels = max(1, round(width * math.hypot(self._b, self._e)))
        corners = self._map(points)
        ink: Any = fill if self.flat is None else self.flat
        self.draw.line(corners, fill=ink, width=pixels, joint="curve" if pixels > 5 and len(corners) > 2 else None)

    def ring(self, x0: float, y0: float, x1: float, y1: float, width: float, fill: RGB) -> None:
        """An ellipse outline; ``width`` in local units of the height."""
        rx, ry, mx, my = (x1 - x0) / 2, (y1 - y0) / 2, (x0 + x1) / 2, (y0 + y1) / 2
        points = [(mx + rx * x, my + ry * y) for x, y in _circle(24)]
        self.line([*points, points[0], points[1]], width, fill)

    def text(self, x0: float, y0: float, x1: float, y1: float, text: str, fill: RGB) -> None:
        """Upper-case text as large as fits into the box, centred; never mirrored."""
        if self.flat is not None:
            return
        ((cells, boxes),) = strokes(text)
        # One font cell is as wide as it is high on the picture, unless the box is too narrow.
        height = (y1 - y0) / HEIGHT
        width = min((x1 - x0) / cells, 1.15 * height / self.aspect)
        height = min(height, 1.7 * width * self.aspect)
        left = (x0 + x1 - cells * width) / 2
        top = (y0 + y1 - HEIGHT * height) / 2
        for a, b, c, d in boxes:
            u0, u1 = left + a * width, left + c * width
            if self.mirrored:  # read from left to right also on a mirrored thing
                u0, u1 = x0 + x1 - u0, x0 + x1 - u1
            v0, v1 = top + b * height, top + d * height
            (ax, ay), (bx, by), (cx, cy), (dx, dy) = self._map(((u0, v0), (u1, v0), (u1, v1), (u0, v1)))
            # Polygons include their far edge, which would fatten thin strokes: draw one pixel less.
            bx, cx, cy, dy = max(ax, bx - 1), max(dx, cx - 1), max(by, cy - 1), max(ay, dy - 1)
            self.draw.polygon([(ax, ay), (bx, by), (cx, cy), (dx, dy)], fill=fill)
