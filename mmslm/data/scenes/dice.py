"""Splittable seeding: every random choice comes from a PCG64 stream named by a tuple of whole numbers.

Two different keys give independent streams, and no choice depends on how many others were made elsewhere. Only the raw
64-bit words of PCG64 are used: numpy keeps those the same on every platform and in every version, which it does not
promise for the distributions built on them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


def raw_words(*key: int) -> np.random.PCG64:
    """The bit generator of ``key``."""
    return np.random.PCG64(np.random.SeedSequence(key))


class Dice:
    """Random choices from the stream of ``key`` (whole numbers that are at least 0)."""

    def __init__(self, *key: int) -> None:
        if any(part < 0 for part in key):
            raise ValueError(f"got the seed {key}: every part must be a whole number of at least 0.")
        self._stream = raw_words(*key)
        self._block: list[float] = []

    def unit(self) -> float:
        """Uniform in [0, 1)."""
        if not self._block:
            self._block = ((self._stream.random_raw(64) >> np.uint64(11)) * 2.0**-53).tolist()
            self._block.reverse()
        return self._block.pop()

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self.unit()

    def chance(self, probability: float) -> bool:
        return self.unit() < probability

    def below(self, count: int) -> int:
        """A whole number from 0 to count - 1."""
        return int(self.unit() * count)

    def pick(self, options: Sequence[T]) -> T:
        return options[int(self.unit() * len(options))]

    def weighted(self, options: Sequence[T], weights: Sequence[float]) -> T:
        point = self.unit() * sum(weights)
        for option, weight in zip(options, weights, strict=True):
            point -= weight
            if point < 0:
                return option
        return options[-1]

    def some(self, options: Sequence[T], count: int) -> list[T]:
        """Up to ``count`` different options in random order."""
        pool = list(options)
        chosen: list[T] = []
        while pool and len(chosen) < count:
            chosen.append(pool.pop(int(self.unit() * len(pool))))
        return chosen

    def bell(self) -> float:
        """Roughly normal, mean 0, standard deviation 1, never beyond 3.5 (a sum of four uniforms)."""
        return (self.unit() + self.unit() + self.unit() + self.unit() - 2.0) * 1.7320508
