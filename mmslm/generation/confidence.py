"""How sure a reply is, in numbers that mean something.

A language model's probabilities need not mean what they say. A calibration maps the raw confidence of a reply (the
geometric mean of its tokens' probabilities) to how often such replies were right on held-out pictures: a logistic curve of
two parameters in the logit of the raw confidence (Platt 1999, whose smoothed targets keep it finite). Two parameters need
hundreds of replies, not thousands, and cannot follow their noise. It refuses to be fitted on fewer than 200 replies, or
where higher confidence did not mean more often right, and files that hold anything else.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

FILE_NAME = "calibration.json"
FEWEST = 200
_EDGE = 1e-6


@dataclass(frozen=True)
class Calibration:
    """Raw confidence c -> 1 / (1 + exp(-(slope * logit(c) + intercept))). slope 1, intercept 0 change nothing."""

    slope: float
    intercept: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.slope) and math.isfinite(self.intercept) and self.slope > 0.0):
            raise ValueError(
                f"A calibration has a slope above 0 and a finite intercept; got {self.slope} and {self.intercept}. "
                "Fit it anew."
            )

    def __call__(self, confidence: float) -> float:
        """The calibrated confidence, 0 to 1."""
        return float(1.0 / (1.0 + np.exp(-(self.slope * _logit(confidence) + self.intercept))))

    @classmethod
    def fit(cls, confidences: Sequence[float], correct: Sequence[bool]) -> "Calibration":
        """From replies on held-out pictures: raw confidences and whether each was right; maximum likelihood by Newton's
        method. Raises ValueError."""
        if len(confidences) != len(correct) or len(confidences) < FEWEST:
            raise ValueError(
                f"Got {len(confidences)} confidences and {len(correct)} verdicts; give one verdict per confidence, "
                f"at least {FEWEST}."
            )
        right = np.asarray(correct, dtype=np.float64)
        hits = right.sum()
        if hits in (0, len(right)):
            raise ValueError(f"All {len(right)} verdicts are the same; give replies of which some are right.")
        target = np.where(right > 0, (hits + 1) / (hits + 2), 1 / (len(right) - hits + 2))
        x = np.stack([_logit(np.asarray(confidences, dtype=np.float64)), np.ones(len(right))], axis=1)
        weights = np.zeros(2)
        for _ in range(100):
            said = 1.0 / (1.0 + np.exp(-(x @ weights)))
            curvature = (x * (said * (1 - said))[:, None]).T @ x + 1e-9 * np.eye(2)
            step = np.linalg.solve(curvature, x.T @ (said - target))
            weights = weights - step
            if np.abs(step).max() < 1e-10:
                break
        if not weights[0] > 0:
            raise ValueError(
                "Replies of higher confidence were not more often right, so confidence cannot be calibrated."
            )
        return cls(float(weights[0]), float(weights[1]))

    def save(self, folder: str | Path) -> Path:
        """Write calibration.json into a model directory."""
        path = Path(folder) / FILE_NAME
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        return path

    @classmethod
    def load(cls, folder: str | Path) -> "Calibration | None":
        """From a model directory; None where it has none. Raises ValueError for a damaged file."""
        path = Path(folder) / FILE_NAME
        if not path.is_file():
            return None
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            return cls(float(data["slope"]), float(data["intercept"]))
        except (KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is no calibration ({error}); fit it anew or delete it.") from error


def _logit(confidence: float | np.ndarray) -> np.ndarray:
    inside = np.clip(confidence, _EDGE, 1 - _EDGE)
    return np.asarray(np.log(inside / (1 - inside)))


__all__ = ["FEWEST", "Calibration"]
