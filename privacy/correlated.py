"""Correlated noise for runs without amplification: matrix factorisation with a banded Toeplitz encoder (DP-FTRL).

Fresh noise in every step adds up: after t steps the model has the sum of t draws. Here the noise of a step takes back
part of what earlier steps added: the run releases G + C^-1 Z, where G [steps, d] holds the clipped sums, Z is white,
and C is lower triangular. Because that is C^-1 (C G + Z), the whole run is ONE Gaussian release of C G, and its price
depends on how far one unit can move C G: on C, and on how often and how soon the unit may take part
(Denisov et al. 2202.08312, Choquette-Choo et al. 2306.08153, Kalinin & Lampert 2405.13763).

Two encoders, both from the square root of the prefix-sum matrix, whose coefficients are those of (1 - x)^(-1/2):
    banded            C has `bands` diagonals                          (banded square root, 2405.13763)
    banded_inverse    C^-1 has `bands` diagonals                       (banded inverse square root, 2505.12128)
Either needs the noise of the last bands - 1 steps. With one band both are independent noise.

The sensitivity is exact for Toeplitz encoders with non-negative, non-increasing coefficients (2405.13763, theorem 2):
the norm of the sum of the columns 0, b, 2b, ... for separation b. Other coefficients are refused. So are a unit that
comes back too early or too often, a step out of order, and a run longer than the matrix.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from privacy.events import Adjacency, CorrelatedGaussianRelease, Participation, Unit
from privacy.noise import Noise, grid

Coefficients = NDArray[np.float64]


def square_root_coefficients(count: int) -> Coefficients:
    """First coefficients of (1 - x)^(-1/2): binom(2k, k) / 4^k, k = 0 .. count - 1."""
    k = np.arange(1, count, dtype=np.float64)
    return np.concatenate(([1.0], np.cumprod((2 * k - 1) / (2 * k))))[:count]


def series_inverse(coefficients: Coefficients, count: int) -> Coefficients:
    """First `count` coefficients of 1 / sum_k c_k x^k, c_0 != 0."""
    inverse = np.zeros(count)
    inverse[0] = 1.0 / coefficients[0]
    for t in range(1, count):
        reach = min(t, len(coefficients) - 1)
        inverse[t] = -np.dot(coefficients[1 : reach + 1], inverse[t - reach : t][::-1]) / coefficients[0]
    return inverse


class Encoder:
    """A lower-triangular Toeplitz matrix C [steps, steps] of which C or C^-1 is banded.

    kind: which of the two has `bands` diagonals, 1 <= bands <= steps. Raises ValueError for numbers out of range.
    """

    def __init__(self, steps: int, bands: int, kind: Literal["banded", "banded_inverse"] = "banded_inverse") -> None:
        if steps < 1 or not 1 <= bands <= steps:
            raise ValueError(f"an encoder of {bands} bands for {steps} steps; expected 1 <= bands <= steps.")
        if kind not in ("banded", "banded_inverse"):
            raise ValueError(f"the encoder's kind is {kind!r}; expected 'banded' or 'banded_inverse'.")
        self.steps, self.bands, self.kind = steps, bands, kind
        root = square_root_coefficients(bands)
        if kind == "banded":
            self.band = root
            self.column = np.concatenate((root, np.zeros(steps - bands)))
        else:
            # the truncated series of (1 - x)^(1/2); its inverse is C
            self.band = series_inverse(square_root_coefficients(bands), bands)
            self.column = series_inverse(self.band, steps)

    def sensitivity(self, participation: Participation) -> float:
        """Largest norm of C times one unit's contributions of norm 1, exact. See `toeplitz_sensitivity`."""
        return toeplitz_sensitivity(self.column, participation)

    def prefix_error(self) -> tuple[float, float]:
        """(root of the mean square, largest) deviation of the noise in the running sums, for white noise of deviation
        1.

        Multiply by the sensitivity to compare encoders at equal privacy.
        """
        sums = np.cumsum(series_inverse(self.column, self.steps))
        variances = np.cumsum(sums**2)
        return math.sqrt(float(variances.mean())), math.sqrt(float(variances[-1]))


def toeplitz_sensitivity(column: Coefficients, participation: Participation) -> float:
    """|| sum_j C[:, j b] || for the first column of a lower-triangular Toeplitz C, separation b, j < participations.

    Raises ValueError unless the coefficients are non-negative and non-increasing: then earliest is worst, and all
    contributions in one direction are.
    """
    if not np.isfinite(column).all() or (column < 0).any() or (np.diff(column) > 1e-15).any():
        raise ValueError(
            "the encoder's coefficients are not finite, non-negative and non-increasing; use another encoder."
        )
    total = np.zeros(len(column))
    for start in range(0, len(column), participation.min_separation)[: participation.max_participations]:
        total[start:] += column[: len(column) - start]
    return float(np.linalg.norm(total))


