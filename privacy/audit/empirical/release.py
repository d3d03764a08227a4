"""What the direct checks of a product's own release have in common: hostile contributions, and Poisson coins.

A one-run audit needs many canaries to see a factor of two and cannot refute a large epsilon at all; direct checks see a
small breach of a single promise at once, and touch no private data. What is expected comes from the claim, never from the
mechanism that is checked.
"""

from __future__ import annotations

import torch
from torch import Tensor

from privacy.audit.empirical.invariants import check_sampler
from privacy.audit.empirical.result import Finding
from privacy.sampling import Sampler


def check_coins(sampler: Sampler, *, rate: float, population: int) -> list[Finding]:
    """Whether Poisson batches are what independent coins give; nothing to check at rate 1."""
    return [check_sampler(sampler.draw, rate=rate, population=population)] if rate < 1.0 else []


def hostile(clip_norm: float, dimension: int) -> list[Tensor]:
    """What a participant may send who wants to count for more, [d] each: long, very long, one spike."""
    spike = torch.zeros(dimension)
    spike[7 % dimension] = 1e30
    return [direction(dimension, 1) * clip_norm * 4, direction(dimension, 2) * clip_norm * 1e6, spike]


def direction(dimension: int, seed: int) -> Tensor:
    """A random unit vector [d]."""
    drawn = torch.randn(dimension, generator=torch.Generator().manual_seed(seed))
    return drawn / torch.linalg.vector_norm(drawn)
