"""Direct checks of a run with secure aggregation, promise by promise: whole secure sums over devices that we know.

The server's rounds, the grid, the protocol and the devices' own noise are the product's; only the updates are chosen. What is
expected comes from the settings and closed forms. It touches no private data.

    noise          the noise of a revealed sum is fresh, and that of as many shares as devices are in it
    sensitivity    no device moves a sum by more than C, whatever it wants to send
    sampler        a device takes part no more often, and no sooner again, than was paid for, if it always comes

What it cannot see: what the server learns beside the sum. That rests on the protocol's masks, keys and signatures.
"""

from __future__ import annotations

import math
import secrets
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from federated.account_checks import DIMENSION, ROUNDS, check_bound, unpriced
from federated.accounts import open_account
from federated.bounded import participation_of
from federated.checkpoint import Checkpoints
from federated.modes import colluders, least_contributors
from federated.settings import FederatedConfig, ServerOptimiserConfig
from privacy.audit.empirical.invariants import check_noise, check_sensitivity
from privacy.audit.empirical.release import hostile
from privacy.audit.empirical.result import Finding
from privacy.sampling import GuardedArrivals


def check_secure_sums(settings: FederatedConfig, folder: Path, *, noise: float) -> list[Finding]:
    """The findings for secure sums of ``settings``. folder: an empty one. noise: over C, as the ledger states it.

    Raises ValueError for other modes.
    """
    if settings.trust != "secure_aggregation":
        raise ValueError("only a run with trust: secure_aggregation can be checked so.")
    plain = unpriced(settings, noise)
    arrivals = GuardedArrivals(settings.households, settings.cohort, participation_of(settings))
    first = arrivals.choose(range(settings.households), 0)[0]  # the first device of the first cohort
    opened = iter(range(10**6))

    def sums(rounds: int, sent: Tensor | None, **changes: Any) -> list[Tensor]:
        vectors = torch.zeros(first + 1, DIMENSION)
        if sent is not None:
            vectors[first] = sent
        changed = plain.model_copy(update=changes)
        return _sums(changed, vectors, folder / f"{next(opened):04d}" / "run", rounds)

    # All devices of a cohort answer; the plan's shares are sized for the fewest, less those that may tell theirs.
    counted_on = least_contributors(settings) - colluders(settings)
    std = noise * settings.clip_norm * math.sqrt(settings.cohort / counted_on)
    rows = [row for _ in range(2) for row in sums(ROUNDS, None, seed=secrets.randbits(62))]
    moved = check_sensitivity(
        lambda sent, seed: sums(1, sent, seed=seed, noise="simulation")[0],
        [(None, loud) for loud in hostile(settings.clip_norm, DIMENSION)],
        bound=settings.clip_norm,
        relative=2e-3,
    )
    place = folder / "bound" / "run"
    place.mkdir(parents=True)
    bound = check_bound(open_account(plain, place, fresh=True), plain)
    return [check_noise(lambda number: rows[number], std=std, repeats=len(rows)), moved, bound]


def _sums(settings: FederatedConfig, vectors: Tensor, folder: Path, rounds: int) -> list[Tensor]:
    """What the first rounds reveal, times the divisor: device i sends vectors[i], the others zero."""
    from federated.empirical import play  # it builds on this file

    server = ServerOptimiserConfig(name="sgd", learning_rate=1.0)  # the step is then the released mean
    # No more rounds than there are devices for, so that every cohort is whole.
    fresh = settings.households // settings.cohort
    rounds = min(rounds, settings.rounds, fresh)
    bound = settings.bounded.model_copy(update={"min_separation": 1, "max_participations": 1})
    played = settings.model_copy(update={"rounds": rounds, "bounded": bound, "server": server, "workers": 1})
    checkpoints = Checkpoints(folder / "rounds", played.fingerprint())
    found = [torch.zeros(DIMENSION)]

    def observe(_: object) -> None:
        state = checkpoints.latest()
        assert state is not None
        found.append(state.vector.clone())

    play(played, vectors, folder, observe)
    return [(after.double() - before.double()) * settings.divisor for before, after in pairwise(found)]
