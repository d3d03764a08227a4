"""What an epsilon means, in numbers and words for the person whose photos were used.

Three questions, from the one that people mean to the one that the mathematics answers:

1. A coin decides whether somebody took part; how often can the best guesser be right?  (1 + delta(0)) / 2, where
   delta(0) is the profile at epsilon 0, the total variation distance.
2. A guesser accuses at most a share `a` of those who did not take part; how many of those who did can be recognised?
   At most min over the profile of e^eps a + delta and 1 - e^-eps (1 - delta - a) (Wasserman and Zhou 2010; Kairouz, Oh
   and Viswanath 2015).
3. By what factor can the odds of any suspicion change, whatever is seen?  e^epsilon, except with probability delta.

All three are bounds: upper limits for every method of attack, known or not. None says that an attack reaches them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from privacy.report.models import Point


@dataclass(frozen=True)
class Meaning:
    """The three answers. best_guess: share right in the coin game, 0.5 to 1. recognised: (false accusations, share of
    members recognised). odds_factor: e^epsilon. posterior: (suspicion before, highest certainty after)."""

    best_guess: float
    recognised: tuple[tuple[float, float], ...]
    odds_factor: float
    posterior: tuple[tuple[float, float], ...]


def meaning(epsilon: float, delta: float, profile: Sequence[Point]) -> Meaning:
    """The three answers for a claim and its profile; the claim alone serves where the profile is empty."""
    points = [(point.epsilon, point.delta) for point in profile] + [(epsilon, delta)]
    shares = (0.001, 0.01, 0.05)
    return Meaning(
        best_guess=(1 + _advantage(points)) / 2,
        recognised=tuple((share, _power(share, points)) for share in shares),
        odds_factor=math.exp(min(epsilon, 700.0)),
        posterior=tuple((prior, _posterior(prior, epsilon)) for prior in (0.01, 0.1, 0.5)),
    )


def _power(share: float, points: Sequence[tuple[float, float]]) -> float:
    """The largest true-positive rate at a false-positive rate."""
    bounds = [1.0]
    for epsilon, delta in points:
        bounds.append(math.exp(min(epsilon, 700.0)) * share + delta)
        bounds.append(1 - math.exp(-epsilon) * (1 - delta - share))
    return min(bounds)


def _advantage(points: Sequence[tuple[float, float]]) -> float:
    """The largest true-positive rate minus false-positive rate, over all false-positive rates."""
    # Each point bounds it by (e^eps - 1 + 2 delta) / (e^eps + 1), which at epsilon 0 is delta(0) itself.
    return min(1.0, *((math.expm1(min(e, 700.0)) + 2 * d) / (math.exp(min(e, 700.0)) + 1) for e, d in points))


def _posterior(prior: float, epsilon: float) -> float:
    # Odds grow by at most e^epsilon; written so that a large epsilon does not overflow.
    return prior / (prior + (1 - prior) * math.exp(-epsilon))


def in_a_hundred(share: float) -> str:
    """A share as people count, rounded so that protection is never overstated: '79 in 100', '2.4 in 100'."""
    value = share * 100
    if value < 10:
        return f"{math.ceil(value * 10 - 1e-9) / 10:g} in 100"
    if value > 99:
        return f"{min(100.0, math.ceil(value * 100 - 1e-9) / 100):g} in 100"
    return f"{math.ceil(value - 1e-9):d} in 100"


def upward(value: float, digits: int = 4) -> str:
    """A positive number with so many significant digits, rounded up: the shown promise is never more than the real one."""
    if value <= 0:
        return f"{value:g}"
    power = digits - 1 - math.floor(math.log10(value))
    return f"{math.ceil(value * 10**power - 1e-6) / 10**power:.{digits}g}"


def grade(epsilon: float) -> tuple[str, str]:
    """A word for the size of epsilon, and why: the tiers of Ponomareva et al. 2023, 'How to DP-fy ML', section 5.2."""
    if epsilon <= 1:
        return "strong", "An epsilon of at most 1 is what specialists call a strong formal guarantee."
    if epsilon <= 10:
        return (
            "moderate",
            "An epsilon between 1 and 10 is common where useful models are trained: a real limit on what can leak, "
            "but not the strongest that mathematics offers.",
        )
    return "weak", "An epsilon above 10 is a weak guarantee on paper: do not rely on it alone."


def one_in(delta: float) -> str:
    """A small probability as people say it: 'one in 100,000'."""
    if delta <= 0:
        return "never"
    if delta < 1e-15:  # nobody reads sixteen digits, and 1 / delta may be infinite
        return "less than one in a million billions"
    return f"one in {round(1 / delta):,}"
