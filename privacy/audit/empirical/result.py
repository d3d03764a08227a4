"""What an empirical audit found, in the form that a privacy report carries."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class EmpiricalAudit:
    """A measured lower bound on epsilon.

    method: which test. m: canaries. r: guesses. v: right guesses. confidence: of the bound, in (0, 1).
    lower_bound: epsilon is at least this at `delta`, with that confidence, if what `method` assumes holds.
    correction: the rule against multiple testing. details: further public numbers (mu, the guesses on each side, ...).
    """

    method: str
    m: int
    r: int
    v: int
    confidence: float
    lower_bound: float
    delta: float
    correction: str
    details: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.v <= self.r <= self.m or self.m < 1:
            raise ValueError(
                f"{self.v} right of {self.r} guesses on {self.m} canaries is impossible; expected v <= r <= m."
            )
        if not (math.isfinite(self.lower_bound) and self.lower_bound >= 0.0):
            raise ValueError(f"lower_bound is {self.lower_bound}; expected a finite number of at least 0.")

    def to_json(self) -> dict[str, Any]:
        """The entry of a report's `audit` list; `correction` is called `rule` there."""
        return {
            "method": self.method,
            "m": self.m,
            "r": self.r,
            "v": self.v,
            "confidence": self.confidence,
            "lower_bound": self.lower_bound,
            "delta": self.delta,
            "rule": self.correction,
            "details": dict(self.details),
        }


@dataclass(frozen=True)
class Finding:
    """The verdict of one check on a mechanism: did it keep its promise, and by what numbers."""

    check: str
    passed: bool
    statistic: float
    allowed: str
    reason: str

    def to_json(self) -> dict[str, Any]:
        """All fields."""
        return {
            "check": self.check,
            "passed": self.passed,
            "statistic": self.statistic if math.isfinite(self.statistic) else None,
            "allowed": self.allowed,
            "reason": self.reason,
        }
