"""Accounting: the oracle table, closed forms, monotonicity, refusals."""

from __future__ import annotations

import logging
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.accounting import (
    AccountingError,
    UnsupportedEvent,
    all_accountants,
    calibrate_noise,
    compose_runs,
    delta_for,
    epsilon,
    gdp_summary,
    profile,
    refusals,
    resolve,
    tight_accountants,
)
from privacy.accounting.mechanisms import condense
from privacy.accounting.own import own_delta, own_epsilon
from privacy.accounting.rdp import ORDERS, curve_epsilon, opacus_rdp, rdp_curves
from privacy.accounting.summary import gaussian_delta, gaussian_mu
from privacy.events import (
    CorrelatedGaussianRelease,
    GaussianRelease,
    Participation,
    PostProcessing,
    Sampling,
    Unaccountable,
)

# sigma, q, steps, delta -> Renyi (dp-accounting), PRV's upper bound (eps_error 0.01), PLD (interval 1e-4)
ORACLE = {
    "A": (4.0, 0.01, 10000, 1e-5, 1.0355, 0.9569, 0.9470),
    "B": (1.3, 256 / 60000, 3515, 1e-5, 0.9544, 0.8745, 0.8645),
    "C": (1.1, 256 / 60000, 14062, 1e-5, 2.5966, 2.3917, 2.3817),
    "D": (0.7, 256 / 60000, 10546, 1e-5, 6.3195, 5.6498, 5.6394),
    "E": (1.5, 0.04, 2250, 1e-5, 7.3293, 6.7791, 6.7688),
    "G": (0.7, 1024 / 42061, 411, 8e-6, 8.5770, 7.4925, 7.4820),
    "H": (0.48, 98304 / 233e6, 6000, 1 / (2 * 233e6), 7.9963, 6.8420, 6.8315),
    "M": (0.8, 256 / 30000, 3000, 1e-5, 4.9546, 4.4208, 4.4105),
    "N": (1.0, 0.05, 100, 1e-5, 4.0389, 3.5124, 3.5021),
    "O": (0.8, 0.05, 1000, 1e-6, 21.2239, 19.5258, 19.5150),
}
M = {"rate": 256 / 30000, "steps": 3000, "sigma": 0.8}


def poisson(sigma: float, rate: float, steps: int = 1, **more) -> list:
    return [GaussianRelease(sigma, Sampling("poisson", rate), count=steps, **more)]


def row(name: str):
    sigma, rate, steps, delta, *expected = ORACLE[name]
    return poisson(sigma, rate, steps), delta, expected


@pytest.mark.parametrize("name", ORACLE)
def test_rdp_equals_the_oracle(name):
    events, delta, (expected, _, _) = row(name)
    assert epsilon(events, delta, "rdp") == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("name", ORACLE)
def test_prv_equals_the_oracle(name):
    events, delta, (_, expected, tight) = row(name)
    value = epsilon(events, delta, "prv")
    assert value == pytest.approx(expected, abs=1e-3)
    assert tight - 1e-3 <= value <= tight + 0.012  # its own eps_error


@pytest.mark.parametrize("name", ORACLE)
def test_pld_equals_the_oracle(name):
    events, delta, (_, _, expected) = row(name)
    assert epsilon(events, delta, "pld") == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("name", ORACLE)
def test_our_own_equals_the_oracle(name):
    events, delta, (_, _, expected) = row(name)
    assert epsilon(events, delta, "own") == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    ("rate", "sigma", "order"), [(0.05, 0.8, 2.2), (0.024, 0.7, 2.9), (0.01, 4.0, 10.5), (0.05, 0.8, 24.0)]
)
def test_opacus_renyi_formula_equals_quadrature(rate, sigma, order):
    x = np.linspace(-12 * sigma, 12 * sigma + order, 1_000_001)
    log_ratio = np.log1p(rate * np.expm1((2 * x - 1) / (2 * sigma**2)))
    density = np.exp(order * log_ratio - x * x / (2 * sigma**2)) / (math.sqrt(2 * math.pi) * sigma)
    expected = math.log(np.trapezoid(density, x)) / (order - 1)
    found = opacus_rdp().compute_rdp(q=rate, noise_multiplier=sigma, steps=1, orders=order)
    assert found == pytest.approx(expected, rel=1e-4)


