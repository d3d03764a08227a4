"""From the scores of canaries to the entries of a report: how much an attack on a run's own releases shows at least.

Two tests look at one set of coins, and share the significance (Bonferroni):

    steinke   what holds for every (epsilon, delta)-private mechanism, without any assumption
    f-dp      what holds for the run's own events with an unknown amount of noise: the largest epsilon, over all common
              factors of the noise, whose whole trade-off curve the guesses contradict. Where that is above the claim, the
              run leaked more than its events allow.

Attacks on one run add up: whoever attacks often enough succeeds once by luck. So each further attack on a run is made at
half the significance of the one before, and all of them together are wrong with at most twice that of the first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from privacy.audit.empirical.one_run import curve_rejects, guesses, one_run_audit, profile_shrink
from privacy.audit.empirical.result import EmpiricalAudit
from privacy.events import CorrelatedGaussianRelease, GaussianRelease
from privacy.report.recompute import Pricer, RecomputationError, Run

F_DP = "one run, f-dp, the run's own curve"
_POINTS = 32  # of a trade-off curve; fewer can only make the bound smaller
_MOST_NOISE = 64.0  # factor of the noise beyond which nothing is left to bound
_PRECISION = 0.01  # of that factor


def significance_left(confidence: float, earlier: int) -> float:
    """What the next attack may spend: half of what the one before it did. earlier: attacks already in the report."""
    return (1.0 - confidence) / 2.0**earlier


def participation_scores(
    products: ArrayLike, noise_multipliers: ArrayLike, probabilities: ArrayLike, *, replaced: bool = False
) -> NDArray[np.float64]:
    """The best score for a canary that takes part by chance: the log-likelihood ratio of "in" against "out" [m].

    Args:
        products: [steps, m], product of each release (times divisor / C) with each canary's unit direction: N(1, sigma^2)
            in a step that the canary takes part in, else N(0, sigma^2).
        noise_multipliers: [steps], sigma. probabilities: [steps] or [steps, m], the chance to take part; 1 where who took
            part is public and the canary did, 0 where it did not.
        replaced: an excluded canary contributes the opposite (replace-one) and not nothing.
    """
    z = np.asarray(products, dtype=np.float64)
    variance = np.asarray(noise_multipliers, dtype=np.float64)[:, None] ** 2
    chance = np.asarray(probabilities, dtype=np.float64)
    chance = chance[:, None] if chance.ndim == 1 else chance
    with np.errstate(divide="ignore"):
        absent, present = np.log1p(-chance), np.log(chance)
    inside = np.logaddexp(absent, present + (z - 0.5) / variance)
    outside = np.logaddexp(absent, present - (z + 0.5) / variance) if replaced else 0.0
    return np.asarray((inside - outside).sum(axis=0))


def attack_entries(
    scores: ArrayLike,
    included: ArrayLike,
    run: Run,
    *,
    delta: float,
    confidence: float = 0.95,
    earlier: int = 0,
    details: dict[str, Any] | None = None,
    pricer: Pricer | None = None,
) -> list[EmpiricalAudit]:
    """The report's entries of one attack: Steinke's test, and the f-DP test on the run's own curve where it has one.

    Args:
        scores: [m], higher means "in". included: [m], each canary's fair coin.
        run: the run's events, merged (`privacy.report.recompute.merge`). delta: the claim's.
        confidence: that of the first attack on a run. earlier: attacks on this run already in its report.
        details: further public numbers for both entries, for instance what was attacked.

    Raises ValueError for scores that are not numbers, or fewer than two canaries.
    """
    scores, included = np.asarray(scores, dtype=np.float64).ravel(), np.asarray(included, dtype=bool).ravel()
    spent = significance_left(confidence, earlier)
    rule = "two tests share the significance; k fixed before the scores were seen" + (
        f"; attack {earlier + 1} on this run, each at half the significance of the one before" if earlier else ""
    )
    more = {**(details or {}), "attack": earlier + 1}
    m = len(scores)
    few, all_of_them = guesses(m, "f-dp"), m // 2
    steinke = one_run_audit(
        scores[included], scores[~included], delta=delta, confidence=1.0 - spent / 2, method="steinke"
    )
    found = [replace(steinke, correction=rule, details={**steinke.details, **more})]
    counts = [
        one_run_audit(scores[included], scores[~included], delta=delta, confidence=1.0 - spent / 2, k=[(k, k)])
        for k in (few, all_of_them)
    ]
    pairs = [(audit.r, audit.v) for audit in counts]
    bound, factor = own_curve_bound(m, pairs, run, delta=delta, significance=spent / 2, pricer=pricer or Pricer())
    if bound is not None:
        # The entry shows the pair of counts that says more at the bound; both were fixed and share the significance.
        r, v = max(pairs, key=lambda pair: (pair[1] / pair[0] - 0.5) * math.sqrt(pair[0]))
        about: dict[str, Any] = {
            "candidates": len(pairs),
            "counts": [list(pair) for pair in pairs],
            "assumes": "the run's events, with an unknown amount of noise",
            "noise_factor": round(factor, 4),
            **more,
        }
        found.append(EmpiricalAudit(F_DP, m, r, v, 1.0 - spent / 2, bound, delta, rule, about))
    return found


def own_curve_bound(
    m: int, pairs: Sequence[tuple[int, int]], run: Run, *, delta: float, significance: float, pricer: Pricer
) -> tuple[float | None, float]:
    """(bound, factor): the epsilon of the run with its noise times `factor`, the least private one that guesses refute.

    pairs: (r, v) for each number of guesses fixed beforehand; they share the significance. The bound is 0 where nothing
    is refuted, and None where no accountant can price the events (then there is no curve to refute).
    """
    share = significance / len(pairs)

    def refuted(factor: float) -> bool:
        curve = profile_shrink(_profile(scaled(run, factor), delta, pricer))
        return any(curve_rejects(m, r, v, curve, share) for r, v in pairs)

    try:
        low, high = 1.0, 1.0
        if refuted(1.0):
            while low > 1.0 / _MOST_NOISE and _refuted_or_hopeless(refuted, low / 2):
                low /= 2
            low, high = low / 2, low
        else:
            while not refuted(high):
                low, high = high, high * 2
                if high > _MOST_NOISE:
                    return 0.0, math.inf
        while high / low > 1.0 + _PRECISION:
            middle = math.sqrt(low * high)
            low, high = (low, middle) if _refuted_or_hopeless(refuted, middle) else (middle, high)
        return pricer.curve_epsilon([scaled(run, high)], delta), high
    except RecomputationError:
        return None, math.nan


def _refuted_or_hopeless(refuted: Any, factor: float) -> bool:
    try:
        return bool(refuted(factor))
    except RecomputationError:  # too little noise to price: nothing is refuted there
        return False


def scaled(run: Run, factor: float) -> Run:
    """The run's releases with their noise times a factor."""
    return tuple(
        replace(event, noise_multiplier=event.noise_multiplier * factor)
        if isinstance(event, GaussianRelease | CorrelatedGaussianRelease)
        else event
        for event in run
    )


def _profile(run: Run, delta: float, pricer: Pricer) -> list[tuple[float, float]]:
    epsilon = pricer.curve_epsilon([run], delta)
    grid = np.linspace(0.0, 1.25 * epsilon, _POINTS)
    return [(float(point), min(1.0, pricer.curve_delta([run], float(point)))) for point in grid]
