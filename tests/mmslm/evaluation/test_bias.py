"""The worst tenth is told from bad luck."""

from __future__ import annotations

import dataclasses

import pytest
from standins import PROMPTS, SIZE, Constant, Mixed, Oracle, scenes

from mmslm.evaluation.bias import bias_text, group_scores
from mmslm.evaluation.evaluate import evaluate
from mmslm.evaluation.results import Evaluation


@pytest.fixture(scope="module")
def lucky() -> Evaluation:
    """Right on three quarters of all photos, whoever owns them."""
    photos = scenes(20, 6)
    narrator = Mixed(Oracle(photos), Constant("a stop sign"), 0.75)
    return evaluate(narrator, photos, prompts=PROMPTS, image_size=SIZE, styles=("short",), draws=50)


def neglect(evaluation: Evaluation, owners: set[str]) -> Evaluation:
    """The same evaluation, had the model failed all photos of some owners."""
    captions = [
        dataclasses.replace(row, mentioned=("stop sign",), cider=0.0) if row.owner in owners else row
        for row in evaluation.captions
    ]
    return dataclasses.replace(evaluation, captions=tuple(captions))


def test_luck_alone_is_no_bias(lucky: Evaluation) -> None:
    scores = group_scores(lucky, deals=200)
    assert set(scores) == {"cider", "recall", "chair_i", "vqa_accuracy"}
    recall = scores["recall"]
    assert recall.fair
    assert recall.groups == 20
    assert recall.worst_tenth < recall.mean  # somebody comes last all the same
    assert recall.worst_tenth == pytest.approx(recall.by_chance, abs=0.15)
    assert "luck explains it" in bias_text(scores)


def test_owners_served_worse_are_found_and_named(lucky: Evaluation) -> None:
    scores = group_scores(neglect(lucky, {"household-3", "household-11"}), deals=200)
    assert not scores["recall"].fair
    assert scores["recall"].worst_tenth == 0
    assert scores["recall"].worst in {"household-3", "household-11"}
    assert "served worse" in bias_text(scores)


def test_of_invention_the_worst_is_the_most(lucky: Evaluation) -> None:
    scores = group_scores(neglect(lucky, {"household-3", "household-11"}), deals=200)
    assert scores["chair_i"].worst_tenth > scores["chair_i"].mean
    assert scores["chair_i"].worst_tenth == 1


def test_groups_of_owners_can_be_named(lucky: Evaluation) -> None:
    groups = {f"household-{index}": f"street {index // 2}" for index in range(20)}
    scores = group_scores(lucky, groups, deals=20)
    assert scores["recall"].groups == 10
    assert scores["recall"].worst.startswith("street")
    assert scores["recall"].to_json()["fair"] in (True, False)


def test_what_has_no_worst_tenth_is_refused(lucky: Evaluation) -> None:
    with pytest.raises(ValueError, match="at least 10"):
        group_scores(lucky, {f"household-{index}": "all" for index in range(20)})
    with pytest.raises(ValueError, match="has no group"):
        group_scores(lucky, {"household-0": "a"})
    with pytest.raises(ValueError, match="no metric 'charm'"):
        group_scores(lucky, metrics=("charm",))
