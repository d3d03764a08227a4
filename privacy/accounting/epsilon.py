"""One door to the four accountants: epsilon of events at a delta, delta at an epsilon, and both as a profile.

    rdp   Renyi, the larger of Opacus' and dp-accounting's: fast, loose by 5 to 20 %
    prv   Opacus' privacy random variables: tight plus eps_error 0.01
    pld   dp-accounting's privacy-loss distributions: tight, but for truncated batches
    own   our own privacy-loss accountant: tight, prices every event, precise also at a tiny delta

All return upper bounds. The central-limit ("gdp") accountant is refused: it is no bound (1.56 where the truth is 6.8).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Literal, get_args

from privacy.accounting.mechanisms import (
    AccountingError,
    Composition,
    Gaussian,
    Mechanism,
    TruncatedPoisson,
    UnsupportedEvent,
    resolve,
)
from privacy.accounting.own import own_delta, own_epsilon
from privacy.accounting.pld import pld_delta, pld_epsilon
from privacy.accounting.prv import prv_epsilon
from privacy.accounting.rdp import rdp_delta, rdp_epsilon
from privacy.events import Event, GaussianRelease

Accountant = Literal["rdp", "prv", "pld", "own"]
ACCOUNTANTS: tuple[str, ...] = get_args(Accountant)
AGREEMENT = 0.02  # accountants further apart than this, or a delta below SMALL_DELTA, deserve a warning
SMALL_DELTA = 1e-9

logger = logging.getLogger(__name__)


def check_accountant(accountant: str) -> None:
    """Raises AccountingError for a name that is none of ACCOUNTANTS, and says why where it is the central limit."""
    if accountant in ("gdp", "clt"):
        raise AccountingError(
            "central-limit (GDP) accounting was asked for; it under-reports epsilon and is no bound, so use one of "
            f"{', '.join(ACCOUNTANTS)}."
        )
    if accountant not in ACCOUNTANTS:
        raise AccountingError(f"accountant is {accountant!r}; expected one of {', '.join(ACCOUNTANTS)}.")


def check_delta(delta: float) -> None:
    """Raises AccountingError unless 0 < delta < 1."""
    if isinstance(delta, bool) or not isinstance(delta, int | float) or not 0.0 < delta < 1.0:
        raise AccountingError(f"delta is {delta!r}; expected a number between 0 and 1, below 1 / (number of units).")


def composition_of(events: Iterable[Event] | Composition) -> Composition:
    """Events resolved, a composition unchanged."""
    return events if isinstance(events, Composition) else resolve(events)


def epsilon(events: Iterable[Event] | Composition, delta: float, accountant: Accountant = "pld") -> float:
    """Upper bound on epsilon at `delta` in (0, 1) for the events of one run; 0 where nothing private was released.

    Raises:
        UnsupportedEvent: the accountant has no bound for an event. Nothing is skipped.
        AccountingError: mixed adjacencies or units, a bad delta, an unknown accountant, numerics that gave up.
    """
    check_accountant(accountant)
    check_delta(delta)
    return _priced(composition_of(events), float(delta), accountant)


@lru_cache(maxsize=4096)
def _priced(composition: Composition, delta: float, accountant: Accountant) -> float:
    """A thousand reports of the same mechanism are priced once."""
    match accountant:
        case "rdp":
            return rdp_epsilon(composition, delta)
        case "prv":
            return prv_epsilon(composition, delta)
        case "pld":
            return pld_epsilon(composition, delta)
        case _:
            return own_epsilon(composition, delta)


def delta_for(events: Iterable[Event] | Composition, epsilon: float, accountant: Accountant = "pld") -> float:
    """Upper bound on delta at `epsilon` >= 0. PRV has no bound in this direction and raises. Raises as `epsilon`."""
    check_accountant(accountant)
    if not (math.isfinite(epsilon) and epsilon >= 0.0):
        raise AccountingError(f"epsilon is {epsilon}; expected a finite number of at least 0.")
    composition = composition_of(events)
    match accountant:
        case "rdp":
            return rdp_delta(composition, epsilon)
        case "prv":
            raise AccountingError("Opacus' PRV accountant bounds epsilon at a delta only; use 'pld' or 'own'.")
        case "pld":
            return pld_delta(composition, epsilon)
        case _:
            return own_delta(composition, epsilon)


def profile(
    events: Iterable[Event] | Composition,
    *,
    deltas: Sequence[float] | None = None,
    epsilons: Sequence[float] | None = None,
    accountant: Accountant = "pld",
) -> list[tuple[float, float]]:
    """(epsilon, delta) pairs, one per given delta or per given epsilon (state exactly one of the two). Raises as
    `epsilon`.
    """
    if (deltas is None) == (epsilons is None):
        raise AccountingError("a profile was asked for with both or neither of deltas and epsilons; state exactly one.")
    composition = composition_of(events)
    if deltas is not None:
        return [(epsilon(composition, delta, accountant), delta) for delta in deltas]
    assert epsilons is not None
    return [(value, delta_for(composition, value, accountant)) for value in epsilons]


def tight_accountants(events: Iterable[Event] | Composition) -> tuple[str, ...]:
    """The accountants whose bound is tight for these events, so that they should agree to `AGREEMENT`.

    Renyi is loose everywhere. dp-accounting's PLD bounds a truncated Poisson batch by a replacement at twice the
    distance: still an upper bound, but up to a tenth too large where batches are cut often. A loose accountant must not
    lie below a tight one; that it lies above says nothing.
    """
    if isinstance(events, Composition):
        truncated = any(isinstance(part, TruncatedPoisson) for part, _ in events.parts)
    else:
        truncated = any(
            isinstance(event, GaussianRelease) and event.sampling.scheme == "truncated_poisson" for event in events
        )
    loose = {"rdp", "pld"} if truncated else {"rdp"}
    return tuple(name for name in ACCOUNTANTS if name not in loose)


def all_accountants(events: Iterable[Event] | Composition, delta: float) -> dict[str, float]:
    """epsilon by each accountant that can price every event, in the order of ACCOUNTANTS.

    Accountants that cannot are left out (`refusals` says why); if none can, UnsupportedEvent is raised. Logs a warning
    where the tight ones (`tight_accountants`) differ by more than 2 % or delta is below 1e-9.
    """
    composition = composition_of(events)
    found: dict[str, float] = {}
    for name in ACCOUNTANTS:
        try:
            found[name] = epsilon(composition, delta, name)  # type: ignore[arg-type]
        except UnsupportedEvent:
            continue
        except AccountingError:
            check_delta(delta)
            if name == "own":
                raise
    if not found:
        raise UnsupportedEvent("no accountant has a bound for these events; there is no epsilon to state.")
    tight = [found[name] for name in tight_accountants(composition) if name in found]
    if tight and max(tight) - min(tight) > AGREEMENT * max(tight) + 0.011:  # 0.011: PRV's stated error
        logger.warning("accountants differ by more than 2 %%: %s", found)
    if delta < SMALL_DELTA:
        logger.warning("delta %.3g is below 1e-9, where FFT accountants other than 'own' lose precision", delta)
    return found


def refusals(events: Iterable[Event] | Composition, delta: float) -> dict[str, str]:
    """The reason of each accountant that `all_accountants` leaves out."""
    composition = composition_of(events)
    reasons: dict[str, str] = {}
    for name in ACCOUNTANTS:
        try:
            epsilon(composition, delta, name)  # type: ignore[arg-type]
        except AccountingError as error:
            reasons[name] = str(error)
    return reasons


def compose_runs(*runs: Iterable[Event]) -> Composition:
    """Several runs on one data set as one composition: every accountant takes it in the place of events.

    Each run is resolved by itself first, so that its shuffled epochs begin where it began. Runs must share adjacency
    and unit and concern the same units. Raises as `epsilon`.
    """
    counts: dict[Mechanism, int] = {}
    squared_mu = 0.0
    resolved = [resolve(run) for run in runs]
    stated = [composition for composition in resolved if not composition.empty]
    if len({(composition.adjacency, composition.unit) for composition in stated}) > 1:
        raise AccountingError("runs under different adjacencies or units were composed; restate them under one.")
    for composition in stated:
        for mechanism, count in composition.parts:
            if isinstance(mechanism, Gaussian):
                squared_mu += count * mechanism.mu**2
            else:
                counts[mechanism] = counts.get(mechanism, 0) + count
    if squared_mu > 0.0:
        counts[Gaussian(math.sqrt(squared_mu))] = 1
    if not stated:
        return Composition(())
    parts = tuple(sorted(counts.items(), key=lambda item: repr(item[0])))
    return Composition(parts, stated[0].adjacency, stated[0].unit)