class ParticipationGuard:
    """Holds a run to its participation bound: nobody comes back too early or too often."""

    def __init__(self, participation: Participation) -> None:
        self.participation = participation
        self._last: dict[int, int] = {}
        self._count: dict[int, int] = {}

    def may(self, unit: int, step: int) -> bool:
        """Whether `unit` may take part in `step`: not too early, not too often."""
        last, bound = self._last.get(unit), self.participation
        rested = last is None or step - last >= bound.min_separation
        return rested and self._count.get(unit, 0) < bound.max_participations

    def last(self, unit: int) -> int:
        """The step that `unit` last took part in; -1 where it never did."""
        return self._last.get(unit, -1)

    def state_dict(self) -> dict[str, dict[int, int]]:
        """Who took part last when, and how often."""
        return {"last": dict(self._last), "count": dict(self._count)}

    def load_state_dict(self, state: dict[str, dict[int, int]]) -> None:
        """The inverse of `state_dict`."""
        self._last, self._count = dict(state["last"]), dict(state["count"])

    def admit(self, units: Iterable[int], step: int) -> None:
        """Notes who takes part in `step`. Raises ValueError for anybody who may not; then nobody is noted."""
        units = [int(unit) for unit in units]
        if len(set(units)) != len(units):
            raise ValueError(f"a unit takes part in step {step} twice; each may contribute once per step.")
        bound = self.participation
        early = [u for u in units if u in self._last and step - self._last[u] < bound.min_separation]
        often = [u for u in units if self._count.get(u, 0) >= bound.max_participations]
        if early or often:
            raise ValueError(
                f"in step {step}, {len(early)} units come back after less than {bound.min_separation} steps and "
                f"{len(often)} more often than {bound.max_participations} times; the noise was sized for less, so draw "
                "with a sampler that keeps the bound (CyclicSampler)."
            )
        for unit in units:
            self._last[unit] = step
            self._count[unit] = self._count.get(unit, 0) + 1


class CorrelatedNoise:
    """A noise source whose draws cancel over the steps; give it to PrivateOptimizer as `noise`.

    encoder: C. participation: the bound that the sampler keeps; `event` prices it, PrivateOptimizer's guard enforces
        it.
    source: white noise, SecureNoise in real runs. `state_dict` holds the noise of past steps: a secret, since whoever
    has it can take noise away.
    """

    def __init__(self, encoder: Encoder, participation: Participation, source: Noise) -> None:
        self.encoder, self.participation, self.source = encoder, participation, source
        self.sensitivity = encoder.sensitivity(participation)
        self._history: dict[int, list[Tensor]] = {}  # by stream, newest first
        self._next: dict[int, int] = {}

    @property
    def kind(self) -> str:
        """The source's kind."""
        return self.source.kind

    def event(
        self,
        noise_multiplier: float,
        *,
        unit: Unit = "example",
        adjacency: Adjacency = "zero_out",
        contribution: float = 1.0,
        label: str = "",
    ) -> CorrelatedGaussianRelease:
        """What the whole run costs. noise_multiplier: deviation of the WHITE noise over C. contribution: a clipped
        contribution's largest norm in units of C."""
        return CorrelatedGaussianRelease(
            noise_multiplier=noise_multiplier,
            sensitivity=self.sensitivity * contribution,
            participation=self.participation,
            steps=self.encoder.steps,
            adjacency=adjacency,
            unit=unit,
            label=label,
        )

    def add_(self, total: Tensor, std: float, *, step: int, stream: int = 0) -> Tensor:
        """`total` plus the noise of this step in place; std is that of the white noise. Steps come in order, once each.

        Raises ValueError for a step out of order or beyond the matrix: repeated noise would cancel.
        """
        noise = self.normal(tuple(total.shape), std, step=step, stream=stream, dtype=torch.float64)
        if std == 0.0:
            return total
        spacing = grid(std)
        noisy = noise.to(total.device).add_(total).mul_(1.0 / spacing).round_()
        return torch.mul(noisy, spacing, out=total.detach())

    def normal(
        self, shape: int | Iterable[int], std: float, *, step: int, stream: int = 0, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """The noise of `step` alone: row `step` of C^-1 Z."""
        due = self._next.get(stream, 0)
        if step != due or step >= self.encoder.steps:
            raise ValueError(
                f"noise was asked for step {step}, but step {due} of {self.encoder.steps} is due; correlated noise is "
                "drawn once for each step in order, so resume from the saved state."
            )
        sizes = shape if isinstance(shape, int) else tuple(shape)
        noise = self.source.normal(sizes, std, step=step, stream=stream, dtype=torch.float64)
        history, band = self._history.setdefault(stream, []), self.encoder.band
        white = noise.float() if self.encoder.kind == "banded_inverse" else None
        for coefficient, past in zip(band[1:], history, strict=False):
            noise.add_(past, alpha=float(coefficient if white is not None else -coefficient))
        history.insert(0, noise.float() if white is None else white)
        del history[self.encoder.bands - 1 :]
        self._next[stream] = step + 1
        return noise.to(dtype)

    def state_dict(self) -> dict[str, Any]:
        """Past noise by stream, and the step that is due. A secret."""
        return {
            "next": dict(self._next),
            "history": {stream: [past.clone() for past in some] for stream, some in self._history.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self._next = {int(stream): int(step) for stream, step in state["next"].items()}
        self._history = {int(stream): list(some) for stream, some in state["history"].items()}
