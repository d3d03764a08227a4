"""Small SVG drawings for the report's page: no script, no network, colours from the page's own variables.

Every drawing has a title and a description for people who do not see it, and its numbers stand in a table beside it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT = 640, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 20, 22, 44


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers from `low` to `high`, about `count` of them."""
    if high <= low:
        return [low]
    raw = (high - low) / count
    power = 10 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 10) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def line_chart(
    points: Sequence[tuple[float, float]],
    *,
    name: str,
    title: str,
    description: str,
    x_label: str,
    y_label: str,
    limit: tuple[float, str] | None = None,
) -> str:
    """A rising line with its area, ticks and an optional dashed limit (value, words). `name` is unique in the page."""
    largest_x = max(x for x, _ in points)
    smallest_x = min(0.0, *(x for x, _ in points))
    largest_y = max([y for _, y in points] + ([limit[0]] if limit else [])) * 1.08 or 1.0

    def px(x: float) -> float:
        return _LEFT + (x - smallest_x) / ((largest_x - smallest_x) or 1.0) * (WIDTH - _LEFT - _RIGHT)

    def py(y: float) -> float:
        return HEIGHT - _BOTTOM - y / largest_y * (HEIGHT - _TOP - _BOTTOM)

    parts = [_open(name, title, description, WIDTH, HEIGHT)]
    for value in ticks(0.0, largest_y):
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{py(value):.1f}" y2="{py(value):.1f}"/>'
        )
        parts.append(f'<text class="tick" x="{_LEFT - 8}" y="{py(value) + 4:.1f}" text-anchor="end">{value:g}</text>')
    for value in ticks(smallest_x, largest_x, 6):
        parts.append(
            f'<text class="tick" x="{px(value):.1f}" y="{HEIGHT - _BOTTOM + 18}" text-anchor="middle">{value:g}</text>'
        )
    path = " L".join(f"{px(x):.1f} {py(y):.1f}" for x, y in points)
    base = f"{py(0):.1f}"
    parts.append(f'<path class="area" d="M{px(points[0][0]):.1f} {base} L{path} L{px(points[-1][0]):.1f} {base} Z"/>')
    parts.append(f'<path class="line" d="M{path}"/>')
    end_x, end_y = points[-1]
    parts.append(f'<circle class="end" cx="{px(end_x):.1f}" cy="{py(end_y):.1f}" r="4.5"/>')
    if limit:
        y = py(limit[0])
        parts.append(f'<line class="limit" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="limit-label" x="{_LEFT + 6}" y="{y - 6:.1f}">{escape(limit[1])}</text>')
    parts.append(f'<text class="axis" x="{WIDTH - _RIGHT}" y="{HEIGHT - 6}" text-anchor="end">{escape(x_label)}</text>')
    parts.append(f'<text class="axis" x="{_LEFT - 44}" y="13">{escape(y_label)}</text></svg>')
    return "".join(parts)


def curve_chart(
    points: Sequence[tuple[float, float]],
    *,
    name: str,
    title: str,
    description: str,
    x_label: str,
    y_label: str,
    mark: tuple[float, float, str],
) -> str:
    """A falling curve of small positive numbers on a logarithmic scale, with one marked point (x, y, words)."""
    shown = [(x, y) for x, y in points if y > 0]
    low = max(math.floor(math.log10(min([y for _, y in shown] + [mark[1]])) - 0.2), -16)
    largest_x = max([x for x, _ in shown] + [mark[0]])

    def px(x: float) -> float:
        return _LEFT + x / (largest_x or 1.0) * (WIDTH - _LEFT - _RIGHT)

    def py(y: float) -> float:
        level = max(math.log10(y), low)
        return _TOP + level / low * (HEIGHT - _TOP - _BOTTOM)

    parts = [_open(name, title, description, WIDTH, HEIGHT)]
    every = max(1, round(-low / 6))
    for power in range(0, low - 1, -every):
        y = py(10.0**power)
        label = "1" if power == 0 else f'10<tspan dy="-5" font-size="9">{power}</tspan>'
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
    below = HEIGHT - _BOTTOM + 18
    for value in ticks(0.0, largest_x, 6):
        parts.append(f'<text class="tick" x="{px(value):.1f}" y="{below}" text-anchor="middle">{value:g}</text>')
    path = " L".join(f"{px(x):.1f} {py(y):.1f}" for x, y in shown)
    parts.append(f'<path class="line" d="M{path}"/>')
    x, y = px(mark[0]), py(mark[1])
    anchor = "end" if x > WIDTH / 2 else "start"
    shift = -10 if anchor == "end" else 10
    parts.append(f'<circle class="end" cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>')
    parts.append(
        f'<text class="mark" x="{x + shift:.1f}" y="{y + 20:.1f}" text-anchor="{anchor}">{escape(mark[2])}</text>'
    )
    parts.append(f'<text class="axis" x="{WIDTH - _RIGHT}" y="{HEIGHT - 6}" text-anchor="end">{escape(x_label)}</text>')
    parts.append(f'<text class="axis" x="{_LEFT - 44}" y="13">{escape(y_label)}</text></svg>')
    return "".join(parts)


def hundred(right: int, *, name: str, title: str, description: str) -> str:
    """A hundred dots: 50 that chance gets right, those that the guesser gains (ringed and darker), and the rest."""
    columns, gap, radius = 20, 17.0, 5.6
    width, height = columns * gap + 4, 5 * gap + 4
    parts = [_open(name, title, description, width, height)]
    for index in range(100):
        x, y = 10 + (index % columns) * gap, 10 + (index // columns) * gap
        kind = "chance" if index < 50 else "gained" if index < right else "hidden"
        parts.append(f'<circle class="{kind}" cx="{x:.0f}" cy="{y:.0f}" r="{radius}"/>')
    parts.append("</svg>")
    return "".join(parts)


def bar(share: float) -> str:
    """A horizontal bar filled to a share of 0 to 1; decoration beside a number, hidden from screen readers."""
    filled = max(0.0, min(1.0, share)) * 160
    return (
        '<svg class="bar" viewBox="0 0 160 10" width="160" height="10" aria-hidden="true" focusable="false">'
        '<rect class="bar-back" width="160" height="10" rx="5"/>'
        f'<rect class="bar-fill" width="{max(filled, 3):.1f}" height="10" rx="5"/></svg>'
    )


def _open(name: str, title: str, description: str, width: float, height: float) -> str:
    return (
        f'<svg class="chart" role="img" aria-labelledby="{name}-title {name}-desc" viewBox="0 0 {width:g} {height:g}" '
        f'xmlns="http://www.w3.org/2000/svg"><title id="{name}-title">{escape(title)}</title>'
        f'<desc id="{name}-desc">{escape(description)}</desc>'
    )
