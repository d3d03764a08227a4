"""Correlated noise: equal to the dense matrices it stands for, with the sensitivity of the worst participation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import special, stats

from privacy.correlated import (
    CorrelatedNoise,
    Encoder,
    ParticipationGuard,
    series_inverse,
    square_root_coefficients,
    toeplitz_sensitivity,
)
from privacy.events import CorrelatedGaussianRelease, Participation
from privacy.noise import SeededNoise, grid


def dense(column: np.ndarray) -> np.ndarray:
    """The lower-triangular Toeplitz matrix of a first column."""
    n = len(column)
    matrix = np.zeros((n, n))
    for i in range(n):
        matrix[i:, i] = column[: n - i]
    return matrix


def patterns(steps: int, bound: Participation):
    """Every set of steps that the bound allows."""
    for size in range(1, bound.max_participations + 1):
        for chosen in itertools.combinations(range(steps), size):
            if all(b - a >= bound.min_separation for a, b in itertools.pairwise(chosen)):
                yield chosen


def test_full_encoders_are_the_square_root_of_prefix_sums() -> None:
    prefix = np.tril(np.ones((40, 40)))
    for kind in ("banded", "banded_inverse"):
        root = dense(Encoder(40, 40, kind).column)
        np.testing.assert_allclose(root @ root, prefix, atol=1e-12)
    k = np.arange(40)
    np.testing.assert_allclose(square_root_coefficients(40), special.binom(2 * k, k) / 4.0**k, rtol=1e-12)


def test_error_of_the_square_root_is_landaus_constant() -> None:
    # largest error times sensitivity of the square root factorisation is sum_k (binom(2k, k) / 4^k)^2: Landau's
    # constant, known to be (ln(n + 3/4) + gamma + 4 ln 2) / pi up to 1e-6 at this size (Watson 1930)
    for n in (100, 1000):
        encoder = Encoder(n, n)
        product = encoder.prefix_error()[1] * encoder.sensitivity(Participation(n, 1))
        landau = (math.log(n - 1 + 0.75) + np.euler_gamma + 4 * math.log(2)) / math.pi
        assert product == pytest.approx(landau, rel=1e-5)


@pytest.mark.parametrize("kind", ["banded", "banded_inverse"])
@pytest.mark.parametrize("bands", [1, 2, 3, 7])
def test_one_of_the_two_matrices_is_banded(kind, bands) -> None:
    encoder = Encoder(12, bands, kind)
    inverse = np.linalg.inv(dense(encoder.column))
    np.testing.assert_allclose(inverse[:, 0], series_inverse(encoder.column, 12), atol=1e-12)
    banded = inverse[:, 0] if kind == "banded_inverse" else encoder.column
    assert np.abs(banded[bands:]).max(initial=0) < 1e-12 and abs(banded[bands - 1]) > 1e-3


@pytest.mark.parametrize("kind", ["banded", "banded_inverse"])
@pytest.mark.parametrize(("bands", "separation", "times"), [(3, 3, 3), (5, 2, 4), (2, 4, 2), (9, 3, 2), (4, 1, 9)])
def test_sensitivity_is_the_worst_of_all_participations(kind, bands, separation, times) -> None:
    bound = Participation(separation, times)
    encoder = Encoder(9, bands, kind)
    matrix = dense(encoder.column)
    worst = max(np.linalg.norm(matrix[:, list(chosen)].sum(axis=1)) for chosen in patterns(9, bound))
    assert encoder.sensitivity(bound) == pytest.approx(worst, rel=1e-12)
    # contributions that point elsewhere move it less
    generator = np.random.default_rng(0)
    for chosen in patterns(9, bound):
        directions = generator.normal(size=(len(chosen), 3))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        assert np.linalg.norm(matrix[:, list(chosen)] @ directions) <= worst * (1 + 1e-12)


def test_coefficients_that_the_theorem_does_not_cover_are_refused() -> None:
    for column in ([1.0, -0.5], [1.0, 0.5, 0.6], [math.nan, 0.0]):
        with pytest.raises(ValueError, match="non-increasing"):
            toeplitz_sensitivity(np.array(column), Participation(1, 1))


@pytest.mark.parametrize("kind", ["banded", "banded_inverse"])
@pytest.mark.parametrize("bands", [1, 4, 10])
def test_draws_are_the_inverse_encoder_times_white_noise(kind, bands) -> None:
    encoder = Encoder(10, bands, kind)
    noise = CorrelatedNoise(encoder, Participation(10, 1), SeededNoise(3))
    drawn = np.stack([noise.normal(50, 2.0, step=t, dtype=torch.float64).numpy() for t in range(10)])
    white = np.stack([SeededNoise(3).normal(50, 2.0, step=t, dtype=torch.float64).numpy() for t in range(10)])
    np.testing.assert_allclose(drawn, np.linalg.solve(dense(encoder.column), white), atol=2e-6)


def test_noise_is_there_and_cancels_over_the_steps() -> None:
    steps, size = 32, 4000
    encoder = Encoder(steps, 8)
    noise = CorrelatedNoise(encoder, Participation(steps, 1), SeededNoise(1))
    total = torch.zeros(steps, size, dtype=torch.float64)
    for t in range(steps):
        noise.add_(total[t], 0.7, step=t, stream=5)
    first = total[0].numpy() / 0.7
    assert stats.kstest(first, "norm").pvalue > 1e-3
    running = total.cumsum(0)[-1].numpy()
    expected = 0.7 * encoder.prefix_error()[1]
    assert running.std() == pytest.approx(expected, rel=5 / math.sqrt(2 * size))
    assert expected < 0.5 * 0.7 * math.sqrt(steps)  # fresh noise would have been more than twice that
    assert np.allclose(total.numpy() / grid(0.7), np.round(total.numpy() / grid(0.7)))


def test_at_equal_privacy_bands_help_where_nobody_comes_back_soon() -> None:
    bound = Participation(16, 4)
    scores = [e.prefix_error()[0] * e.sensitivity(bound) for e in (Encoder(64, b) for b in (1, 4, 16))]
    assert scores[2] < scores[1] < scores[0]


@pytest.mark.parametrize("kind", ["banded", "banded_inverse"])
def test_a_resumed_run_draws_the_same_noise(kind) -> None:
    def make() -> CorrelatedNoise:
        return CorrelatedNoise(Encoder(8, 4, kind), Participation(8, 1), SeededNoise(2))

    through = make()
    draws = [through.normal((3, 2), 1.0, step=t) for t in range(8)]
    first = make()
    for t in range(5):
        first.normal((3, 2), 1.0, step=t)
    second = make()
    second.load_state_dict(first.state_dict())
    for t in range(5, 8):
        torch.testing.assert_close(second.normal((3, 2), 1.0, step=t), draws[t], rtol=0, atol=1e-6)


def test_steps_out_of_order_and_beyond_the_end_are_refused() -> None:
    noise = CorrelatedNoise(Encoder(2, 2), Participation(2, 1), SeededNoise(0))
    noise.normal(3, 1.0, step=0)
    for step in (0, 2):
        with pytest.raises(ValueError, match="step 1 of 2 is due"):
            noise.normal(3, 1.0, step=step)
    noise.normal(3, 1.0, step=0, stream=1)  # another tensor of the same step
    noise.normal(3, 1.0, step=1)
    with pytest.raises(ValueError, match="is due"):
        noise.normal(3, 1.0, step=2)


def test_the_event_is_one_release_of_the_whole_run() -> None:
    bound = Participation(3, 2)
    noise = CorrelatedNoise(Encoder(6, 3, "banded"), bound, SeededNoise(0))
    event = noise.event(1.5, unit="user", label="run")
    assert event == CorrelatedGaussianRelease(
        noise_multiplier=1.5,
        sensitivity=noise.sensitivity,
        participation=bound,
        steps=6,
        adjacency="zero_out",
        unit="user",
        label="run",
    )
    # bands no wider than the separation: participations are orthogonal, so their squares add up
    assert noise.sensitivity == pytest.approx(math.sqrt(2) * np.linalg.norm(square_root_coefficients(3)))
    assert noise.kind == "seeded (simulation)"


def test_whoever_comes_back_too_early_or_too_often_is_refused() -> None:
    guard = ParticipationGuard(Participation(min_separation=3, max_participations=2))
    guard.admit([1, 2], 0)
    with pytest.raises(ValueError, match="1 units come back after less than 3"):
        guard.admit([3, 2], 2)
    guard.admit([3], 2)  # the refused step noted nobody
    guard.admit([1], 3)
    with pytest.raises(ValueError, match="1 more often than 2"):
        guard.admit([1], 9)
    with pytest.raises(ValueError, match="twice"):
        guard.admit([7, 7], 9)


@pytest.mark.parametrize(
    ("steps", "bands", "kind"), [(0, 1, "banded"), (3, 4, "banded"), (3, 0, "banded"), (3, 1, "x")]
)
def test_impossible_encoders_are_refused(steps, bands, kind) -> None:
    with pytest.raises(ValueError, match="encoder"):
        Encoder(steps, bands, kind)
