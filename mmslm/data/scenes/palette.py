"""The eight colours that scenes name, and integer shading, so that every platform mixes the same bytes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

RGB = tuple[int, int, int]

COLOURS: dict[str, RGB] = {
    "red": (208, 44, 48),
    "yellow": (243, 200, 44),
    "green": (46, 150, 76),
    "blue": (42, 98, 205),
    "purple": (136, 62, 172),
    "brown": (128, 78, 42),
    "black": (38, 38, 46),
    "white": (247, 247, 244),
}

WALLS: tuple[RGB, ...] = (
    (224, 212, 190),
    (196, 212, 222),
    (200, 217, 198),
    (208, 206, 208),
    (225, 203, 199),
    (208, 200, 222),
    (218, 219, 202),
    (190, 206, 208),
)
FLOORS: tuple[RGB, ...] = (
    (197, 158, 112),
    (178, 172, 166),
    (166, 150, 138),
    (205, 184, 150),
    (150, 160, 170),
    (182, 148, 128),
)


@lru_cache(maxsize=4096)
def shade(colour: RGB, percent: int) -> RGB:
    """Darker below 100 percent, nearer to white above (200 is white)."""
    if percent <= 100:
        return (colour[0] * percent // 100, colour[1] * percent // 100, colour[2] * percent // 100)
    lift = min(percent, 200) - 100
    return tuple(c + (255 - c) * lift // 100 for c in colour)  # type: ignore[return-value]


@dataclass(frozen=True)
class Shades:
    """A thing's colour with the tones that its drawing needs."""

    name: str
    base: RGB
    dark: RGB
    light: RGB
    ink: RGB


@lru_cache(maxsize=64)
def shades(name: str) -> Shades:
    """The tones of a named colour; ``ink`` is what is readable when printed on it."""
    base = COLOURS[name]
    dark = shade(base, 72) if name != "white" else (206, 206, 208)
    light = shade(base, 135) if name != "white" else (255, 255, 255)
    if name == "black":
        dark, light = (20, 20, 26), (78, 78, 90)
    ink = (28, 28, 36) if name in ("white", "yellow") else (252, 252, 250)
    return Shades(name, base, dark, light, ink)
