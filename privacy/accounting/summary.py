"""The whole privacy curve in one number: mu of Gaussian differential privacy, with the error of saying it so.

mu-GDP (Dong, Roth, Su 1905.02383): an adversary can tell neighbours apart no better than N(0, 1) from N(mu, 1). A run
of sampled Gaussian steps is only nearly so; in the far tail it is always worse. We therefore report the least mu whose
Gaussian curve lies above the run's for every delta down to `least_delta`, and the *regret* of the summary (Gomez et
al. 2503.10945): the least k such that the run's trade-off curve, moved by k in both errors, lies below the Gaussian's.
For hockey-stick curves it is max over epsilon of (delta_mu - delta_run) / (1 + e^epsilon). This is a summary of tight
bounds, not a central-limit claim.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy import optimize, special

from privacy.accounting.epsilon import Accountant, composition_of, epsilon
from privacy.accounting.mechanisms import AccountingError, Composition
from privacy.events import Event

_POINTS = 25


@dataclass(frozen=True)
class GdpSummary:
    """mu: the summary. regret: how much it overstates, in error probability. It holds for every delta >=
    least_delta.
    """

    mu: float
    regret: float
    least_delta: float


def gaussian_delta(mu: float, epsilon: float) -> float:
    """delta of a Gaussian mechanism with distance / noise = mu at epsilon >= 0, in closed form (Balle, Wang
    1805.06530).
    """
    if mu <= 0.0:
        return 0.0
    log_first = float(special.log_ndtr(0.5 * mu - epsilon / mu))
    log_second = epsilon + float(special.log_ndtr(-0.5 * mu - epsilon / mu))
    return math.exp(log_first) * -math.expm1(min(log_second - log_first, 0.0))


def gaussian_mu(epsilon: float, delta: float) -> float:
    """The mu whose Gaussian mechanism has exactly `delta` at `epsilon`."""

    def gap(log_mu: float) -> float:
        return math.log(max(gaussian_delta(math.exp(log_mu), epsilon), 1e-300)) - math.log(delta)

    return math.exp(float(optimize.brentq(gap, math.log(1e-8), math.log(1e4), xtol=1e-12)))


def gdp_summary(
    events: Iterable[Event] | Composition, *, least_delta: float = 1e-10, accountant: Accountant = "pld"
) -> GdpSummary:
    """The least mu that covers the run's (epsilon, delta) curve for delta >= least_delta, at 25 points of it.

    Raises as `privacy.accounting.epsilon`; AccountingError unless 0 < least_delta < 0.1.
    """
    if not 0.0 < least_delta < 0.1:
        raise AccountingError(f"least_delta is {least_delta}; expected a number between 0 and 0.1.")
    composition = composition_of(events)
    if composition.empty:
        return GdpSummary(0.0, 0.0, least_delta)
    curve = []
    for delta in np.geomspace(least_delta, 0.5, _POINTS):
        value = epsilon(composition, float(delta), accountant)
        if value <= 0.0:
            break  # from here on every delta is larger than the total variation distance
        curve.append((value, float(delta)))
    if not curve:
        return GdpSummary(gaussian_mu(0.0, least_delta), least_delta / 2, least_delta)
    mu = max(gaussian_mu(value, delta) for value, delta in curve)
    regret = max((gaussian_delta(mu, value) - delta) / (1.0 + math.exp(min(value, 700.0))) for value, delta in curve)
    return GdpSummary(mu, max(0.0, regret), least_delta)
