"""The privacy-loss accountant of dp-accounting, fed with our mechanisms.

Importing dp_accounting takes about two seconds, so it happens at the first use. It prices: Gaussian, Poisson (both
adjacencies; a unit of several records under add-or-remove as a mixture of Gaussians), truncated Poisson
(add-or-remove). It has no fixed-size subsets and no groups under replace_one: those raise, and our own accountant
prices them.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache
from typing import Any

from privacy.accounting.mechanisms import (
    Composition,
    FixedSubset,
    Gaussian,
    Mechanism,
    Poisson,
    TruncatedPoisson,
    UnsupportedEvent,
    condense,
)
from privacy.accounting.pairs import binomial

INTERVAL = 1e-4
_LOG_TRUNCATION = -50.0  # dp-accounting's own default: 2e-22 of mass per step


@lru_cache(maxsize=32)
def _single(mechanism: Mechanism, interval: float) -> Any:
    """One step's privacy-loss distribution."""
    from dp_accounting import NeighboringRelation
    from dp_accounting.pld import privacy_loss_distribution as pld

    options = {"value_discretization_interval": interval, "log_mass_truncation_bound": _LOG_TRUNCATION}
    add_or_remove, replace_one = NeighboringRelation.ADD_OR_REMOVE_ONE, NeighboringRelation.REPLACE_ONE
    match mechanism:
        case Gaussian(mu=mu):  # mu is the distance already, whatever the adjacency
            return pld.from_gaussian_mechanism(1.0 / mu, neighboring_relation=add_or_remove, **options)
        case Poisson(rate=rate, sigma=sigma, group=1, replace=replace):
            relation = replace_one if replace else add_or_remove
            return pld.from_gaussian_mechanism(sigma, sampling_prob=rate, neighboring_relation=relation, **options)
        case Poisson(rate=rate, sigma=sigma, group=group, replace=False):
            drawn = binomial(group, rate, 1.0)
            weights = [weight / math.fsum(drawn.weights) for weight in drawn.weights]
            return pld.from_mixture_gaussian_mechanism(sigma, list(drawn.means), weights, **options)
        case TruncatedPoisson(rate=rate, population=population, max_batch=most, sigma=sigma, replace=False):
            return pld.from_truncated_subsampled_gaussian_mechanism(population, rate, most, sigma, **options)
        case Poisson():
            raise UnsupportedEvent(
                "dp-accounting has no bound for several records per unit under replace_one; use 'own'."
            )
        case TruncatedPoisson():
            raise UnsupportedEvent("truncated Poisson under replace_one is not used from dp-accounting; use 'own'.")
        case FixedSubset():
            raise UnsupportedEvent("dp-accounting's PLD has no fixed-size subsets without replacement; use 'own'.")
    raise TypeError(f"dp-accounting was given {type(mechanism).__name__}; expected a known mechanism.")


def _interval(composition: Composition, interval: float) -> float:
    """A coarser interval where one step's losses would need millions of cells (a pure Gaussian of large mu)."""
    widest = max((mechanism.mu for mechanism, _ in composition.parts if isinstance(mechanism, Gaussian)), default=0.0)
    return max(
        interval, interval * 2.0 ** math.ceil(math.log2(max(widest, 1e-9) ** 2 / 100.0)) if widest > 10.0 else interval
    )


@lru_cache(maxsize=32)
def _composed(composition: Composition, interval: float) -> Any:
    result: Any = None
    for mechanism, count in composition.parts:
        single = _single(mechanism, interval)
        powered = single.self_compose(count) if count > 1 else single
        result = powered if result is None else result.compose(powered)
    return result


def _sizes(composition: Composition) -> list[Composition]:
    """dp-accounting's truncated sampling is told the larger neighbour's size: it is `population`, or one more."""
    if not any(isinstance(mechanism, TruncatedPoisson) for mechanism, _ in composition.parts):
        return [composition]
    larger = tuple(
        (replace(part, population=part.population + 1) if isinstance(part, TruncatedPoisson) else part, count)
        for part, count in composition.parts
    )
    return [composition, replace(composition, parts=larger)]


def pld_epsilon(composition: Composition, delta: float, *, interval: float = INTERVAL) -> float:
    """Upper bound on epsilon at delta (pessimistic connect-the-dots on a grid of `interval`).

    Raises UnsupportedEvent for a mechanism that dp-accounting does not price.
    """
    if composition.empty:
        return 0.0
    composition = condense(composition)
    step = _interval(composition, interval)
    return max(float(_composed(size, step).get_epsilon_for_delta(delta)) for size in _sizes(composition))


def pld_delta(composition: Composition, epsilon: float, *, interval: float = INTERVAL) -> float:
    """Upper bound on delta at epsilon. Raises as `pld_epsilon`."""
    if composition.empty:
        return 0.0
    composition = condense(composition)
    step = _interval(composition, interval)
    return max(float(_composed(size, step).get_delta_for_epsilon(epsilon)) for size in _sizes(composition))
