"""Auditing in one run: guess which canaries were in, and conclude how private the run can be at most.

m canaries are each included by an independent fair coin; the mechanism runs once; every canary gets a score (higher
means "in"). The auditor says "in" for the k+ highest scores, "out" for the k- lowest, nothing about the rest: r = k+ +
k- guesses, of which v are right. Two theorems bound how likely so many right guesses are.

    steinke   Steinke, Nasr, Jagielski 2305.08846, Theorem 5.2: for every (epsilon, delta)-DP mechanism, without any
              other assumption.
    f-dp      Mahloujifar, Melis, Chaudhuri 2410.22235: for a whole trade-off curve. With the Gaussian curve it bounds
              mu, reported as the epsilon that mu-GDP has at delta: tighter, but a bound only where the mechanism's
              curve is Gaussian (`claim_is_contradicted` tests any other curve, such as the one a run's events claim).

Looking at the scores to choose k would be cheating: k+ and k- are fixed from m and the method alone (steinke 1.3
sqrt(m), f-dp 2 sqrt(m) on each side, near the best for epsilon 2 to 8 and m 100 to 1000), or given; with several
candidates each is tested at (1 - confidence) / number of candidates (Bonferroni). Both theorems need one release per
coin: the same canaries must not be scored again after a peek.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from privacy.accounting.summary import gaussian_delta
from privacy.audit.empirical.result import EmpiricalAudit

Method = Literal["steinke", "f-dp"]
_NORMAL = NormalDist()
_MOST = 64.0  # an epsilon or mu beyond which nothing is left to bound

# x -> the least probability under one world of an event that has probability x under its neighbour.
Shrink = Callable[[float], float]


def _tail(r: int, v: int, q: float) -> NDArray[np.float64]:
    """P[Bin(r, q) >= j] for j = 0 .. v [v + 1]."""
    j = np.arange(v + 1, dtype=np.float64)
    return np.where(j > 0, special.betainc(np.maximum(j, 1.0), r - j + 1.0, q), 1.0)


def steinke_p_value(m: int, r: int, v: int, epsilon: float, delta: float) -> float:
    """How likely v or more of r guesses on m canaries are right at most, for any (epsilon, delta)-DP mechanism.

    p = min(1, beta + 2 m delta alpha), with q = e^epsilon / (1 + e^epsilon), beta = P[Bin(r, q) >= v] and
    alpha = max over 1 <= i <= v of P[v > Bin(r, q) >= v - i] / i.
    """
    _check_counts(m, r, v)
    q = 1.0 / (1.0 + math.exp(-epsilon))
    tail = _tail(r, v, q)
    beta = float(tail[v])
    if v == 0 or delta == 0.0:
        return min(1.0, beta)
    i = np.arange(1, v + 1)
    alpha = float(np.max((tail[v - i] - beta) / i))
    return min(1.0, beta + 2.0 * m * delta * max(alpha, 0.0))


def _check_counts(m: int, r: int, v: int) -> None:
    if not 0 <= v <= r <= m:
        raise ValueError(f"{v} right of {r} guesses on {m} canaries was given; expected 0 <= v <= r <= m.")


def _largest(rejects: Callable[[float], bool]) -> float:
    """The largest value that `rejects` still rejects (it rejects small values); 0 where it rejects none."""
    if not rejects(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while rejects(high):
        low, high = high, 2.0 * high
        if high > _MOST:
            return low
    while high - low > 1e-5:
        middle = 0.5 * (low + high)
        low, high = (middle, high) if rejects(middle) else (low, middle)
    return low


@lru_cache(maxsize=4096)
def steinke_bound(m: int, r: int, v: int, delta: float, significance: float) -> float:
    """The largest epsilon whose p-value is at most `significance`; 0 where there is none."""
    return _largest(lambda epsilon: steinke_p_value(m, r, v, epsilon, delta) <= significance)


def curve_rejects(m: int, r: int, v: int, shrink: Shrink, significance: float) -> bool:
    """True where v or more right guesses of r on m canaries have probability below `significance` under a trade-off
    curve.

    Let p_j be the probability of exactly j right guesses, R_i = sum_{j >= i} p_j j / m and H_i = sum_{j >= i} p_j (r -
    j) / m: the chances that a random canary is guessed right (wrong) while at least i guesses are right. Flipping that
    canary's coin turns a right guess into a wrong one and loses one right guess, so H_i >= shrink(R_{i+1}); and a mass
    that raises H_i by x raises R_i by x i / (r - i). Starting from probability `significance` of v or more, all of it
    at v (the least demanding case), the recursion finds the least R_0 + H_0 that the curve allows. It equals r / m for
    every mechanism, so a larger value is a contradiction (2410.22235, Section 4).
    """
    _check_counts(m, r, v)
    right, wrong = significance * v / m, significance * (r - v) / m
    for i in range(v - 1, -1, -1):
        if right >= 1.0:
            return True
        least = shrink(right) if right > 0.0 else 0.0
        if least <= wrong:  # from here on nothing changes any more
            break
        right += i / (r - i) * (least - wrong)
        wrong = least
    return right + wrong > r / m


def gaussian_shrink(mu: float) -> Shrink:
    """The curve of mu-GDP: Phi(Phi^-1(x) - mu)."""
    return lambda x: _NORMAL.cdf(_NORMAL.inv_cdf(x) - mu) if x < 1.0 else 1.0


def profile_shrink(profile: Sequence[tuple[float, float]]) -> Shrink:
    """The curve that (epsilon, delta) pairs imply for neighbours in both directions.

    An event of probability x under one world and y under the other obeys x <= e^epsilon y + delta, and its complement
    1 - y <= e^epsilon (1 - x) + delta; so y is at least the largest of (x - delta) e^-epsilon and 1 - delta -
    e^epsilon (1 - x). Take the pairs of `privacy.accounting.profile` to test a run's own claim, whatever its shape.
    More pairs, more power.
    """
    epsilons = np.array([pair[0] for pair in profile], dtype=np.float64)
    deltas = np.array([pair[1] for pair in profile], dtype=np.float64)
    if len(epsilons) == 0:
        raise ValueError("an empty profile was given; expected (epsilon, delta) pairs.")
    growth = np.exp(np.minimum(epsilons, 700.0))

    def shrink(x: float) -> float:
        return float(max(0.0, np.max((x - deltas) / growth), np.max(1.0 - deltas - growth * (1.0 - x))))

    return shrink


@lru_cache(maxsize=4096)
def gdp_bound(m: int, r: int, v: int, significance: float) -> float:
    """The largest mu whose Gaussian curve is rejected at `significance`; 0 where there is none."""
    return _largest(lambda mu: curve_rejects(m, r, v, gaussian_shrink(mu), significance))


def gdp_epsilon(mu: float, delta: float) -> float:
    """epsilon of mu-GDP at delta > 0, in closed form."""
    if mu <= 0.0 or gaussian_delta(mu, 0.0) <= delta:
        return 0.0
    low, high = 0.0, 1.0
    while gaussian_delta(mu, high) > delta:
        low, high = high, 2.0 * high
    while high - low > 1e-9 * max(1.0, high):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if gaussian_delta(mu, middle) > delta else (low, middle)
    return low


_GUESSES = {"steinke": 1.3, "f-dp": 2.0}


def guesses(m: int, method: Method) -> int:
    """k+ = k- fixed from the number of canaries and the method alone."""
    return max(1, min(m // 2, round(_GUESSES[method] * math.sqrt(m))))


def _ranked(scores_in: ArrayLike, scores_out: ArrayLike, seed: int) -> NDArray[np.bool_]:
    """Which canaries were in, from the lowest score to the highest; ties in random order [m]."""
    inside, outside = (np.asarray(scores, dtype=np.float64).ravel() for scores in (scores_in, scores_out))
    scores = np.concatenate((inside, outside))
    if np.isnan(scores).any():
        raise ValueError("a canary's score is not a number; expected a comparable score for every canary.")
    if len(scores) < 2:
        raise ValueError(f"{len(scores)} canaries were given; expected at least 2.")
    included = np.concatenate((np.ones(len(inside), dtype=bool), np.zeros(len(outside), dtype=bool)))
    order = np.random.default_rng(seed).permutation(len(scores))
    return included[order][np.argsort(scores[order], kind="stable")]


def one_run_audit(
    scores_in: ArrayLike,
    scores_out: ArrayLike,
    *,
    delta: float = 1e-5,
    confidence: float = 0.95,
    method: Method = "f-dp",
    k: Sequence[tuple[int, int]] | None = None,
    seed: int = 0,
) -> EmpiricalAudit:
    """A lower bound on epsilon from the scores of the canaries that were in and of those that were out.

    Args:
        scores_in, scores_out: any shape; higher means "in". Together m canaries, each included by an independent fair
        coin.
        delta: in (0, 1), where the bound is stated ("steinke" also takes 0). confidence: in (0, 1).
        method: "steinke" (any mechanism) or "f-dp" (Gaussian trade-off curve); see the module's docstring.
        k: pairs (k+, k-) fixed before seeing any score; several share the significance (Bonferroni). Default: one pair,
            1.3 sqrt(m) on each side for steinke, 2 sqrt(m) for f-dp.
        seed: for the order of equal scores only.

    Returns the audit of the candidate with the largest bound. Raises ValueError for impossible arguments or NaN scores.
    """
    if method not in ("steinke", "f-dp"):
        raise ValueError(f"method is {method!r}; expected 'steinke' or 'f-dp'.")
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence is {confidence}; expected a number between 0 and 1, usually 0.95.")
    if not (0.0 < delta < 1.0 or (delta == 0.0 and method == "steinke")):
        raise ValueError(f"delta is {delta}; expected a number between 0 and 1.")
    ranked = _ranked(scores_in, scores_out, seed)
    m = len(ranked)
    candidates = (
        [(guesses(m, method), guesses(m, method))] if k is None else [(int(plus), int(minus)) for plus, minus in k]
    )
    if not candidates or any(plus < 0 or minus < 0 or not 0 < plus + minus <= m for plus, minus in candidates):
        raise ValueError(f"k is {candidates} for {m} canaries; expected pairs of numbers >= 0 that sum to 1 .. {m}.")
    significance = (1.0 - confidence) / len(candidates)
    best: EmpiricalAudit | None = None
    rule = "k fixed before the scores were seen"
    if len(candidates) > 1:
        rule = f"Bonferroni over {len(candidates)} pairs (k+, k-) fixed before the scores were seen"
    for plus, minus in candidates:
        r = plus + minus
        v = int(ranked[m - plus :].sum()) + int((~ranked[:minus]).sum())
        details: dict[str, float | int | str] = {"k_plus": plus, "k_minus": minus, "included": int(ranked.sum())}
        if method == "steinke":
            bound = steinke_bound(m, r, v, delta, significance)
        else:
            mu = gdp_bound(m, r, v, significance)
            details |= {"mu": mu, "assumes": "a Gaussian trade-off curve"}
            bound = gdp_epsilon(mu, delta)
        if best is None or bound > best.lower_bound:
            best = EmpiricalAudit(f"one run, {method}", m, r, v, confidence, bound, delta, rule, details)
    assert best is not None
    return best


def claim_is_contradicted(
    audit: EmpiricalAudit, profile: Sequence[tuple[float, float]], *, candidates: int = 1
) -> bool:
    """True where the audit's guesses contradict the trade-off curve of a claim's (epsilon, delta) profile.

    It holds at the audit's confidence for mechanisms of any shape. candidates: how many pairs (k+, k-) were tried.
    """
    significance = (1.0 - audit.confidence) / candidates
    return curve_rejects(audit.m, audit.r, audit.v, profile_shrink(profile), significance)
