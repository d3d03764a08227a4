"""Captions from a grammar: short, detailed and hazard first, in lower-case words of a small vocabulary.

A short caption has at most 12 words, the others at most 35. Every word is true of the scene; a caption may leave
things out, most important first: dangers, then what is large, then the rest.
"""

from __future__ import annotations

from collections.abc import Callable

from mmslm.data.scenes.catalogue import KINDS, PLACES
from mmslm.data.scenes.dice import Dice
from mmslm.data.scenes.truth import Relation, Scene, Thing

STYLES = ("short", "detailed", "hazard")
SHORT_WORDS, LONG_WORDS = 12, 35
NUMBERS = ("no", "one", "two", "three")
_VOWELS = "aeiou"


def caption(scene: Scene, style: str, dice: Dice) -> str:
    """One caption. ``style`` is "short", "detailed" or "hazard"."""
    if style == "short":
        return _short(scene, dice)
    if style == "detailed":
        return _long(scene, dice, _detailed)
    if style == "hazard":
        return _long(scene, dice, _hazard)
    raise ValueError(f"got the caption style {style!r}: expected one of {', '.join(STYLES)}.")


def noun(thing: Thing, dice: Dice, colour: bool = True, size: bool = False, usual: bool = False) -> str:
    """A noun phrase such as "a small red cup", "two people in blue" or "keys"."""
    kind = KINDS[thing.kind]
    form = kind.forms[0] if usual or dice.chance(0.7) else dice.pick(kind.forms)
    many = thing.count > 1
    plural_only = kind.article == "" and form[0] == form[1]
    words: list[str] = []
    if many and not plural_only:
        words.append(NUMBERS[thing.count])
    if size and thing.size == "small":
        words.append(dice.pick(("small", "little")))
    elif size:
        words.append(dice.pick(("large", "big")))
    if thing.hot:
        words.append("hot")
    dressed = thing.kind == "person"
    potted = thing.kind == "plant"
    if colour and not dressed and not potted and len(kind.colours) > 1:
        words.append(thing.colour)
    words.append(form[1] if many else form[0])
    phrase = " ".join(words)
    if not many and not plural_only:
        phrase = article(phrase) + " " + phrase
    if colour and dressed:
        phrase += f" in {thing.colour}"
    if colour and potted:
        phrase += f" in {thing.colour} pots" if many else f" in a {thing.colour} pot"
    return phrase


def article(phrase: str) -> str:
    """ "a" or "an"."""
    return "an" if phrase[0] in _VOWELS else "a"


def is_plural(thing: Thing) -> bool:
    """Whether the thing takes "are"."""
    return thing.count > 1 or (KINDS[thing.kind].article == "")


