"""The one-shot estimate for federated training (Andrew et al. 2302.03098): canary clients that send random unit
vectors.

Every canary client takes part like any other and sends a random direction of the clipping norm. After training, the
cosine of each direction with theta_T - theta_0 is compared with what an unobserved direction would have: N(0, 1/d),
exactly so for large d. Two Gaussians, one fitted, give an epsilon. It is an ESTIMATE: it can exceed the truth (6 of
100 runs in our own trials), it carries no confidence, and it must never be reported as a bound. For a bound, give each
canary a fair coin and use `audit_step`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import special


@dataclass(frozen=True)
class FederatedEstimate:
    """epsilon: the estimate at delta (inf where the two Gaussians never overlap enough). is_bound is always False."""

    epsilon: float
    delta: float
    canaries: int
    mean: float
    deviation: float
    dimension: int
    is_bound: bool = False


def _delta(epsilon: float, mean_p: float, std_p: float, mean_q: float, std_q: float) -> float:
    """Hockey stick of N(mean_p, std_p^2) over N(mean_q, std_q^2), where log p - log q is a parabola in x."""
    a = 0.5 / std_q**2 - 0.5 / std_p**2
    b = mean_p / std_p**2 - mean_q / std_q**2
    c = 0.5 * mean_q**2 / std_q**2 - 0.5 * mean_p**2 / std_p**2 + math.log(std_q / std_p) - epsilon

    def mass(low: float, high: float) -> float:
        def inside(mean: float, std: float) -> float:
            u, v = (low - mean) / std, (high - mean) / std
            if u > 0:
                return float(special.ndtr(-u) - special.ndtr(-v))
            return float(special.ndtr(v) - special.ndtr(u))

        return inside(mean_p, std_p) - math.exp(epsilon) * inside(mean_q, std_q)

    if abs(a) < 1e-12 * (1.0 + abs(b)):
        if b == 0.0:
            return 0.0
        edge = -c / b
        return max(0.0, mass(edge, math.inf) if b > 0 else mass(-math.inf, edge))
    discriminant = b * b - 4 * a * c
    if discriminant <= 0.0:
        return max(0.0, 1.0 - math.exp(epsilon)) if a > 0 else 0.0
    left, right = sorted(((-b - math.sqrt(discriminant)) / (2 * a), (-b + math.sqrt(discriminant)) / (2 * a)))
    if a > 0:
        return max(0.0, mass(-math.inf, left) + mass(right, math.inf))
    return max(0.0, mass(left, right))


def two_gaussian_epsilon(
    mean_p: float, std_p: float, mean_q: float, std_q: float, delta: float, *, most: float = 500.0
) -> float:
    """The least epsilon >= 0 at which both hockey sticks of two Gaussians are at most delta; inf above `most`."""

    def worst(epsilon: float) -> float:
        return max(_delta(epsilon, mean_p, std_p, mean_q, std_q), _delta(epsilon, mean_q, std_q, mean_p, std_p))

    if worst(0.0) <= delta:
        return 0.0
    if worst(most) > delta:
        return math.inf
    low, high = 0.0, most
    while high - low > 1e-6:
        middle = 0.5 * (low + high)
        low, high = (middle, high) if worst(middle) > delta else (low, middle)
    return high


def federated_estimate(canary_vectors: ArrayLike, update: ArrayLike, *, delta: float) -> FederatedEstimate:
    """An estimate of epsilon from canary clients' vectors [m, d] and the final update theta_T - theta_0 [d].

    Raises ValueError for fewer than two canaries, unmatched shapes, a zero vector or update, or delta outside (0, 1).
    """
    vectors = np.asarray(canary_vectors, dtype=np.float64)
    moved = np.asarray(update, dtype=np.float64).ravel()
    if vectors.ndim != 2 or len(vectors) < 2 or vectors.shape[1] != moved.size:
        raise ValueError(
            f"canaries of shape {vectors.shape} and an update of {moved.size} were given; expected [m, d], [d]."
        )
    if not 0.0 < delta < 1.0:
        raise ValueError(f"delta is {delta}; expected a number between 0 and 1.")
    lengths, length = np.linalg.norm(vectors, axis=1), float(np.linalg.norm(moved))
    if length == 0.0 or not (lengths > 0.0).all():
        raise ValueError("a canary or the update is zero, so it has no direction; expected non-zero vectors.")
    cosines = vectors @ moved / (lengths * length)
    mean, deviation = float(cosines.mean()), float(cosines.std(ddof=1))
    epsilon = two_gaussian_epsilon(mean, max(deviation, 1e-12), 0.0, 1.0 / math.sqrt(moved.size), delta)
    return FederatedEstimate(epsilon, delta, len(vectors), mean, deviation, moved.size)
