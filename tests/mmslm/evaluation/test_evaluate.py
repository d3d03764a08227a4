"""Evaluation's extremes are where they must be, its rows carry its numbers, and comparisons are paired."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from standins import PROMPTS, SIZE, Constant, Mixed, Oracle, Quoting, Said, scenes

from mmslm.data.scenes import PRIVATE_KINDS, ScenePhoto
from mmslm.evaluation.compare import compare
from mmslm.evaluation.evaluate import evaluate
from mmslm.evaluation.intervals import ratio_interval
from mmslm.evaluation.results import METRICS, Evaluation


@pytest.fixture(scope="module")
def photos() -> list[ScenePhoto]:
    return scenes(12, 3)


def measured(narrator: Any, photos: list[ScenePhoto], **changes: Any) -> Evaluation:
    options: dict[str, Any] = {"prompts": PROMPTS, "image_size": SIZE, "draws": 300, "questions_per_photo": 20}
    return evaluate(narrator, photos, **{**options, **changes})


@pytest.fixture(scope="module")
def oracle(photos: list[ScenePhoto]) -> Evaluation:
    return measured(Oracle(photos), photos)


@pytest.fixture(scope="module")
def always_yes(photos: list[ScenePhoto]) -> Evaluation:
    return measured(Constant("yes"), photos)


@pytest.fixture(scope="module")
def half(photos: list[ScenePhoto]) -> Evaluation:
    return measured(Mixed(Oracle(photos), Constant("yes"), 0.5), photos)


def test_who_knows_the_truth_recalls_all_and_invents_nothing(oracle: Evaluation) -> None:
    scores = oracle.scores
    assert (scores["recall"], scores["private_recall"]) == (1, 1)
    assert (scores["chair_i"], scores["chair_s"]) == (0, 0)
    assert scores["vqa_accuracy"] == 1
    assert set(oracle.vqa.by_kind.values()) == {1.0}


def test_who_quotes_a_reference_has_the_best_overlap(photos: list[ScenePhoto], oracle: Evaluation) -> None:
    quoting = measured(Quoting(photos), photos, questions_per_photo=0)
    assert quoting.scores["bleu_4"] == pytest.approx(1, abs=1e-6)
    assert quoting.scores["rouge_l"] == pytest.approx(1)
    assert (quoting.scores["cider"] or 0) > (oracle.scores["cider"] or 0)
    assert quoting.scores["vqa_accuracy"] is None
    assert (quoting.scores["chair_i"], quoting.scores["chair_s"]) == (0, 0)


def test_who_always_says_yes_gets_half_of_the_yes_no_questions(always_yes: Evaluation) -> None:
    balance = always_yes.vqa.yes_no
    assert balance is not None
    assert balance.count > 80
    assert balance.accuracy == balance.yes_expected == pytest.approx(0.5, abs=0.12)
    assert balance.yes_given == 1
    assert always_yes.scores["recall"] == 0
    assert always_yes.scores["chair_i"] is None  # named nothing, so no share of it can be wrong
    assert always_yes.scores["chair_s"] == 0


def test_yes_and_no_are_balanced_in_the_scenes_within_chance() -> None:
    photos = scenes(150, 4, seed=3)
    answers = [[q.answer == "yes" for q in photo.questions if q.kind == "presence"] for photo in photos]
    owners = [photo.owner for photo in photos]
    interval = ratio_interval([sum(a) for a in answers], [len(a) for a in answers], owners, level=0.999, draws=4000)
    assert interval is not None
    assert interval.low <= 0.5 <= interval.high
    assert interval.high - interval.low < 0.2


def test_who_names_what_is_never_there_invents_it_every_time(photos: list[ScenePhoto]) -> None:
    absent = next(k for k in sorted(PRIVATE_KINDS) if all(k not in p.scene.kinds for p in photos[:3]))
    scores = measured(Constant(f"there is a {absent}"), photos[:3], styles=("short",), questions_per_photo=0).scores
    assert (scores["chair_i"], scores["chair_s"], scores["recall"]) == (1, 1, 0)


def test_every_number_follows_from_the_rows(half: Evaluation) -> None:
    things = [row.things for row in half.captions if row.things is not None]
    found = sum(len(account.found) for account in things)
    assert half.scores["recall"] == found / sum(len(account.present) for account in things)
    assert half.scores["vqa_accuracy"] == sum(row.correct for row in half.answers) / len(half.answers)
    assert half.scores["cider"] == pytest.approx(np.mean([row.cider for row in half.captions]))


def test_intervals_hold_their_value_and_are_over_owners(half: Evaluation) -> None:
    for name, interval in half.intervals.items():
        value = half.scores[name]
        assert interval is not None
        assert value is not None
        assert interval.low <= value <= interval.high
    assert half.n_owners == 12
    few = half.of(owners={row.owner for row in half.captions[:1]})
    assert set(few.intervals.values()) == {None}


def test_json_gives_the_evaluation_back(half: Evaluation) -> None:
    data = json.loads(json.dumps(half.to_json(), allow_nan=False))
    again = Evaluation.from_json(data)
    assert again.scores == half.scores
    assert again.captions == half.captions
    assert again.answers == half.answers
    page = half.to_json(rows=False)
    assert "rows" not in page
    assert set(page["metrics"]) == {name for name, _, _ in METRICS}
    with pytest.raises(ValueError, match="rows=True"):
        Evaluation.from_json(page)


def test_every_narrator_is_asked_the_same_in_batches_no_larger_than_told(photos: list[ScenePhoto]) -> None:
    narrator = Oracle(photos)
    done: list[tuple[int, int]] = []
    result = measured(
        narrator,
        photos,
        questions_per_photo=4,
        batch_size=5,
        progress=lambda now, total: done.append((now, total)),
    )
    assert max(size for size, _ in narrator.asked) == 5
    assert len(result.captions) == 3 * len(photos)
    assert done[-1] == (len(result.captions) + len(result.answers),) * 2
    assert [now for now, _ in done] == sorted(now for now, _ in done)
    other = measured(Constant("no"), photos, questions_per_photo=4, batch_size=16)
    asked = [{(row.photo, row.question) for row in item.answers} for item in (result, other)]
    assert asked[0] == asked[1]
    kinds = {row.kind for row in result.answers}
    assert {"presence", "count", "colour", "position"} <= kinds


def test_batch_size_changes_no_number(photos: list[ScenePhoto], oracle: Evaluation) -> None:
    narrow = measured(Oracle(photos), photos, batch_size=1)
    assert narrow.scores == oracle.scores


def test_styles_are_scored_apart(oracle: Evaluation) -> None:
    assert oracle.styles == ("short", "detailed", "hazard")
    short = oracle.of(style="short")
    assert len(short.captions) == oracle.n_photos
    assert {row.style for row in short.captions} == {"short"}
    with pytest.raises(ValueError, match="these owners"):
        oracle.of(owners=("nobody",))


def test_the_gap_closed_is_a_share_of_the_way_to_the_ceiling(
    always_yes: Evaluation, half: Evaluation, oracle: Evaluation
) -> None:
    table = compare(always_yes, half, oracle)
    recall = table["recall"]
    assert recall.gap_closed == pytest.approx(half.scores["recall"])
    assert recall.gap_interval is not None
    assert recall.gap_interval.low < (recall.gap_closed or 0) < recall.gap_interval.high
    assert recall.verdict == "better"
    assert compare(always_yes, oracle, oracle)["recall"].gap_closed == 1
    assert compare(oracle, half)["recall"].verdict == "worse"
    assert compare(oracle, half)["recall"].gap_closed is None


def test_less_invention_is_better(photos: list[ScenePhoto], oracle: Evaluation) -> None:
    wrong = measured(Constant("a bus, a cat and a stop sign"), photos)
    table = compare(wrong, oracle)
    assert (table["chair_i"].change or 0) < 0
    assert table["chair_i"].verdict == "better"
    assert compare(oracle, wrong)["chair_s"].verdict == "worse"


def test_no_gap_is_stated_where_there_is_none(always_yes: Evaluation, half: Evaluation) -> None:
    table = compare(half, always_yes, half)
    assert table["recall"].gap_closed is None
    assert "no clear gap" in table.to_text()
    assert compare(half, half)["recall"].verdict == "no clear change"


def test_paired_changes_are_surer_than_their_ends(half: Evaluation, photos: list[ScenePhoto]) -> None:
    """The same narrator with one more token everywhere: scores differ little, and surely, though each is unsure."""
    more = measured(Mixed(Oracle(photos), Constant("yes"), 0.55), photos)
    change = compare(half, more)["recall"].change_interval
    own = half.intervals["recall"]
    assert change is not None
    assert own is not None
    assert change.high - change.low < own.high - own.low


def test_tables_say_what_they_stand_on(always_yes: Evaluation, half: Evaluation, oracle: Evaluation) -> None:
    table = compare(always_yes, half, oracle)
    text, page = table.to_text(), table.to_markdown()
    assert max(map(len, text.splitlines())) <= 100
    assert "36 photos of 12 owners" in text
    assert page.splitlines()[0].count("|") == page.splitlines()[1].count("|") == 7
    for _, title, _ in METRICS:
        assert title in text
        assert title in page
    assert json.dumps(table.to_json(), allow_nan=False)
    assert "ceiling" not in compare(always_yes, half).to_text()


def test_what_was_asked_otherwise_is_not_compared(photos: list[ScenePhoto], oracle: Evaluation) -> None:
    fewer = measured(Oracle(photos), photos[:-1])
    with pytest.raises(ValueError, match="same photos"):
        compare(oracle, fewer)
    with pytest.raises(ValueError, match="seed"):
        compare(oracle, measured(Oracle(photos), photos, draws=200))


class Looking(Oracle):
    """Looks at pictures first and answers about what it saw."""

    looks = 0

    def look_batch(self, images: Any) -> list[tuple[str, Any]]:
        self.looks += len(images)
        return [("seen", image) for image in images]

    def say_batch(self, images: Any, prompts: Any, max_new_tokens: int) -> list[Said]:
        assert all(word == "seen" for word, _ in images)
        return super().say_batch([image for _, image in images], prompts, max_new_tokens)


def test_a_narrator_that_can_look_once_looks_once(photos: list[ScenePhoto], oracle: Evaluation) -> None:
    narrator = Looking(photos)
    assert measured(narrator, photos) == oracle
    assert narrator.looks == len(photos)


class Forgetful:
    def say_batch(self, images: Any, prompts: Any, max_new_tokens: int) -> list[Said]:
        return [Said("a cup")] * (len(prompts) - 1)


def test_missing_replies_are_refused(photos: list[ScenePhoto]) -> None:
    with pytest.raises(ValueError, match="2 replies to 3 prompts"):
        measured(Forgetful(), photos[:3])


def test_the_houses_prompts_are_the_default(photos: list[ScenePhoto], oracle: Evaluation) -> None:
    result = evaluate(Oracle(photos), photos, image_size=SIZE, questions_per_photo=20, draws=300)
    assert result == oracle


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"photos": []}, "no photos"),
        ({"styles": ("short", "short")}, "repeat"),
        ({"styles": ("rude",)}, "no prompt for the caption style 'rude'"),
        ({"styles": (), "questions_per_photo": 0}, "neither"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"questions_per_photo": -1}, "questions_per_photo=-1"),
    ],
)
def test_nonsense_is_refused_before_anything_is_asked(
    photos: list[ScenePhoto], changes: dict[str, Any], message: str
) -> None:
    given = changes.pop("photos", photos[:2])
    narrator = Oracle(photos[:2])
    with pytest.raises(ValueError, match=message):
        measured(narrator, given, **changes)
    assert narrator.asked == []


def test_a_photo_given_twice_is_refused(photos: list[ScenePhoto]) -> None:
    with pytest.raises(ValueError, match="twice"):
        measured(Constant("a"), [photos[0], photos[0]])
