"""Adaptive clipping: the clipping norm follows a private quantile of the updates' norms (Andrew et al., 2021, 1905.03871).

Update and vote of a device are one vector of ONE Gaussian release. Two releases of one Poisson cohort would not compose as
two independently sampled ones: they are drawn together, which tells more; priced apart, they would be priced too low.
What it refuses: a count that would take all the noise (``federated.accounts.check_split``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from federated.accounts import PrivateAccount
from federated.settings import FederatedConfig
from privacy.clipping.vector import clip_vector


def update_noise(noise_multiplier: float, count_noise: float) -> float:
    """The noise multiplier of the updates when ``count_noise`` pays for the count and both cost ``noise_multiplier``.

    An update over its noise and a bit over its own are one vector of one release: 1/z^2 = 1/u^2 + 1/c^2
    (Andrew et al., 2021, theorem 1).
    """
    return (noise_multiplier**-2 - count_noise**-2) ** -0.5


class AdaptiveAccount(PrivateAccount):
    """`PrivateAccount` with a clipping norm that follows a private quantile of the updates' norms.

    Each update is clipped to the round's C and gets one more coordinate, its vote (+1/2: not longer than C, -1/2), scaled
    so that one Gaussian release of both at noise multiplier z gives the updates u and the count c. Two releases of one
    cohort would NOT compose as two independently sampled ones; one vector is one release, and so the ledger says.
    C of the next round follows from the noisy count: post-processing.
    """

    def __init__(self, settings: FederatedConfig, path: Path, *, fresh: bool) -> None:
        super().__init__(settings, path, fresh=fresh)
        assert self.noise_multiplier is not None
        self.count_noise = settings.adaptive.count_noise
        self.update_noise = update_noise(self.noise_multiplier, self.count_noise)
        self.clip_norm = settings.clip_norm

    def release(self, number: int, updates: Mapping[int, Tensor], dimension: int) -> Tensor:
        self._pay(number, update_noise=self.update_noise, count_noise=self.count_noise, clip_norm=self.clip_norm)
        # In units where the updates' noise is u C, a vote of 1/2 with noise c/2 is u C / c long.
        vote_length = self.update_noise * self.clip_norm / self.count_noise
        self.mechanism.clip_norm = math.hypot(self.clip_norm, vote_length)  # so that z times it is u C
        vectors = []
        for device in sorted(updates):
            clipped, was_clipped, finite = clip_vector(updates[device], self.clip_norm)
            vote = torch.tensor([-vote_length if was_clipped or not finite else vote_length], dtype=torch.float64)
            vectors.append(torch.cat([clipped.to(torch.float64), vote]))
        noisy = self.mechanism.release(vectors, step=number, dimension=dimension + 1)
        unclipped = float(noisy[-1]) / (2 * vote_length) + 0.5  # of the expected cohort, as the devices that came
        adaptive = self.settings.adaptive
        self.clip_norm *= math.exp(-adaptive.learning_rate * (min(1.0, max(0.0, unclipped)) - adaptive.quantile))
        return noisy[:-1].contiguous()

    def state(self) -> dict[str, Tensor]:
        return {"clip_norm": torch.tensor([self.clip_norm], dtype=torch.float64)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        if set(state) != {"clip_norm"} or state["clip_norm"].numel() != 1:
            raise ValueError("the checkpoint holds no clipping norm, which adaptive clipping goes on from.")
        self.clip_norm = float(state["clip_norm"])
