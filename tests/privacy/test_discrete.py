"""The discrete Gaussian is exact, and a sum of shares is priced no lower than it costs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from privacy.accounting.summary import gaussian_delta
from privacy.discrete import MOST_VARIANCE, SMOOTHING, _Uniform, discrete_gaussian, key_for, shares


def pmf(variance, reach):
    """Of N_Z(0, variance) at -reach .. reach, in fp64."""
    x = np.arange(-reach, reach + 1)
    mass = np.exp(-(x.astype(float) ** 2) / (2 * variance))
    return x, mass / mass.sum()


@pytest.mark.parametrize("variance", [1, 2, 18, 50, 1000])
def test_draws_follow_the_probabilities(variance):
    drawn = discrete_gaussian(variance, 200_000, key_for("chi", variance))
    reach = math.ceil(4 * math.sqrt(variance))
    x, mass = pmf(variance, 40 * math.ceil(math.sqrt(variance)) + 40)
    inside = np.abs(x) <= reach
    observed = np.array([(drawn == value).sum() for value in x[inside]] + [(np.abs(drawn) > reach).sum()])
    wanted = np.append(mass[inside], 1 - mass[inside].sum()) * len(drawn)
    keep = wanted > 5
    observed = np.append(observed[keep], observed[~keep].sum())
    wanted = np.append(wanted[keep], wanted[~keep].sum() + 1e-9)
    assert stats.chisquare(observed, wanted * observed.sum() / wanted.sum()).pvalue > 1e-4


@pytest.mark.parametrize("variance", [10**8, 2**40, MOST_VARIANCE])
def test_large_variances_are_normal_in_every_decile(variance):
    drawn = discrete_gaussian(variance, 200_000, key_for("large", variance)) / math.sqrt(variance)
    counts, _ = np.histogram(drawn, bins=np.r_[-np.inf, stats.norm.ppf(np.arange(1, 20) / 20), np.inf])
    assert stats.chisquare(counts).pvalue > 1e-4
    assert abs(drawn.var() - 1) < 5 * math.sqrt(2 / len(drawn))


def test_a_key_repeats_a_draw_and_no_key_does_not():
    assert np.array_equal(discrete_gaussian(10**6, 100, key_for(1)), discrete_gaussian(10**6, 100, key_for(1)))
    assert not np.array_equal(discrete_gaussian(10**6, 100), discrete_gaussian(10**6, 100))


class Ones:
    """A source whose every further bit is 1 (or 0): a uniform number that stays at the edge as long as it can."""

    def __init__(self, byte):
        self.byte = byte

    def update(self, data):
        return bytes([self.byte]) * len(data)


def test_comparisons_that_fp64_cannot_decide_are_decided_exactly():
    # e^-1 in binary: the first 64 bits leave it open, the next ones do not.
    word = 0x5E2D58D8B3BCDF1ABADEC7829054F90D >> 64
    assert math.exp(-1) == pytest.approx(word / 2**64)
    assert _Uniform(word, Ones(0)).below_exp(1, 1)  # further zeros: below
    assert not _Uniform(word, Ones(255)).below_exp(1, 1)  # further ones: above
    assert _Uniform(2**64 - 1, Ones(255)).below_exp(0, 1)


@pytest.mark.parametrize(("parties", "noise"), [(1, 2.0), (3, 1.5), (7, 0.8)])
def test_epsilon_of_summed_shares_is_at_most_the_gaussians_by_numerical_integration(parties, noise):
    """The exact law of the sum (convolved), moved by one clipped contribution, against what the accountant assumes."""
    clip = 20  # grid units: coarse on purpose, so that the reserve matters
    variance = (noise * clip) ** 2
    share = shares(variance, parties)
    assert parties * share >= variance + SMOOTHING
    _, one = pmf(share, 12 * math.ceil(math.sqrt(share)))
    law = one
    for _ in range(parties - 1):
        law = np.convolve(law, one)
    moved = np.concatenate([np.zeros(clip), law])
    still = np.concatenate([law, np.zeros(clip)])
    tightness = []
    for epsilon in (0.0, 0.25, 0.5, 1.0, 2.0):
        for first, second in ((moved, still), (still, moved)):
            delta = np.maximum(first - math.exp(epsilon) * second, 0).sum()
            assert delta <= gaussian_delta(1 / noise, epsilon) + 1e-12
            tightness.append(delta / gaussian_delta(1 / noise, epsilon))
    assert max(tightness) > 0.9  # and the price is not far from the truth


def test_renyi_divergence_is_the_closed_form():
    """Canonne, Kamath, Steinke: alpha Delta^2 / 2 v for integer shifts, with equality."""
    variance, shift = 60, 7
    x, _mass = pmf(variance, 400)
    for order in (2, 5, 17):
        # sum p(x - shift)^order p(x)^(1 - order), in logarithms
        log_p, log_q = -((x - shift) ** 2) / (2 * variance), -(x**2) / (2 * variance)
        terms = order * log_p + (1 - order) * log_q
        normal = math.log(np.exp(-(x.astype(float) ** 2) / (2 * variance)).sum())
        top = terms.max()
        found = (top + math.log(np.exp(terms - top).sum()) - normal) / (order - 1)
        assert found == pytest.approx(order * shift**2 / (2 * variance), rel=1e-9)


def test_impossible_shares_are_refused():
    with pytest.raises(ValueError, match="finer"):
        shares(10.0, 4)
    with pytest.raises(ValueError, match="coarser"):
        shares(2.0**60, 2)
    with pytest.raises(ValueError, match="from 1 to"):
        discrete_gaussian(0, 5)
    with pytest.raises(ValueError, match="32"):
        discrete_gaussian(5, 5, b"short")
