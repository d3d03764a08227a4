"""Measures boxes and visible fractions on the drawn silhouettes.

Each specimen is drawn alone, and all of them over one another, as masks; scenery and shadows do not count.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from PIL import Image, ImageDraw

from mmslm.data.scenes.pen import Pen
from mmslm.data.scenes.render import draw_thing
from mmslm.data.scenes.truth import Item, Scene, Thing

SIDE = 192


def measured(scene: Scene) -> Scene:
    """The scene with tight boxes (clipped to the frame) and ``visible`` fractions, to 1/192 of the picture."""
    layers = np.zeros((SIDE, SIDE), dtype=np.uint8)
    areas: list[int] = []
    things: list[Thing] = []
    for number, thing in enumerate(scene.things, start=1):
        whole = np.zeros((SIDE, SIDE), dtype=bool)
        items: list[Item] = []
        # Silhouettes may leave the frame: the part outside counts as hidden, so draw with a margin.
        area = 0
        for item in thing.items:
            mask = _mask(scene, replace(thing, items=(item,)))
            area += int(mask.sum())
            inside = mask[SIDE // 4 : SIDE // 4 + SIDE, SIDE // 4 : SIDE // 4 + SIDE]
            whole |= inside
            items.append(replace(item, box=_tight(inside, item.box)))
        layers[whole] = number
        areas.append(max(area, 1))
        things.append(replace(thing, items=tuple(items)))
    seen = np.bincount(layers.ravel(), minlength=len(things) + 1)
    things = [
        replace(thing, visible=min(1.0, float(seen[number]) / areas[number - 1]))
        for number, thing in enumerate(things, start=1)
    ]
    return replace(scene, things=tuple(things))


def _mask(scene: Scene, thing: Thing) -> np.ndarray:
    margin = SIDE // 4
    side = SIDE + 2 * margin
    image = Image.new("L", (side, side))
    # The picture's 0..1 fills the middle of the larger canvas.
    pen = Pen(ImageDraw.Draw(image), side, zoom=SIDE / side)
    pen.flat = 1
    draw_thing(pen, scene, thing)
    return np.asarray(image, dtype=bool)


def _tight(mask: np.ndarray, fallback: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return fallback
    return (
        float(columns[0]) / SIDE,
        float(rows[0]) / SIDE,
        float(columns[-1] + 1) / SIDE,
        float(rows[-1] + 1) / SIDE,
    )
