"""How a per-sample gradient is bounded: flat, automatic (normalised), or per layer, each with its true sensitivity.

    FlatClip(C)               min(1, C / |g|)                      bound C             (Abadi et al. 1607.00133)
    AutomaticClip(C, gamma)   C / (|g| + gamma)                    bound C             (Bu et al. 2206.07136)
    PerLayerClip({...})       min(1, C_k / |g_k|) for each group   bound sqrt(sum_k C_k^2)

`clip_norm` is the C that noise is measured in (its standard deviation is sigma * C), `sensitivity` the bound on one
contribution in units of that C, as the event states it. An example whose norm is not finite has factor 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

# Squared norms come from fp32 products: aiming this much inside C keeps a typical rounding error from exceeding it.
MARGIN = 4e-6


def _positive(name: str, value: float) -> float:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} is {value}; expected a finite number above 0.")
    return float(value)


class ClipKind(Protocol):
    """What an engine asks of a way to clip."""

    kind: str

    @property
    def clip_norm(self) -> float:
        """C, the unit of the noise multiplier."""
        ...

    @property
    def sensitivity(self) -> float:
        """The largest L2 norm of one contribution, in units of C."""
        ...

    @property
    def group_count(self) -> int:
        """How many groups there are, >= 1."""
        ...

    def groups(self, names: Sequence[str]) -> list[int]:
        """The group of each parameter, 0 .. group_count - 1: norms are taken over a group."""
        ...

    def factors(self, squared: Tensor) -> Tensor:
        """squared norms [groups, B] fp64 -> factors [groups, B] fp64; 0 for a sample that is not finite."""
        ...

    def describe(self) -> dict[str, Any]:
        """JSON for the report's mechanism section."""
        ...


def _finite(squared: Tensor) -> Tensor:
    """[B] whether every group's norm is finite."""
    return torch.isfinite(squared).all(dim=0)


class FlatClip:
    """One norm over all parameters, at most `clip_norm` > 0."""

    kind = "flat"
    sensitivity = 1.0
    group_count = 1

    def __init__(self, clip_norm: float) -> None:
        self.clip_norm = _positive("the clipping norm", clip_norm)

    def groups(self, names: Sequence[str]) -> list[int]:
        """All in one."""
        return [0] * len(names)

    def factors(self, squared: Tensor) -> Tensor:
        """min(1, C / norm)."""
        limit = self.clip_norm * (1.0 - MARGIN)
        factors = (limit / squared.sqrt()).clamp(max=1.0)
        return torch.where(_finite(squared), factors, 0.0)

    def describe(self) -> dict[str, Any]:
        """JSON for the report."""
        return {"kind": self.kind, "clip_norm": self.clip_norm, "sensitivity": self.sensitivity}


class AutomaticClip:
    """Every gradient is normalised: C / (norm + gamma). No threshold to tune; gamma > 0 keeps small gradients apart."""

    kind = "automatic"
    sensitivity = 1.0
    group_count = 1

    def __init__(self, clip_norm: float = 1.0, gamma: float = 0.01) -> None:
        self.clip_norm, self.gamma = _positive("the clipping norm", clip_norm), _positive("gamma", gamma)

    def groups(self, names: Sequence[str]) -> list[int]:
        """All in one."""
        return [0] * len(names)

    def factors(self, squared: Tensor) -> Tensor:
        """C / (norm + gamma)."""
        factors = self.clip_norm * (1.0 - MARGIN) / (squared.sqrt() + self.gamma)
        return torch.where(_finite(squared), factors, 0.0)

    def describe(self) -> dict[str, Any]:
        """JSON for the report."""
        base = {"kind": self.kind, "clip_norm": self.clip_norm, "sensitivity": self.sensitivity}
        return {**base, "gamma": self.gamma}


class PerLayerClip:
    """A threshold for each group of parameters, named by prefixes of parameter names ("" takes the rest).

    The longest prefix that fits wins. One contribution is bounded by the root of the sum of squared thresholds, and
    that root is the C of the noise. Raises ValueError for a parameter that no prefix fits.
    """

    kind = "per_layer"
    sensitivity = 1.0

    def __init__(self, thresholds: Mapping[str, float]) -> None:
        if not thresholds:
            raise ValueError("per-layer clipping was given no threshold; give at least one prefix with its norm.")
        self.thresholds = {prefix: _positive(f"the threshold of {prefix!r}", c) for prefix, c in thresholds.items()}
        self._prefixes = sorted(self.thresholds)
        self.group_count = len(self._prefixes)

    @classmethod
    def equal(cls, clip_norm: float, prefixes: Sequence[str]) -> PerLayerClip:
        """The same threshold for every prefix, together `clip_norm`."""
        return cls({prefix: clip_norm / math.sqrt(len(prefixes)) for prefix in prefixes})

    @property
    def clip_norm(self) -> float:
        """sqrt(sum_k C_k^2)."""
        return math.sqrt(math.fsum(c * c for c in self.thresholds.values()))

    def groups(self, names: Sequence[str]) -> list[int]:
        """By the longest fitting prefix."""
        result = []
        for name in names:
            fitting = [prefix for prefix in self._prefixes if name.startswith(prefix)]
            if not fitting:
                raise ValueError(f"parameter {name!r} fits none of the prefixes {self._prefixes}; add one, or ''.")
            result.append(self._prefixes.index(max(fitting, key=len)))
        return result

    def factors(self, squared: Tensor) -> Tensor:
        """min(1, C_k / norm_k); a sample that is not finite in one group counts for none."""
        limits = torch.tensor([self.thresholds[p] for p in self._prefixes], dtype=squared.dtype, device=squared.device)
        factors = (limits[:, None] * (1.0 - MARGIN) / squared.sqrt()).clamp(max=1.0)
        return torch.where(_finite(squared), factors, 0.0)

    def describe(self) -> dict[str, Any]:
        """JSON for the report."""
        base = {"kind": self.kind, "clip_norm": self.clip_norm, "sensitivity": self.sensitivity}
        return {**base, "thresholds": dict(sorted(self.thresholds.items()))}
