"""Dominating pairs and our own accountant against brute force: all records enumerated, outputs integrated on a line."""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np
import pytest
from scipy import stats

from privacy.accounting import resolve
from privacy.accounting.discretise import discretise_pair, loss_grids
from privacy.accounting.mechanisms import Composition, Poisson
from privacy.accounting.own import own_delta, own_epsilon
from privacy.accounting.pairs import steps_of, truncation
from privacy.events import GaussianRelease, Sampling

X = np.linspace(-16.0, 16.0, 16_001)
STEP = X[1] - X[0]


def subset_law(records: int, sampling: Sampling) -> dict[tuple[int, ...], float]:
    """The probability of every batch out of `records` records."""
    law: dict[tuple[int, ...], float] = {}
    for size in range(records + 1):
        for batch in itertools.combinations(range(records), size):
            if sampling.scheme == "fixed_size_without_replacement":
                if size == sampling.batch:
                    law[batch] = 1.0 / math.comb(records, size)
                continue
            chance = sampling.rate**size * (1 - sampling.rate) ** (records - size)
            most = sampling.max_batch or records
            kept = list(itertools.combinations(batch, min(size, most)))
            for subset in kept:
                law[subset] = law.get(subset, 0.0) + chance / len(kept)
    return law


def density(values: list[float], sampling: Sampling, sigma: float) -> np.ndarray:
    """The density of the noisy sum over X [n]."""
    total = np.zeros_like(X)
    for batch, chance in subset_law(len(values), sampling).items():
        total += chance * bell(sum(values[i] for i in batch), sigma)
    return total


@functools.cache
def bell(mean: float, sigma: float) -> np.ndarray:
    return stats.norm.pdf(X, mean, sigma)


def hockey_stick(p: np.ndarray, q: np.ndarray, epsilon: float) -> float:
    return float(np.maximum(p - math.exp(epsilon) * q, 0.0).sum() * STEP)


def neighbours(records: int, adjacency: str, group: int):
    """Pairs of data sets of contributions -1, 0, 1; the last `group` records are the unit's."""
    ends = (-1.0, 1.0)
    for others in itertools.combinations_with_replacement((-1.0, 0.0, 1.0), records - group):
        for mine in itertools.product(ends, repeat=group):
            if adjacency == "replace_one":
                for theirs in itertools.product((-1.0, 0.0, 1.0), repeat=group):
                    yield [*others, *mine], [*others, *theirs]
            else:
                yield [*others, *mine], [*others]
                yield [*others], [*others, *mine]


CASES = [
    (Sampling("poisson", 0.3), "add_or_remove_one", 1),
    (Sampling("poisson", 0.3), "replace_one", 1),
    (Sampling("poisson", 0.2), "add_or_remove_one", 2),
    (Sampling("poisson", 0.2), "replace_one", 2),
    (Sampling("fixed_size_without_replacement", population=4, batch=2), "replace_one", 1),
    (Sampling("fixed_size_without_replacement", population=4, batch=1), "replace_one", 1),
    (Sampling("truncated_poisson", 0.4, population=4, max_batch=1), "add_or_remove_one", 1),
    (Sampling("truncated_poisson", 0.4, population=4, max_batch=2), "add_or_remove_one", 1),
    (Sampling("truncated_poisson", 0.4, population=4, max_batch=2), "replace_one", 1),
]


@pytest.mark.parametrize(("sampling", "adjacency", "group"), CASES)
def test_no_pair_of_small_data_sets_beats_the_dominating_pair(sampling, adjacency, group):
    sigma = 1.0
    event = GaussianRelease(sigma, sampling, adjacency=adjacency, contributions_per_unit=group)
    epsilons = (0.0, 0.2, 0.7, 1.5, 3.0)
    bounds = {value: own_delta(resolve([event]), value, tolerance=1e-6) for value in epsilons}
    worst = dict.fromkeys(epsilons, 0.0)
    for left, right in neighbours(4, adjacency, group):
        p, q = density(left, sampling, sigma), density(right, sampling, sigma)
        for value in epsilons:
            worst[value] = max(worst[value], hockey_stick(p, q, value))
    for value in epsilons:
        assert worst[value] <= bounds[value] + 1e-6
    if sampling.scheme != "truncated_poisson":  # there the bound tells the adversary more than the mechanism does
        for value in epsilons:
            assert worst[value] >= 0.99 * bounds[value] - 2e-6


