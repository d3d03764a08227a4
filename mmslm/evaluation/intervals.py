"""Confidence intervals by resampling owners, not photos.

Photos of one household resemble each other, so that resampling photos as if they were independent gives intervals that
are too narrow (a test shows by how much). Here whole owners are drawn with replacement, as the privacy unit is drawn
too. Every metric is a ratio of sums over owners (or BLEU, a function of such sums), which makes a thousand resamples
one matrix product, and lets several models be compared on the very same draws.

Method: the cluster bootstrap with percentile limits (Davison and Hinkley, Bootstrap Methods and their Application,
1997).

It refuses to give an interval for fewer than `MIN_OWNERS` owners: there is nothing to resample.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Owner = TypeVar("Owner", bound=Hashable)

MIN_OWNERS = 5
DRAWS = 2000


@dataclass(frozen=True)
class Interval:
    """Limits of a two-sided confidence interval; `level` is its nominal coverage."""

    low: float
    high: float
    level: float = 0.95

    def to_json(self) -> dict[str, float]:
        return {"low": self.low, "high": self.high, "level": self.level}


def group_sums(values: Floats, owners: Sequence[Owner]) -> tuple[Floats, list[Owner]]:
    """Sums of `values` [N, K] over each owner: ([G, K], owners in order of first appearance)."""
    if len(values) != len(owners):
        raise ValueError(f"{len(values)} rows came with {len(owners)} owners; give one owner per row")
    order = list(dict.fromkeys(owners))
    place = {owner: index for index, owner in enumerate(order)}
    sums = np.zeros((len(order), values.shape[1]))
    np.add.at(sums, [place[owner] for owner in owners], values)
    return sums, order


def owner_weights(owners: int, *, draws: int = DRAWS, seed: int = 0) -> Floats:
    """How often each of G owners was drawn in each resample: [draws, G], rows sum to G. Same seed, same weights."""
    if owners < 1 or draws < 1:
        raise ValueError(f"{owners} owners and {draws} draws were asked for; both must be at least 1")
    uniform = np.full(owners, 1.0 / owners)
    return np.random.default_rng(seed).multinomial(owners, uniform, size=draws).astype(np.float64)


def percentile(values: Floats, level: float = 0.95) -> Interval | None:
    """The central interval of resampled values [draws]; None where more than 1 % of them are not finite."""
    if not 0 < level < 1:
        raise ValueError(f"level {level} was given; a confidence level lies between 0 and 1, for example 0.95")
    finite = values[np.isfinite(values)]
    if len(finite) < 0.99 * len(values) or not len(finite):
        return None
    tail = (1 - level) / 2
    low, high = np.quantile(finite, [tail, 1 - tail])
    return Interval(float(low), float(high), level)


def ratio(sums: Floats) -> Floats:
    """First column over second, [..., 2] -> [...]; NaN where the second is 0 (nothing was there to count)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(sums[..., 1] > 0, sums[..., 0] / sums[..., 1], np.nan), dtype=np.float64)


def ratio_interval(
    numerators: Sequence[float] | Floats,
    denominators: Sequence[float] | Floats,
    owners: Sequence[Hashable],
    *,
    level: float = 0.95,
    draws: int = DRAWS,
    seed: int = 0,
) -> Interval | None:
    """Interval of sum(numerators) / sum(denominators) with owners resampled; None below MIN_OWNERS owners.

    A mean over rows is the case of denominators that are all 1.
    """
    columns = np.stack([np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)], axis=1)
    sums, order = group_sums(columns, owners)
    if len(order) < MIN_OWNERS:
        return None
    return percentile(ratio(owner_weights(len(order), draws=draws, seed=seed) @ sums), level)
