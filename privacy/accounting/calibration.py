"""The noise that a budget needs: the least noise multiplier whose epsilon stays within the target."""

from __future__ import annotations

import math
from collections.abc import Callable

from privacy.accounting.epsilon import Accountant, check_accountant, check_delta, epsilon
from privacy.accounting.mechanisms import AccountingError, resolve
from privacy.accounting.own import own_epsilon
from privacy.events import Adjacency, GaussianRelease, Sampling, Unit

LEAST_NOISE, MOST_NOISE = 0.02, 1e5


def _solve(
    cost: Callable[[float], float], target: float, tolerance: float, start: float, slope: float
) -> tuple[float, float]:
    """(noise, slope) with target - tolerance <= cost(noise) <= target, for a cost that falls with noise.

    Newton steps in log cost against log noise with a secant slope, kept inside a bracket that every evaluation narrows.
    """
    aim = math.log(target - 0.5 * tolerance)
    low, high = math.log(LEAST_NOISE), math.log(MOST_NOISE)  # cost(low) too large, cost(high) too small
    x = min(max(math.log(start), low), high)
    previous: tuple[float, float] | None = None
    for _ in range(80):
        value = cost(math.exp(x))
        if target - tolerance <= value <= target:
            return math.exp(x), slope
        low, high = (x, high) if value > target else (low, x)
        if high - low < 1e-12:
            return math.exp(high), slope
        y = math.log(max(value, 1e-12)) if math.isfinite(value) else math.inf
        if previous is not None and math.isfinite(y) and math.isfinite(previous[1]) and abs(x - previous[0]) > 1e-13:
            found = (y - previous[1]) / (x - previous[0])
            slope = found if found < -1e-3 else slope
        previous = (x, y)
        step = (aim - y) / slope if math.isfinite(y) else math.inf
        x = x + step if low < x + step < high else 0.5 * (low + high)
    raise AccountingError(
        f"no noise multiplier between {LEAST_NOISE} and {MOST_NOISE} gives epsilon {target}; change it."
    )


def calibrate_noise(
    target_epsilon: float,
    delta: float,
    *,
    sampling: Sampling,
    steps: int,
    accountant: Accountant = "pld",
    tolerance: float = 1e-3,
    adjacency: Adjacency = "add_or_remove_one",
    unit: Unit = "example",
    sensitivity: float = 1.0,
    contributions_per_unit: int = 1,
) -> float:
    """The noise multiplier (standard deviation / C) with which `steps` releases cost at most `target_epsilon` at
    `delta`.

    The epsilon that `accountant` then reports lies in [target_epsilon - tolerance, target_epsilon]: never above. Our
    own accountant does the search; the one asked for confirms it (and corrects it, where it is looser).

    Raises:
        AccountingError: target or tolerance not positive, a bad delta, or no noise within [0.02, 1e5] that fits (also a
            target so low that no noise helps).
        UnsupportedEvent: the accountant does not price this sampling.
    """
    check_accountant(accountant)
    check_delta(delta)
    if not (math.isfinite(target_epsilon) and target_epsilon > 0.0):
        raise AccountingError(f"target_epsilon is {target_epsilon}; expected a positive number.")
    if not tolerance > 0.0:
        raise AccountingError(f"tolerance is {tolerance}; expected a positive number.")
    tolerance = min(tolerance, 0.5 * target_epsilon)

    def release(noise: float) -> list[GaussianRelease]:
        return [
            GaussianRelease(
                noise,
                sampling,
                count=steps,
                adjacency=adjacency,
                unit=unit,
                sensitivity=sensitivity,
                contributions_per_unit=contributions_per_unit,
            )
        ]

    def rough(noise: float) -> float:
        try:
            return own_epsilon(resolve(release(noise)), delta, tolerance=0.05 * tolerance)
        except (AccountingError, ValueError):
            if noise > 1.0:
                raise
            return math.inf  # so little noise that the loss cannot be represented

    def asked(noise: float) -> float:
        return epsilon(release(noise), delta, accountant)

    # Where a composition is nearly Gaussian, mu is about q sqrt(T) / sigma: a start, not a claim.
    start = sampling.probability * math.sqrt(steps) * math.sqrt(2 * math.log(1 / delta)) * sensitivity / target_epsilon
    noise, slope = _solve(rough, target_epsilon, tolerance, min(max(start, 0.5), 1e3), -1.2)
    if accountant == "own":
        value = asked(noise)
        if target_epsilon - tolerance <= value <= target_epsilon:
            return noise
    noise, _ = _solve(asked, target_epsilon, tolerance, noise, slope)
    return noise