def test_the_old_renyi_conversion_gives_the_published_numbers():
    for name, published in (("B", 1.19), ("C", 3.01), ("D", 7.10)):
        events, delta, _ = row(name)
        opacus, _ = rdp_curves(resolve(events))
        orders = np.array(ORDERS)
        assert np.min(opacus + math.log(1 / delta) / (orders - 1)) == pytest.approx(published, abs=0.01)
        assert curve_epsilon(opacus, delta) < published


@pytest.mark.parametrize("accountant", ["pld", "own"])
@pytest.mark.parametrize(("sigma", "steps"), [(2.0, 1), (8.0, 25), (1.0, 4), (0.5, 10)])
@pytest.mark.parametrize("delta", [1e-3, 1e-5, 1e-8])
def test_without_sampling_epsilon_is_the_gaussian_closed_form(accountant, sigma, steps, delta):
    value = epsilon([GaussianRelease(sigma, count=steps)], delta, accountant)
    mu = math.sqrt(steps) / sigma
    assert gaussian_delta(mu, value) <= delta * (1 + 1e-9)  # an upper bound
    assert gaussian_mu(value, delta) == pytest.approx(mu, rel=2e-3)  # and a tight one


@pytest.mark.parametrize("delta", [1e-10, 1e-15, 1e-20])
def test_our_own_keeps_its_precision_at_a_tiny_delta(delta):
    value = own_epsilon(resolve([GaussianRelease(10.0, count=100)]), delta)
    assert gaussian_delta(1.0, value) == pytest.approx(delta, rel=1e-3)
    assert gaussian_delta(1.0, value) <= delta


def test_no_release_costs_nothing_and_one_run_costs_what_its_steps_cost():
    for accountant in ("rdp", "prv", "pld", "own"):
        assert epsilon([], 1e-5, accountant) == 0.0
        assert epsilon([PostProcessing("int8")], 1e-5, accountant) == 0.0
    steps = [GaussianRelease(1.0, Sampling("poisson", 0.05), label=str(i)) for i in range(100)]
    assert epsilon(steps, 1e-5, "own") == epsilon(poisson(1.0, 0.05, 100), 1e-5, "own")


@settings(max_examples=8, deadline=None)
@given(sigma=st.floats(0.6, 5.0), rate=st.floats(1e-3, 0.5), steps=st.integers(1, 500), delta=st.floats(1e-8, 1e-3))
def test_epsilon_falls_with_noise_and_delta_and_grows_with_rate_and_steps(sigma, rate, steps, delta):
    def price(s=sigma, q=rate, t=steps, d=delta):
        return own_epsilon(resolve(poisson(s, q, t)), d)

    here, slack = price(), 1e-3
    assert price(s=1.2 * sigma) <= here + slack
    assert price(d=min(0.5, 3 * delta)) <= here + slack
    assert price(q=1.3 * rate) >= here - slack
    assert price(t=2 * steps) >= here - slack


@settings(max_examples=8, deadline=None)
@given(sigma=st.floats(0.6, 5.0), rate=st.floats(1e-3, 0.5), steps=st.integers(1, 500))
def test_renyi_is_never_below_the_tight_accountants_and_those_agree(sigma, rate, steps):
    events = poisson(sigma, rate, steps)
    rdp, pld, own = (epsilon(events, 1e-5, name) for name in ("rdp", "pld", "own"))
    assert rdp >= max(pld, own) - 1e-3
    assert own == pytest.approx(pld, rel=2e-3, abs=1e-3)


@pytest.mark.parametrize("accountant", ["pld", "own"])
def test_setting_m_under_other_assumptions_equals_the_notes(accountant):
    rate, steps, sigma = M["rate"], M["steps"], M["sigma"]
    replaced = poisson(sigma, rate, steps, adjacency="replace_one")
    assert epsilon(replaced, 1e-5, accountant) == pytest.approx(6.46, abs=0.01)
    shuffled = [GaussianRelease(sigma, Sampling("shuffle", population=30000, batch=256), count=26 * 118)]
    assert epsilon(shuffled, 1e-5, accountant) == pytest.approx(46.7, abs=0.05)


