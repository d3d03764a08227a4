"""Questions: right, short, and balanced so that the question alone does not tell the answer."""

from __future__ import annotations

import re
from collections import Counter, defaultdict

import pytest

from mmslm.data.photo import Question
from mmslm.data.scenes import KINDS, PLACES, ScenePhoto, mentioned_kinds, public_photo
from mmslm.data.scenes.dice import Dice
from mmslm.data.scenes.questions import ask

NUMBERS = {"one": 1, "two": 2, "three": 3}


@pytest.fixture(scope="module")
def asked(public_photos: list[ScenePhoto], private_photos: list[ScenePhoto]) -> list[tuple[ScenePhoto, Question]]:
    return [(photo, question) for photo in public_photos + private_photos for question in photo.questions]


def test_answers_are_right(asked: list[tuple[ScenePhoto, Question]]) -> None:
    """Each answer is worked out anew from the scene and the words of the question."""
    seen: Counter[str] = Counter()
    for photo, question in asked:
        scene, text, answer = photo.scene, question.question, question.answer
        seen[question.kind] += 1
        about = mentioned_kinds(text)
        if question.kind == "presence":
            assert len(about) == 1
            assert answer == ("yes" if about <= scene.kinds else "no")
        elif question.kind == "count":
            assert scene.thing(*about).count == NUMBERS[answer]
        elif question.kind == "colour":
            kind = next(iter(about), "plant" if "pot" in text else "")
            assert scene.thing(kind).colour == answer
        elif question.kind == "position":
            assert scene.thing(*about).position == answer
        elif question.kind == "reading":
            assert scene.thing(*about).text == answer
        elif question.kind == "place":
            assert scene.place == answer
        else:
            assert (question.kind, answer) == ("danger", "yes" if scene.hazards else "no")
    assert set(seen) == {"presence", "count", "colour", "position", "reading", "place", "danger"}
    assert min(seen.values()) > 100


def test_questions_are_worded_well(asked: list[tuple[ScenePhoto, Question]]) -> None:
    for photo, question in asked:
        text = question.question
        assert re.fullmatch(r"[a-z ]+\?", text)
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", text), text
        assert re.fullmatch(r"[a-z0-9]+( [a-z0-9]+)?", question.answer)
        if question.kind in ("position", "colour") and "wear" not in text and "pot" not in text:
            thing = photo.scene.thing(*mentioned_kinds(text))
            assert (" are " in text) == (thing.count > 1 or thing.kind in ("shoes", "keys", "glasses", "stairs")), text


def test_six_to_ten_questions_a_picture(public_photos: list[ScenePhoto], private_photos: list[ScenePhoto]) -> None:
    for photos in (public_photos, private_photos):
        counts = [len(photo.questions) for photo in photos]
        assert 6 <= sum(counts) / len(counts) <= 10
        assert min(counts) >= 2


@pytest.mark.parametrize("split", ["public", "private"])
def test_presence_is_balanced_overall_and_per_kind(
    split: str, public_photos: list[ScenePhoto], private_photos: list[ScenePhoto]
) -> None:
    """Within four standard deviations of one half, overall, for each kind and for each place."""
    photos = public_photos if split == "public" else private_photos
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for photo in photos:
        for question in photo.questions:
            if question.kind == "presence":
                (kind,) = mentioned_kinds(question.question)
                for group in ("all", kind, "in " + photo.scene.place):
                    counts[group][question.answer] += 1
    assert set(counts["all"]) == {"yes", "no"}
    for group, answers in counts.items():
        total = answers["yes"] + answers["no"]
        assert abs(answers["yes"] - answers["no"]) <= 4 * total**0.5 + 1, (group, answers)


def test_a_blind_guesser_learns_nothing_from_question_and_place(public_photos: list[ScenePhoto]) -> None:
    """The best answer per question and place, learned on one half, is a coin toss on the other."""
    votes: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    half = len(public_photos) // 2
    for photo in public_photos[:half]:
        for question in photo.questions:
            if question.kind == "presence":
                votes[question.question, photo.scene.place][question.answer] += 1
    right = total = 0
    for photo in public_photos[half:]:
        for question in photo.questions:
            if question.kind == "presence":
                best = votes[question.question, photo.scene.place].most_common(1)
                right += (best[0][0] if best else "yes") == question.answer
                total += 1
    assert total > 1500
    assert abs(right / total - 0.5) < 0.05


def test_danger_is_balanced(public_photos: list[ScenePhoto], private_photos: list[ScenePhoto]) -> None:
    for photos in (public_photos, private_photos):
        answers = Counter(q.answer for photo in photos for q in photo.questions if q.kind == "danger")
        total = sum(answers.values())
        assert total > 100
        assert abs(answers["yes"] - answers["no"]) < 4 * total**0.5


def test_negatives_are_plausible(asked: list[tuple[ScenePhoto, Question]]) -> None:
    """What is asked after in vain could be at that place."""
    for photo, question in asked:
        if question.kind == "presence" and photo.owner == "public":
            (kind,) = mentioned_kinds(question.question)
            place = PLACES[photo.scene.place]
            assert kind in (*place.wall, *place.floor, *place.small, *place.sky, "table")


def test_an_identical_twin_asks_nothing_about_presence() -> None:
    scene = public_photo(0).scene
    assert not [q for q in ask(scene, scene.kinds, 1.0, Dice(1)) if q.kind == "presence"]
    other = [q for q in ask(scene, frozenset({"kettle"}), 1.0, Dice(1)) if q.kind == "presence"]
    assert Question("presence", "is there a kettle?", "no") in other
    assert all((q.answer == "no") == ("kettle" in q.question) for q in other)


def test_reading_is_only_asked_where_the_print_is_legible(asked: list[tuple[ScenePhoto, Question]]) -> None:
    """At 96 pixels every letter has at least three and a half pixels of width."""
    inner = {"poster": 0.84, "sign": 0.86, "bus": 0.4, "box": 0.68, "laptop": 0.62, "medicine bottle": 0.8}
    for photo, question in asked:
        if question.kind == "reading":
            thing = photo.scene.thing(*mentioned_kinds(question.question))
            if thing.kind in inner:
                left, _, right, _ = thing.items[0].box
                assert 96 * (right - left) * inner[thing.kind] / len(question.answer) > 3.3
            assert question.answer.upper() in KINDS[thing.kind].words
