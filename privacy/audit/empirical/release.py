"""Direct checks of a release mechanism as it stands in the product: its noise, what one participant can move, its sampler.

A one-run audit needs many canaries to see a factor of two and cannot refute a large epsilon at all; these see a small
breach of a single promise at once, and touch no private data. What is expected comes from the claim, never from the
mechanism that is checked.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from privacy.audit.empirical.invariants import check_noise, check_sampler, check_sensitivity
from privacy.audit.empirical.result import Finding
from privacy.mechanism import GaussianSum
from privacy.sampling import Sampler

_DIMENSION = 4096  # numbers of a release that are looked at: with 4 repeats, one percent of wrong noise shows


def check_release(
    real: GaussianSum, seeded: GaussianSum, *, clip_norm: float, noise_multiplier: float, divisor: float
) -> list[Finding]:
    """The noise of `real`, and how far one participant moves `seeded`, against what the claim says.

    real: draws as the run does. seeded: the same with a seed, so that noise cancels between neighbours. clip_norm C,
    noise_multiplier and divisor as the report states them.
    """
    noise = check_noise(
        lambda repeat: real.release([], step=repeat, dimension=_DIMENSION),
        std=noise_multiplier * clip_norm / divisor,
        repeats=4,
    )
    some = _direction(0) * clip_norm / 2
    pairs: list[tuple[list[Tensor], list[Tensor]]] = [([], [loud]) for loud in _hostile(clip_norm)] + [
        ([some], [some, loud]) for loud in _hostile(clip_norm)
    ]
    moved = check_sensitivity(
        lambda vectors, seed: seeded.release(vectors, step=seed, dimension=_DIMENSION),
        pairs,
        bound=clip_norm / divisor,
        relative=1e-3 + 3e-5 * noise_multiplier**2,  # the noisy sum is rounded to 2**-12 of the noise
    )
    return [noise, moved]


def check_coins(sampler: Sampler, *, rate: float, population: int) -> list[Finding]:
    """Whether Poisson batches are what independent coins give; nothing to check at rate 1."""
    return [check_sampler(sampler.draw, rate=rate, population=population)] if rate < 1.0 else []


def _hostile(clip_norm: float) -> list[Tensor]:
    """What a participant may send who wants to count for more: long, very long, one spike, and no number at all."""
    spike = torch.zeros(_DIMENSION)
    spike[7] = 1e30
    broken = _direction(3)
    broken[5] = math.nan
    return [_direction(1) * clip_norm * 4, _direction(2) * clip_norm * 1e6, spike, broken]


def _direction(seed: int) -> Tensor:
    drawn = torch.randn(_DIMENSION, generator=torch.Generator().manual_seed(seed))
    return drawn / torch.linalg.vector_norm(drawn)