def listing(parts: list[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    if len(parts) < 2:
        return "".join(parts)
    return ", ".join(parts[:-1]) + " and " + parts[-1]


def count_words(text: str) -> int:
    """Words as a reader counts them."""
    return len(text.split())


def salient(scene: Scene) -> list[Thing]:
    """Things in order of importance: dangers, what stands in front, walls and sky, the table under other things."""
    carries = {relation.object for relation in scene.relations if relation.word == "on"}

    def rank(thing: Thing) -> tuple[int, int, float]:
        area = sum((i.box[2] - i.box[0]) * (i.box[3] - i.box[1]) for i in thing.items)
        low = thing.zone == "wall" or thing.kind in carries
        return (0 if thing.hazard else 1, 1 if low else 0, -area)

    return sorted(scene.things, key=rank)


def _place(scene: Scene, dice: Dice) -> str:
    forms = PLACES[scene.place].forms
    name = scene.place if not forms or dice.chance(0.7) else dice.pick(forms)
    return name


def _in_place(scene: Scene, dice: Dice) -> str:
    name = _place(scene, dice)
    if scene.place == "street":
        return dice.pick(("on a street", "on the street", "in a street"))
    the = dice.pick((article(name), "the"))
    return f"in {the} {name}"


def _in(scene: Scene) -> str:
    return "on" if scene.place == "street" else "in"


def _verb(phrase: str) -> str:
    """ "is" before "a cup" or "a pair of shoes", "are" before "two cups" or "keys"."""
    return "is" if phrase.startswith(("a ", "an ")) else "are"


def _on_table(scene: Scene, thing: Thing) -> bool:
    return Relation(thing.kind, "on", "table") in scene.relations


def _short(scene: Scene, dice: Dice) -> str:
    things = salient(scene)
    main = [t for t in things if t.kind != "table" or len(things) == 1] or things
    count = dice.weighted((1, 2, 3), (0.3, 0.5, 0.2))
    picked = main[:count]
    shape = dice.below(7)
    for colours in (3, 2, 1, 0):
        for amount in range(len(picked), 0, -1):
            some = picked[:amount]
            text = _short_shape(scene, some, shape, colours, dice)
            if count_words(text) <= SHORT_WORDS:
                return text
    return noun(picked[0], dice, colour=False, usual=True)


def _short_shape(scene: Scene, some: list[Thing], shape: int, colours: int, dice: Dice) -> str:
    names = [noun(t, dice, colour=k < colours and dice.chance(0.75)) for k, t in enumerate(some)]
    if shape == 0:
        for relation in scene.relations:
            kinds = [t.kind for t in some]
            if relation.subject in kinds:
                first = some[kinds.index(relation.subject)]
                second = scene.thing(relation.object)
                left = noun(first, dice, colour=colours > 0)
                right = noun(second, dice, colour=colours > 1 and dice.chance(0.6))
                return f"{left} {_relation_word(relation, dice)} {right}"
    if shape == 1:
        place = _place(scene, dice)
        return f"{article(place)} {place} with {listing(names)}"
    if all(_on_table(scene, t) for t in some) and shape in (0, 2):
        return f"{listing(names)} on a table"
    if shape == 3:
        return listing(names)
    if shape == 5:
        return f"there {_verb(names[0])} {listing(names)} {_in_place(scene, dice)}"
    if shape == 6 and len(some) == 1 and scene.view == "room":
        return f"{names[0]} {dice.pick(_SIDES[some[0].position])} {_in_place(scene, dice)}"
    return f"{listing(names)} {_in_place(scene, dice)}"


def _relation_word(relation: Relation, dice: Dice) -> str:
    if relation.word == "next to":
        return dice.pick(("next to", "beside", "near"))
    if relation.word == "under":
        return dice.pick(("under", "below"))
    return relation.word


_SIDES = {
    "left": ("on the left", "to the left"),
    "middle": ("in the middle", "in the centre"),
    "right": ("on the right", "to the right"),
}


def _where(scene: Scene, thing: Thing, dice: Dice) -> str:
    side = dice.pick(_SIDES[thing.position])
    if thing.zone == "wall" and thing.kind not in ("door", "sign") and dice.chance(0.4):
        return "on the wall"
    if thing.zone == "sky" and dice.chance(0.4):
        return "in the sky"
    if _on_table(scene, thing) and scene.view == "room" and dice.chance(0.7):
        return "on the table"
    return side


_LIGHT = {
    "bright": ("bright", "well lit"),
    "dim": ("dim", "dark"),
    "warm": ("warm", "warmly lit"),
}


def _texts(scene: Scene, dice: Dice, known: list[Thing]) -> list[str]:
    lines = []
    for thing in known:
        if thing.text is None or thing.kind == "stop sign":
            continue
        if thing.kind == "bus":
            lines.append(f'the bus has the number "{thing.text}"')
        else:
            verb = dice.pick(("say", "read"))
            lines.append(f'the {_bare(thing)} {verb if is_plural(thing) else verb + "s"} "{thing.text}"')
    return lines[:1]


def _long(scene: Scene, dice: Dice, build: Callable[[Scene, Dice, int], str]) -> str:
    # Fewer things, until the caption is short enough.
    for most in (4, 3, 2, 1):
        text = build(scene, dice, most)
        if count_words(text) <= LONG_WORDS:
            return text
    return _short(scene, dice)


def _describe(scene: Scene, thing: Thing, dice: Dice) -> str:
    return f"{noun(thing, dice, size=dice.chance(0.25))} {_where(scene, thing, dice)}"


def _detailed(scene: Scene, dice: Dice, most: int) -> str:
    things = salient(scene)[:most]
    place = _place(scene, dice)
    light = dice.pick(_LIGHT[scene.light]) if dice.chance(0.85 if scene.light != "bright" else 0.45) else ""
    lit = f"{light} {place}".strip()
    lit = f"{article(lit)} {lit}"
    texts = [] if dice.chance(0.1) else _texts(scene, dice, things)
    shape = dice.below(5)
    if scene.view == "close":
        table = scene.thing("table")
        on = [t for t in things if t.kind != "table" and t.zone == "small"]
        wall = [t for t in things if t.zone == "wall"]
        if dice.chance(0.5):
            on.sort(key=lambda t: t.box[0])
        top = noun(table, dice)
        items = listing([_describe(scene, t, dice) for t in on])
        if shape == 0:
            text = f"{items}, on {top} in {lit}"
        elif shape == 1:
            text = f"there {_verb(items)} {items}, on {top} in {lit}"
        elif shape == 2:
            text = f"on {top} in {lit}: {items}"
        elif shape == 3:
            text = f"in {lit}, {top} with {items}"
        else:
            text = f"{lit} with {top}. on it: {items}"
        if wall:
            text += f". behind it {noun(wall[0], dice)}" + ("" if wall[0].kind == "door" else " on the wall")
    else:
        things = sorted(things, key=lambda t: t.box[0]) if dice.chance(0.35) else things
        phrases = [_describe(scene, t, dice) for t in things]
        items = listing(phrases)
        if shape == 0:
            text = f"{lit} with {items}"
        elif shape == 1:
            text = f"{lit}. there {_verb(items)} {items}"
        elif shape == 2:
            text = f"{items}, {_in(scene)} {lit}"
        elif shape == 3:
            if dice.chance(0.5):
                text = f"this is {lit}. we see {items}"
            else:
                text = f"{_in(scene)} {lit} there {_verb(items)} {items}"
        else:
            text = f"{lit}: {items}"
        pairs = [r for r in scene.relations if r.word in ("next to", "under", "above")]
        pairs = [r for r in pairs if {r.subject, r.object} <= {t.kind for t in things}]
        if pairs and dice.chance(0.45):
            relation = dice.pick(pairs)
            first, second = scene.thing(relation.subject), scene.thing(relation.object)
            be = "are" if is_plural(first) else "is"
            text += f". the {_bare(first)} {be} {_relation_word(relation, dice)} the {_bare(second)}"
    return ". ".join([text, *texts])


def _bare(thing: Thing) -> str:
    form = KINDS[thing.kind].forms[0]
    return form[1] if thing.count > 1 else form[0]


def _hazard(scene: Scene, dice: Dice, most: int) -> str:
    dangers = [t for t in salient(scene) if t.hazard]
    rest = [t for t in salient(scene) if not t.hazard and (t.kind != "table" or scene.view == "room")]
    place = _place(scene, dice)
    if not dangers:
        start = dice.pick(("no danger seen", "no danger seen", "nothing dangerous here", "all clear"))
        items = listing([noun(t, dice) for t in rest[: min(most, 3)]])
        shape = dice.below(2)
        return (
            f"{start}. {items} {_in_place(scene, dice)}" if shape else f"{start}. {article(place)} {place} with {items}"
        )
    start = dice.pick(("careful", "watch out", "careful", "warning", "danger"))
    shown = dangers[: max(1, min(most, 2))]
    warn = listing([f"{noun(t, dice)}{_ahead(t, dice)}" for t in shown])
    text = f"{start}: {warn}"
    others = rest[: max(0, min(most - 1, 2))]
    if others:
        text += f". {listing([_describe(scene, t, dice) for t in others])}, {_in_place(scene, dice)}"
    else:
        text += f". {article(place)} {place}"
    return text


def _ahead(thing: Thing, dice: Dice) -> str:
    if thing.zone == "small" and dice.chance(0.4):
        return " on the table"
    if thing.position == "middle":
        return dice.pick((" ahead", " in the middle", " straight ahead"))
    return f" {dice.pick(_SIDES[thing.position])}"
