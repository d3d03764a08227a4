"""Photos by owner: the public split, and households that differ as homes do.

``public_photo`` never shows a private kind or place. ``household`` draws its own rooms, belongings, colours and
habits from its index; about seven in ten of its photos show something that only the private split has.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

from PIL import Image

from mmslm.data.photo import Question
from mmslm.data.scenes import grammar
from mmslm.data.scenes.catalogue import (
    FAVOUR,
    KINDS,
    PLACES,
    PRIVATE_EXTRAS,
    PRIVATE_KINDS,
    PUBLIC_PLACES,
)
from mmslm.data.scenes.compose import World, choose, choose_place, compose, random_look
from mmslm.data.scenes.dice import Dice
from mmslm.data.scenes.measure import measured
from mmslm.data.scenes.questions import ask
from mmslm.data.scenes.render import DEFAULT_SIZE, Habits, Shot, render, shoot
from mmslm.data.scenes.truth import Scene

# First parts of the seed key, so that splits never share a stream.
_PUBLIC, _PRIVATE, _TEXT = 1, 2, 3
_COMPOSE, _SHOOT, _TWIN, _ASK, _WORDS = 1, 2, 3, 4, 5

# P(danger) / P(no danger) of a split, as measured over 20000 photos: how often a calm scene is asked about danger.
PUBLIC_CALM, PRIVATE_CALM = 0.10, 0.50


class ScenePhoto:
    """A rendered photo with exact truth. ``view`` numbers several pictures of one scene."""

    def __init__(self, world: World, habits: Habits, owner: str, key: tuple[int, ...], view: int = 0) -> None:
        self._world, self._habits, self._key, self._view = world, habits, key, view
        self.owner = owner
        self.id = f"{owner}/{key[-1]}" + (f".{view}" if view else "")

    def __repr__(self) -> str:
        return f"ScenePhoto({self.id!r})"

    @cached_property
    def _choice_and_scene(self) -> tuple[tuple[str, str], Scene]:
        dice = Dice(*self._key, _COMPOSE)
        at = choose_place(self._world, dice)
        return at, compose(self._world, choose(self._world, *at, dice), dice)

    @property
    def scene(self) -> Scene:
        """The scene as it was composed (boxes are those of the layout); cheaper than ``truth``."""
        return self._choice_and_scene[1]

    @cached_property
    def truth(self) -> Scene:
        """The scene with boxes and visible fractions measured on the drawn silhouettes."""
        return measured(self.scene)

    @cached_property
    def shot(self) -> Shot:
        """How this picture was taken."""
        return shoot(self._habits, Dice(*self._key, _SHOOT, self._view))

    def another_view(self, view: int) -> ScenePhoto:
        """Another picture of the same scene: same truth and captions, other tilt, distance, blur and grain."""
        return ScenePhoto(self._world, self._habits, self.owner, self._key, view)

    def image(self, size: int | None = None) -> Image.Image:
        """The RGB picture, ``size`` x ``size`` pixels (384 where none is given)."""
        return render(self.scene, self.shot, DEFAULT_SIZE if size is None else size)

    def caption(self, style: str, variant: int = 0) -> str:
        """A caption in the style "short", "detailed" or "hazard"; ``variant`` (0, 1, ...) words it anew."""
        if style not in grammar.STYLES:
            raise ValueError(f"got the caption style {style!r}: expected one of {', '.join(grammar.STYLES)}.")
        dice = Dice(*self._key, _WORDS, grammar.STYLES.index(style), variant)
        return grammar.caption(self.scene, style, dice)

    def references(self, style: str, n: int = 5) -> tuple[str, ...]:
        """``n`` captions of one style, worded independently."""
        return tuple(self.caption(style, variant) for variant in range(n))

    @cached_property
    def captions(self) -> tuple[str, ...]:
        """Five captions: two short, two detailed, one hazard first."""
        return (
            self.caption("short"),
            self.caption("short", 1),
            self.caption("detailed"),
            self.caption("detailed", 1),
            self.caption("hazard"),
        )

    @cached_property
    def questions(self) -> tuple[Question, ...]:
        """About six to ten questions with answers of one or two words."""
        (place, view), scene = self._choice_and_scene
        twin = choose(self._world, place, view, Dice(*self._key, _TWIN))
        return ask(scene, frozenset(twin.kinds), self._world.calm, Dice(*self._key, _ASK))


@dataclass(frozen=True)
class Household:
    """One private device's owner."""

    index: int
    seed: int
    world: World
    habits: Habits

    @property
    def owner(self) -> str:
        return f"household-{self.index}"

    def photo(self, j: int) -> ScenePhoto:
        """The owner's photo number ``j`` (0, 1, ...)."""
        if j < 0:
            raise ValueError(f"got the photo number {j}: give a whole number of at least 0.")
        return ScenePhoto(self.world, self.habits, self.owner, (self.seed, _PRIVATE, self.index, j))