@pytest.mark.parametrize("replace", [False, True])
def test_two_steps_equal_a_two_dimensional_integral(replace):
    rate, sigma = 0.2, 1.0
    x = np.linspace(-9.0, 9.0, 1801)
    one = stats.norm.pdf(x, 1.0, sigma) * rate + stats.norm.pdf(x, 0.0, sigma) * (1 - rate)
    other = stats.norm.pdf(x, 0.0, sigma)
    if replace:
        other = stats.norm.pdf(x, -1.0, sigma) * rate + other * (1 - rate)
    p, q = np.multiply.outer(one, one), np.multiply.outer(other, other)
    composition = Composition(((Poisson(rate, sigma, 1, replace), 2),))
    for value in (0.1, 0.5, 1.5):
        exact = max(
            float(np.maximum(left - math.exp(value) * right, 0.0).sum() * (x[1] - x[0]) ** 2)
            for left, right in ((p, q), (q, p))
        )
        assert own_delta(composition, value, tolerance=1e-6) == pytest.approx(exact, rel=1e-3, abs=1e-7)


@pytest.mark.parametrize("sigma", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("spacing", [0.1, 1e-2, 1e-3])
def test_a_coarser_grid_only_raises_the_divergence(sigma, spacing):
    for step in steps_of(Poisson(0.1, sigma)):
        ((_, pair),) = step
        fine, coarse = discretise_pair(pair, 1e-4), discretise_pair(pair, spacing)
        for grid in (fine, coarse):
            assert grid.mass.min() >= 0.0
            assert grid.mass.sum() + grid.infinite == pytest.approx(1.0, abs=1e-12)
            assert (grid.mass * np.exp(-grid.losses)).sum() <= 1.0 + 1e-9  # at most all of Q's mass
        for value in (0.0, 0.05, 0.5):
            above = [
                (np.maximum(-np.expm1(value - grid.losses), 0.0) * grid.mass).sum() + grid.infinite
                for grid in (fine, coarse)
            ]
            assert above[1] >= above[0] - 1e-12


def test_a_coarser_tolerance_never_lowers_epsilon():
    composition = Composition(((Poisson(0.02, 0.9), 500),))
    values = [own_epsilon(composition, 1e-5, tolerance=tolerance) for tolerance in (1e-6, 1e-4, 1e-2, 0.3)]
    assert values[0] <= values[1] + 1e-9 <= values[2] + 2e-9 <= values[3] + 3e-9
    assert values[0] == pytest.approx(values[1], abs=2e-4)


def test_truncation_probabilities_equal_the_sum_over_batch_sizes():
    rate, records, most = 0.3, 20, 7
    others = stats.binom(records - 1, rate)
    sizes = np.arange(most, records)
    full, kept = truncation(rate, records, most)
    assert full == pytest.approx(others.sf(most - 1), rel=1e-12)
    assert kept == pytest.approx((others.pmf(sizes) * rate * most / (sizes + 1)).sum() / full, rel=1e-12)
    assert truncation(rate, 7, 7) == (0.0, rate)


def test_a_mechanism_without_a_known_pair_is_refused():
    with pytest.raises(TypeError, match="dominating pair"):
        steps_of("laplace")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="records"):
        steps_of(Poisson(0.1, 1.0, group=10**6))
    with pytest.raises(ValueError, match="too wide"):
        loss_grids(Poisson(0.1, 1e-4), 1e-6)