@pytest.mark.parametrize(
    ("accountant", "group", "expected"),
    [
        ("own", 2, 9.8),
        ("own", 4, 22.8),
        ("own", 8, 57.0),
        pytest.param("pld", 2, 9.8, marks=pytest.mark.slow),
    ],
)
def test_a_user_with_several_examples_pays_what_the_notes_say(accountant, group, expected):
    owner = poisson(M["sigma"], M["rate"], M["steps"], unit="user", contributions_per_unit=group)
    assert epsilon(owner, 1e-5, accountant) == pytest.approx(expected, abs=0.06)


def test_truncating_a_batch_costs_and_our_bound_is_within_the_published_one():
    def price(accountant, most):
        sampling = Sampling("truncated_poisson", M["rate"], population=30000, max_batch=most)
        return epsilon([GaussianRelease(M["sigma"], sampling, count=M["steps"])], 1e-5, accountant)

    published = price("pld", 288)
    assert published == pytest.approx(11.5, abs=0.05)
    assert 0.97 * published < price("own", 288) <= published + 1e-3
    assert price("own", 320) == pytest.approx(4.89, abs=0.02)
    assert price("own", 30000) == pytest.approx(4.4105, abs=1e-3)  # nothing can be cut off


@pytest.mark.parametrize(
    ("sigma", "rate", "population", "most"),
    [(4.0, 0.05, 400, 20), (2.5, 0.1, 100, 10)],
)
def test_dp_accounting_is_no_tight_accountant_where_batches_are_cut(sigma, rate, population, most):
    cut = [GaussianRelease(sigma, Sampling("truncated_poisson", rate, population=population, max_batch=most), count=12)]
    found = {name: epsilon(cut, 1e-3, name) for name in ("pld", "own")}
    assert tight_accountants(cut) == tight_accountants(resolve(cut)) == ("prv", "own")
    assert found["pld"] > 1.02 * found["own"]  # so an agreement of 2 % must not be asked of it
    assert found["own"] >= epsilon(poisson(sigma, rate, 12), 1e-3, "own")  # and a cut never helps
    assert tight_accountants(poisson(sigma, rate, 12)) == ("prv", "pld", "own")


def test_a_fixed_size_subset_is_priced_below_its_renyi_bound():
    sampling = Sampling("fixed_size_without_replacement", population=1000, batch=50)
    events = [GaussianRelease(5.0, sampling, count=100, adjacency="replace_one")]
    found = all_accountants(events, 1e-5)
    assert set(found) == {"rdp", "own"} and found["own"] < found["rdp"]
    assert found["own"] > epsilon(poisson(5.0, 0.05, 100, adjacency="replace_one"), 1e-5, "own")


def test_shuffling_is_charged_without_amplification_and_per_epoch():
    sampling = Sampling("shuffle", population=100, batch=30)  # 4 steps per epoch
    for steps, times in ((1, 1), (4, 1), (5, 2), (40, 10)):
        shuffled = epsilon([GaussianRelease(1.0, sampling, count=steps)], 1e-5, "own")
        assert shuffled == pytest.approx(epsilon([GaussianRelease(1.0, count=times)], 1e-5, "own"), abs=1e-6)
    one_by_one = [GaussianRelease(1.0, sampling, label=str(i)) for i in range(8)]
    assert epsilon(one_by_one, 1e-5, "own") == pytest.approx(epsilon([GaussianRelease(1.0, count=2)], 1e-5, "own"))


def test_two_runs_on_one_data_set_pay_for_each_ones_epochs():
    run = [GaussianRelease(1.0, Sampling("shuffle", population=100, batch=25), count=2)]  # half an epoch
    assert epsilon(compose_runs(run, run), 1e-5, "own") == pytest.approx(
        epsilon([GaussianRelease(1.0, count=2)], 1e-5, "own")
    )
    again = poisson(1.0, 0.05, 50)
    both = compose_runs(again, [*again, PostProcessing("int8")], [])
    assert epsilon(both, 1e-5, "pld") == epsilon(poisson(1.0, 0.05, 100), 1e-5, "pld")
    with pytest.raises(AccountingError, match="adjacencies"):
        compose_runs(again, poisson(1.0, 0.05, adjacency="replace_one"))


