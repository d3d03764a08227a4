"""Epsilon from events, by every accountant, each question answered once: what the report states and the audit repeats.

A `Pricer` keeps what it has computed, by mechanism and not by report, so that a folder of a thousand reports of one
recipe costs what one report costs. It keeps hostile ledgers cheap: too many distinct mechanisms, or events so
weakly protected that the Rényi accountant already exceeds `HOPELESS`, are not given to accountants whose memory grows
with epsilon.

The cheap guard is sound: an accountant that is not asked proves nothing, so a claim can only fail by it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, cast

from privacy.events import (
    CorrelatedGaussianRelease,
    Event,
    GaussianRelease,
    PostProcessing,
    Sampling,
    Unaccountable,
)

if TYPE_CHECKING:
    from privacy.accounting import Accountant, Composition

ACCOUNTANTS: Final = ("rdp", "prv", "pld", "own")
# Behind profile and trajectory: the first that answers. `own` is the only one that is quick and exact at every delta.
CURVES: Final = ("own", "pld", "rdp")
HOPELESS: Final = 300.0
PRV_REACH: Final = 10_000.0  # epsilon times the root of the steps: the size of the grid that Opacus' PRV needs
MAX_DISTINCT: Final = {"rdp": 500, "own": 256, "pld": 64, "prv": 64}  # different mechanisms that are priced
OFTEN: Final = 1e-6  # chance that a unit takes part more often than `without_amplification` counts
TOLERANCE: Final = 1e-6  # relative: what floating point on another machine may change

Run = tuple[Event, ...]


class RecomputationError(ValueError):
    """The events have no epsilon that an accountant stands for; the message says why."""


class Tally:
    """Releases counted by mechanism: labels do not matter, equal ones are one with their count."""

    def __init__(self) -> None:
        self._plain: dict[Event, Event] = {}  # an event -> itself without label, counted once
        self._counts: dict[Event, int] = {}

    def add(self, event: Event) -> None:
        """Count one more event; free post-processing is left out."""
        if isinstance(event, PostProcessing):
            return
        plain = self._plain.get(event)
        if plain is None:
            plain = event if isinstance(event, Unaccountable) else replace(event, label="", count=1)
            self._plain[event] = plain
        self._counts[plain] = self._counts.get(plain, 0) + (1 if isinstance(event, Unaccountable) else event.count)

    def run(self) -> Run:
        """The releases so far."""
        return tuple(
            replace(event, count=count) if isinstance(event, GaussianRelease | CorrelatedGaussianRelease) else event
            for event, count in self._counts.items()
        )


def merge(events: Iterable[Event]) -> Run:
    """The run's releases without labels, equal ones merged into one with their count, free post-processing left out."""
    tally = Tally()
    for event in events:
        tally.add(event)
    return tally.run()


def without_amplification(run: Run) -> Run | None:
    """The same releases if it were known who took part in which step; None where no event is amplified by sampling.

    A unit is counted in as many steps as it takes part in with all but one chance in a million (`OFTEN`), and not in the
    expected number: with Poisson sampling some units are drawn far more often than the mean, and the number is for them.
    """
    changed: list[Event] = []
    amplified = False
    for event in run:
        if isinstance(event, GaussianRelease) and event.sampling.probability < 1:
            amplified = True
            times = participations(event.sampling.probability, event.count)
            event = replace(event, sampling=Sampling("full"), count=times)
        changed.append(event)
    return merge(changed) if amplified else None


def participations(rate: float, count: int) -> int:
    """In how many of ``count`` steps a unit takes part: exceeded with probability at most `OFTEN`."""
    from scipy.stats import binom  # a second of imports that only sampled runs need

    return min(count, max(1, int(binom.isf(OFTEN, count, rate))))