@lru_cache(maxsize=1)
def public_world() -> World:
    """All public places and kinds, every colour equally likely."""
    return World(
        places=PUBLIC_PLACES,
        place_weights=(1.1, 1.0, 1.0, 1.0, 1.2, 0.8),
        wall={name: PLACES[name].wall for name in PUBLIC_PLACES},
        floor={name: PLACES[name].floor for name in PUBLIC_PLACES},
        small={name: PLACES[name].small for name in PUBLIC_PLACES},
        close={name: PLACES[name].close for name in PUBLIC_PLACES},
        favour=FAVOUR,
        calm=PUBLIC_CALM,
    )


def public_photo(index: int, seed: int = 0) -> ScenePhoto:
    """Public photo number ``index`` (0, 1, ...): never a private kind or place."""
    if index < 0:
        raise ValueError(f"got the photo index {index}: give a whole number of at least 0.")
    return ScenePhoto(public_world(), Habits(), "public", (seed, _PUBLIC, 0, index))


@lru_cache(maxsize=1)
def everything() -> World:
    """All places and kinds, for text alone: words are public, pictures of private things are not."""
    names = tuple(PLACES)
    extras = {name: PRIVATE_EXTRAS.get(name, ((), ())) for name in names}
    return World(
        places=names,
        place_weights=tuple(2.0 if PLACES[name].private else 1.0 for name in names),
        wall={name: PLACES[name].wall for name in names},
        floor={name: PLACES[name].floor + extras[name][0] for name in names},
        small={name: PLACES[name].small + extras[name][1] if PLACES[name].small else () for name in names},
        close={name: PLACES[name].close for name in names},
        favour={**FAVOUR, **dict.fromkeys(PRIVATE_KINDS, 1.8)},
    )


@dataclass(frozen=True)
class Imagined:
    """A scene that exists in words only: what is where, its captions and questions, and no picture."""

    scene: Scene
    captions: tuple[tuple[str, str], ...]
    questions: tuple[Question, ...]


def imagine(index: int, seed: int = 0) -> Imagined:
    """Imagined scene number ``index``: all kinds and places, private ones too, because words are public.

    ``captions`` are (style, caption), one of each style.
    """
    photo = ScenePhoto(everything(), Habits(), "text", (seed, _TEXT, 0, index))
    return Imagined(photo.scene, tuple((style, photo.caption(style)) for style in grammar.STYLES), photo.questions)


def sentences(index: int, seed: int = 0) -> list[str]:
    """Captions without a picture, about all kinds and places: one of each style for one imagined scene."""
    return [caption for _, caption in imagine(index, seed).captions]


@lru_cache(maxsize=4096)
def household(index: int, seed: int = 0) -> Household:
    """Household number ``index`` (0, 1, ...): its rooms, belongings, colours and habits."""
    if index < 0:
        raise ValueError(f"got the household index {index}: give a whole number of at least 0.")
    dice = Dice(seed, _PRIVATE, index)
    others = dice.some(PUBLIC_PLACES, 2 + dice.below(2))
    names = ("kitchen", "hallway", *others)
    weights = (dice.between(0.6, 1.1), dice.between(0.3, 0.6), *(dice.between(0.45, 0.9) for _ in others))
    owned = frozenset(dice.some(PRIVATE_KINDS, 7 + dice.below(3)))

    def keep(kinds: tuple[str, ...], share: float) -> tuple[str, ...]:
        """The home's own part of the ordinary kinds, and its private ones."""
        plain = [k for k in kinds if not KINDS[k].private]
        mine = frozenset(dice.some(plain, max(2, round(share * len(plain)))))
        return tuple(k for k in kinds if k in mine or k in owned)

    wall, floor, small = {}, {}, {}
    for name in names:
        place, extra = PLACES[name], PRIVATE_EXTRAS.get(name, ((), ()))
        wall[name] = keep(place.wall, 0.7)
        floor[name] = keep(place.floor + extra[0], 0.6)
        small[name] = keep(place.small + extra[1], 0.6) if place.small else ()
    lights = [0.2 + dice.unit(), 0.1 + 0.5 * dice.unit(), 0.1 + 0.5 * dice.unit()]
    world = World(
        places=names,
        place_weights=weights,
        wall=wall,
        floor=floor,
        small=small,
        close={name: min(0.8, PLACES[name].close * dice.between(0.7, 1.4)) for name in names},
        favour={**FAVOUR, **dict.fromkeys(PRIVATE_KINDS, 2.0)},
        calm=PRIVATE_CALM,
        colours={name: tuple(dice.some(kind.colours, 1 + dice.below(2))) for name, kind in KINDS.items()},
        looks={name: random_look(dice, name) for name in names},
        lights=(lights[0], lights[1], lights[2]),
        distance=dice.between(0.85, 1.05),
    )
    habits = Habits(
        tilt=dice.between(0.8, 4.0),
        lean=dice.between(-2.5, 2.5),
        blur_often=dice.between(0.0, 0.5),
        blur_most=dice.between(0.004, 0.009),
        grain=2 + dice.below(7),
        zoom=dice.between(0.99, 1.06),
    )
    return Household(index, seed, world, habits)