def test_heterogeneous_rounds_agree_between_accountants():
    rounds = [
        *poisson(1.0, 0.05, 60),
        *poisson(1.5, 0.02, 40, sensitivity=1.2),
        GaussianRelease(20.0, label="one unsampled count"),
        CorrelatedGaussianRelease(30.0, 2.0, Participation(5, 4), 20, adjacency="add_or_remove_one"),
    ]
    found = all_accountants(rounds, 1e-5)
    assert set(found) == {"rdp", "prv", "pld", "own"}
    assert found["own"] == pytest.approx(found["pld"], rel=1e-3)
    assert found["pld"] <= found["prv"] <= found["pld"] + 0.012
    assert found["rdp"] > found["pld"]


def test_noise_that_changes_at_every_step_is_priced_from_above_and_nearly_exactly():
    noises = np.geomspace(0.9, 1.4, 24)
    schedule = resolve([GaussianRelease(float(noise), Sampling("poisson", 0.02)) for noise in noises])
    condensed = condense(schedule, 8)
    assert len(schedule.parts) == 24 == condensed.steps and len(condensed.parts) <= 8
    charged = np.sort(np.repeat(*zip(*((part.sigma, count) for part, count in condensed.parts), strict=True)))
    assert (charged <= noises + 1e-12).all()  # nobody was charged for more noise than it had
    exact = own_epsilon(schedule, 1e-5)  # few enough to be priced one by one
    assert exact <= own_epsilon(condensed, 1e-5) <= 1.06 * exact
    assert condense(schedule) == schedule


def test_a_correlated_run_is_one_gaussian():
    run = CorrelatedGaussianRelease(6.0, 3.0, Participation(5, 4), 20, count=4)
    assert epsilon([run], 1e-5, "own") == pytest.approx(
        epsilon([GaussianRelease(1.0, adjacency="zero_out")], 1e-5, "own"), abs=1e-6
    )


@pytest.mark.parametrize("accountant", ["rdp", "pld", "own"])
def test_delta_and_epsilon_are_inverse(accountant):
    events = poisson(1.0, 0.05, 100)
    value = epsilon(events, 1e-5, accountant)
    assert delta_for(events, value, accountant) == pytest.approx(1e-5, rel=1e-3)
    pairs = profile(events, deltas=[1e-7, 1e-5, 1e-3], accountant=accountant)
    assert [pair[0] for pair in pairs] == sorted((pair[0] for pair in pairs), reverse=True)
    assert profile(events, epsilons=[value], accountant=accountant)[0][1] == pytest.approx(1e-5, rel=1e-3)


def test_delta_is_right_for_one_gaussian_at_any_epsilon():
    for value in (0.0, 0.5, 3.0, 8.0):
        exact = gaussian_delta(1.0, value)
        assert own_delta(resolve([GaussianRelease(1.0)]), value) == pytest.approx(exact, rel=2e-3)
        assert own_delta(resolve([GaussianRelease(1.0)]), value) >= exact


def test_what_an_accountant_cannot_price_it_refuses_by_name():
    group = poisson(1.0, 0.05, 10, unit="user", contributions_per_unit=2)
    for accountant in ("rdp", "prv"):
        with pytest.raises(UnsupportedEvent):
            epsilon(group, 1e-5, accountant)
    subset = Sampling("fixed_size_without_replacement", population=100, batch=10)
    drawn = [GaussianRelease(2.0, subset, adjacency="replace_one")]
    assert set(refusals(drawn, 1e-5)) == {"prv", "pld"} and set(all_accountants(drawn, 1e-5)) == {"rdp", "own"}
    for accountant in ("rdp", "prv", "pld", "own"):
        with pytest.raises(UnsupportedEvent, match="validation"):
            epsilon([*group, Unaccountable("trained on the validation set")], 1e-5, accountant)
    with pytest.raises(UnsupportedEvent):
        all_accountants([Unaccountable("no noise")], 1e-5)
    for scheme in (
        Sampling("fixed_size_without_replacement", population=100, batch=10),
        Sampling("truncated_poisson", 0.1, population=100, max_batch=10),
    ):
        with pytest.raises(UnsupportedEvent):
            epsilon([GaussianRelease(1.0, scheme, contributions_per_unit=2)], 1e-5, "own")
    with pytest.raises(UnsupportedEvent, match="replace_one"):
        epsilon([GaussianRelease(1.0, Sampling("fixed_size_without_replacement", population=9, batch=3))], 1e-5, "own")
    with pytest.raises(TypeError):
        epsilon([{"kind": "gaussian"}], 1e-5, "own")


