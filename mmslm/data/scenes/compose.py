"""Composes a scene: which things are there, how they look, and where they stand.

The choice of kinds (``choose``) is apart from the layout, because balanced presence questions need a second,
independent choice for the same place and view (see ``questions``). Layout never drops a chosen kind.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

from mmslm.data.scenes.catalogue import CLOSE, KINDS, LIGHTS, PLACES, Kind
from mmslm.data.scenes.dice import Dice
from mmslm.data.scenes.palette import FLOORS, WALLS
from mmslm.data.scenes.truth import Item, Look, Relation, Scene, Thing

# What can stand under a table, and how wide the print of a kind is in parts of the thing's width.
UNDER = ("ball", "shoes", "cat", "dog", "bag", "basket", "box")
PRINT_WIDTH = {
    "poster": 0.84,
    "sign": 0.86,
    "bus": 0.4,
    "stop sign": 0.84,
    "box": 0.68,
    "laptop": 0.62,
    "medicine bottle": 0.8,
}
ON_TABLE = 1.4  # things on a table across the room are drawn larger than life, else nobody could see them
LEGIBLE = 0.036  # a letter is readable from about 3.5 pixels of 96


@dataclass(frozen=True)
class World:
    """What a photographer has around: kinds per place and zone, own colours and looks, and the light of the home."""

    places: tuple[str, ...]
    place_weights: tuple[float, ...]
    wall: dict[str, tuple[str, ...]]
    floor: dict[str, tuple[str, ...]]
    small: dict[str, tuple[str, ...]]
    close: dict[str, float]
    favour: dict[str, float] = field(default_factory=dict)  # weight of a kind, 1 where absent
    colours: dict[str, tuple[str, ...]] = field(default_factory=dict)
    looks: dict[str, Look] = field(default_factory=dict)
    lights: tuple[float, float, float] = (0.62, 0.19, 0.19)
    calm: float = 1.0  # how often a scene without danger is asked about danger
    distance: float = 1.0


@dataclass(frozen=True)
class Choice:
    """The kinds of a scene by zone; ``on`` are small things on the table."""

    place: str
    view: str
    wall: tuple[str, ...]
    floor: tuple[str, ...]
    on: tuple[str, ...]
    sky: tuple[str, ...]

    @property
    def kinds(self) -> tuple[str, ...]:
        return self.wall + self.sky + self.floor + self.on


def choose_place(world: World, dice: Dice) -> tuple[str, str]:
    """A place and a view ("room" or "close")."""
    place = dice.weighted(world.places, world.place_weights)
    view = "close" if dice.chance(world.close[place]) and world.small[place] else "room"
    return place, view


def choose(world: World, place: str, view: str, dice: Dice) -> Choice:
    """The kinds of a scene at that place and view."""

    def draw(pool: tuple[str, ...], count: int) -> list[str]:
        rest, chosen = list(pool), list[str]()
        while rest and len(chosen) < count:
            kind = dice.weighted(rest, [world.favour.get(k, 1.0) for k in rest])
            rest.remove(kind)
            chosen.append(kind)
        return chosen

    walls, sky = world.wall[place], PLACES[place].sky
    if view == "close":
        items = draw(world.small[place], dice.weighted((1, 2, 3), (0.35, 0.42, 0.23)))
        wall = draw(walls, dice.weighted((0, 1), (0.72, 0.28)))
        return Choice(place, view, tuple(wall), ("table",), tuple(items), ())
    floor = draw(world.floor[place], dice.weighted((1, 2, 3), (0.32, 0.5, 0.18)))
    few = len(floor) > 2
    wall = draw(walls, dice.weighted((0, 1, 2), (0.5, 0.45, 0.05) if few else (0.3, 0.5, 0.2)))
    on: list[str] = []
    if "table" in floor and world.small[place] and dice.chance(0.6):
        on = draw(world.small[place], 1)
    birds = draw(sky, 1) if sky and dice.chance(0.22) else []
    return Choice(place, view, tuple(wall), tuple(floor), tuple(on), tuple(birds))


def random_look(dice: Dice, place: str) -> Look:
    """Walls, floor and textures drawn at random."""
    return Look(dice.pick(WALLS), dice.pick(FLOORS), dice.below(4), dice.below(4), dice.between(0.55, 0.63))


@dataclass
class _Group:
    """A thing on its way to a place."""

    kind: Kind
    colour: str
    size: str
    count: int
    variant: int
    text: str | None
    hot: bool
    width: float = 0.0  # of one specimen
    height: float = 0.0
    left: float = 0.0
    base: float = 0.0  # bottom edge
    row: float = 0.0  # width of the whole group

    def scale(self, factor: float) -> None:
        self.width *= factor
        self.height *= factor
        self.row *= factor


def compose(world: World, choice: Choice, dice: Dice) -> Scene:
    """Looks and positions for a choice of kinds."""
    place, close = choice.place, choice.view == "close"
    look = world.looks.get(place) or random_look(dice, place)
    light = dice.weighted(LIGHTS, world.lights)
    if close:
        look = Look(look.wall, look.floor, look.wall_texture, look.floor_texture, dice.between(0.5, 0.58))
    near = CLOSE if close else ON_TABLE
    # A lone thing is photographed from nearer.
    floor = [_group(world, k, dice, 1.3 if len(choice.floor) == 1 else 1.12) for k in choice.floor]
    on = [_group(world, k, dice, near) for k in choice.on]
    for table in (g for g in floor if g.kind.name == "table"):
        # Nobody can see a white cup on a white table.
        taken = {g.colour for g in on}
        if table.colour in taken:
            table.colour = dice.pick([c for c in table.kind.colours if c not in taken])
    wall = [_group(world, k, dice, 0.92 if close else 1.0) for k in choice.wall]
    sky = [_group(world, k, dice, 1.0) for k in choice.sky]
    relations: list[Relation] = []

    if close:
        table = floor[0]
        table.count, table.size = 1, "large"
        table.left, table.width, table.row, table.height, table.base = 0.0, 1.0, 1.0, 1.0 - look.horizon - 0.04, 1.0
        _spread(on, dice, 0.03, 0.97)
        for group in on:
            group.base = dice.between(max(0.72, look.horizon + 0.16), 0.92)
            _lower_top(group, 0.06)
    else:
        under = None
        standing = list(floor)
        if any(g.kind.name == "table" for g in floor) and dice.chance(0.5):
            fits = [g for g in floor if g.kind.name in UNDER]
            if fits:
                under = fits[0]
                standing.remove(under)
        _spread(standing, dice, 0.02, 0.98)
        for group in standing:
            group.base = dice.between(0.79, 0.95)
            _lower_top(group, 0.05)
        tables = [g for g in floor if g.kind.name == "table"]
        if under is not None:
            _fit_under(under, tables[0], dice)
        if tables:
            for group in on:
                _fit_on(group, tables[0], dice)
    for group in wall:
        _hang(group, look, floor if not close else on, [w for w in wall if w is not group and w.row], dice, close)
    for group in sky:
        group.left = dice.between(0.04, max(0.05, 0.96 - group.row))
        group.base = group.height + dice.between(0.03, 0.2)

    order = wall + sky + _front_to_back(floor, on, close)
    things = tuple(_finish(group, place, dice) for group in order)
    relations = _relations(choice, things)
    return Scene(place, light, choice.view, look, things, tuple(relations))


def _group(world: World, name: str, dice: Dice, near: float) -> _Group:
    kind = KINDS[name]
    count = min(dice.weighted((1, 2, 3), (0.7, 0.2, 0.1)), kind.most)
    size = "large" if dice.chance(0.62) else "small"
    colour = dice.pick(world.colours.get(name, kind.colours))
    text = dice.pick(kind.words) if kind.words else None
    if name in ("box", "laptop") and dice.chance(0.35):
        text = None
    hot = kind.hazard == "hot" and dice.chance(0.6)
    group = _Group(kind, colour, size, count, dice.below(48), text, hot)
    factor = near * world.distance * (dice.between(0.95, 1.12) if size == "large" else dice.between(0.62, 0.72))
    group.width, group.height = kind.width * factor, kind.height * factor
    group.row = group.width * (1 + (count - 1) * 1.07)
    return group


def _spread(groups: list[_Group], dice: Dice, low: float, high: float) -> None:
    """Places groups from left to right in random order without leaving the frame, at times overlapping a little."""
    if not groups:
        return
    room = high - low
    for group in groups:
        if group.row > room:
            group.scale(room / group.row)
    total = sum(g.row for g in groups)
    if total > room * 1.06:
        for group in groups:
            group.scale(room * 1.06 / total)
        total = room * 1.06
    order = dice.some(groups, len(groups))
    slack = room - total
    crowd = len(order) > 1 and dice.chance(0.22)
    if slack < 0:
        gaps = [0.0] + [slack / max(len(order) - 1, 1)] * (len(order) - 1)
    else:
        parts = [0.05 + dice.unit() for _ in range(len(order) + 1)]
        scale = slack / sum(parts)
        gaps = [part * scale for part in parts[:-1]]
        if crowd:  # the second one half hides behind, or in front of, the first
            gaps[1] = -0.25 * min(order[0].row, order[1].row)
    x = low
    for gap, group in zip(gaps, order, strict=True):
        group.left = x + gap
        x = group.left + group.row


def _lower_top(group: _Group, top: float) -> None:
    """Shrinks what would leave the frame at the top."""
    if group.base - group.height < top:
        middle = group.left + group.row / 2
        group.scale((group.base - top) / group.height)
        group.left = middle - group.row / 2


def _fit_on(group: _Group, table: _Group, dice: Dice) -> None:
    room = table.row * 0.86
    if group.row > room:
        group.scale(room / group.row)
    group.left = table.left + table.row * 0.07 + dice.unit() * (room - group.row)
    group.base = table.base - table.height * dice.between(0.86, 0.94)
    _lower_top(group, 0.03)


def _fit_under(group: _Group, table: _Group, dice: Dice) -> None:
    factor = min(1.0, table.width * 0.6 / group.row, table.height * 0.6 / group.height)
    group.scale(factor)
    group.left = table.left + table.width * 0.2 + dice.unit() * (table.width * 0.6 - group.row)
    group.base = table.base - 0.01


def _hang(group: _Group, look: Look, front: list[_Group], others: list[_Group], dice: Dice, close: bool) -> None:
    """Looks for the place on the wall where the least of it is hidden."""
    limit = look.horizon - 0.03
    is_door = group.kind.name == "door"
    if group.row > 0.9:
        group.scale(0.9 / group.row)
    if group.height > limit - 0.05 and not is_door:
        group.scale((limit - 0.05) / group.height)
    best = (9.0, 0.0, 0.0)
    for _ in range(9):
        left = dice.between(0.03, 0.97 - group.row)
        if is_door:
            base = look.horizon + 0.015
        else:
            base = dice.between(0.05 + group.height, min(limit, 0.16 + group.height))
        box = (left, base - group.height, left + group.row, base)
        hidden = sum(_overlap(box, _box(g)) for g in [*front, *others]) / max(group.row * group.height, 1e-9)
        if hidden < best[0]:
            best = (hidden, left, base)
        if hidden < 0.02:
            break
    group.left, group.base = best[1], best[2]


def _box(group: _Group) -> tuple[float, float, float, float]:
    return (group.left, group.base - group.height, group.left + group.row, group.base)


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _front_to_back(floor: list[_Group], on: list[_Group], close: bool) -> list[_Group]:
    if close:
        return floor + sorted(on, key=lambda g: g.base)
    order: list[_Group] = []
    for group in sorted(floor, key=lambda g: g.base):
        order.append(group)
        if group.kind.name == "table":
            order.extend(on)
    return order


def _finish(group: _Group, place: str, dice: Dice) -> Thing:
    kind = group.kind
    text = group.text
    if text is not None and group.width * PRINT_WIDTH[kind.name] / len(text) < LEGIBLE and kind.name != "stop sign":
        text = None
    step = 0.0 if group.count == 1 else (group.row - group.width) / (group.count - 1)
    flip = dice.chance(0.5) and not kind.words
    items = []
    for k in range(group.count):
        left = group.left + k * step
        lift = (dice.unit() - 0.5) * 0.03 if kind.zone in ("floor", "small") and group.count > 1 else 0.0
        base = group.base + lift
        same = kind.zone == "wall" or kind.name != "person"
        items.append(
            Item(
                (left, base - group.height, left + group.width, base),
                flip,
                group.variant if same else dice.below(48),
            )
        )
    middle = group.left + group.row / 2
    position = "left" if middle < 0.38 else "right" if middle > 0.62 else "middle"
    hazard = kind.hazard == "always" or (kind.hazard == "street" and place == "street") or group.hot
    return Thing(
        kind.name, group.colour, group.size, group.count, position, kind.zone, tuple(items),
        None if text is None else text.lower(), hazard, group.hot,
    )  # fmt: skip


def _relations(choice: Choice, things: tuple[Thing, ...]) -> list[Relation]:
    found: list[Relation] = []
    by_kind = {thing.kind: thing for thing in things}
    for kind in choice.on:
        if "table" in by_kind:
            found.append(Relation(kind, "on", "table"))
    ground = [by_kind[k] for k in (choice.on if choice.view == "close" else choice.floor)]
    inside = set()
    if choice.view == "room" and "table" in by_kind:
        table = by_kind["table"].box
        for thing in ground:
            box = thing.box
            if (
                thing.kind in UNDER
                and box[0] > table[0]
                and box[2] < table[2]
                and box[1] > table[1] + 0.25 * (table[3] - table[1])
            ):
                found.append(Relation(thing.kind, "under", "table"))
                inside.add(thing.kind)
    row = sorted((t for t in ground if t.kind not in inside), key=lambda t: t.box[0] + t.box[2])
    for a, b in pairwise(row):
        if b.box[0] - a.box[2] < 0.22:
            found.append(Relation(a.kind, "next to", b.kind))
    for thing in things:
        if thing.zone != "wall" or thing.kind == "door":
            continue
        for other in ground:
            middle = (thing.box[0] + thing.box[2]) / 2
            if other.box[0] < middle < other.box[2] and thing.box[3] < other.box[1] + 0.04:
                found.append(Relation(thing.kind, "above", other.kind))
    return found
