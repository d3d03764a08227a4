"""Splits and owners: the public never shows the private, and households differ as homes do."""

from __future__ import annotations

import numpy as np
import pytest

from mmslm.data.scenes import (
    KINDS,
    PLACES,
    PRIVATE_KINDS,
    PRIVATE_PLACES,
    PUBLIC_KINDS,
    PUBLIC_PLACES,
    ScenePhoto,
    household,
    mentioned_kinds,
    public_photo,
)
from mmslm.data.scenes.dice import Dice, raw_words


def test_enough_kinds_and_places() -> None:
    assert len(PUBLIC_KINDS) >= 40
    assert 8 <= len(PRIVATE_KINDS) <= 12
    assert len(PUBLIC_PLACES) == 6
    assert set(PRIVATE_PLACES) == {"kitchen", "hallway"}
    assert set(PUBLIC_KINDS) | set(PRIVATE_KINDS) == set(KINDS)
    assert not set(PUBLIC_KINDS) & set(PRIVATE_KINDS)


def test_public_photos_show_nothing_private(public_photos: list[ScenePhoto]) -> None:
    seen = set()
    for photo in public_photos:
        assert photo.scene.kinds <= set(PUBLIC_KINDS)
        assert photo.scene.place in PUBLIC_PLACES
        assert photo.owner == "public"
        seen |= photo.scene.kinds
        for caption in photo.captions:
            assert not mentioned_kinds(caption) & set(PRIVATE_KINDS)
        for question in photo.questions:
            assert not mentioned_kinds(question.question) & set(PRIVATE_KINDS)
            assert question.answer not in PRIVATE_PLACES
    assert seen == set(PUBLIC_KINDS)


def test_public_catalogue_cannot_reach_the_private() -> None:
    """Not only unseen in a sample: no public place lists a private kind."""
    for name in PUBLIC_PLACES:
        place = PLACES[name]
        assert not set(place.wall + place.floor + place.small + place.sky) & set(PRIVATE_KINDS)


def test_most_private_photos_show_something_private(private_photos: list[ScenePhoto]) -> None:
    private = [
        bool(photo.scene.kinds & set(PRIVATE_KINDS)) or photo.scene.place in PRIVATE_PLACES for photo in private_photos
    ]
    assert 0.62 < np.mean(private) < 0.82
    seen = set().union(*(photo.scene.kinds for photo in private_photos))
    assert seen == set(KINDS)


def test_scenes_are_simple_enough_to_learn(public_photos: list[ScenePhoto]) -> None:
    sizes = [len(photo.scene.things) for photo in public_photos]
    assert 2 < np.mean(sizes) < 3.3
    assert max(sizes) <= 7
    for photo in public_photos:
        things = photo.scene.things
        assert len({thing.kind for thing in things}) == len(things)
        assert all(1 <= thing.count <= KINDS[thing.kind].most for thing in things)
        assert all(len(thing.items) == thing.count for thing in things)


def test_a_household_has_its_own_rooms_and_colours() -> None:
    """Within a home the walls of a room and the colours of a thing agree; between homes they do not."""
    walls, chairs = [], []
    for index in range(40):
        home = household(index)
        scenes = [home.photo(j).scene for j in range(30)]
        own = {scene.look.wall for scene in scenes if scene.place == "kitchen"}
        assert len(own) <= 1
        walls.extend(own)
        colours = {thing.colour for scene in scenes for thing in scene.things if thing.kind == "door"}
        assert len(colours) <= 2
        chairs.append(frozenset(colours))
    assert len(set(walls)) > 4
    assert len(set(chairs)) > 8


def test_households_differ_in_what_they_have_and_how_they_shoot() -> None:
    mixes = []
    for index in range(30):
        kinds = [kind for j in range(30) for kind in household(index).photo(j).scene.kinds]
        mixes.append(np.array([kinds.count(kind) for kind in KINDS], dtype=float) / len(kinds))
    between = np.mean([np.abs(a - b).sum() / 2 for a in mixes for b in mixes if a is not b])
    halves = []
    for index in range(30):
        parts = []
        for start in (0, 30):
            kinds = [kind for j in range(start, start + 30) for kind in household(index).photo(j).scene.kinds]
            parts.append(np.array([kinds.count(kind) for kind in KINDS], dtype=float) / len(kinds))
        halves.append(np.abs(parts[0] - parts[1]).sum() / 2)
    assert between > np.mean(halves) + 0.1  # total variation: homes differ more than one home from itself
    assert len({household(index).habits for index in range(30)}) == 30


def test_owners_and_ids_name_one_photo() -> None:
    photos = [household(i).photo(j) for i in range(5) for j in range(5)] + [public_photo(i) for i in range(5)]
    assert len({photo.id for photo in photos}) == len(photos)
    assert household(3).photo(2).owner == household(3).owner == "household-3"
    assert household(3).photo(2).truth == household(3).photo(2).truth


def test_order_of_asking_does_not_matter() -> None:
    """Every part has a stream of its own: words first or picture first, the photo is the same."""
    one, two = household(9).photo(4), household(9).photo(4)
    words = (one.questions, one.captions)
    image = one.image(64).tobytes()
    assert two.image(64).tobytes() == image
    assert (two.questions, two.captions) == words


def test_dice_are_uniform_and_independent_of_their_neighbours() -> None:
    first, second = Dice(1, 2), Dice(1, 3)
    a, b = [first.unit() for _ in range(4000)], [second.unit() for _ in range(4000)]
    assert min(a) >= 0 and max(a) < 1
    assert np.mean(a) == pytest.approx(0.5, abs=0.02)
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.06
    assert np.std([first.bell() for _ in range(4000)]) == pytest.approx(1.0, abs=0.05)
    counts = np.bincount([first.below(5) for _ in range(5000)], minlength=5)
    assert counts.min() > 850
    assert sorted(first.some(range(6), 9)) == [0, 1, 2, 3, 4, 5]
    weights = [first.weighted("ab", (3.0, 1.0)) for _ in range(4000)]
    assert weights.count("a") / 4000 == pytest.approx(0.75, abs=0.03)


def test_dice_equal_numpys_own_uniform_numbers() -> None:
    """Our 53-bit numbers from raw words are those of numpy's Generator today."""
    dice = Dice(7, 11)
    expected = np.random.Generator(np.random.PCG64(np.random.SeedSequence((7, 11)))).random(150)
    np.testing.assert_array_equal([dice.unit() for _ in range(150)], expected)
    assert raw_words(7, 11).random_raw(2).dtype == np.uint64
