"""What device and server must agree on before a sum: ring, threshold, and each device's share of the noise.

Everything follows from the run's settings and the vector's length, so that no message can weaken it. The noise of ``h``
devices is what was paid for: h is the fewest that a sum may hold, less those that may collude with the server (who know
their own noise). More devices, more noise. Each device adds an exact discrete Gaussian (``privacy.discrete``) in the ring's
grid; clipping stays below C by what rounding may add (``Ring``); a sum that wraps around loses its value, not its privacy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from numpy.typing import NDArray

from federated.modes import colluders, least_contributors
from federated.secure_aggregation.errors import SecureAggregationError
from federated.secure_aggregation.ring import Ring
from federated.settings import FederatedConfig
from privacy.discrete import discrete_gaussian, key_for, shares


@dataclass(frozen=True)
class SecurePlan:
    """clip_norm: C. noise_multiplier: sigma over C of what is paid for. members: devices asked for one sum. least: fewest
    whose vectors may be summed. honest: how many of those are counted on for noise. dimension: d.
    """

    clip_norm: float
    noise_multiplier: float
    members: int
    least: int
    honest: int
    dimension: int

    @classmethod
    def of(cls, settings: FederatedConfig, noise_multiplier: float, dimension: int) -> SecurePlan:
        """The plan that the settings imply."""
        least = least_contributors(settings)
        return cls(
            clip_norm=settings.clip_norm,
            noise_multiplier=noise_multiplier,
            members=settings.cohort,
            least=least,
            honest=least - colluders(settings),
            dimension=dimension,
        )

    @cached_property
    def ring(self) -> Ring:
        """The ring, with room for the noise of all members."""
        paid = self.noise_multiplier * self.clip_norm
        # a hundredth more than the shares need: they are rounded up to whole variances
        return Ring(self.clip_norm, self.members, self.dimension, 1.01 * paid * math.sqrt(self.members / self.honest))

    @cached_property
    def share(self) -> int:
        """The variance of one device's noise, in squares of the ring's grid."""
        deviation = self.noise_multiplier * self.clip_norm * self.ring.scale
        return shares(deviation * deviation, self.honest)

    def threshold(self, present: int) -> int:
        """t of a session of so many devices. SecureAggregationError where too few or too many are named."""
        if not self.least <= present <= self.members:
            raise SecureAggregationError(
                f"a sum over {present} devices was asked for; this run's are over {self.least} to {self.members}."
            )
        return max(self.least, present // 2 + 1)

    def noise(self, simulated_by: tuple[int, int, int] | None) -> NDArray:
        """One device's noise [d], int64. ``simulated_by``: (seed, device, round) in a simulation, None for real."""
        key = None if simulated_by is None else key_for("share", *simulated_by)
        return discrete_gaussian(self.share, self.dimension, key)
