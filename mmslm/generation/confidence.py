"""How sure a reply is, in numbers that mean something and in words for people.

A language model's probabilities are over-confident. A calibration maps the raw confidence of a reply (the geometric mean
of its tokens' probabilities) to the share of replies with that confidence that were right, on held-out pictures: a
monotone step fit by pooling adjacent violators (isotonic regression: Ayer et al. 1955), interpolated between steps.
It refuses to be fitted on fewer than 20 replies, and files that hold anything but rising numbers from 0 to 1.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

FILE_NAME = "calibration.json"
FEWEST = 20


@dataclass(frozen=True)
class Calibration:
    """Raw confidence -> calibrated confidence: linear between the points (raw[i], right[i]), constant outside."""

    raw: tuple[float, ...]
    right: tuple[float, ...]

    def __post_init__(self) -> None:
        values = (*self.raw, *self.right)
        if len(self.raw) != len(self.right) or not self.raw or not all(0.0 <= v <= 1.0 for v in values):
            raise ValueError("A calibration needs as many raw as right values, all from 0 to 1.")
        if any(b < a for row in (self.raw, self.right) for a, b in pairwise(row)):
            raise ValueError("A calibration's values must rise; this one falls somewhere. Fit it anew.")

    def __call__(self, confidence: float) -> float:
        """The calibrated confidence, 0 to 1."""
        return float(np.interp(confidence, self.raw, self.right))

    @classmethod
    def fit(cls, confidences: Sequence[float], correct: Sequence[bool]) -> "Calibration":
        """From replies on held-out pictures: raw confidences and whether each was right. Raises ValueError."""
        if len(confidences) != len(correct) or len(confidences) < FEWEST:
            raise ValueError(
                f"Got {len(confidences)} confidences and {len(correct)} verdicts; give one verdict per confidence, "
                f"at least {FEWEST}."
            )
        order = np.argsort(np.asarray(confidences, dtype=np.float64), kind="stable")
        # Blocks of (weight, mean of raw, mean of right), merged while they fall.
        blocks: list[tuple[float, float, float]] = []
        for index in order:
            blocks.append((1.0, float(confidences[index]), float(correct[index])))
            while len(blocks) > 1 and blocks[-2][2] >= blocks[-1][2]:
                (n, x, y), (m, u, v) = blocks[-2], blocks[-1]
                blocks[-2:] = [(n + m, (n * x + m * u) / (n + m), (n * y + m * v) / (n + m))]
        return cls(tuple(block[1] for block in blocks), tuple(block[2] for block in blocks))

    def save(self, folder: str | Path) -> None:
        """Write calibration.json into a model directory."""
        data = {"raw": list(self.raw), "right": list(self.right)}
        (Path(folder) / FILE_NAME).write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> "Calibration | None":
        """From a model directory; None where it has none. Raises ValueError for a damaged file."""
        path = Path(folder) / FILE_NAME
        if not path.is_file():
            return None
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            return cls(tuple(float(v) for v in data["raw"]), tuple(float(v) for v in data["right"]))
        except (KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is no calibration ({error}); fit it anew or delete it.") from error


@dataclass(frozen=True)
class ReliabilityBin:
    """Replies whose confidence lies in [low, high): how many, their mean confidence and the share that was right."""

    low: float
    high: float
    count: int
    confidence: float
    right: float


def reliability(confidences: Sequence[float], correct: Sequence[bool], bins: int = 10) -> list[ReliabilityBin]:
    """The reliability figure's points: equal-width bins of confidence, empty ones left out."""
    edges = np.linspace(0.0, 1.0, bins + 1)
    values, verdicts = np.asarray(confidences, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    place = np.minimum((values * bins).astype(int), bins - 1)
    found = []
    for index in range(bins):
        chosen = place == index
        if chosen.any():
            found.append(
                ReliabilityBin(
                    float(edges[index]),
                    float(edges[index + 1]),
                    int(chosen.sum()),
                    float(values[chosen].mean()),
                    float(verdicts[chosen].mean()),
                )
            )
    return found


def calibration_error(confidences: Sequence[float], correct: Sequence[bool], bins: int = 10) -> float:
    """Expected calibration error, 0 (perfect) to 1: mean distance of confidence and share right, weighted by count
    (Naeini et al. 2015)."""
    points = reliability(confidences, correct, bins)
    total = sum(point.count for point in points)
    if not total:
        return math.nan
    return sum(point.count * abs(point.confidence - point.right) for point in points) / total


def wording(confidence: float) -> str:
    """How to say a calibrated confidence: "" (0.8 and more), "probably" (0.5 and more) or "I am not sure"."""
    if confidence >= 0.8:
        return ""
    return "probably" if confidence >= 0.5 else "I am not sure"


__all__ = ["Calibration", "ReliabilityBin", "calibration_error", "reliability", "wording"]
