"""Clipping one flat vector, such as a user's model update, to an L2 norm.

The norm is accumulated in fp64 (an fp32 norm over millions of entries is low by up to 1.6e-4, and the clipped vector
would exceed C by as much), and what is scaled lands 10**-9 inside C, so that its norm never exceeds it. A vector that
holds NaN or infinity becomes zero, and the caller learns so, to count it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# An fp64 sum of d squares is off by at most d * 2**-53 of itself: scaling a hair too far keeps the norm within C up to
# d = 8 million in the worst case, and far beyond in practice.
_INWARD = 1.0 - 2.0**-30


def clip_vector(vector: Tensor, clip_norm: float) -> tuple[Tensor, bool, bool]:
    """`vector` scaled down to L2 norm at most `clip_norm`.

    vector: [d], real floating point. clip_norm: C > 0, finite.
    Returns (clipped [d] in float64, was_clipped, finite); a vector that is not finite comes back as zeros.
    Raises ValueError for another shape or a bad C, TypeError for another dtype.
    """
    clip_norm = float(clip_norm)
    if not (math.isfinite(clip_norm) and clip_norm > 0):
        raise ValueError(f"the clipping norm is {clip_norm}; expected a finite number above 0.")
    if not vector.is_floating_point():
        raise TypeError(f"the vector to clip is {vector.dtype}; expected a real floating-point tensor.")
    if vector.dim() != 1:
        raise ValueError(f"the vector to clip has shape {list(vector.shape)}; expected one axis, flatten it first.")
    exact = vector.detach().to(torch.float64)
    if exact.data_ptr() == vector.data_ptr():
        exact = exact.clone()  # what is returned may be written to
    # One pass for both questions: least and greatest carry a NaN on, which torch.isfinite answers ten times slower.
    least, greatest = (float(end) for end in torch.aminmax(exact)) if exact.numel() else (0.0, 0.0)
    largest = max(-least, greatest)
    if not (math.isfinite(least) and math.isfinite(greatest)):
        return torch.zeros_like(exact), False, False
    if largest == 0.0:
        return exact, False, True
    # The norm of the vector over its largest entry: squares of 1e200 or 1e-200 would leave the range of fp64.
    direction = exact / largest
    length = float(torch.linalg.vector_norm(direction))  # between 1 and sqrt(d)
    if largest <= clip_norm / length:
        return exact, False, True
    return direction * (clip_norm * _INWARD / length), True, True
