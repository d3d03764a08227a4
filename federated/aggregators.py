"""Robust means: what a run without a privacy claim may put in the place of the plain mean, between gate and step.

    mean           the plain mean: one device moves it as far as it likes
    clipped_mean   every update is cut to the norm C first: one device moves it by at most C / n
    trimmed_mean   per coordinate, the largest and the smallest share are left out   (Yin et al. 2018, 1803.01498)
    median         per coordinate, the middle value                                  (the same)
    krum           the one update that lies closest to its n - f - 2 nearest         (Blanchard et al. 2017, 1703.02757)
    multi_krum     the mean of the n - f updates with the best such scores           (the same)

All are safe against NaN and infinity: such an update is left out whole before anything is compared, also where the gate
was by-passed. Nobody left gives a zero step.

What is refused, by the settings: any of them but the mean together with a privacy claim. Central differential privacy
prices the *clipped sum*: one device moves it by at most C. A median, a trimmed mean or a chosen update may move much
further when one device is added (another device becomes the middle one), so noise that was sized for C would not hide
it. The clipped sum is itself the defence of a private run.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping

import torch
from torch import Tensor

from federated.settings import AggregatorName
from federated.vector import all_finite
from privacy.clipping.vector import clip_vector

logger = logging.getLogger(__name__)


def aggregate(
    updates: Mapping[int, Tensor],
    dimension: int,
    *,
    name: AggregatorName = "mean",
    hostile_share: float = 0.1,
    clip_norm: float = 1.0,
) -> Tensor:
    """One update ``[dimension]`` float32 for a round, from device -> update ``[dimension]``.

    hostile_share: the share of devices that may lie, in [0, 0.5); trimmed_mean and krum are built for it. clip_norm: of
    clipped_mean. The order of devices does not matter.
    """
    rows = [updates[device] for device in sorted(updates)]
    finite = [row for row in rows if all_finite(row)]
    if len(finite) < len(rows):
        logger.warning("%d updates with NaN or infinity were left out of the %s", len(rows) - len(finite), name)
    if not finite:
        return torch.zeros(dimension)
    if name == "mean":
        return _mean(finite, dimension)
    if name == "clipped_mean":
        return _mean([clip_vector(row, clip_norm)[0] for row in finite], dimension)
    table = torch.stack(finite).to(torch.float64)  # [n, d]
    if name == "trimmed_mean":
        result = trimmed_mean(table, hostile_share)
    elif name == "median":
        result = median(table)
    else:
        result = krum(table, hostile_share, several=name == "multi_krum")
    return result.to(torch.float32)


def _mean(rows: list[Tensor], dimension: int) -> Tensor:
    # One at a time, in the order of devices: the same bits as the sum that a private run forms, and no [n, d] table.
    total = torch.zeros(dimension, dtype=torch.float64)
    for row in rows:
        total += row
    return (total / len(rows)).to(torch.float32)


def trimmed_mean(table: Tensor, share: float) -> Tensor:
    """Per coordinate of ``table [n, d]``, the mean without the floor(share n) smallest and as many largest values."""
    cut = math.floor(share * len(table))
    return table.sort(dim=0).values[cut : len(table) - cut].mean(dim=0)


def median(table: Tensor) -> Tensor:
    """Per coordinate of ``table [n, d]``, the middle value; the mean of the middle two where n is even."""
    ordered = table.sort(dim=0).values
    return (ordered[(len(table) - 1) // 2] + ordered[len(table) // 2]) / 2


def krum(table: Tensor, share: float, *, several: bool = False) -> Tensor:
    """Krum (``several``: multi-Krum) over ``table [n, d]`` with f = ceil(share n) liars.

    The theory needs n >= 2 f + 3; a smaller cohort lowers f to what it can bear, and fewer than three devices give the
    coordinate-wise median.
    """
    count = len(table)
    if count < 3:
        return median(table)
    liars = min(math.ceil(share * count), (count - 3) // 2)
    chosen = krum_scores(table, liars).argsort(stable=True)[: count - liars if several else 1]
    return table[chosen].mean(dim=0)


def krum_scores(table: Tensor, liars: int) -> Tensor:
    """[n]: the sum of squared distances of each row of ``table [n, d]`` to its n - f - 2 nearest others (at least one)."""
    distances = torch.cdist(table, table, compute_mode="donot_use_mm_for_euclid_dist").square()
    nearest = max(1, len(table) - liars - 2)
    return distances.sort(dim=1).values[:, 1 : nearest + 1].sum(dim=1)  # column 0 is the row itself
