"""Direct checks of a run's account, promise by promise, in every mode where the server adds the noise.

A hostile device, an empty cohort and a full house are given to the account that the run's own settings open. What is
expected comes from the settings and closed forms, never from the account that is checked. It sees a small breach of one
promise at once, where canaries need many devices to see a large one, and touches no private data.

    noise          each round's noise, correlations over the rounds taken out, is fresh and as strong as was paid for
    sensitivity    no device moves a release by more than C
    sampler        Poisson cohorts are independent coins; bounded ones keep their bound when everybody always comes

What it refuses: modes whose noise comes from the devices (secure aggregation, on the device).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from federated.accounts import Account, PrivateAccount, open_account, planned_noise
from federated.settings import FederatedConfig
from privacy.audit.empirical.invariants import check_noise, check_sensitivity
from privacy.audit.empirical.release import check_coins
from privacy.audit.empirical.result import Finding
from privacy.correlated import Encoder

DIMENSION = 2048
REPEATS, ROUNDS = 3, 3


def check_account(settings: FederatedConfig, folder: Path) -> list[Finding]:
    """The findings for an account of ``settings``. folder: an empty one. Raises ValueError for other modes' accounts."""
    if not settings.private or settings.trust != "central":
        raise ValueError("only an account that adds the noise itself can be checked so; give one with trust: central.")
    noise = planned_noise(settings)
    opened = iter(range(10**6))

    def fresh(seed: int) -> Account:
        place = folder / f"{next(opened):04d}" / "run"
        place.mkdir(parents=True)
        update = {"noise": "simulation", "seed": seed, "noise_multiplier": noise}
        return open_account(settings.model_copy(update=update), place, fresh=True)

    rows = [row for seed in range(REPEATS) for row in _white_noise(fresh(seed), settings, noise)]
    everybody = range(settings.households)

    def release(vectors: Sequence[Tensor], seed: int) -> Tensor:
        account = fresh(seed)
        devices = account.cohort(0, everybody)
        return account.release(0, dict(zip(devices, vectors, strict=False)), DIMENSION)

    moved = check_sensitivity(
        release,
        [([], [loud]) for loud in _hostile(settings.clip_norm)],
        bound=settings.clip_norm / settings.divisor,
        relative=2e-3 + 1e-4 * noise**2,  # releases are rounded to 2**-12 of the noise
    )
    findings = [check_noise(lambda place: rows[place], std=1.0, repeats=len(rows)), moved]
    account = fresh(0)
    if isinstance(account, PrivateAccount):
        return findings + check_coins(account.sampler, rate=settings.sampling_rate, population=settings.households)
    return [*findings, _check_bound(account, settings)]


def _white_noise(account: Account, settings: FederatedConfig, noise: float) -> list[NDArray[np.float64]]:
    """The noise of the first rounds, each in units of what was paid for, correlation taken out: N(0, 1) if all is well."""
    bounded = settings.participation == "bounded"
    band = Encoder(settings.rounds, settings.bounded.bands).band if bounded else np.ones(1)
    if settings.adaptive.enabled:
        noise = (noise**-2 - settings.adaptive.count_noise**-2) ** -0.5
    white: list[NDArray[np.float64]] = []
    for number in range(min(ROUNDS, settings.rounds)):
        clip_norm = getattr(account, "clip_norm", settings.clip_norm)  # of this round: adaptive clipping moves it
        account.cohort(number, range(settings.households))
        row = account.release(number, {}, DIMENSION).double().numpy() * settings.divisor / (noise * clip_norm)
        for coefficient, past in zip(band[1:], reversed(white), strict=False):
            row = row - coefficient * past
        white.append(row)
    return white


def _check_bound(account: Account, settings: FederatedConfig) -> Finding:
    """Whether a bounded account keeps its bound when everybody offers to come to every round."""
    times: Counter[int] = Counter()
    last: dict[int, int] = {}
    closest = settings.rounds
    for number in range(settings.rounds):
        for device in account.cohort(number, range(settings.households)):
            times[device] += 1
            closest = min(closest, number - last.get(device, -settings.rounds))
            last[device] = number
        account.release(number, {}, 1)
    most = max(times.values(), default=0)
    bound = settings.bounded
    allowed = f"at most {bound.max_participations} times, {bound.min_separation} rounds apart"
    kept = most <= bound.max_participations and closest >= bound.min_separation
    said = f"A device takes part up to {most} times"
    said += f", {closest} rounds apart." if most > 1 else "."
    return Finding("sampler", kept, float(most), allowed, said)


def _hostile(clip_norm: float) -> list[Tensor]:
    """What a device may send that wants to count for more: long, very long, one spike."""
    drawn = torch.randn(DIMENSION, generator=torch.Generator().manual_seed(1))
    direction = drawn / torch.linalg.vector_norm(drawn)
    spike = torch.zeros(DIMENSION)
    spike[7] = 1e30
    return [direction * clip_norm * 4, direction * clip_norm * 1e6, spike]
