"""Calibration: the table tells over- from honest confidence, and tiers keep their promises on owners not fitted on."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from standins import PROMPTS, SIZE, Constant, Mixed, Oracle, scenes

from mmslm.evaluation.calibration import TIERS, Tiers, fit_tiers, judge_tiers, outcomes, reliability
from mmslm.evaluation.evaluate import evaluate


def replies(seed: int, count: int = 4000, over: float = 1.0) -> tuple[list[float], list[bool], list[int]]:
    """Replies whose chance of being right is confidence ** over: 1 is honest, above 1 is overconfident."""
    rng = np.random.default_rng(seed)
    sure = rng.beta(2, 1, size=count)
    right = rng.random(count) < sure**over
    return sure.tolist(), right.tolist(), (np.arange(count) % 80).tolist()


def test_an_honest_model_has_next_to_no_calibration_error_and_an_overconfident_one_has() -> None:
    honest, vain = reliability(*replies(0)[:2]), reliability(*replies(0, over=3)[:2])
    assert honest.ece < 0.03
    assert vain.ece > 0.1
    assert all(each.confidence > each.accuracy for each in vain.bins[2:-1])


def test_the_table_is_the_one_worked_by_hand() -> None:
    table = reliability([0.2, 0.2, 0.8, 0.8], [False, False, True, False], bins=2)
    assert [(each.count, each.confidence, each.accuracy) for each in table.bins] == [(2, 0.2, 0.0), (2, 0.8, 0.5)]
    assert table.ece == pytest.approx((0.2 + 0.3) / 2)
    assert table.worst == pytest.approx(0.3)
    assert table.brier == pytest.approx((0.04 + 0.04 + 0.04 + 0.64) / 4)
    assert "25.0 %" in table.to_text()
    assert json.dumps(table.to_json())


def test_bins_hold_every_reply_once_and_split_no_tie() -> None:
    sure = [0.5] * 70 + [0.9] * 30
    table = reliability(sure, [True] * 100)
    assert [each.count for each in table.bins] == [70, 30]
    spread = reliability(*replies(3)[:2])
    assert sum(each.count for each in spread.bins) == 4000
    assert all(first.high < second.low for first, second in zip(spread.bins, spread.bins[1:], strict=False))
    assert max(each.count for each in spread.bins) < 420


@pytest.mark.parametrize("over", [0.5, 1.0, 2.0])
def test_tiers_keep_their_promise_on_other_owners(over: float) -> None:
    kept = 0
    for seed in range(10):
        tiers = fit_tiers(*replies(seed, over=over), certain=0.9, probably=0.7, draws=300)
        certain, probably, unsure = judge_tiers(tiers, *replies(seed + 100, over=over), draws=300)
        assert certain.accuracy is not None
        assert probably.accuracy is not None
        kept += certain.accuracy >= 0.9 and probably.accuracy >= 0.7
        assert (unsure.accuracy or 0) < probably.accuracy < certain.accuracy
        assert certain.share + probably.share + unsure.share == pytest.approx(1)
        assert certain.share > 0.02
    assert kept >= 9


def test_a_promise_that_cannot_be_kept_closes_the_tier() -> None:
    rng = np.random.default_rng(0)
    sure = rng.random(2000)
    right = rng.random(2000) < 0.6  # confidence says nothing
    tiers = fit_tiers(sure.tolist(), right.tolist(), (np.arange(2000) % 50).tolist(), draws=300)
    assert tiers.certain_at is None
    assert tiers.probably_at is None
    assert {tiers.tier(value) for value in (0, 0.5, 1)} == {"not sure"}


def test_few_replies_or_owners_promise_nothing() -> None:
    sure, right = [0.1] * 10 + [0.99] * 20, [False] * 10 + [True] * 20
    assert fit_tiers(sure, right, list(range(30))).certain_at is None
    many = sure * 20, right * 20
    assert fit_tiers(*many, [index % 3 for index in range(600)]).certain_at is None
    assert fit_tiers(*many, [index % 30 for index in range(600)]).certain_at == 0.99


def test_the_curve_is_the_best_rising_fit() -> None:
    """Pooling adjacent violators by hand: 0.2 -> 0, (0.4, 0.6) pool to 1/2, 0.8 -> 1."""
    tiers = fit_tiers([0.2, 0.4, 0.6, 0.8], [False, True, False, True], list(range(4)))
    assert tiers.values == (0, 0.5, 0.5, 1)
    assert tiers.probability(0.2) == 0
    assert tiers.probability(0.7) == pytest.approx(0.75)
    assert tiers.probability(1) == 1


def test_tiers_survive_json_and_damaged_ones_are_refused() -> None:
    tiers = fit_tiers(*replies(1), draws=200)
    data = json.loads(json.dumps(tiers.to_json()))
    assert Tiers.from_json(data) == tiers
    with pytest.raises(ValueError, match="no confidence tiers"):
        Tiers.from_json({"certain_at": 0.9})
    with pytest.raises(ValueError, match="does not rise"):
        Tiers.from_json({**data, "values": data["values"][::-1]})


def test_confidences_come_from_an_evaluation() -> None:
    photos = scenes(6, 2)
    narrator = Mixed(Oracle(photos), Constant("a stop sign"), 0.5)  # the first says 0.9 sure, the second 0.5
    result = evaluate(narrator, photos, prompts=PROMPTS, image_size=SIZE, draws=50)
    sure, right, owners = outcomes(result)
    assert set(sure) == {0.5, 0.9}
    assert all(is_right for value, is_right in zip(sure, right, strict=True) if value == 0.9)
    assert set(owners) == {photo.owner for photo in photos}
    _, clean, _ = outcomes(result, "captions")
    assert 0 < sum(clean) < len(clean)
    with pytest.raises(ValueError, match="choose 'answers'"):
        outcomes(result, "thoughts")


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan])
def test_what_is_no_probability_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="0 to 1"):
        reliability([0.5, value], [True, False])
    with pytest.raises(ValueError, match="0 to 1"):
        fit_tiers(*replies(1, 200), draws=50).tier(value)


def test_every_tier_is_judged() -> None:
    tiers = Tiers(None, 0.5, 0.95, 0.75, (0.0, 1.0), (0.0, 1.0))
    results = judge_tiers(tiers, [0.4, 0.6], [False, True], ["a", "b"])
    assert [result.tier for result in results] == list(TIERS)
    assert [result.count for result in results] == [0, 1, 1]
    assert results[0].accuracy is None
    assert results[1].to_json()["promise"] == 0.75
