"""Attacks the releases that a report's events describe, with the product's own sampler, clipping and noise.

Nothing of the run is needed but its report: every release is made again with canaries alone (whoever knows all other
records can subtract them, so leaving them out makes the attack stronger, not weaker). It shows whether sampler, clipping
and noise together leak what their events say. It cannot show that the run used them.

Refuses events that it cannot make: correlated noise, sensitivities other than C, populations beyond 10 million under a
scheme that needs them whole. Runs of more than `MOST_STEPS` releases are attacked over their first ones: what those leak,
the whole run leaks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from privacy.audit.empirical.canaries import fair_coins
from privacy.audit.empirical.claim import participation_scores
from privacy.events import Event, GaussianRelease, PostProcessing, Sampling
from privacy.mechanism import GaussianSum
from privacy.noise import Noise, SecureNoise, SeededNoise
from privacy.sampling import CyclicSampler, FixedSizeSampler, FullSampler, PoissonSampler, Sampler, ShuffledSampler

MOST_STEPS = 20_000
MOST_RECORDS = 10_000_000
_LOUD = 4.0  # a canary asks for four times C, as a hostile participant would: clipping has to cut it


def replay_scores(
    events: list[Event],
    *,
    canaries: int = 1000,
    clip_norm: float = 1.0,
    seed: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """(scores [m], coins [m]) of canaries in the releases that the events describe.

    events: as the ledger lists them. clip_norm: C. seed: for tests and simulations; without it coins, samplers and noise
    draw from the operating system. progress(done, steps) is called after every release.

    Raises ValueError for events that cannot be made again.
    """
    steps = list(_steps(events))
    if not steps:
        raise ValueError("the report records no release that could be attacked.")
    coins = fair_coins(canaries, seed)
    noise: Noise = SecureNoise() if seed is None else SeededNoise(seed)
    copies = steps[0].contributions_per_unit
    sampler, facts = None, None
    scores = np.zeros(canaries)
    vectors = _LOUD * clip_norm * torch.eye(canaries)
    for number, event in enumerate(steps):
        if sampler is None or event.sampling != facts:
            facts, sampler = event.sampling, _sampler(event.sampling, canaries * copies, seed)
        drawn = sampler.draw(number)
        drawn = drawn[drawn < canaries * copies] // copies
        signs = np.where(coins[drawn], 1.0, -1.0 if event.adjacency == "replace_one" else 0.0)
        divisor = max(1.0, sampler.expected_batch)
        mechanism = GaussianSum(
            clip_norm, event.noise_multiplier, event.sampling, divisor, noise, event.unit, event.adjacency
        )
        mean = mechanism.release(
            (vectors[int(who)] * sign for who, sign in zip(drawn, signs, strict=True) if sign),
            step=number,
            dimension=canaries,
        )
        scores += participation_scores(
            mean.double().numpy()[None] * divisor / clip_norm,
            [event.noise_multiplier],
            _chances(event.sampling, drawn, canaries)[None],
            replaced=event.adjacency == "replace_one",
        )
        if progress is not None:
            progress(number + 1, len(steps))
    return scores, coins


def _steps(events: list[Event]) -> Iterator[GaussianRelease]:
    """The releases one by one, at most `MOST_STEPS`."""
    left = MOST_STEPS
    for event in events:
        if isinstance(event, PostProcessing):
            continue
        if not isinstance(event, GaussianRelease):
            raise ValueError(
                f"a {event.kind.replace('_', ' ')} event cannot be made again from the report alone; give the run's folder, "
                "with its config.yaml, whose own rounds are attacked (and leave out --mechanism-only)."
            )
        if not math.isclose(event.sensitivity, 1.0):
            raise ValueError(
                f"an event has sensitivity {event.sensitivity:g} C; only contributions of C are made again."
            )
        for _ in range(min(left, event.count)):
            yield event
        left -= min(left, event.count)


def _sampler(sampling: Sampling, records: int, seed: int | None) -> Sampler:
    """The product's sampler of a scheme. Independent coins need no more records than the canaries own."""
    if sampling.scheme == "poisson":
        assert sampling.rate is not None
        return PoissonSampler(records, sampling.rate, seed_or_generator=seed)
    if sampling.scheme == "full":
        return FullSampler(records)
    population = max(sampling.population or 0, records)
    if population > MOST_RECORDS:
        raise ValueError(f"{population:,} records are too many to draw from here; at most {MOST_RECORDS:,} are.")
    if sampling.scheme == "truncated_poisson":
        assert sampling.rate is not None
        return PoissonSampler(population, sampling.rate, seed_or_generator=seed, max_batch=sampling.max_batch)
    batch = sampling.batch or 1
    if sampling.scheme == "fixed_size_without_replacement":
        return FixedSizeSampler(population, batch, seed_or_generator=seed)
    if sampling.scheme == "shuffle":
        return ShuffledSampler(population, batch, seed_or_generator=seed)
    return CyclicSampler(population, batch, seed_or_generator=seed)


def _chances(sampling: Sampling, drawn: NDArray[np.int64], canaries: int) -> NDArray[np.float64]:
    """What an attacker knows of each canary's participation [m]: a chance where sampling is secret, else the fact."""
    if sampling.scheme in ("poisson", "truncated_poisson", "fixed_size_without_replacement"):
        return np.full(canaries, sampling.probability)
    known = np.zeros(canaries)
    known[drawn] = 1.0
    return known
