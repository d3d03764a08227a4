"""Membership inference: how well the trained model's losses give its training examples away.

The attack needs no shadow model: an example's score is how much more the training lowered its loss than the initial
checkpoint had it, loss_initial - loss_final (the difficulty of the example cancels; cf. Carlini et al. 2112.03570 on
calibration). What counts is the true-positive rate at a tiny false-positive rate, and its uncertainty. This is an
attack, not a lower bound on epsilon: members and non-members were not chosen by coins. For a bound use `one_run_audit`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Rate:
    """A rate with its interval. `resolved`: whether there are enough non-members for this false-positive rate at
    all.
    """

    value: float
    low: float
    high: float
    false_positive_rate: float
    false_positive_high: float
    resolved: bool


@dataclass(frozen=True)
class Membership:
    """AUC with its interval, and the true-positive rate at each asked false-positive rate."""

    auc: float
    auc_low: float
    auc_high: float
    rates: tuple[Rate, ...]
    members: int
    non_members: int
    confidence: float

    def to_json(self) -> dict[str, Any]:
        """All numbers as JSON types."""
        return {
            "auc": self.auc,
            "auc_interval": [self.auc_low, self.auc_high],
            "members": self.members,
            "non_members": self.non_members,
            "confidence": self.confidence,
            "true_positive_rates": [
                {
                    "false_positive_rate": rate.false_positive_rate,
                    "false_positive_rate_upper": rate.false_positive_high,
                    "value": rate.value,
                    "interval": [rate.low, rate.high],
                    "resolved": rate.resolved,
                }
                for rate in self.rates
            ],
        }


def clopper_pearson(successes: int, trials: int, confidence: float) -> tuple[float, float]:
    """The exact two-sided interval of a binomial proportion (Clopper, Pearson 1934)."""
    tail = 0.5 * (1.0 - confidence)
    low = 0.0 if successes == 0 else float(special.betaincinv(successes, trials - successes + 1, tail))
    high = 1.0 if successes == trials else float(special.betaincinv(successes + 1, trials - successes, 1.0 - tail))
    return low, high


def _auc(members: Array, others: Array, confidence: float) -> tuple[float, float, float]:
    """AUC and DeLong's interval (1988) on the logit scale; ties count one half."""
    n, k = len(members), len(others)
    sorted_members, sorted_others = np.sort(members), np.sort(others)
    below = (
        0.5 * (np.searchsorted(sorted_others, members, "left") + np.searchsorted(sorted_others, members, "right")) / k
    )
    above = (
        1.0
        - 0.5 * (np.searchsorted(sorted_members, others, "left") + np.searchsorted(sorted_members, others, "right")) / n
    )
    auc = float(below.mean())
    if auc in (0.0, 1.0):  # separated: DeLong's variance is zero, so bound the chance of an unseen exception instead
        margin = 1.0 - (0.5 * (1.0 - confidence)) ** (1.0 / min(n, k))
        return (1.0, 1.0 - margin, 1.0) if auc == 1.0 else (0.0, 0.0, margin)
    error = math.sqrt(float(below.var(ddof=1)) / n + float(above.var(ddof=1)) / k)
    z = float(special.ndtri(0.5 + 0.5 * confidence))
    centre, width = math.log(auc / (1.0 - auc)), z * error / (auc * (1.0 - auc))
    return auc, float(special.expit(centre - width)), float(special.expit(centre + width))


def membership_inference(
    members_final: ArrayLike,
    others_final: ArrayLike,
    members_initial: ArrayLike | None = None,
    others_initial: ArrayLike | None = None,
    *,
    false_positive_rates: tuple[float, ...] = (0.001, 0.01),
    confidence: float = 0.95,
) -> Membership:
    """The loss-difference attack.

    Args:
        members_final, others_final: losses of training examples [n] and of held-out examples [k] under the trained
        model. members_initial, others_initial: the same examples' losses under the checkpoint before training; without
        them the
            plain loss is the score (a weaker attack).
        false_positive_rates: where the true-positive rate is asked for. confidence: of all intervals.

    The threshold for a rate f lets at most floor(f k) non-members through (ties included); the interval of the
    true-positive rate is exact for that threshold, and `false_positive_high` bounds the rate that it really has.
    Raises ValueError for fewer than two examples of a kind, losses that are NaN, or unmatched shapes.
    """
    if (members_initial is None) != (others_initial is None):
        raise ValueError("initial losses were given for one kind of example only; give both or neither.")
    members, others = (-np.asarray(losses, dtype=np.float64).ravel() for losses in (members_final, others_final))
    if members_initial is not None and others_initial is not None:
        before = [np.asarray(losses, dtype=np.float64).ravel() for losses in (members_initial, others_initial)]
        if before[0].shape != members.shape or before[1].shape != others.shape:
            raise ValueError("initial and final losses differ in number; expected one of each per example.")
        members, others = members + before[0], others + before[1]
    if len(members) < 2 or len(others) < 2:
        raise ValueError(f"{len(members)} members and {len(others)} others were given; expected at least 2 of each.")
    if np.isnan(members).any() or np.isnan(others).any():
        raise ValueError("a loss is not a number; drop the example, or find out why.")
    auc, low, high = _auc(members, others, confidence)
    ranked = np.sort(others)[::-1]
    rates = []
    for target in false_positive_rates:
        passed = math.floor(target * len(others) + 1e-9)
        threshold = ranked[passed] if passed < len(others) else -np.inf
        hits = int((members > threshold).sum())
        false = int((others > threshold).sum())
        interval = clopper_pearson(hits, len(members), confidence)
        rates.append(
            Rate(
                hits / len(members), *interval, target, clopper_pearson(false, len(others), confidence)[1], passed >= 1
            )
        )
    return Membership(auc, low, high, tuple(rates), len(members), len(others), confidence)
