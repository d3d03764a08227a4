"""Intervals resample owners: they cover where photos of an owner resemble each other, and say so where they cannot."""

from __future__ import annotations

import numpy as np
import pytest

from mmslm.evaluation.intervals import MIN_OWNERS, group_sums, owner_weights, percentile, ratio, ratio_interval


def test_intervals_over_owners_cover_and_those_over_photos_do_not() -> None:
    """40 owners of 10 photos with shared luck: the nominal 95 % is about kept by owners and badly missed by photos."""
    rng = np.random.default_rng(5)
    owners = np.repeat(np.arange(40), 10)
    covered = {"owners": 0, "photos": 0}
    trials = 120
    for trial in range(trials):
        chance = rng.beta(2, 2, size=40)  # mean 0.5
        right = (rng.random(400) < chance[owners]).astype(float)
        for name, groups in (("owners", owners), ("photos", np.arange(400))):
            interval = ratio_interval(right, np.ones(400), groups.tolist(), draws=200, seed=trial)
            assert interval is not None
            covered[name] += interval.low <= 0.5 <= interval.high
    assert covered["owners"] / trials > 0.90
    assert covered["photos"] / trials < 0.85


def test_the_interval_of_independent_rows_is_the_textbook_one() -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(size=400)
    interval = ratio_interval(values, np.ones(400), list(range(400)), draws=4000)
    assert interval is not None
    half = 1.96 * values.std() / 20
    assert interval.low == pytest.approx(values.mean() - half, abs=0.15 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.15 * half)


def test_the_same_seed_gives_the_same_interval_and_another_does_not() -> None:
    values = np.random.default_rng(0).random(50)
    first, again, other = (ratio_interval(values, np.ones(50), list(range(50)), seed=seed) for seed in (1, 1, 2))
    assert first == again != other


def test_too_few_owners_get_no_interval() -> None:
    rows = np.ones(100)
    assert ratio_interval(rows, rows, [index % (MIN_OWNERS - 1) for index in range(100)]) is None
    assert ratio_interval(rows, rows, [index % MIN_OWNERS for index in range(100)]) is not None


def test_resamples_draw_as_many_owners_as_there_are() -> None:
    weights = owner_weights(17, draws=50, seed=3)
    assert (weights.sum(1) == 17).all()
    assert weights.min() == 0 < weights.max()


def test_sums_of_owners_add_up_to_the_whole() -> None:
    values = np.arange(12.0).reshape(6, 2)
    sums, order = group_sums(values, ["b", "a", "b", "c", "a", "b"])
    assert order == ["b", "a", "c"]
    np.testing.assert_array_equal(sums, [[0 + 4 + 10, 1 + 5 + 11], [2 + 8, 3 + 9], [6, 7]])


def test_a_ratio_over_nothing_is_not_a_number_and_gives_no_interval() -> None:
    assert np.isnan(ratio(np.array([1.0, 0.0])))
    assert percentile(np.full(100, np.nan)) is None


@pytest.mark.parametrize("level", [0, 1, 95])
def test_a_level_outside_zero_to_one_is_refused(level: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        percentile(np.ones(10), level)


def test_rows_without_an_owner_are_refused() -> None:
    with pytest.raises(ValueError, match="one owner per row"):
        group_sums(np.ones((3, 1)), ["a"])
