"""Direct checks of a run's account, promise by promise, in every mode where the server adds the noise.

A hostile device, an empty cohort and a full house are given to the account that the run's own settings open. What is
expected comes from the settings and closed forms, never from the account that is checked. It sees a small breach of one
promise at once, where canaries need many devices to see a large one, and touches no private data.

    noise          each round's noise, correlations over the rounds taken out, is fresh and as strong as was paid for
    sensitivity    no device moves a release by more than C
    sampler        Poisson cohorts are independent coins; bounded ones keep their bound when everybody always comes
    evaluation     its noise and bound likewise, where losses on the devices are released

What it refuses: modes whose noise comes from the devices (``federated.secure_checks``, ``federated.device_checks``).
"""

from __future__ import annotations

import math
import secrets
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from federated.accounts import Account, PrivateAccount, open_account, planned_noise
from federated.adaptive import update_noise
from federated.bounded import SecureAccount
from federated.modes import least_contributors
from federated.settings import FederatedConfig
from privacy.audit.empirical.invariants import check_noise, check_sensitivity
from privacy.audit.empirical.release import check_coins, direction, hostile
from privacy.audit.empirical.result import Finding
from privacy.correlated import Encoder

DIMENSION = 2048
REPEATS, ROUNDS = 3, 3
LOSSES = 200  # evaluations whose noise is looked at: half as much shows
BUDGET = 1e6  # epsilon; no accountant is asked for more


def check_account(settings: FederatedConfig, folder: Path, *, noise: float | None = None) -> list[Finding]:
    """The findings for an account of ``settings``. folder: an empty one. noise: of a round, over C, as the ledger states it;
    None: as the settings plan it. Raises ValueError for other modes' accounts.
    """
    if not settings.private or settings.trust != "central":
        raise ValueError("only an account that adds the noise itself can be checked so; give one with trust: central.")
    noise = planned_noise(settings) if noise is None else noise
    opened = iter(range(10**6))

    def fresh(seed: int, kind: str = "simulation") -> Account:
        place = folder / f"{next(opened):04d}" / "run"
        place.mkdir(parents=True)
        return open_account(
            unpriced(settings, noise).model_copy(update={"noise": kind, "seed": seed}), place, fresh=True
        )

    drawn = [secrets.randbits(62) for _ in range(REPEATS)]
    rows = [row for seed in drawn for row in _white_noise(fresh(seed, settings.noise), settings, noise)]
    everybody = range(settings.households)

    def release(vectors: Sequence[Tensor], seed: int) -> Tensor:
        account = fresh(seed)
        devices = account.cohort(0, everybody)
        return account.release(0, dict(zip(devices, vectors, strict=False)), DIMENSION)

    some = direction(DIMENSION, 3) * settings.clip_norm / 2
    broken = direction(DIMENSION, 4)
    broken[5] = math.nan
    pairs: list[tuple[list[Tensor], list[Tensor]]] = []
    for loud in [*hostile(settings.clip_norm, DIMENSION), broken]:
        pairs += [([], [loud]), ([some], [some, loud])]
    moved = check_sensitivity(
        release,
        pairs,
        bound=settings.clip_norm / settings.divisor,
        relative=2e-3 + 1e-4 * noise**2,  # releases are rounded to 2**-12 of the noise
    )
    findings = [check_noise(lambda place: rows[place], std=1.0, repeats=len(rows)), moved]
    account = fresh(0, settings.noise)
    if not isinstance(account, PrivateAccount):
        return [*findings, check_bound(account, settings)]
    findings += check_coins(account.sampler, rate=settings.sampling_rate, population=settings.households)
    if settings.private_evaluation.every:
        twins = [twin for twin in (fresh(1), fresh(1)) if isinstance(twin, PrivateAccount)]
        findings += _check_evaluation(account, twins, settings)
    return findings


def unpriced(settings: FederatedConfig, noise: float) -> FederatedConfig:
    """The settings with this noise, and a budget that none of the checks' own releases exhausts: they protect nobody."""
    return settings.model_copy(update={"noise_multiplier": noise, "accountant": "rdp", "epsilon": BUDGET})


def _white_noise(account: Account, settings: FederatedConfig, noise: float) -> list[NDArray[np.float64]]:
    """The noise of the first rounds, each in units of what was paid for, correlation taken out: N(0, 1) if all is well."""
    bounded = settings.participation == "bounded"
    band = Encoder(settings.rounds, settings.bounded.bands).band if bounded else np.ones(1)
    if settings.adaptive.enabled:
        noise = update_noise(noise, settings.adaptive.count_noise)
    white: list[NDArray[np.float64]] = []
    for number in range(min(ROUNDS, settings.rounds)):
        clip_norm = getattr(account, "clip_norm", settings.clip_norm)  # of this round: adaptive clipping moves it
        account.cohort(number, range(settings.households))
        row = account.release(number, {}, DIMENSION).double().numpy() * settings.divisor / (noise * clip_norm)
        for coefficient, past in zip(band[1:], reversed(white), strict=False):
            row = row - coefficient * past
        white.append(row)
    return white


def _check_evaluation(
    account: PrivateAccount, twins: Sequence[PrivateAccount], settings: FederatedConfig
) -> list[Finding]:
    """The noise of the mean loss, and how far one device moves it. twins: two accounts of one seed."""
    evaluation = settings.private_evaluation
    scale = evaluation.loss_bound / settings.divisor
    drawn = np.array([account.release_losses(number, {}) for number in range(LOSSES)]).reshape(2, -1)
    noise = check_noise(lambda half: drawn[half], std=evaluation.noise_multiplier * scale, repeats=2)
    without, loud = twins[0].release_losses(0, {}), twins[1].release_losses(0, {0: 1e6})
    moved = check_sensitivity(
        lambda mean, _: [mean],
        [(without, loud)],
        bound=scale,
        relative=2e-3 + 1e-3 * evaluation.noise_multiplier**2,
    )
    return [replace(finding, check=f"evaluation {finding.check}") for finding in (noise, moved)]


def check_bound(account: Account, settings: FederatedConfig) -> Finding:
    """Whether a bounded account keeps its bound when everybody offers to come to every round."""
    times: Counter[int] = Counter()
    last: dict[int, int] = {}
    closest = settings.rounds
    for number in range(settings.rounds):
        cohort = account.cohort(number, range(settings.households))
        for device in cohort:
            times[device] += 1
            closest = min(closest, number - last.get(device, -settings.rounds))
            last[device] = number
        if not isinstance(account, SecureAccount):
            account.release(number, {}, 1)
        elif len(cohort) >= least_contributors(settings):
            account.release_sum(number, cohort, lambda: torch.zeros(1))
    most = max(times.values(), default=0)
    bound = settings.bounded
    allowed = f"at most {bound.max_participations} times, {bound.min_separation} rounds apart"
    kept = most <= bound.max_participations and closest >= bound.min_separation
    said = f"A device takes part up to {most} times, {closest} rounds apart." if most > 1 else "No device comes twice."
    return Finding("sampler", kept, float(most), allowed, said)
