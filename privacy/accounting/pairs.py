"""Dominating pairs: for each mechanism, the one pair of output distributions that no pair of neighbours can beat.

One lemma carries everything here.

Lemma. Let P = sum_j w_j N(x_j, I) and Q = sum_j v_j N(y_j, I) in any dimension with |x_j| <= a_j and |y_j| <= b_j. For
every alpha > 0 the hockey-stick divergence sup_A P(A) - alpha Q(A) is at most that of the one-dimensional pair
P* = sum_j w_j N(a_j, 1), Q* = sum_j v_j N(-b_j, 1).

Proof. Fix a set A and call s = N(0, I)(A). The Neyman-Pearson lemma says that N(x, I)(A) lies between
Phi(Phi^-1(s) - |x|) and Phi(Phi^-1(s) + |x|). Hence P(A) - alpha Q(A) is at most
sum_j w_j Phi(Phi^-1(s) + a_j) - alpha sum_j v_j Phi(Phi^-1(s) - b_j), and the half-line {z > -Phi^-1(s)} attains
exactly that for P*, Q*. Taking the supremum over A on the left and over s on the right proves it. []

The batch's other records move both distributions by the same random vector, whose law does not depend on the record in
question; hockey sticks are jointly convex, so conditioning on that vector costs nothing and it can be subtracted.

    Poisson, add or remove (also zero out) a unit of k records: it is present with j of them, j ~ Binomial(k, q), so
        P = sum_j Bin(j; k, q) N(j / sigma, 1) against Q = N(0, 1), and the same pair with its roles exchanged.
    Poisson, replace a unit of k records: the same records are drawn in both worlds, with other contents, so
        P = sum_j Bin(j) N(j / sigma, 1) against Q = sum_j Bin(j) N(-j / sigma, 1); exchanging roles mirrors it.
    Fixed-size subset, replace one record: condition on the other b - 1 records and on the record y that would take
        the free place. The worlds are (1-q) N(u) + q N(v) and (1-q) N(u) + q N(w) with u, v, w in the ball of radius 1
        / sigma. For alpha >= 1 the weight of N(u) in P - alpha Q is negative: measured from v, the worst u and w are
        both 2 / sigma away, which gives ((1-q) N(0) + q N(2 / sigma), N(0)). For alpha < 1 the weight is positive and,
        measured from w, the worst is (N(0), (1-q) N(0) + q N(2 / sigma)) mirrored. Each is an instance of the family,
        so the maximum of the two curves is the answer (cf. Theorem 11 of 2106.08567). It is a *spliced* pair: losses
        above 0 from one, below 0 from the other.
    Truncated Poisson (at most B kept, uniformly): tell the adversary whether the *other* sampled records are B or
        more. If not (probability 1 - t), the record is kept whenever it is drawn: the Poisson pair. If so, the B
        places go to a uniformly random subset, whatever the number, and the record evicts one when kept, with
        probability r: add or remove moves the sum by two contributions, the Poisson pair at 2 / sigma and rate r;
        replace is a fixed-size subset at rate r. Mixing the two with weights 1 - t and t is an upper bound, because
        telling can only help (the reduction of 2508.15089, with the tight pair in the truncated case).
        With n records in all, n - 1 others: t = P[Bin(n-1, q) >= B] and
        t r = E[q B / (S + 1); S >= B] = (B / n) P[Bin(n, q) > B]. Under add-or-remove the larger of the two neighbours
        has `population` records or one more; both are accounted and the worse counts (the number of records is the one
        thing about the data that this mechanism's price depends on).

A component of weight below 1e-30 is left out: from Q, which only raises every hockey stick, and from P, where its mass
counts as an infinite loss.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

from privacy.accounting.mechanisms import FixedSubset, Gaussian, Mechanism, Poisson, TruncatedPoisson

_NEGLIGIBLE = 1e-30
MAX_GROUP = 4096


@dataclass(frozen=True)
class Mixture:
    """A one-dimensional mixture of unit-variance Gaussians: weights [J] (sum <= 1), means [J]."""

    weights: tuple[float, ...]
    means: tuple[float, ...]

    @property
    def missing(self) -> float:
        """Mass that was dropped."""
        return max(0.0, 1.0 - math.fsum(self.weights))


@dataclass(frozen=True)
class Pair:
    """P against Q, every mean of P at or right of every mean of Q, so that log P/Q increases with the output.

    spliced: the losses above 0 are this pair's; those below 0 are the mirrored exchange's (see the module's docstring).
    """

    p: Mixture
    q: Mixture
    spliced: bool = False

    def exchanged(self) -> Pair:
        """The pair with its roles exchanged, mirrored so that the loss increases again."""

        def mirror(mixture: Mixture) -> Mixture:
            return Mixture(mixture.weights, tuple(-mean for mean in mixture.means))

        return Pair(mirror(self.q), mirror(self.p))


# What an accountant composes for one step: (probability, pair) for each thing the adversary may be told.
Step = tuple[tuple[float, Pair], ...]


def binomial(k: int, q: float, unit: float) -> Mixture:
    """Binomial(k, q) copies of a contribution of length `unit`, without the components nobody can see."""
    if k > MAX_GROUP:
        raise ValueError(
            f"a unit of {k} records was given; expected at most {MAX_GROUP}, beyond which no bound is useful."
        )
    j = np.arange(k + 1)
    log_weight = (
        special.gammaln(k + 1)
        - special.gammaln(j + 1)
        - special.gammaln(k - j + 1)
        + special.xlogy(j, q)
        + special.xlog1py(k - j, -q)
    )
    keep = log_weight > math.log(_NEGLIGIBLE)
    weights: NDArray[np.float64] = np.exp(log_weight[keep])
    weights /= max(1.0, math.fsum(weights))
    return Mixture(tuple(weights.tolist()), tuple((j[keep] * unit).tolist()))


_POINT = Mixture((1.0,), (0.0,))


def _two(q: float, mean: float) -> Mixture:
    return Mixture((1.0 - q, q), (0.0, mean)) if q < 1.0 else Mixture((1.0,), (mean,))


def truncation(rate: float, records: int, max_batch: int) -> tuple[float, float]:
    """(t, r) for a data set of `records`: how likely the others fill the batch, and a record's chance to be kept if
    they do.
    """
    full = float(special.bdtrc(max_batch - 1, records - 1, rate)) if records > max_batch else 0.0
    if full <= 0.0:
        return 0.0, rate
    kept = max_batch / records * float(special.bdtrc(max_batch, records, rate)) / full
    return full, min(rate, kept)


def steps_of(mechanism: Mechanism) -> tuple[Step, ...]:
    """The dominating steps of a mechanism: one where the directions agree, else remove, add, and so on for each
    size.
    """
    match mechanism:
        case Gaussian(mu=mu):
            return (((1.0, Pair(Mixture((1.0,), (mu,)), _POINT)),),)
        case Poisson(rate=rate, sigma=sigma, group=group, replace=replace):
            drawn = binomial(group, rate, 1.0 / sigma)
            if replace:
                return (((1.0, Pair(drawn, Mixture(drawn.weights, tuple(-mean for mean in drawn.means)))),),)
            remove = Pair(drawn, _POINT)
            return ((1.0, remove),), ((1.0, remove.exchanged()),)
        case FixedSubset(sigma=sigma):
            return (((1.0, Pair(_two(mechanism.rate, 2.0 / sigma), _POINT, spliced=True)),),)
        case TruncatedPoisson(rate=rate, population=population, max_batch=max_batch, sigma=sigma, replace=replace):
            if replace:
                full, kept = truncation(rate, population, max_batch)
                free = _two(rate, 1.0 / sigma)
                whole = Pair(free, Mixture(free.weights, tuple(-mean for mean in free.means)))
                return (((1.0 - full, whole), (full, Pair(_two(kept, 2.0 / sigma), _POINT, spliced=True))),)
            found: list[Step] = []
            for records in (population, population + 1):
                full, kept = truncation(rate, records, max_batch)
                whole, cut = Pair(_two(rate, 1.0 / sigma), _POINT), Pair(_two(kept, 2.0 / sigma), _POINT)
                found.append(((1.0 - full, whole), (full, cut)))
                found.append(((1.0 - full, whole.exchanged()), (full, cut.exchanged())))
            return tuple(found)
    raise TypeError(f"no dominating pair is known for {type(mechanism).__name__}.")
