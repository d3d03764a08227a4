"""A budget refuses before the overrun, never after, and asks its accountant seldom."""

from __future__ import annotations

import pytest

from privacy.accounting import AccountingError, UnsupportedEvent, calibrate_noise, epsilon
from privacy.budget import Budget, BudgetExceeded
from privacy.events import GaussianRelease, PostProcessing, Sampling, Unaccountable

SAMPLING = Sampling("poisson", 0.1)


def run_out(budget: Budget, event) -> int:
    steps = 0
    while True:
        try:
            budget.spend(event)
        except BudgetExceeded:
            return steps
        steps += 1


@pytest.mark.parametrize("accountant", ["rdp", "pld", "own"])
def test_a_run_stops_at_the_last_step_that_fits(accountant):
    noise = calibrate_noise(2.0, 1e-5, sampling=SAMPLING, steps=60, accountant=accountant)
    budget, event = Budget(2.0, 1e-5, accountant), GaussianRelease(noise, SAMPLING)
    steps = run_out(budget, event)
    assert steps == 60
    assert budget.spent() == epsilon([event.with_count(60)], 1e-5, accountant) <= 2.0
    assert epsilon([event.with_count(61)], 1e-5, accountant) > 2.0
    assert budget.remaining() == pytest.approx(2.0 - budget.spent())


def test_a_refused_event_is_not_booked_and_a_cheaper_one_may_still_fit():
    budget, dear, cheap = Budget(1.0, 1e-5, "own"), GaussianRelease(1.0), GaussianRelease(100.0)
    with pytest.raises(BudgetExceeded, match="stop here"):
        budget.spend(dear)
    assert budget.spent() == 0.0 and budget.events == []
    budget.spend(cheap)
    with pytest.raises(BudgetExceeded):
        budget.allow(dear)
    assert budget.events == [cheap]


def test_asking_spends_nothing():
    budget, event = Budget(5.0, 1e-5, "own"), GaussianRelease(1.5)
    for _ in range(5):
        budget.allow(event)
    assert budget.spent() == 0.0


def test_the_number_of_steps_left_is_exact_and_falls_by_one():
    event = GaussianRelease(2.0, SAMPLING)
    budget = Budget(2.0, 1e-5, "own")
    left = budget.remaining_steps(event)
    assert epsilon([event.with_count(left)], 1e-5, "own") <= 2.0 < epsilon([event.with_count(left + 1)], 1e-5, "own")
    budget.spend(event)
    assert budget.remaining_steps(event) == left - 1
    assert Budget(2.0, 1e-5, "own").remaining_steps(GaussianRelease(0.1)) == 0


def test_alternating_events_are_priced_together():
    first, second = GaussianRelease(6.0, SAMPLING), GaussianRelease(20.0)
    budget = Budget(0.5, 1e-5, "own")
    spent = []
    with pytest.raises(BudgetExceeded):
        for i in range(10_000):
            event = first if i % 2 else second
            budget.spend(event)
            spent.append(event)
    assert epsilon(spent, 1e-5, "own") <= 0.5
    assert epsilon([*spent, first if len(spent) % 2 else second], 1e-5, "own") > 0.5


def test_a_resumed_run_goes_on_where_it_stopped():
    event = GaussianRelease(2.0, SAMPLING)
    whole = run_out(Budget(1.0, 1e-5, "own"), event)
    resumed = Budget(1.0, 1e-5, "own", events=[event] * 3)
    assert run_out(resumed, event) == whole - 3
    exhausted = Budget(0.1, 1e-5, "own", events=[GaussianRelease(1.0)])
    assert exhausted.remaining() == 0.0
    with pytest.raises(BudgetExceeded):
        exhausted.allow(GaussianRelease(1e5))


def test_a_long_run_asks_its_accountant_rarely(monkeypatch):
    import privacy.budget

    asked = []

    def counted(*arguments):
        asked.append(arguments)
        return epsilon(*arguments)

    monkeypatch.setattr(privacy.budget, "price", counted)
    budget, event = Budget(1.0, 1e-5, "own"), GaussianRelease(10.0, SAMPLING)
    steps = run_out(budget, event)
    assert steps > 300 and len(asked) < 40


def test_a_noise_schedule_is_stopped_in_time(monkeypatch):
    import privacy.budget

    asked = []

    def counted(events, delta, accountant):
        asked.append(accountant)
        return epsilon(events, delta, accountant)

    monkeypatch.setattr(privacy.budget, "price", counted)
    budget, spent = Budget(3.0, 1e-5, "own"), []
    with pytest.raises(BudgetExceeded):
        for step in range(100):
            event = GaussianRelease(12.0 - 0.1 * step)
            budget.spend(event)
            spent.append(event)
    assert len(spent) > 40
    assert epsilon(spent, 1e-5, "own") <= 3.0 < epsilon([*spent, event], 1e-5, "own")
    assert asked.count("own") < 0.6 * len(spent)  # while the budget is far away, the cheap bound answers


def test_events_without_a_price_are_refused_and_free_ones_are_free():
    budget = Budget(1.0, 1e-5, "own")
    budget.spend(PostProcessing("magnitude pruning"))
    assert budget.spent() == 0.0
    with pytest.raises(UnsupportedEvent):
        budget.spend(Unaccountable("no noise"))
    with pytest.raises(UnsupportedEvent):
        Budget(1.0, 1e-5, "own", events=[Unaccountable("no noise")])
    with pytest.raises(AccountingError):
        budget.spend(GaussianRelease(10.0, adjacency="replace_one", unit="user"))
        budget.spend(GaussianRelease(10.0))


@pytest.mark.parametrize("arguments", [(0.0, 1e-5), (float("inf"), 1e-5), (1.0, 0.0), (1.0, 1e-5, "gdp")])
def test_an_impossible_budget_is_refused(arguments):
    with pytest.raises(AccountingError):
        Budget(*arguments)
