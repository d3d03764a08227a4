"""Which adapters a device can train, and how each is averaged over those that hold it, without a word about who did.

A device may have photos only, text only, or both; it may have memory for a lower rank. What it does not hold stays at
zero in its update. The plain mean would then divide an expert that a third of the devices hold by all of them. Each
coordinate is divided by its own share of holders instead:

    with privacy     the released mean (clipped sum + noise) / (q N) is divided, coordinate by coordinate, by a share
                     that was *published before the run*: post-processing, free. A wrong share scales a step and costs
                     no privacy. Nobody counts who came.
    without          by the number of holders that answered, which travels inside the update: one further number per
                     part, 1 or 0, which is summed like the rest (under secure aggregation the sum is all anybody sees).

**Lower ranks.** With frozen A (FFA, ``train: b``) the update of a rank-r device is its first r columns of B and zero in
the others, and the mean of products is the product of the mean, exactly:  mean(B_i) A = mean(B_i A). With both factors
trained, mean(B_i) mean(A_i) is another matrix. ``average_products`` forms the mean of the products and factors it again
(HLoRA-like), which needs every single update in the clear: without a privacy claim only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from federated.settings import Section
from federated.vector import AdapterVector


@dataclass(frozen=True)
class Part:
    """Coordinates that are held together or not at all. share: of the devices that hold them, public, in (0, 1]."""

    name: str
    mask: Tensor  # [d] bool
    share: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(
                f"part {self.name!r} is held by a share of {self.share}; give a number above 0, at most 1."
            )


class Holdings:
    """The parts of an adapter vector and who holds which. Parts cover every coordinate exactly once.

    holds(device, part name): whether that device trains that part; asked on the device only.
    """

    def __init__(self, parts: Sequence[Part], holds: Callable[[int, str], bool]) -> None:
        if not parts:
            raise ValueError("there is no part to hold; give at least one.")
        cover = torch.stack([part.mask for part in parts]).sum(dim=0)
        if not bool((cover == 1).all()):
            raise ValueError(
                f"the parts {', '.join(part.name for part in parts)} cover {int((cover == 0).sum())} of {len(cover)} "
                f"coordinates not at all and {int((cover > 1).sum())} more than once; each belongs to exactly one part."
            )
        self.parts = tuple(parts)
        self.holds = holds

    def mask(self, device: int) -> Tensor:
        """[d] bool: what ``device`` trains. All false for a device that holds nothing: its update is zero."""
        mask = torch.zeros_like(self.parts[0].mask)
        for part in self.parts:
            if self.holds(device, part.name):
                mask |= part.mask
        return mask

    def shares(self) -> Tensor:
        """[d] float32: the public share of holders of each coordinate."""
        shares = torch.zeros(len(self.parts[0].mask))
        for part in self.parts:
            shares[part.mask] = part.share
        return shares

    def rescale(self, released: Tensor) -> Tensor:
        """A released mean over all devices ``[d]`` as the mean over holders, by the public shares: post-processing."""
        return released / self.shares()

    # Without a privacy claim: counts that are summed and never seen singly.

    def with_counts(self, device: int, update: Tensor) -> Tensor:
        """``update [d]`` and behind it one number per part, 1 where ``device`` holds it: what is summed, [d + parts]."""
        held = torch.tensor([float(self.holds(device, part.name)) for part in self.parts])
        return torch.cat([update * self.mask(device), held])

    def mean_over_holders(self, total: Tensor) -> Tensor:
        """The mean over holders ``[d]`` from the sum of ``with_counts`` vectors. A part that nobody held stays zero."""
        width = len(self.parts[0].mask)
        mean = total[:width].clone()
        for part, count in zip(self.parts, total[width:], strict=True):
            mean[part.mask] /= max(1.0, float(count))
        return mean


class PartConfig(Section):
    """One part by the names of its adapters, and the public share of devices that hold it."""

    names: tuple[str, ...] = Field(..., min_length=1, description="texts; adapters whose name contains one belong here")
    share: float = Field(default=1.0, gt=0, le=1)


class HoldingsConfig(Section):
    """The section ``holdings``: either parts by name, or ranks with their shares. Shares are public constants."""

    parts: dict[str, PartConfig] = Field(default_factory=dict)
    ranks: dict[int, float] = Field(default_factory=dict, description="rank -> share of the devices that have it")

    @model_validator(mode="after")
    def _one(self) -> Self:
        if bool(self.parts) == bool(self.ranks):
            raise ValueError("holdings are either parts or ranks; give one of the two.")
        return self

    def open(self, adapters: AdapterVector, *, seed: int = 0) -> Holdings:
        """Holdings of a simulation: who holds what is drawn from (seed, device) by the shares."""
        if self.ranks:
            return Holdings(
                parts_by_rank(adapters, self.ranks), lambda device, part: _rank(self, seed, device) >= int(part[5:])
            )
        prefixes = {name: part.names for name, part in self.parts.items()}
        shares = {name: part.share for name, part in self.parts.items()}
        order = sorted(shares)
        return Holdings(
            parts_by_name(adapters, prefixes, shares),
            lambda device, part: _dice(seed, device, order.index(part)) < shares[part],
        )


def _dice(seed: int, device: int, place: int) -> float:
    return float(np.random.default_rng([seed, 0x401D, device, place]).random())


def _rank(config: HoldingsConfig, seed: int, device: int) -> int:
    drawn, total = _dice(seed, device, 0), 0.0
    for rank in sorted(config.ranks):
        total += config.ranks[rank]
        if drawn < total:
            return rank
    return max(config.ranks)


def parts_by_name(
    adapters: AdapterVector, prefixes: Mapping[str, Sequence[str]], shares: Mapping[str, float]
) -> list[Part]:
    """Parts by parameter names: part -> texts of which a name contains one (``{"image": ["image_"], ...}``)."""
    masks = {part: torch.zeros(adapters.dimension, dtype=torch.bool) for part in prefixes}
    start = 0
    for name, shape in adapters.shapes.items():
        size = int(torch.Size(shape).numel())
        owners = [part for part, texts in prefixes.items() if any(text in name for text in texts)]
        if len(owners) != 1:
            raise ValueError(
                f"adapter {name!r} belongs to {', '.join(owners) or 'no part'}; name the parts so that each adapter "
                "belongs to exactly one."
            )
        masks[owners[0]][start : start + size] = True
        start += size
    return [Part(part, mask, shares.get(part, 1.0)) for part, mask in masks.items()]


def parts_by_rank(adapters: AdapterVector, ranks: Mapping[int, float]) -> list[Part]:
    """Parts by columns of B (``[out, r]`` parameters ending in ``b.weight``), for devices of different ranks.

    ranks: rank -> share of the devices that have it; shares add up to 1, and the largest rank is the adapters' own. Part
    "rank r" holds the columns that devices of rank r and more train and those of the next lower rank do not. Raises
    ValueError where A is trained too: the average would not be exact.
    """
    if abs(sum(ranks.values()) - 1) > 1e-6:
        raise ValueError(f"the shares of the ranks add up to {sum(ranks.values()):g}; make them add up to 1.")
    steps = sorted(ranks)
    parts = []
    for lower, rank in zip([0, *steps], steps, strict=False):
        pieces = []
        for name, shape in adapters.shapes.items():
            if not name.endswith("b.weight") or len(shape) != 2:
                raise ValueError(
                    f"adapter {name!r} is no B matrix: devices of different ranks average exactly only where A is frozen; "
                    "say adapters: {train: b}, or give every device one rank."
                )
            if shape[1] != steps[-1]:
                raise ValueError(
                    f"adapter {name!r} has rank {shape[1]} and the largest given is {steps[-1]}; make them one."
                )
            piece = torch.zeros(shape, dtype=torch.bool)
            piece[:, lower:rank] = True
            pieces.append(piece.reshape(-1))
        share = sum(part for other, part in ranks.items() if other >= rank)
        parts.append(Part(f"rank {rank}", torch.cat(pieces), min(1.0, share)))
    return parts


def average_products(
    factors: Sequence[tuple[Tensor, Tensor]], rank: int, weights: Sequence[float] | None = None
) -> tuple[Tensor, Tensor, float]:
    """(B [m, rank], A [rank, n], lost) of the mean of the products B_i A_i of low-rank factors of any ranks r_i.

    factors: (B_i [m, r_i], A_i [r_i, n]). lost: the part of the mean's squared norm that ``rank`` cannot hold; 0 where
    the sum of the ranks is at most ``rank``. Exact but for that: the best approximation there is (Eckart & Young).
    """
    if not factors:
        raise ValueError("there are no factors to average; give at least one device's.")
    shares = [1 / len(factors)] * len(factors) if weights is None else list(weights)
    # Factored without the m x n product: QR of both stacks, then a small SVD.
    left = torch.cat([b.double() * share for (b, _), share in zip(factors, shares, strict=True)], dim=1)  # [m, sum r]
    right = torch.cat([a.double() for _, a in factors], dim=0)  # [sum r, n]
    q_left, r_left = torch.linalg.qr(left)
    q_right, r_right = torch.linalg.qr(right.T)
    u, singular, v = torch.linalg.svd(r_left @ r_right.T)
    kept = min(rank, len(singular))
    root = singular[:kept].sqrt()
    b = torch.zeros(left.shape[0], rank, dtype=torch.float64)
    a = torch.zeros(rank, right.shape[1], dtype=torch.float64)
    b[:, :kept] = (q_left @ u[:, :kept]) * root
    a[:kept] = root[:, None] * (v[:kept] @ q_right.T)
    energy = float(singular.square().sum())
    lost = float(singular[kept:].square().sum()) / energy if energy > 0 else 0.0
    dtype = factors[0][0].dtype
    return b.to(dtype), a.to(dtype), lost
