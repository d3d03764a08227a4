"""The Gaussian mechanism on a sum of vectors, one per user (or example): clip, sum, noise, divide.

One object holds the clipping norm, the noise and the sampling, releases the noisy mean and writes the event, so that
what is accounted is what was done. Used by the federated server, where a vector is one household's model update
(McMahan et al. 1710.06963).

The order matters and is fixed: each vector is clipped to C in fp64 (NaN and infinity count as zero), the sum is taken
in fp64, N(0, (sigma C)**2) is added to the sum, and the result is divided by a public constant, never by the number of
vectors that came.

Refuses: vectors of another length, a divisor or clipping norm that is not positive, sums that are not finite.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from privacy.clipping.vector import clip_vector
from privacy.events import Adjacency, GaussianRelease, Sampling, Unaccountable, Unit
from privacy.noise import Noise


@dataclass(frozen=True)
class ReleaseCounts:
    """What came in to one release. It depends on the data: for the private annex, never for the report.

    received: vectors that came. clipped: were longer than C. dropped: held NaN or infinity and counted as zero.
    """

    received: int
    clipped: int
    dropped: int


class GaussianSum:
    """Noisy means of clipped vectors.

    clip_norm: C > 0. noise_multiplier: sigma >= 0, the noise's standard deviation over C; 0 is only for a ceiling
    without privacy, and its event is Unaccountable. sampling: how the users were chosen, from the sampler that chose
    them.
    divisor: a public constant > 0, usually rate * population. noise: SecureNoise, or SeededNoise in simulations.
    Raises ValueError for numbers out of range, TypeError where `sampling` is none.
    """

    def __init__(
        self,
        clip_norm: float,
        noise_multiplier: float,
        sampling: Sampling,
        divisor: float,
        noise: Noise,
        unit: Unit = "user",
        adjacency: Adjacency = "add_or_remove_one",
    ) -> None:
        for name, value in (("clipping norm", clip_norm), ("divisor", divisor)):
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"the {name} is {value}; expected a finite number above 0.")
        if not (math.isfinite(noise_multiplier) and noise_multiplier >= 0):
            raise ValueError(f"the noise multiplier is {noise_multiplier}; expected a finite number of at least 0.")
        if not isinstance(sampling, Sampling):
            raise TypeError(f"sampling is of type {type(sampling).__name__}; expected the sampler's `sampling`.")
        self.clip_norm, self.noise_multiplier, self.divisor = float(clip_norm), float(noise_multiplier), float(divisor)
        self.sampling, self.noise, self.unit, self.adjacency = sampling, noise, unit, adjacency
        self.last = ReleaseCounts(0, 0, 0)

    @property
    def std(self) -> float:
        """Standard deviation of the noise on the sum: sigma * C."""
        return self.noise_multiplier * self.clip_norm

    def event(self, label: str = "") -> GaussianRelease | Unaccountable:
        """What one release costs. Append it to the ledger before calling `release`."""
        if self.noise_multiplier == 0:
            return Unaccountable(f"{label or 'a sum'} was released without noise.")
        return GaussianRelease(
            noise_multiplier=self.noise_multiplier,
            sampling=self.sampling,
            adjacency=self.adjacency,
            unit=self.unit,
            label=label,
        )

    def release(self, vectors: Iterable[Tensor], *, step: int, dimension: int) -> Tensor:
        """(sum of clipped vectors + N(0, (sigma C)**2)) / divisor, [dimension] float32 on the CPU.

        vectors: any number of [dimension] tensors, read one at a time; none gives pure noise. step: >= 0, tells seeded
        draws apart. Raises ValueError for a vector of another length: nothing is released then.
        """
        if dimension < 1:
            raise ValueError(f"the dimension is {dimension}; expected at least 1.")
        total = torch.zeros(dimension, dtype=torch.float64)
        received = clipped_count = dropped = 0
        for vector in vectors:
            if vector.dim() != 1 or vector.numel() != dimension:
                raise ValueError(
                    f"vector {received} has shape {list(vector.shape)}; expected [{dimension}], the adapter's length."
                )
            clipped, was_clipped, finite = clip_vector(vector, self.clip_norm)
            received += 1
            clipped_count += was_clipped
            dropped += not finite
            total += clipped.to(total.device)
        self.last = ReleaseCounts(received, clipped_count, dropped)
        return self._finish(total, step)

    def release_sum(self, total: Tensor, *, step: int) -> Tensor:
        """(total + N(0, (sigma C)**2)) / divisor for a sum that secure aggregation made, [d] float32.

        The caller answers for it that every summand was clipped to C where it was made: a sum does not show it. Raises
        ValueError for a sum that is not finite: one member would have spoilt everybody's, and zero would hide it.
        """
        if total.dim() != 1 or not total.is_floating_point():
            raise ValueError(f"the sum has shape {list(total.shape)} and {total.dtype}; expected [d] floating point.")
        exact = total.detach().to("cpu", torch.float64, copy=True).contiguous()
        if not bool(torch.isfinite(exact).all()):
            raise ValueError(
                "the sum holds NaN or infinity; clip each vector before it is summed, and run the step again."
            )
        return self._finish(exact, step)

    def _finish(self, total: Tensor, step: int) -> Tensor:
        self.noise.add_(total, self.std, step=step)
        return (total / self.divisor).to(torch.float32)
