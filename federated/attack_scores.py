"""How canary households are told apart from silence in what a run released: the best score for each way of taking part.

    PoissonScores   who took part is secret: each round's likelihood ratio counts with the chance of having been drawn
    BoundedScores   who took part is public, and noise may be correlated: the correlation is taken out first, and the
                    likelihood ratio is that of the whole row of releases

Both take a round's products: of the released sum with each canary's unit direction, in units of the clipping norm.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from privacy.audit.empirical.claim import participation_scores


class Scores(Protocol):
    """Scores of m canaries, round by round."""

    def add(self, products: NDArray[np.float64], asked: Collection[int]) -> None:
        """One more round: products [m], and the canaries that were asked in it."""

    def total(self) -> NDArray[np.float64]:
        """The scores so far [m], higher means "in"."""


class PoissonScores:
    """noise: of a round's updates, over C. rate: the chance of each canary to be in a round."""

    def __init__(self, canaries: int, noise: float, rate: float) -> None:
        self.noise, self.rate = noise, rate
        self._total = np.zeros(canaries)

    def add(self, products: NDArray[np.float64], asked: Collection[int]) -> None:
        self._total = self._total + participation_scores(products[None], [self.noise], [self.rate])

    def total(self) -> NDArray[np.float64]:
        return self._total


class BoundedScores:
    """noise: of the white noise, over C. band: B with noise = B white (``Encoder.band``); [1] where it is independent."""

    def __init__(self, canaries: int, noise: float, band: NDArray[np.float64]) -> None:
        self.canaries, self.noise, self.band = canaries, noise, band
        self._seen: list[NDArray[np.float64]] = []
        self._came: list[NDArray[np.float64]] = []

    def add(self, products: NDArray[np.float64], asked: Collection[int]) -> None:
        came = np.zeros(self.canaries)
        came[[canary for canary in asked if canary < self.canaries]] = 1.0
        self._seen.append(self._whitened(products, self._seen))
        self._came.append(self._whitened(came, self._came))

    def _whitened(self, row: NDArray[np.float64], earlier: list[NDArray[np.float64]]) -> NDArray[np.float64]:
        for coefficient, past in zip(self.band[1:], reversed(earlier), strict=False):
            row = row - coefficient * past
        return row

    def total(self) -> NDArray[np.float64]:
        seen, came = np.array(self._seen), np.array(self._came)
        return np.asarray((seen * came - came**2 / 2).sum(axis=0) / self.noise**2)
