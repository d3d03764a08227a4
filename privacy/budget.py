"""A budget that a run asks before every step: it says no before the overrun, never after.

    budget = Budget(epsilon=3.0, delta=1e-5)
    budget.spend(mechanism.event())   # raises BudgetExceeded, and then nothing was spent; draw the noise only
    afterwards

The accountants are too slow to be asked at every step. A budget asks about 1, 2, 4, ... further steps at once and
remembers how many are known to fit, so a run of T equal steps costs about 2 log2(T) questions. Composition only ever
adds, so what fits together fits one by one.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

from privacy.accounting.epsilon import Accountant, check_accountant, check_delta
from privacy.accounting.epsilon import epsilon as price
from privacy.accounting.mechanisms import AccountingError, UnsupportedEvent
from privacy.events import CorrelatedGaussianRelease, Event, GaussianRelease

_MOST = 1 << 40
_MANY = 8  # different events from which on the cheap bound is asked first


class BudgetExceeded(ValueError):
    """The next event would cost more than the budget. It has not happened, and must not."""


def _one(event: Event) -> tuple[Event, int]:
    """The event with count 1, and its count."""
    if isinstance(event, GaussianRelease | CorrelatedGaussianRelease):
        return dataclasses.replace(event, count=1), event.count
    return event, 1


class Budget:
    """An (epsilon, delta) budget over events, priced by one accountant.

    Args:
        epsilon: > 0. delta: in (0, 1). accountant: one of privacy.accounting.ACCOUNTANTS.
        events: what was spent before (a resumed run's ledger). It may exceed the budget; then nothing more is allowed.

    Raises AccountingError for impossible numbers, UnsupportedEvent for an event without a price (here, and in every
    method).
    """

    def __init__(
        self, epsilon: float, delta: float, accountant: Accountant = "pld", *, events: Iterable[Event] = ()
    ) -> None:
        check_accountant(accountant)
        check_delta(delta)
        if isinstance(epsilon, bool) or not (math.isfinite(epsilon) and epsilon > 0.0):
            raise AccountingError(f"a budget of epsilon {epsilon} was given; expected a positive finite number.")
        self.epsilon = float(epsilon)
        self.delta = float(delta)
        self.accountant: Accountant = accountant
        self._spent: dict[Event, int] = {}
        # For each event: how many more are known to fit, and the least number known not to (None: not known).
        self._fits: dict[Event, int] = {}
        self._over: dict[Event, int] = {}
        for event in events:
            one, count = _one(event)
            self._spent[one] = self._spent.get(one, 0) + count
        self.spent()

    @property
    def events(self) -> list[Event]:
        """What was spent, run-length encoded, in the order of first appearance."""
        return [_counted(one, count) for one, count in self._spent.items()]

    def _cost_with(self, one: Event, count: int) -> float:
        counts = dict(self._spent)
        counts[one] = counts.get(one, 0) + count
        return price([_counted(event, n) for event, n in counts.items()], self.delta, self.accountant)

    def _surely_fits(self, one: Event, count: int) -> bool:
        """True where the Renyi bound alone is clearly within the budget: cheap where the noise changes at every
        step.
        """
        if self.accountant == "rdp" or len(self._spent) < _MANY:
            return False
        counts = dict(self._spent)
        counts[one] = counts.get(one, 0) + count
        try:
            loose = price([_counted(event, n) for event, n in counts.items()], self.delta, "rdp")
        except UnsupportedEvent:
            return False
        return loose <= 0.98 * self.epsilon

    def _allows(self, one: Event, count: int) -> bool:
        if count <= self._fits.get(one, 0):
            return True
        if count >= self._over.get(one, _MOST):
            return False
        if self._surely_fits(one, count):
            self._fits[one] = count
            return True
        if self._cost_with(one, count) > self.epsilon:
            self._over[one] = count
            return False
        self._fits[one] = count
        return True

    def allow(self, next_event: Event) -> None:
        """Returns where the event fits into what is left; nothing is spent.

        Raises BudgetExceeded where it does not, UnsupportedEvent or AccountingError where it has no price.
        """
        one, count = _one(next_event)
        if not self._allows(one, count):
            raise BudgetExceeded(
                f"the next event would take epsilon from {self.spent():.4g} to {self._cost_with(one, count):.4g} "
                f"at delta {self.delta:g} ({self.accountant}), above the budget of {self.epsilon:g}; stop here."
            )
        # Look ahead: a stride of as many steps as were spent already, then half of it, so that later calls are free.
        if self._fits.get(one, 0) == count:
            stride = max(count, self._spent.get(one, 0))
            while stride > 1 and not self._allows(one, count + stride):
                stride //= 2

    def spend(self, event: Event) -> None:
        """Books the event, after asking `allow`. Call it before the noise is drawn; raises as `allow` and then books
        nothing.
        """
        self.allow(event)
        one, count = _one(event)
        self._spent[one] = self._spent.get(one, 0) + count
        fits, over = self._fits.get(one, 0) - count, self._over.get(one)
        self._fits = {one: fits} if fits > 0 else {}
        # What exceeded before exceeds still: keep it for this event, and for others too (spending only adds).
        if over is not None:
            self._over[one] = over - count

    def spent(self) -> float:
        """epsilon of what was spent, at the budget's delta."""
        return price(self.events, self.delta, self.accountant)

    def remaining(self) -> float:
        """The budget's epsilon less `spent()`, at least 0. It is no budget of its own: composition is not additive."""
        return max(0.0, self.epsilon - self.spent())

    def remaining_steps(self, event: Event) -> int:
        """How many more such events (each with its count) fit. Raises as `allow`, but never BudgetExceeded."""
        one, count = _one(event)
        if not self._allows(one, count):
            return 0
        known = 1
        while known < _MOST and self._allows(one, 2 * known * count):
            known *= 2
        low, high = known, 2 * known
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._allows(one, middle * count) else (low, middle)
        return low


def _counted(one: Event, count: int) -> Event:
    if isinstance(one, GaussianRelease | CorrelatedGaussianRelease):
        return dataclasses.replace(one, count=count)
    return one
