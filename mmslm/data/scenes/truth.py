"""The exact truth of a scene: what is in it, where, how it looks and what is printed on it.

Boxes are (left, top, right, bottom) in 0..1 of the untilted picture. ``visible`` is the fraction of a thing's own
silhouette that neither another thing nor the frame hides.
"""

from __future__ import annotations

from dataclasses import dataclass

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Item:
    """One drawn specimen of a thing."""

    box: Box
    flip: bool = False
    variant: int = 0


@dataclass(frozen=True)
class Thing:
    """A group of ``count`` specimens of one kind that share colour and size.

    ``size`` is "small" or "large"; ``position`` "left", "middle" or "right"; ``zone`` "wall", "floor", "small" (on a
    table) or "sky"; ``text`` is what is printed on it, lower-case, or None; ``hazard`` says whether it is a danger.
    """

    kind: str
    colour: str
    size: str
    count: int
    position: str
    zone: str
    items: tuple[Item, ...]
    text: str | None = None
    hazard: bool = False
    hot: bool = False
    visible: float = 1.0

    @property
    def box(self) -> Box:
        """The smallest box around all specimens."""
        boxes = [item.box for item in self.items]
        return (
            min(b[0] for b in boxes),
            min(b[1] for b in boxes),
            max(b[2] for b in boxes),
            max(b[3] for b in boxes),
        )


@dataclass(frozen=True)
class Relation:
    """``subject`` is ``word`` ``object``: "on", "next to", "under" or "above"; both are kinds of the scene."""

    subject: str
    word: str
    object: str


@dataclass(frozen=True)
class Look:
    """How a place is painted: colours as RGB, textures as small numbers that the backdrop understands."""

    wall: tuple[int, int, int]
    floor: tuple[int, int, int]
    wall_texture: int
    floor_texture: int
    horizon: float


@dataclass(frozen=True)
class Scene:
    """A place, its light ("bright", "dim" or "warm"), its things from back to front, and how they relate."""

    place: str
    light: str
    view: str
    look: Look
    things: tuple[Thing, ...]
    relations: tuple[Relation, ...]

    @property
    def kinds(self) -> frozenset[str]:
        """The kinds that count as present. Scenery (wall, floor, road, sky ...) never counts."""
        return frozenset(thing.kind for thing in self.things)

    @property
    def hazards(self) -> tuple[str, ...]:
        """The kinds that are a danger here, without repeats."""
        return tuple(dict.fromkeys(thing.kind for thing in self.things if thing.hazard))

    @property
    def texts(self) -> tuple[str, ...]:
        """What is printed in the scene, lower-case."""
        return tuple(thing.text for thing in self.things if thing.text is not None)

    def thing(self, kind: str) -> Thing:
        """The thing of that kind. Raises KeyError where the scene has none."""
        for thing in self.things:
            if thing.kind == kind:
                return thing
        raise KeyError(f"there is no {kind} in this scene, which has {sorted(self.kinds)}")