@dataclass
class Pricer:
    """Answers, and remembers, what a set of runs costs. One object per audit or report; not shared between threads."""

    _known: dict[tuple[object, ...], float | str] = field(default_factory=dict)

    def epsilon(self, runs: Sequence[Run], delta: float, accountant: str) -> float:
        """Upper bound of epsilon at `delta` for several runs on one data set together.

        Raises:
            RecomputationError: the accountant cannot treat the events, or nothing useful could come of it.
        """
        key = ("epsilon", _key(runs), delta, accountant)
        if key not in self._known:
            try:
                self._known[key] = self._compute(runs, delta, accountant)
            except RecomputationError as error:
                self._known[key] = str(error)
        answer = self._known[key]
        if isinstance(answer, str):
            raise RecomputationError(answer)
        return answer

    def all_epsilons(self, runs: Sequence[Run], delta: float) -> tuple[dict[str, float], dict[str, str]]:
        """Epsilon by accountant, and the reasons of those that gave none."""
        values: dict[str, float] = {}
        reasons: dict[str, str] = {}
        for accountant in ACCOUNTANTS:
            try:
                values[accountant] = self.epsilon(runs, delta, accountant)
            except RecomputationError as error:
                reasons[accountant] = str(error)
        return values, reasons

    def delta(self, runs: Sequence[Run], epsilon: float, accountant: str) -> float:
        """Upper bound of delta at `epsilon`. Raises RecomputationError as `epsilon`."""
        key = ("delta", _key(runs), epsilon, accountant)
        if key not in self._known:
            from privacy import accounting

            self._guard(runs, 1e-6, accountant)
            try:
                self._known[key] = float(accounting.delta_for(_composed(runs), epsilon, cast("Accountant", accountant)))
            except (ValueError, ArithmeticError, MemoryError) as error:
                self._known[key] = _reason(error)
        answer = self._known[key]
        if isinstance(answer, str):
            raise RecomputationError(answer)
        return answer

    def curve_epsilon(self, runs: Sequence[Run], delta: float) -> float:
        """Epsilon by the first of CURVES that answers: for curves of many points. Raises RecomputationError as `epsilon`."""
        return self._first(lambda name: self.epsilon(runs, delta, name))

    def curve_delta(self, runs: Sequence[Run], epsilon: float) -> float:
        """Delta by the first of CURVES that answers. Raises RecomputationError as `epsilon`."""
        return self._first(lambda name: self.delta(runs, epsilon, name))

    @staticmethod
    def _first(ask: Callable[[str], float]) -> float:
        reasons = []
        for name in CURVES:
            try:
                return ask(name)
            except RecomputationError as error:
                reasons.append(str(error))
        raise RecomputationError(reasons[0])

    def gdp(self, runs: Sequence[Run], least_delta: float, accountant: str) -> tuple[float, float]:
        """(mu, regret) of the Gaussian that covers the runs for every delta >= least_delta (see accounting.summary).

        Raises RecomputationError as `epsilon`.
        """
        mu_key, regret_key = (("gdp", part, _key(runs), least_delta, accountant) for part in ("mu", "regret"))
        if mu_key not in self._known:
            from privacy.accounting.summary import gdp_summary

            self._guard(runs, least_delta, accountant)
            try:
                found = gdp_summary(_composed(runs), least_delta=least_delta, accountant=cast("Accountant", accountant))
            except (ValueError, ArithmeticError, MemoryError) as error:
                raise RecomputationError(_reason(error)) from error
            self._known[mu_key], self._known[regret_key] = found.mu, found.regret
        return float(self._known[mu_key]), float(self._known[regret_key])

    def _compute(self, runs: Sequence[Run], delta: float, accountant: str) -> float:
        from privacy import accounting

        if accountant not in ACCOUNTANTS:
            raise RecomputationError(f"{accountant!r} is no accountant here; expected one of {', '.join(ACCOUNTANTS)}.")
        self._guard(runs, delta, accountant)
        try:
            value = float(accounting.epsilon(_composed(runs), delta, cast("Accountant", accountant)))
        except (ValueError, ArithmeticError, MemoryError) as error:
            raise RecomputationError(_reason(error)) from error
        if not math.isfinite(value):
            raise RecomputationError("the events have no finite epsilon.")
        return value

    def _guard(self, runs: Sequence[Run], delta: float, accountant: str) -> None:
        distinct = sum(map(len, runs))
        if distinct > MAX_DISTINCT.get(accountant, 0):
            raise RecomputationError(
                f"the ledger holds {distinct} different mechanisms, too many for the {accountant} accountant."
            )
        if accountant == "rdp":
            return
        try:
            loose = self.epsilon(runs, delta, "rdp")
        except RecomputationError:
            return  # the Rényi accountant covers fewer events than the others; they judge for themselves
        if loose > HOPELESS:
            raise RecomputationError(
                f"epsilon is about {loose:.4g}, beyond {HOPELESS:g}: no guarantee worth computing."
            )
        steps = sum(getattr(event, "count", 1) for run in runs for event in run)
        if accountant == "prv" and loose * math.sqrt(steps) > PRV_REACH:
            raise RecomputationError(
                "so many steps at such an epsilon need more memory than Opacus' accountant may take."
            )


def _key(runs: Sequence[Run]) -> tuple[Run, ...]:
    return tuple(runs)


def _composed(runs: Sequence[Run]) -> Composition:
    from privacy import accounting

    return accounting.resolve(runs[0]) if len(runs) == 1 else accounting.compose_runs(*runs)


def _reason(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text if text.endswith(".") else f"{text}."
