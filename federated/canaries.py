"""Canary devices in a simulation of the real rounds: what an attacker finds out, beside what is claimed.

The last devices of the population are canaries: each has a random direction of its own, and a fair coin says whether it
sends it (at the length of the clipping norm, or longer to provoke clipping) or zeros. All else is the run as it is: sampling,
clipping, sum, noise, server optimiser, resume. Afterwards each direction is scored by its product with theta_T - theta_0.

    bound     a lower bound on epsilon, with a confidence, from guessing the coins (`privacy.audit.empirical.one_run`)
    estimate  the one-shot estimate of Andrew et al. (2302.03098), from the canaries that were in: no bound

They concern the claim about a device (user-level); a run whose devices protect single photos is refused. Canaries take part
in the training: never release a model that was trained with them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from federated.bench import Bench, Feeder
from federated.settings import FederatedConfig
from federated.simulation import simulate
from federated.strategy import Result
from privacy.audit.empirical import EmpiricalAudit, FederatedEstimate, federated_estimate, one_run_audit


@dataclass(frozen=True)
class Canaries:
    """first: number of the first canary device. directions: [m, d] unit vectors. included: [m], the coins."""

    first: int
    directions: NDArray[np.float32]
    included: NDArray[np.bool_]

    @classmethod
    def plant(cls, count: int, households: int, dimension: int, seed: int) -> Canaries:
        """``count`` canaries as the last of ``households`` devices. ValueError for fewer than 2, or more than there are."""
        if not 2 <= count <= households:
            raise ValueError(f"{count} canaries among {households} devices; plant at least 2 and at most all.")
        dice = np.random.default_rng([seed, count])
        directions = dice.standard_normal((count, dimension), dtype=np.float32)
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        return cls(households - count, directions, dice.random(count) < 0.5)

    def update(self, device: int, length: float) -> Tensor | None:
        """What the device sends, [d]; None where it is no canary."""
        place = device - self.first
        if place < 0:
            return None
        return torch.from_numpy(self.directions[place] * np.float32(length if self.included[place] else 0.0))


class CanaryBench(Bench):
    """A bench whose canary devices send their direction instead of training."""

    def __init__(
        self, model: nn.Module, feeder: Feeder, settings: FederatedConfig, canaries: Canaries, length: float
    ) -> None:
        super().__init__(model, feeder, settings)
        self.canaries, self.length = canaries, length

    def train(self, device: int, round_number: int, start: Tensor) -> tuple[Tensor, float]:
        sent = self.canaries.update(device, self.length)
        return super().train(device, round_number, start) if sent is None else (sent, 0.0)

    def for_another_worker(self) -> Bench:
        other = super().for_another_worker()
        return CanaryBench(other.model, other.feeder, other.settings, self.canaries, self.length)


@dataclass(frozen=True)
class CanaryAudit:
    """bound: what is proven with its confidence. estimate: what is likely. claimed: the run's epsilon."""

    bound: EmpiricalAudit
    estimate: FederatedEstimate
    claimed: float

    @property
    def contradicted(self) -> bool:
        """Whether the measured lower bound is above the claim: then the claim is false (at the bound's confidence)."""
        return self.bound.lower_bound > self.claimed


def audit_with_canaries(
    settings: FederatedConfig,
    *,
    model: nn.Module,
    feeder: Feeder,
    run_dir: Path,
    canaries: int,
    seed: int = 0,
    length: float = 1.0,
    confidence: float = 0.95,
) -> tuple[Result, CanaryAudit]:
    """Simulate the run with ``canaries`` of its devices replaced, and say what they found out.

    seed: of directions and coins; unknown to the run. length: of a canary's update, in units of C. The server optimiser
    should be "sgd": the others bend the sum, which costs the audit power (never validity).
    Raises ValueError for runs that claim nothing about a device.
    """
    if not settings.private or settings.trust == "device":
        raise ValueError("canary devices test a claim about devices, and this run makes none; audit a user-level run.")
    start = torch.cat([p.detach().flatten() for _, p in sorted(model.adapter_parameters().items())])  # type: ignore[operator]
    planted = Canaries.plant(canaries, settings.households, start.numel(), seed)

    def bench(model: nn.Module, feeder: Feeder, settings: FederatedConfig) -> Bench:
        return CanaryBench(model, feeder, settings, planted, length * settings.clip_norm)

    result = simulate(settings, model=model, feeder=feeder, run_dir=run_dir, make_bench=bench)
    moved = (result.vector - start).double().numpy()
    scores = planted.directions.astype(np.float64) @ moved
    bound = one_run_audit(
        scores[planted.included], scores[~planted.included], delta=settings.delta, confidence=confidence, seed=seed
    )
    estimate = federated_estimate(planted.directions[planted.included], moved, delta=settings.delta)
    assert result.epsilon is not None
    return result, CanaryAudit(bound, estimate, result.epsilon)
