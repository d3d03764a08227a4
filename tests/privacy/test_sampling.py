"""Samplers: really the scheme that their event states, each step on its own, repeatable from their state."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from privacy.events import Participation, Sampling
from privacy.sampling import CyclicSampler, FixedSizeSampler, FullSampler, PoissonSampler, ShuffledSampler


def test_poisson_batch_sizes_and_inclusions_are_binomial() -> None:
    sampler = PoissonSampler(400, 0.05, seed_or_generator=1)
    draws = [sampler.draw(step) for step in range(2000)]
    sizes = np.array([len(draw) for draw in draws])
    observed = np.bincount(sizes, minlength=401)
    expected = stats.binom.pmf(np.arange(401), 400, 0.05) * len(draws)
    keep = expected > 5
    tail = expected[~keep].sum()
    statistic = ((observed[keep] - expected[keep]) ** 2 / expected[keep]).sum() + (
        observed[~keep].sum() - tail
    ) ** 2 / tail
    assert stats.chi2.sf(statistic, keep.sum()) > 1e-4
    inclusions = np.bincount(np.concatenate(draws), minlength=400)
    z = (inclusions - 100) / math.sqrt(2000 * 0.05 * 0.95)
    assert stats.kstest(z, "norm").pvalue > 1e-4 and np.abs(z).max() < 5
    # records are independent of each other and of the step before: a shuffled loader fails both
    table = np.zeros((2000, 400))
    for row, draw in zip(table, draws, strict=True):
        row[draw] = 1
    centred = table - 0.05
    scale = 0.05 * 0.95
    assert abs((centred[:, :-1] * centred[:, 1:]).mean()) < 5 * scale / math.sqrt(centred[:, 1:].size)
    assert abs((centred[:-1] * centred[1:]).mean()) < 5 * scale / math.sqrt(centred[1:].size)


def test_small_rates_give_empty_batches() -> None:
    sampler = PoissonSampler(10, 0.01, seed_or_generator=0)
    sizes = [len(sampler.draw(step)) for step in range(500)]
    assert 400 < sizes.count(0) < 490  # 0.99**10 = 0.904


def test_rate_one_draws_everybody_and_the_chance_never_exceeds_the_rate() -> None:
    assert len(PoissonSampler(1000, 1.0, seed_or_generator=3).draw(0)) == 1000
    for rate in (1 / 3, 0.1, 1e-9, 1 - 1e-16):
        assert PoissonSampler(5, rate, seed_or_generator=0)._threshold / 2**64 <= rate


@pytest.mark.parametrize(
    "make",
    [
        lambda seed: PoissonSampler(300, 0.1, seed_or_generator=seed),
        lambda seed: PoissonSampler(300, 0.1, seed_or_generator=seed, max_batch=28),
        lambda seed: FixedSizeSampler(300, 17, seed_or_generator=seed),
        lambda seed: ShuffledSampler(300, 17, seed_or_generator=seed),
        lambda seed: CyclicSampler(300, 17, seed_or_generator=seed),
    ],
)
def test_a_resumed_sampler_draws_what_it_would_have_drawn(make) -> None:
    original = make(None)
    through = [original.draw(step) for step in range(30)]
    resumed = make(original.state())
    for step in (29, 3, 17):  # in any order
        np.testing.assert_array_equal(resumed.draw(step), through[step])
    assert any(
        len(a) != len(b) or (a != b).any() for a, b in zip(through, map(make(None).draw, range(30)), strict=True)
    )
    for draw in through:
        assert draw.dtype == np.int64 and (np.diff(draw) > 0).all()
        assert len(draw) == 0 or (draw[0] >= 0 and draw[-1] < 300)


def test_steps_differ_and_seeds_repeat() -> None:
    first, second = (PoissonSampler(1000, 0.2, seed_or_generator=9) for _ in range(2))
    assert (first.draw(4) == second.draw(4)).all()
    assert len(np.intersect1d(first.draw(4), first.draw(5))) < 80  # 40 expected; 200 if equal
    assert first.kind == "seeded (simulation)" and PoissonSampler(5, 0.5, seed_or_generator=None).kind == "csprng"
    for seed in (np.random.default_rng(0), torch.Generator().manual_seed(0)):
        assert PoissonSampler(5, 0.5, seed_or_generator=seed).kind == "seeded (simulation)"


def test_truncation_keeps_a_uniform_subset_and_says_so() -> None:
    sampler = PoissonSampler(60, 0.5, seed_or_generator=2, max_batch=25)
    plain = PoissonSampler(60, 0.5, seed_or_generator=sampler.state())
    kept = np.zeros(60)
    full = 0
    for step in range(3000):
        drawn, whole = sampler.draw(step), plain.draw(step)
        assert len(drawn) == min(25, len(whole)) and np.isin(drawn, whole).all()
        full += len(whole) > 25
        kept[drawn] += 1
    assert full > 2000
    mean = kept.mean()
    assert np.abs(kept - mean).max() < 5 * math.sqrt(mean * (1 - mean / 3000))
    assert sampler.sampling == Sampling(scheme="truncated_poisson", rate=0.5, population=60, max_batch=25)
    assert sampler.expected_batch == 30


def test_fixed_size_draws_are_uniform_subsets() -> None:
    sampler = FixedSizeSampler(40, 10, seed_or_generator=6)
    counts = np.zeros(40)
    for step in range(4000):
        draw = sampler.draw(step)
        assert len(np.unique(draw)) == 10
        counts[draw] += 1
    assert np.abs(counts - 1000).max() < 5 * math.sqrt(4000 * 0.25 * 0.75)
    assert sampler.sampling == Sampling(scheme="fixed_size_without_replacement", population=40, batch=10)


def test_an_epoch_of_the_shuffled_sampler_shows_everybody_once_and_never_claims_amplification() -> None:
    sampler = ShuffledSampler(103, 10, seed_or_generator=4)
    per_epoch = sampler.sampling.steps_per_epoch
    assert per_epoch == 11
    orders = []
    for epoch in range(2):
        batches = [sampler.draw(epoch * per_epoch + place) for place in range(per_epoch)]
        np.testing.assert_array_equal(np.sort(np.concatenate(batches)), np.arange(103))
        orders.append(batches[0])
    assert (orders[0] != orders[1]).any()
    assert sampler.sampling.scheme == "shuffle" and sampler.sampling.probability == 1.0


def test_cyclic_records_come_back_exactly_after_a_cycle() -> None:
    sampler = CyclicSampler(23, 5, seed_or_generator=8)
    seen: dict[int, list[int]] = {}
    for step in range(12):
        for record in sampler.draw(step):
            seen.setdefault(int(record), []).append(step)
    assert set(seen) == set(range(23))
    bound = sampler.participation(12)
    assert bound == Participation(min_separation=5, max_participations=3)
    assert all((np.diff(steps) == 5).all() and len(steps) <= 3 for steps in seen.values())
    assert sampler.sampling.scheme == "none"


def test_full_sampler_draws_everybody() -> None:
    assert (FullSampler(4).draw(7) == np.arange(4)).all() and FullSampler(4).sampling.scheme == "full"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PoissonSampler(0, 0.1, seed_or_generator=0), "population"),
        (lambda: PoissonSampler(10, 0.0, seed_or_generator=0), "sampling rate"),
        (lambda: PoissonSampler(10, 1.5, seed_or_generator=0), "sampling rate"),
        (lambda: PoissonSampler(10, math.nan, seed_or_generator=0), "sampling rate"),
        (lambda: PoissonSampler(10, 0.1, seed_or_generator=0, max_batch=0), "max_batch"),
        (lambda: PoissonSampler(10, 0.1, seed_or_generator=b"short"), "32"),
        (lambda: PoissonSampler(10, 0.1, seed_or_generator=0).draw(-1), "step"),
        (lambda: FixedSizeSampler(10, 11, seed_or_generator=0), "batch"),
        (lambda: ShuffledSampler(10, 0, seed_or_generator=0), "batch"),
        (lambda: FullSampler(0), "population"),
    ],
)
def test_impossible_samplers_are_refused(make, message) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_wrong_types_are_refused() -> None:
    with pytest.raises(TypeError, match="seed"):
        PoissonSampler(10, 0.1, seed_or_generator="x")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="population"):
        PoissonSampler(1.5, 0.1, seed_or_generator=0)  # type: ignore[arg-type]
