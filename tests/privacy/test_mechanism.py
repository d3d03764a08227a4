"""The user-level Gaussian sum: clipped, noised on the sum, divided by a constant, and priced as what it did."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from privacy.clipping.vector import clip_vector
from privacy.events import GaussianRelease, Sampling, Unaccountable
from privacy.mechanism import GaussianSum, ReleaseCounts
from privacy.noise import SecureNoise, SeededNoise, grid
from privacy.sampling import PoissonSampler

SAMPLING = Sampling(scheme="poisson", rate=0.1, population=200)
D = 20_000


def mechanism(clip_norm: float = 1.0, sigma: float = 1.0, divisor: float = 20.0) -> GaussianSum:
    return GaussianSum(clip_norm, sigma, SAMPLING, divisor, SeededNoise(0))


def quiet(clip_norm: float, divisor: float = 1.0) -> GaussianSum:
    """Next to no noise: what is left is the clipped sum."""
    return GaussianSum(clip_norm, 1e-9, SAMPLING, divisor, SeededNoise(0))


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1.0, 1e6, 1e30])
def test_clipped_vectors_never_exceed_c_and_keep_their_direction(scale) -> None:
    generator = torch.Generator().manual_seed(0)
    for clip_norm in (1e-6, 0.1, 1.0, 37.0):
        vector = torch.randn(100_003, generator=generator, dtype=torch.float64) * scale
        clipped, was_clipped, finite = clip_vector(vector, clip_norm)
        norm = math.sqrt(math.fsum((clipped.square()).tolist()))
        assert norm <= clip_norm and finite and clipped.dtype == torch.float64
        assert was_clipped == (math.sqrt(math.fsum((vector.square()).tolist())) > clip_norm)
        if was_clipped:
            assert norm > clip_norm * (1 - 1e-8)
        else:
            assert torch.equal(clipped, vector)
        assert float(torch.nn.functional.cosine_similarity(clipped / clip_norm, vector / scale, 0)) > 1 - 1e-9 or (
            not was_clipped
        )


def test_a_norm_that_fp32_would_underestimate_is_still_clipped_to_c() -> None:
    # fp32 sums of squares over millions of equal entries come out low; C would be exceeded by as much
    vector = torch.full((4_000_000,), 1e-3, dtype=torch.float32)
    clipped, was_clipped, _ = clip_vector(vector, 1.0)
    assert was_clipped and float(torch.linalg.vector_norm(clipped)) <= 1.0


def test_values_that_overflow_fp32_squares_are_clipped_not_dropped() -> None:
    clipped, was_clipped, finite = clip_vector(torch.tensor([3e38, 0.0, -3e38]), 1.0)
    assert finite and was_clipped
    torch.testing.assert_close(clipped, torch.tensor([0.5**0.5, 0, -(0.5**0.5)], dtype=torch.float64))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_vector_that_is_not_finite_counts_as_zero_and_is_counted(bad) -> None:
    poisoned = torch.ones(50)
    poisoned[7] = bad
    clipped, _, finite = clip_vector(poisoned, 1.0)
    assert not finite and not clipped.any()
    good = torch.full((50,), 0.01)
    release = quiet(1.0)
    with_bad = release.release([good, poisoned, good * 100], step=0, dimension=50)
    assert release.last == ReleaseCounts(received=3, clipped=1, dropped=1)
    without = quiet(1.0).release([good, good * 100], step=0, dimension=50)
    assert torch.equal(with_bad, without) and torch.isfinite(with_bad).all()


def test_sum_of_clipped_vectors_over_the_public_divisor() -> None:
    vectors = [torch.randn(30, generator=torch.Generator().manual_seed(i)) * 3**i for i in range(-3, 4)]
    expected = sum((v.double() * min(1.0, 2.0 / float(v.double().norm())) for v in vectors), torch.zeros(30)) / 40.0
    got = quiet(2.0, divisor=40.0).release(iter(vectors), step=0, dimension=30)
    torch.testing.assert_close(got.double(), expected, rtol=1e-6, atol=1e-8)
    assert got.dtype == torch.float32


def test_one_user_moves_the_sum_by_at_most_c() -> None:
    others = [torch.randn(40, generator=torch.Generator().manual_seed(i)) for i in range(5)]
    huge = torch.full((40,), 1e20)
    moved = quiet(0.5).release([*others, huge], step=0, dimension=40) - quiet(0.5).release(others, step=0, dimension=40)
    assert 0.49 < float(moved.norm()) <= 0.5 * (1 + 1e-6)


def test_noise_is_on_the_sum_with_sigma_times_c_then_divided() -> None:
    # an empty cohort is pure noise: no noise, half of it, or noise scaled once more by the divisor fail here
    release = mechanism(clip_norm=0.5, sigma=1.3, divisor=20.0)
    noise = release.release([], step=5, dimension=D).double().numpy()
    assert stats.kstest(noise / (1.3 * 0.5 / 20), "norm").pvalue > 1e-3
    assert release.last.received == 0
    again = mechanism(clip_norm=0.5, sigma=1.3, divisor=20.0).release([], step=6, dimension=D)
    correlation = float(torch.corrcoef(torch.stack((again.double(), torch.from_numpy(noise))))[0, 1])
    assert abs(correlation) < 5 / math.sqrt(D)
    # the sum comes through the noise
    vector = torch.zeros(D)
    vector[0] = 100.0
    shifted = mechanism(clip_norm=0.5, sigma=1.3, divisor=20.0).release([vector], step=5, dimension=D).double()
    assert float(shifted[0]) - noise[0] == pytest.approx(0.5 / 20, abs=2 * grid(0.65) / 20)
    assert abs(shifted[1:].numpy() - noise[1:]).max() == 0


def test_secure_noise_is_there_too() -> None:
    draws = GaussianSum(2.0, 0.8, SAMPLING, 4.0, SecureNoise()).release([], step=0, dimension=D).double().numpy()
    assert stats.kstest(draws / (0.8 * 2.0 / 4.0), "norm").pvalue > 1e-6


def test_the_event_says_what_was_done() -> None:
    sampler = PoissonSampler(200, 0.1, seed_or_generator=0)
    release = GaussianSum(0.5, 1.3, sampler.sampling, sampler.expected_batch, SeededNoise(0))
    assert release.event("round 3") == GaussianRelease(
        noise_multiplier=1.3, sampling=SAMPLING, unit="user", label="round 3", sensitivity=1.0
    )
    assert release.std == pytest.approx(0.65)
    assert isinstance(GaussianSum(0.5, 0.0, SAMPLING, 20.0, SeededNoise(0)).event(), Unaccountable)


def test_a_summed_cohort_gets_the_same_noise() -> None:
    vectors = [torch.randn(10, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    total = sum((clip_vector(v, 1.0)[0] for v in vectors), torch.zeros(10, dtype=torch.float64))
    kept = total.clone()
    assert torch.equal(mechanism().release_sum(total, step=1), mechanism().release(vectors, step=1, dimension=10))
    assert torch.equal(total, kept)
    with pytest.raises(ValueError, match="NaN"):
        mechanism().release_sum(torch.tensor([math.nan]), step=0)


@pytest.mark.parametrize("vector", [torch.zeros(9), torch.zeros(11), torch.zeros(1, 10), torch.zeros(())])
def test_another_length_is_refused(vector) -> None:
    with pytest.raises(ValueError, match="expected"):
        mechanism().release([torch.zeros(10), vector], step=0, dimension=10)


@pytest.mark.parametrize(
    "arguments",
    [(0.0, 1.0, 1.0), (-1.0, 1.0, 1.0), (math.inf, 1.0, 1.0), (1.0, -1.0, 1.0), (1.0, math.nan, 1.0), (1.0, 1.0, 0.0)],
)
def test_impossible_numbers_are_refused(arguments) -> None:
    clip_norm, sigma, divisor = arguments
    with pytest.raises(ValueError, match="expected"):
        GaussianSum(clip_norm, sigma, SAMPLING, divisor, SeededNoise(0))


def test_other_misuse_is_refused() -> None:
    with pytest.raises(TypeError, match="sampling"):
        GaussianSum(1.0, 1.0, "poisson", 1.0, SeededNoise(0))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="clipping norm"):
        clip_vector(torch.ones(3), 0.0)
    with pytest.raises(ValueError, match="one axis"):
        clip_vector(torch.ones(3, 1), 1.0)
    with pytest.raises(TypeError, match="floating"):
        clip_vector(torch.ones(3, dtype=torch.int64), 1.0)
    with pytest.raises(ValueError, match="dimension"):
        mechanism().release([], step=0, dimension=0)
