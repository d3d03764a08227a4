"""How far a confidence can be trusted, and the three tiers in which it is told to a person.

A model's confidence is a number that means little until it was held against what came true. `reliability` does that
(expected calibration error; Guo et al., On Calibration of Modern Neural Networks, ICML 2017). `fit_tiers` turns it, on
held-out photos, into what a captioner can say aloud: "certain", "probably" or "not sure". A tier's threshold is the
lowest confidence whose calibrated probability (isotonic regression) reaches the tier's promise, and whose replies, all
together, keep it with a lower confidence bound over owners. Where no threshold keeps a promise the tier is closed: the
model is then never "certain", which is better than wrongly so.

Fit and judge on different owners: `judge_tiers` on the fitting set flatters. Confidences outside 0 to 1, or not finite,
are refused.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

from mmslm.evaluation.intervals import DRAWS, MIN_OWNERS, Interval, ratio_interval
from mmslm.evaluation.results import Evaluation

Floats = NDArray[np.float64]

TIERS = ("certain", "probably", "not sure")
# Below this a threshold stands on too few replies to promise anything.
LEAST_REPLIES = 30


@dataclass(frozen=True)
class Bin:
    """Replies with like confidence: how sure the model was on average, and how often it was right."""

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Reliability:
    """`ece` is the mean gap between confidence and accuracy (0 to 1), `worst` the largest of a bin, `brier` the mean
    squared error of the confidence as a forecast."""

    ece: float
    worst: float
    brier: float
    count: int
    bins: tuple[Bin, ...]

    def to_json(self) -> dict[str, Any]:
        return {**self.__dict__, "bins": [dict(each.__dict__) for each in self.bins]}

    def to_text(self) -> str:
        """A table for a terminal."""
        lines = ["confidence      replies   said  right"]
        for each in self.bins:
            said, right = f"{100 * each.confidence:4.0f} %", f"{100 * each.accuracy:3.0f} %"
            lines.append(f"{each.low:.2f} - {each.high:.2f}  {each.count:9,}  {said}  {right}")
        return "\n".join([*lines, f"expected calibration error {100 * self.ece:.1f} % over {self.count:,} replies"])


def reliability(confidences: Sequence[float], correct: Sequence[bool], *, bins: int = 10) -> Reliability:
    """The reliability table of N replies in `bins` parts of equal size (equal width would leave most of them empty).

    Replies of equal confidence stay in one bin, so that there may be fewer bins than asked for.
    """
    sure, right = _checked(confidences, correct)
    if bins < 1:
        raise ValueError(f"bins={bins} was given; expected at least 1")
    order = np.argsort(sure, kind="stable")
    sure, right = sure[order], right[order]
    # Each edge is the last confidence of its bin, so that ties go to one side.
    edges = np.unique([sure[math.ceil(part * len(sure) / bins) - 1] for part in range(1, bins)])
    place = np.searchsorted(edges, sure, side="left")
    table = []
    for number in np.unique(place):
        inside = place == number
        table.append(
            Bin(
                float(sure[inside][0]),
                float(sure[inside][-1]),
                int(inside.sum()),
                float(sure[inside].mean()),
                float(right[inside].mean()),
            )
        )
    gaps = np.array([abs(each.confidence - each.accuracy) for each in table])
    shares = np.array([each.count for each in table]) / len(sure)
    brier = float(np.mean((sure - right) ** 2))
    return Reliability(float(gaps @ shares), float(gaps.max()), brier, len(sure), tuple(table))


@dataclass(frozen=True)
class Tiers:
    """Thresholds of the tiers and the calibration curve behind them.

    A reply is "certain" from `certain_at`, "probably" from `probably_at`, else "not sure"; a closed tier's threshold is
    None. `knots` and `values` [K] are the curve: probability of being right at rising confidences, flat between ends.
    """

    certain_at: float | None
    probably_at: float | None
    certain_promise: float
    probably_promise: float
    knots: tuple[float, ...]
    values: tuple[float, ...]

    def tier(self, confidence: float) -> str:
        """The tier of a confidence in 0..1."""
        confidence = _one(confidence)
        if self.certain_at is not None and confidence >= self.certain_at:
            return "certain"
        if self.probably_at is not None and confidence >= self.probably_at:
            return "probably"
        return "not sure"

    def probability(self, confidence: float) -> float:
        """How often replies of this confidence were right on the fitting set, interpolated."""
        return float(np.interp(_one(confidence), self.knots, self.values))

    def to_json(self) -> dict[str, Any]:
        return {**self.__dict__, "knots": list(self.knots), "values": list(self.values)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Tiers:
        """The tiers back from `to_json`; ValueError where a field is missing, unknown or out of order."""
        try:
            tiers = cls(**{**data, "knots": tuple(data["knots"]), "values": tuple(data["values"])})
        except (KeyError, TypeError) as error:
            raise ValueError(f"these are no confidence tiers ({error}); fit them with fit_tiers") from error
        rising = all(np.all(np.diff(series) >= 0) for series in (tiers.knots, tiers.values))
        if len(tiers.knots) != len(tiers.values) or not tiers.knots or not rising:
            raise ValueError("the calibration curve of these tiers does not rise; fit them again with fit_tiers")
        return tiers


def fit_tiers(
    confidences: Sequence[float],
    correct: Sequence[bool],
    owners: Sequence[Hashable],
    *,
    certain: float = 0.95,
    probably: float = 0.75,
    level: float = 0.9,
    draws: int = DRAWS,
    seed: int = 0,
) -> Tiers:
    """Fits the tiers on held-out replies. `certain` and `probably` are the shares of right replies they promise.

    `level` is that of the two-sided interval over owners whose lower end must keep the promise (0.9: one chance in
    twenty that it does not). A tier needs LEAST_REPLIES replies of at least five owners.
    """
    sure, right = _checked(confidences, correct)
    if len(owners) != len(sure):
        raise ValueError(f"{len(sure)} replies came with {len(owners)} owners; give one owner per reply")
    if not 0 < probably < certain <= 1:
        raise ValueError(f"certain={certain} and probably={probably} were given; expected 0 < probably < certain <= 1")
    order = np.argsort(sure, kind="stable")
    sure, right = sure[order], right[order]
    names = [owners[index] for index in order]
    knots, starts, counts = np.unique(sure, return_index=True, return_counts=True)
    means = np.add.reduceat(right, starts) / counts
    curve = isotonic_regression(means, weights=counts).x

    def keeps(low: float, high: float, promise: float) -> bool:
        inside = (sure >= low) & (sure < high)
        who = [name for name, taken in zip(names, inside, strict=True) if taken]
        if inside.sum() < LEAST_REPLIES or len(set(who)) < MIN_OWNERS:
            return False
        kept = ratio_interval(right[inside], np.ones(len(who)), who, level=level, draws=draws, seed=seed)
        # All right in every resample has no width; then the rule of three bounds what was not seen (Hanley, 1983).
        unseen = 1 - 3 / len(who) if right[inside].all() else 1.0
        return kept is not None and min(kept.low, unseen) >= promise

    def lowest(high: float, promise: float) -> float | None:
        # Curve values rise, so candidates are the starts of its steps at or above the promise.
        able = np.flatnonzero((curve >= promise) & (knots < high))
        steps = able[np.diff(curve[able], prepend=-1.0) > 0]
        return next((float(knots[step]) for step in steps if keeps(float(knots[step]), high, promise)), None)

    certain_at = lowest(math.inf, certain)
    probably_at = lowest(math.inf if certain_at is None else certain_at, probably)
    return Tiers(certain_at, probably_at, certain, probably, tuple(map(float, knots)), tuple(map(float, curve)))


@dataclass(frozen=True)
class TierResult:
    """What became of one tier on other photos: its share of the replies, how many were right, and the promise."""

    tier: str
    count: int
    share: float
    accuracy: float | None
    interval: Interval | None
    promise: float | None

    def to_json(self) -> dict[str, Any]:
        return {**self.__dict__, "interval": self.interval.to_json() if self.interval else None}


def judge_tiers(
    tiers: Tiers,
    confidences: Sequence[float],
    correct: Sequence[bool],
    owners: Sequence[Hashable],
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> tuple[TierResult, ...]:
    """Accuracy of each tier on replies that it was not fitted on, with intervals over owners."""
    sure, right = _checked(confidences, correct)
    placed = [tiers.tier(float(value)) for value in sure]
    promises = {"certain": tiers.certain_promise, "probably": tiers.probably_promise}
    results = []
    for name in TIERS:
        inside = [index for index, tier in enumerate(placed) if tier == name]
        who = [owners[index] for index in inside]
        interval = None
        if inside:
            interval = ratio_interval(right[inside], np.ones(len(inside)), who, draws=draws, seed=seed)
        results.append(
            TierResult(
                tier=name,
                count=len(inside),
                share=len(inside) / len(placed),
                accuracy=float(right[inside].mean()) if inside else None,
                interval=interval,
                promise=promises.get(name),
            )
        )
    return tuple(results)


def outcomes(evaluation: Evaluation, what: str = "answers") -> tuple[list[float], list[bool], list[str]]:
    """Confidences, whether each reply was right, and owners, from an evaluation whose narrator gave confidences.

    An answer is right when it equals the truth; a caption ("captions") when it names nothing that is not there.
    """
    if what == "answers":
        found = [(row.confidence, row.correct, row.owner) for row in evaluation.answers]
    elif what == "captions":
        found = [(row.confidence, not row.things.hallucinated, row.owner) for row in evaluation.captions if row.things]
    else:
        raise ValueError(f"what={what!r} was given; choose 'answers' or 'captions'")
    if not found or any(confidence is None for confidence, _, _ in found):
        raise ValueError(f"these {what} carry no confidence; evaluate a narrator whose replies have one")
    return [float(c) for c, _, _ in found if c is not None], [r for _, r, _ in found], [o for _, _, o in found]


def _checked(confidences: Sequence[float], correct: Sequence[bool]) -> tuple[Floats, Floats]:
    sure = np.asarray(confidences, dtype=np.float64)
    right = np.asarray(correct, dtype=np.float64)
    if sure.shape != right.shape or sure.ndim != 1 or not len(sure):
        raise ValueError(f"{sure.shape} confidences came with {right.shape} outcomes; give one of each, at least one")
    if not np.isfinite(sure).all() or sure.min() < 0 or sure.max() > 1:
        raise ValueError("a confidence outside 0 to 1 was given; expected probabilities")
    return sure, right


def _one(confidence: float) -> float:
    if not 0 <= confidence <= 1:  # false for NaN too
        raise ValueError(f"confidence {confidence} was given; expected a probability in 0 to 1")
    return confidence
