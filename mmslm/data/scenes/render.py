"""Renders a scene as a photographer shot it: tilt, distance, blur, light and grain.

Drawn at twice the size and averaged down with whole-number arithmetic; blur and light are whole-number too.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from mmslm.data.scenes.backdrop import paint
from mmslm.data.scenes.dice import Dice, raw_words
from mmslm.data.scenes.palette import RGB, Shades, shade, shades
from mmslm.data.scenes.pen import Pen
from mmslm.data.scenes.things_rooms import ROOM_THINGS
from mmslm.data.scenes.things_small import SMALL_THINGS
from mmslm.data.scenes.things_street import STREET_THINGS
from mmslm.data.scenes.truth import Scene, Thing

DRAWERS = {**ROOM_THINGS, **STREET_THINGS, **SMALL_THINGS}
DEFAULT_SIZE = 384
SMALLEST, LARGEST = 16, 2048


@dataclass(frozen=True)
class Shot:
    """How one picture of a scene was taken. ``tilt`` in degrees, ``blur`` in parts of the side, ``grain`` in levels."""

    tilt: float = 0.0
    zoom: float = 1.0
    shift: tuple[float, float] = (0.0, 0.0)
    blur: float = 0.0
    grain: int = 4
    exposure: int = 100
    seed: int = 0


@dataclass(frozen=True)
class Habits:
    """How a photographer takes pictures: spread of the tilt in degrees, how often and how much is blurred."""

    tilt: float = 2.0
    lean: float = 0.0
    blur_often: float = 0.2
    blur_most: float = 0.007
    grain: int = 4
    zoom: float = 1.02


def shoot(habits: Habits, dice: Dice) -> Shot:
    """One picture taken with these habits."""
    blur = dice.between(0.003, habits.blur_most) if dice.chance(habits.blur_often) else 0.0
    return Shot(
        tilt=habits.lean + habits.tilt * dice.bell(),
        zoom=habits.zoom * dice.between(0.96, 1.05),
        shift=(dice.between(-0.02, 0.02), dice.between(-0.015, 0.015)),
        blur=blur,
        grain=habits.grain,
        exposure=round(dice.between(92, 106)),
        seed=dice.below(2**31),
    )


def render(scene: Scene, shot: Shot, size: int = DEFAULT_SIZE) -> Image.Image:
    """The RGB picture, size x size pixels. Raises ValueError outside 16..2048."""
    if not SMALLEST <= size <= LARGEST:
        raise ValueError(f"got a picture size of {size}: give {SMALLEST} to {LARGEST} pixels.")
    side = 2 * size
    image = Image.new("RGB", (side, side))
    pen = Pen(ImageDraw.Draw(image), side, shot.tilt, shot.zoom, shot.shift)
    paint(pen, scene)
    for thing in scene.things:
        draw_thing(pen, scene, thing)
    image = image.reduce(2)
    radius = shot.blur * size
    if radius > 0.2:
        image = image.filter(ImageFilter.BoxBlur(radius))
    image = ImageChops.multiply(image, _falloff(size, scene.light))
    image = image.point(_exposure(scene.light, shot.exposure))
    if shot.grain:
        words = raw_words(shot.seed, size).random_raw((size * size + 7) // 8).astype("<u8")
        grain = words.view(np.uint8)[: size * size].reshape(size, size, 1).astype(np.int16)
        pixels = np.asarray(image, dtype=np.int16) + grain % (2 * shot.grain + 1) - shot.grain
        image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    return image


def draw_thing(pen: Pen, scene: Scene, thing: Thing) -> None:
    """All specimens of a thing with their shadows."""
    tones = shades(thing.colour)
    if scene.view == "close" and thing.kind == "table":
        _table_top(pen, thing, tones)
        return
    drawer = DRAWERS[thing.kind]
    text = "HOT" if thing.hot else thing.text.upper() if thing.text else None
    for item in thing.items:
        pen.place(item.box, item.flip)
        if thing.zone in ("floor", "small") and pen.flat is None:
            pen.oval(-4, 94, 104, 105, _shadow(scene, thing))
        drawer(pen, tones, item.variant, text)


def _shadow(scene: Scene, thing: Thing) -> RGB:
    if thing.zone == "small":
        return shade(shades(scene.thing("table").colour).base, 70)
    if scene.place == "park":
        return (122, 172, 88)
    if scene.place == "street":
        return (122, 122, 126) if thing.box[3] < 0.76 else (82, 84, 90)
    return shade(scene.look.floor, 72)


def _table_top(pen: Pen, thing: Thing, tones: Shades) -> None:
    left, top, right, bottom = thing.box
    pen.place((left, top, right, bottom))
    if pen.flat is not None:  # what the frame shows of an endless table top
        pen.rect(0, 0, 100, 100, tones.base)
    else:
        pen.poly(((-25, 0), (125, 0), (125, 170), (-25, 170)), tones.base)
        grain = shade(tones.base, 92) if tones.name != "black" else tones.light
        for k, y in enumerate((8, 20, 36, 56, 80, 108)):
            pen.poly(((-25, y), (125, y + 2), (125, y + 3.4 + k * 0.5), (-25, y + 1.4 + k * 0.5)), grain)
        pen.rect(-25, 0, 125, 3, tones.light)
        pen.rect(-25, -3, 125, 0, tones.dark)


@lru_cache(maxsize=32)
def _falloff(size: int, light: str) -> Image.Image:
    """Light that falls off towards the corners: gently by day, more by lamplight."""
    loss = {"bright": 22, "dim": 60, "warm": 44}[light]
    axis = 2 * np.arange(size, dtype=np.int64) + 1 - size
    square = axis[:, None] ** 2 + axis[None, :] ** 2  # 0 .. 2 size^2
    level = 255 - loss * square // (2 * size * size)
    grey = Image.fromarray(level.astype(np.uint8))
    return Image.merge("RGB", (grey, grey, grey))


@lru_cache(maxsize=256)
def _exposure(light: str, exposure: int) -> list[int]:
    gains = {"bright": (103, 103, 103), "dim": (64, 67, 78), "warm": (104, 92, 72)}[light]
    return [min(255, level * gain * exposure // 10000) for gain in gains for level in range(256)]
