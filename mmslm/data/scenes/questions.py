"""Questions with exact answers of one or two words.

Presence is balanced by exchange: a twin is a second, independent choice of kinds for the same place and view. Kinds
that the photo has and the twin lacks are asked with the answer "yes", kinds that the twin has and the photo lacks with
"no". As photo and twin are exchangeable, each kind, in each place and view, is asked as often with "yes" as with
"no": neither the kind nor the place tells the answer. The kinds in both are never asked.
"""

from __future__ import annotations

from mmslm.data.photo import Question
from mmslm.data.scenes.catalogue import KINDS
from mmslm.data.scenes.dice import Dice
from mmslm.data.scenes.grammar import NUMBERS, article, is_plural
from mmslm.data.scenes.truth import Scene, Thing

MOST_PER_ANSWER = 2


def ask(scene: Scene, twin: frozenset[str], calm: float, dice: Dice) -> tuple[Question, ...]:
    """The questions of a scene. ``twin`` holds the kinds of an exchangeable second choice; ``calm`` is how often a
    scene without danger is asked about danger, so that this answer is balanced too."""
    questions = [Question("presence", _presence(kind), answer) for kind, answer in _balanced(scene.kinds, twin, dice)]
    for thing in dice.some([t for t in scene.things if KINDS[t.kind].most > 1], 2):
        many = KINDS[thing.kind].forms[0][1]
        questions.append(Question("count", f"how many {many} are there?", NUMBERS[thing.count]))
    coloured = [t for t in scene.things if len(KINDS[t.kind].colours) > 1]
    for thing in dice.some(coloured, 2):
        questions.append(Question("colour", _colour(thing), thing.colour))
    placed = [t for t in scene.things if not (scene.view == "close" and t.kind == "table")]
    for thing in dice.some(placed, 1):
        be, name = _be(thing)
        questions.append(Question("position", f"where {be} the {name}?", thing.position))
    for thing in scene.things:
        if thing.text is not None:
            questions.append(Question("reading", _reading(thing), thing.text))
    danger = bool(scene.hazards)
    if danger or dice.chance(calm):
        questions.append(Question("danger", "is there any danger?", "yes" if danger else "no"))
    if dice.chance(0.5):
        wording = dice.pick(("what place is this?", "where is this?"))
        questions.append(Question("place", wording, scene.place))
    return tuple(questions)


def _balanced(present: frozenset[str], twin: frozenset[str], dice: Dice) -> list[tuple[str, str]]:
    # Sorted first: the order of a set is no order to choose from.
    yes = dice.some(sorted(present - twin), MOST_PER_ANSWER)
    no = dice.some(sorted(twin - present), MOST_PER_ANSWER)
    pairs = [(kind, "yes") for kind in yes] + [(kind, "no") for kind in no]
    return dice.some(pairs, len(pairs))


def _presence(kind: str) -> str:
    entry = KINDS[kind]
    name = entry.forms[0][0]
    if entry.article == "":
        return f"are there {name}?"
    return f"is there {article(name)} {name}?"


def _be(thing: Thing) -> tuple[str, str]:
    form = KINDS[thing.kind].forms[0]
    return ("are" if is_plural(thing) else "is", form[1] if thing.count > 1 else form[0])


def _colour(thing: Thing) -> str:
    be, name = _be(thing)
    if thing.kind == "person":
        return f"what colour {'do the people' if thing.count > 1 else 'does the person'} wear?"
    if thing.kind == "plant":
        return f"what colour {'are the pots' if thing.count > 1 else 'is the pot'}?"
    return f"what colour {be} the {name}?"


def _reading(thing: Thing) -> str:
    if thing.kind == "bus":
        return "what number is the bus?"
    be, name = _be(thing)
    return f"what {'do' if be == 'are' else 'does'} the {name} say?"
