"""Noise: Gaussian, of the stated size, independent, repeatable only where it says so, and on a public grid."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from privacy.noise import SecureNoise, SeededNoise, grid

SOURCES = [SecureNoise(), SeededNoise(11)]
COUNT = 200_001  # odd, and more than three blocks


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.kind)
def test_draws_are_gaussian_of_the_stated_deviation(source) -> None:
    draw = source.normal(COUNT, 2.5, step=3, dtype=torch.float64).numpy() / 2.5
    # a secure draw differs every time: 1e-6 keeps a false alarm to one run in a million, and no noise gives p = 0
    assert stats.kstest(draw, "norm").pvalue > 1e-6
    assert abs(draw.mean()) < 6 / math.sqrt(COUNT)
    assert abs(draw.var() - 1) < 6 * math.sqrt(2 / COUNT)
    assert abs(stats.kurtosis(draw)) < 6 * math.sqrt(24 / COUNT)
    beyond = (np.abs(draw) > 3).mean()
    expected = 2 * stats.norm.sf(3)
    assert abs(beyond - expected) < 6 * math.sqrt(expected / COUNT)


def test_neighbouring_draws_and_halves_of_a_pair_are_uncorrelated() -> None:
    draw = SeededNoise(5).normal(1 << 17, 1.0, step=0, dtype=torch.float64)
    for lag in (1, 2, 1 << 15):  # 2**15 apart lie the two normals of one Box-Muller pair
        assert abs(float((draw[lag:] * draw[:-lag]).mean())) < 6 / math.sqrt(len(draw) - lag)
        squares = draw.square() - 1
        assert abs(float((squares[lag:] * squares[:-lag]).mean())) < 6 * 2 / math.sqrt(len(draw) - lag)


def test_tail_reaches_beyond_five_deviations() -> None:
    draw = SeededNoise(7).normal(4_000_000, 1.0, step=0)
    # P[|x| > 5] = 5.7e-7: 2.3 expected; the chance that the largest of them is outside (4.4, 7) is below 1e-4
    assert 4.4 < float(draw.abs().max()) < 7


def test_seeded_draw_is_a_function_of_seed_step_stream_and_shape() -> None:
    base = SeededNoise(1).normal((3, 5), 1.0, step=2)
    assert torch.equal(base, SeededNoise(1).normal((3, 5), 1.0, step=2))
    assert torch.equal(base.view(-1), SeededNoise(1).normal(15, 1.0, step=2))
    others = [
        SeededNoise(2).normal((3, 5), 1.0, step=2),
        SeededNoise(1).normal((3, 5), 1.0, step=3),
        SeededNoise(1).normal((3, 5), 1.0, step=2, stream=1),
    ]
    for other in others:
        assert not torch.isclose(base, other).any()


def test_secure_draws_never_repeat() -> None:
    source = SecureNoise()
    first, second = source.normal(1000, 1.0, step=0), source.normal(1000, 1.0, step=0)
    assert not torch.isclose(first, second, rtol=0, atol=1e-12).all()
    assert (source.kind, SeededNoise(0).kind) == ("csprng", "seeded (simulation)")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noisy_sum_lies_on_the_public_grid_and_has_the_right_spread(dtype) -> None:
    std = 0.3
    total = torch.linspace(-2, 2, COUNT, dtype=dtype)
    noisy = SeededNoise(3).add_(total.clone(), std, step=1)
    steps = noisy.double() / grid(std)
    assert torch.equal(steps, steps.round())
    residual = (noisy.double() - total.double()).numpy() / std
    assert stats.kstest(residual, "norm").pvalue > 1e-3
    assert grid(std) <= std * 2.0**-12 and math.log2(grid(std)).is_integer()


def test_adding_equals_drawing_up_to_the_grid() -> None:
    total = torch.zeros(70_000, dtype=torch.float64)
    SeededNoise(9).add_(total, 1.7, step=4, stream=2)
    drawn = SeededNoise(9).normal(70_000, 1.7, step=4, stream=2, dtype=torch.float64)
    assert float((total - drawn).abs().max()) <= grid(1.7) / 2


def test_zero_deviation_adds_nothing_and_empty_shapes_work() -> None:
    total = torch.randn(9)
    assert torch.equal(SecureNoise().add_(total.clone(), 0.0, step=0), total)
    assert torch.equal(SecureNoise().normal(4, 0.0, step=0), torch.zeros(4))
    assert SecureNoise().normal((0, 3), 1.0, step=0).shape == (0, 3)


@pytest.mark.parametrize("std", [-1.0, math.nan, math.inf])
def test_impossible_deviation_is_refused(std) -> None:
    with pytest.raises(ValueError, match="standard deviation"):
        SecureNoise().normal(3, std, step=0)
    with pytest.raises(ValueError, match="standard deviation"):
        SecureNoise().add_(torch.zeros(3), std, step=0)


def test_low_precision_is_refused() -> None:
    with pytest.raises(ValueError, match="float32 or float64"):
        SecureNoise().normal(3, 1.0, step=0, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="float32 or float64"):
        SecureNoise().add_(torch.zeros(3, dtype=torch.bfloat16), 1.0, step=0)
    with pytest.raises(ValueError, match="contiguous"):
        SecureNoise().add_(torch.zeros(3, 4).t(), 1.0, step=0)
    with pytest.raises(TypeError, match="seed"):
        SeededNoise("1")  # type: ignore[arg-type]