@pytest.mark.parametrize("name", ["gdp", "clt"])
def test_central_limit_accounting_is_refused(name):
    with pytest.raises(AccountingError, match="no bound"):
        epsilon(poisson(1.0, 0.05), 1e-5, name)


def test_bad_questions_are_refused():
    events = poisson(1.0, 0.05)
    for delta in (0.0, 1.0, -1e-5, math.nan, True, "1e-5"):
        with pytest.raises(AccountingError):
            epsilon(events, delta, "own")
    for value in (-1.0, math.nan, math.inf):
        with pytest.raises(AccountingError):
            delta_for(events, value, "own")
    with pytest.raises(AccountingError, match="expected one of"):
        epsilon(events, 1e-5, "magic")
    with pytest.raises(AccountingError, match="adjacency"):
        epsilon([*events, *poisson(1.0, 0.05, adjacency="replace_one")], 1e-5, "own")
    with pytest.raises(AccountingError, match="unit"):
        epsilon([*events, *poisson(1.0, 0.05, unit="user")], 1e-5, "own")
    with pytest.raises(AccountingError):
        profile(events)


def test_a_tiny_delta_is_warned_about(caplog):
    with caplog.at_level(logging.WARNING):
        all_accountants([GaussianRelease(5.0)], 1e-11)
    assert "1e-9" in caplog.text


@pytest.mark.parametrize("accountant", ["rdp", "prv", "pld", "own"])
def test_calibrated_noise_spends_the_budget_and_no_more(accountant):
    sampling = Sampling("poisson", 0.1)
    noise = calibrate_noise(3.0, 1e-5, sampling=sampling, steps=100, accountant=accountant)
    assert 3.0 - 1e-3 <= epsilon([GaussianRelease(noise, sampling, count=100)], 1e-5, accountant) <= 3.0


@pytest.mark.parametrize(
    ("sampling", "more"),
    [
        (Sampling(), {}),
        (Sampling("shuffle", population=100, batch=10), {}),
        (Sampling("poisson", 0.02), {"adjacency": "replace_one"}),
        (Sampling("poisson", 0.02), {"unit": "user", "contributions_per_unit": 3}),
        (Sampling("truncated_poisson", 0.02, population=5000, max_batch=150), {}),
        (Sampling("fixed_size_without_replacement", population=5000, batch=100), {"adjacency": "replace_one"}),
    ],
    ids=["full", "shuffle", "replace", "group", "truncated", "subset"],
)
def test_noise_is_calibrated_for_every_kind_of_sampling(sampling, more):
    noise = calibrate_noise(2.0, 1e-5, sampling=sampling, steps=50, accountant="own", **more)
    assert 2.0 - 1e-3 <= epsilon([GaussianRelease(noise, sampling, count=50, **more)], 1e-5, "own") <= 2.0


def test_a_target_that_no_noise_reaches_is_refused():
    for target in (0.0, -1.0, math.inf):
        with pytest.raises(AccountingError):
            calibrate_noise(target, 1e-5, sampling=Sampling(), steps=1)


def test_the_gdp_summary_of_a_gaussian_is_its_mu_and_of_a_sampled_run_covers_it():
    exact = gdp_summary([GaussianRelease(2.0)], accountant="own")
    assert exact.mu == pytest.approx(0.5, rel=1e-3) and exact.regret < 1e-4
    events = poisson(1.0, 0.05, 200)
    summary = gdp_summary(events, accountant="pld")
    for value, delta in profile(events, deltas=[1e-9, 1e-6, 1e-3, 0.1]):
        assert gaussian_delta(summary.mu, value) >= delta * (1 - 1e-3)
    assert 0 < summary.regret < 0.1


def test_opacus_prv_is_quiet_where_only_its_grid_is_wider_than_need_be(recwarn):
    """Few releases with much noise: its largest Renyi order fits best, which sizes the grid and leaves epsilon alone."""
    events = [GaussianRelease(10.0, Sampling("poisson", rate=0.2), count=2, unit="user")]
    prv = epsilon(events, 1e-3, "prv")
    assert prv == pytest.approx(epsilon(events, 1e-3, "pld"), abs=0.025)
    assert [str(warning.message) for warning in recwarn] == []
