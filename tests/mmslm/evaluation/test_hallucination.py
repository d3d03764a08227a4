"""CHAIR and recall by hand-made accounts, the scenes' own captions, and COCO photos with the benchmark's synonyms."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from standins import PROMPTS, Constant, scenes

from mmslm.data.coco import CocoPhotos
from mmslm.data.scenes import public_photo
from mmslm.evaluation.coco_things import CocoThings
from mmslm.evaluation.evaluate import evaluate
from mmslm.evaluation.hallucination import CaptionThings, SceneThings, hallucination

SHARED = Path(os.environ.get("MMSLM_SHARED_DATA", Path(__file__).parents[3] / "../shared/data"))
SYNONYMS = SHARED / "benchmarks" / "chair" / "synonyms.txt"
COCO = SHARED / "coco_open"
needs_synonyms = pytest.mark.skipif(not SYNONYMS.is_file(), reason=f"no CHAIR synonyms at {SYNONYMS}")


def account(mentioned: Sequence[str], present: Sequence[str]) -> CaptionThings:
    return CaptionThings(tuple(mentioned), frozenset(present))


def test_chair_and_recall_of_a_case_worked_by_hand() -> None:
    result = hallucination(
        [
            account(["cup", "bus"], ["cup", "dog"]),  # one of two invented, one of two found
            account(["dog"], ["dog", "cat", "bus"]),  # none invented, one of three found
            account([], ["cat"]),  # says nothing
        ]
    )
    assert result.chair_i == pytest.approx(1 / 3)
    assert result.chair_s == pytest.approx(1 / 3)
    assert result.recall == pytest.approx(2 / 6)
    assert result.to_json() == {
        "chair_i": result.chair_i,
        "chair_s": result.chair_s,
        "recall": result.recall,
        "captions": 3,
        "mentions": 3,
        "hallucinated": 1,
    }
    assert (result.captions[0].hallucinated, result.captions[0].missed) == (("bus",), {"dog"})


def test_only_some_kinds_can_be_counted() -> None:
    rows = [account(["cup", "bus"], ["cup", "dog"])]
    assert hallucination(rows, only={"dog"}).recall == 0
    assert hallucination(rows, only={"cup"}).recall == 1
    assert hallucination(rows, only={"cup"}).chair_i == 0
    assert hallucination(rows, only={"bus"}).chair_s == 1


def test_nothing_to_count_gives_no_number() -> None:
    assert hallucination([]).chair_s is None
    empty = hallucination([account([], [])])
    assert (empty.chair_i, empty.chair_s, empty.recall) == (None, 0, None)


def test_the_scenes_own_captions_invent_nothing_and_detailed_ones_find_most() -> None:
    things = SceneThings()
    photos = [*scenes(20, 3), *(public_photo(index, 5) for index in range(60))]
    found = {}
    for style in ("short", "detailed", "hazard"):
        rows = [account(things.mentions(photo.caption(style)), sorted(things.present(photo) or ())) for photo in photos]
        result = hallucination(rows)
        assert (result.chair_i, result.chair_s) == (0, 0)
        found[style] = result.recall or 0
    assert found["detailed"] > 0.9
    assert found["detailed"] > found["short"]


def test_kinds_as_composed_are_those_of_the_measured_truth() -> None:
    for photo in scenes(4, 2):
        assert SceneThings().present(photo) == frozenset(photo.truth.kinds)


@dataclass(frozen=True)
class RealPhoto:
    """A real photo's words; its picture is not needed to count things."""

    id: str
    captions: tuple[str, ...]
    owner: str = "someone"
    questions: tuple[Any, ...] = ()
    truth: None = None
    details: dict[str, Any] = field(default_factory=dict)

    def image(self, size: int | None = None) -> Any:
        raise AssertionError("counting things needs no picture")


@needs_synonyms
@pytest.mark.parametrize(
    ("caption", "kinds"),
    [
        ("Two men ride bikes past a parked motor bike.", ["person", "bicycle", "motorcycle"]),
        ("Children feed the geese and sheep", ["person", "bird", "sheep"]),
        ("A baby elephant with an adult zebra", ["elephant", "zebra"]),
        ("A baby holds a teddy bear", ["person", "teddy bear"]),
        ("a passenger train on the train tracks", ["train"]),
        ("A batter at home plate", []),
        ("hot dogs and knives on dining tables", ["hot dog", "knife", "dining table"]),
        ("Glasses of wine beside wine glasses", ["wine glass"]),
        ("a green traffic light and a stop sign", ["traffic light", "stop sign"]),
        ("the sky over a quiet field", []),
    ],
)
def test_coco_mentions_take_the_longest_phrase_and_read_plurals(caption: str, kinds: list[str]) -> None:
    assert CocoThings.from_file(SYNONYMS).mentions(caption) == kinds


@needs_synonyms
def test_the_synonym_list_has_the_eighty_coco_categories() -> None:
    assert len(CocoThings.from_file(SYNONYMS).kinds) == 80


@needs_synonyms
@pytest.mark.skipif(not COCO.is_dir(), reason=f"no COCO photos at {COCO}")
def test_people_rarely_invent_things_in_real_photos() -> None:
    """References count as truth, so each person is judged by the objects and the other four captions."""
    things = CocoThings.from_file(SYNONYMS)
    rows = []
    for photo in CocoPhotos(COCO):
        said, *others = photo.captions
        present = things.present(RealPhoto(photo.id, tuple(others), details=photo.details))
        if present is None:
            assert photo.details.get("objects") is None
            continue
        assert present >= set(photo.details["objects"])
        rows.append(account(things.mentions(said), sorted(present)))
    result = hallucination(rows)
    assert len(rows) > 30
    assert result.chair_i is not None
    assert result.recall is not None
    assert result.chair_i < 0.12
    assert 0.3 < result.recall < 0.6  # people name what matters to them, about two things in five


@needs_synonyms
@pytest.mark.skipif(not COCO.is_dir(), reason=f"no COCO photos at {COCO}")
def test_real_photos_are_evaluated_like_scenes() -> None:
    photos = [photo for photo in CocoPhotos(COCO) if photo.details.get("objects")][:12]
    things = CocoThings.from_file(SYNONYMS)
    result = evaluate(Constant("a person"), photos, styles=("short",), prompts=PROMPTS, things=things, image_size=32)
    with_people = sum("person" in (things.present(photo) or ()) for photo in photos)
    assert result.scores["chair_i"] == pytest.approx(1 - with_people / 12)
    assert result.scores["vqa_accuracy"] is None
    assert result.scores["private_recall"] is None
    assert 0 < (result.scores["recall"] or 0) < 1
    assert result.intervals["recall"] is not None


@needs_synonyms
def test_a_photo_without_annotations_is_unknown() -> None:
    things = CocoThings.from_file(SYNONYMS, {"1": ["dog"]})
    assert things.present(RealPhoto("2", ("a dog",))) is None
    assert things.present(RealPhoto("1", ("a puppy and a cat",))) == {"dog", "cat"}


def test_object_names_outside_the_list_are_refused() -> None:
    with pytest.raises(ValueError, match="spaceship"):
        CocoThings({"dog": ["puppy"]}, {"1": ["spaceship"]})
    with pytest.raises(ValueError, match="empty synonym list"):
        CocoThings({})


def test_a_file_that_is_no_list_of_words_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "novel.txt"
    path.write_text("It was the best of times and the worst of times for everyone who was there that day\n")
    with pytest.raises(ValueError, match="line 1"):
        CocoThings.from_file(path)
