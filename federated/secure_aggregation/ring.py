"""Vectors of bounded norm as integers modulo 2**32, in which masks are uniform and sums wrap without loss.

A vector is clipped to C' = C - sqrt(d) / (2 s) and rounded to multiples of 1/s, so that what is in the ring has an L2
norm of at most C, rounding included: the sensitivity that the accountant is told is kept exactly. s is the largest scale
at which the sum of all members' coordinates, and nine standard deviations of the noise that they may add, still fit 31
bits. (Beyond nine, with chance 3e-18 for a coordinate, a sum wraps: that spoils the number and no privacy.)

What it refuses: NaN and infinity, another length, and so many members or coordinates that rounding would cost more than
a hundredth of C.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint32]
DEVIATIONS = 9.0
FINEST = 2.0**24
LARGEST_SHARE = 0.01  # of C that may be given up to rounding


@dataclass(frozen=True)
class Ring:
    """clip_norm: C > 0. members: most vectors in one sum, >= 1. dimension: d >= 1. noise: the largest standard deviation
    of all the members' noise together, in the vectors' own units; 0 where they add none.
    """

    clip_norm: float
    members: int
    dimension: int
    noise: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.noise) and self.noise >= 0):
            raise ValueError(f"the noise's standard deviation is {self.noise}; give a finite number of at least 0.")
        if not (math.isfinite(self.clip_norm) and self.clip_norm > 0) or self.members < 1 or self.dimension < 1:
            raise ValueError(
                f"a ring for norm {self.clip_norm}, {self.members} members and {self.dimension} numbers was asked for; "
                "all three must be above 0."
            )
        if self.rounding > LARGEST_SHARE * self.clip_norm:
            raise ValueError(
                f"{self.members} members with {self.dimension} numbers each leave rounding errors of "
                f"{self.rounding / self.clip_norm:.2%} of the norm; sum fewer members, or fewer numbers, at a time."
            )

    @property
    def scale(self) -> float:
        """s: integers per unit, a power of two, so that scaling rounds nothing."""
        room = 2.0 ** math.floor(math.log2((2**31 - 1) / (self.members * self.clip_norm + DEVIATIONS * self.noise)))
        # With noise the grid need not be finer than this, and the noise's variance in its units stays below 2**50.
        return min(room, 2.0 ** math.floor(math.log2(FINEST / max(self.clip_norm, self.noise)))) if self.noise else room

    @property
    def rounding(self) -> float:
        """The largest L2 norm of the rounding error of one vector: sqrt(d) / (2 s)."""
        return math.sqrt(self.dimension) / (2 * self.scale)

    def encode(self, vector: NDArray[np.floating]) -> Words:
        """``vector [d]`` clipped and rounded, as words [d]."""
        exact = np.asarray(vector, dtype=np.float64)
        if exact.shape != (self.dimension,):
            raise ValueError(f"the vector has shape {exact.shape}, and this sum is over ({self.dimension},).")
        if not np.isfinite(exact).all():
            raise ValueError("the vector holds values that are not finite; a device must not send it.")
        bound = self.clip_norm - self.rounding
        norm = float(np.linalg.norm(exact))
        if norm > bound:
            exact = exact * (bound / norm * (1 - 1e-12))
        return np.rint(exact * self.scale).astype(np.int64).astype(np.uint32)

    def decode(self, words: Words) -> NDArray[np.float64]:
        """The sum [d] that ``words [d]`` hold."""
        if words.dtype != np.uint32 or words.shape != (self.dimension,):
            raise ValueError(
                f"the sum has shape {words.shape} of {words.dtype}; ({self.dimension},) of uint32 is expected."
            )
        return words.view(np.int32).astype(np.float64) / self.scale
