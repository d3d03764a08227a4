"""Bounded participation, correlated noise, adaptive clipping: what is done, what is paid, and what a crash leaves."""

from __future__ import annotations

import copy
import itertools
import math

import numpy as np
import pytest
import torch

from federated.accounts import LEDGER, AccountError, PrivateAccount, planned_noise
from federated.adaptive import AdaptiveAccount, update_noise
from federated.bounded import BoundedAccount, planned_bounded_noise
from federated.checkpoint import Checkpoints
from federated.settings import FederatedConfig
from federated.simulation import simulate
from federated.strategy import Interrupted
from privacy.accounting import epsilon
from privacy.correlated import CorrelatedNoise, Encoder
from privacy.events import Participation
from privacy.ledger import Ledger
from privacy.mechanism import GaussianSum
from privacy.noise import SeededNoise
from privacy.sampling import GuardedArrivals

BOUNDED = {
    "participation": "bounded",
    "sampling_rate": 0.25,
    "rounds": 6,
    "bounded": {"min_separation": 3, "max_participations": 2, "bands": 3},
}


@pytest.fixture
def make(tiny_settings):
    return lambda **changes: FederatedConfig.model_validate(tiny_settings.model_dump() | changes)


@pytest.fixture
def start(tiny_model, tiny_feeder, make, tmp_path):
    def run(name="run", progress=None, absent=None, **changes):
        return simulate(
            make(**changes),
            model=copy.deepcopy(tiny_model),
            feeder=tiny_feeder,
            run_dir=tmp_path / name,
            progress=progress,
            absent=absent,
        )

    return run


def crash_in_save(monkeypatch, at):
    original = Checkpoints.save

    def save(self, state):
        if state.rounds_done == at:
            monkeypatch.setattr(Checkpoints, "save", original)
            raise OSError(28, "No space left on device")
        return original(self, state)

    monkeypatch.setattr(Checkpoints, "save", save)


# Bounded participation


def test_the_noise_of_the_rounds_is_correlated_as_the_encoder_says(make, tmp_path):
    """Without any update, what is released is C^-1 Z: computed here by a dense solve."""
    settings = make(**BOUNDED)
    account = BoundedAccount(settings, tmp_path, fresh=True)
    released = []
    for number in range(6):
        account.cohort(number, range(20))
        released.append(account.release(number, {}, 50).double().numpy() * settings.divisor)
    std = settings.noise_multiplier * settings.clip_norm
    white = [SeededNoise(settings.seed).normal(50, std, step=t, dtype=torch.float64).numpy() for t in range(6)]
    column = Encoder(6, 3).column
    dense = np.array([[column[i - j] if i >= j else 0.0 for j in range(6)] for i in range(6)])
    np.testing.assert_allclose(np.array(released), np.linalg.solve(dense, np.array(white)), atol=std * 2e-3)


@pytest.mark.parametrize("length", [1e6, math.nan])
def test_one_device_moves_a_bounded_release_by_the_clipping_norm_at_most(make, tmp_path, length):
    """Zero-out neighbours under one seed: the noise cancels, and what is left is the device's share."""
    settings = make(**BOUNDED)
    released = []
    for name, value in (("with", length), ("without", 0.0)):
        (tmp_path / name).mkdir()
        account = BoundedAccount(settings, tmp_path / name, fresh=True)
        device = account.cohort(0, range(20))[0]
        update = torch.zeros(50)
        update[3] = value
        released.append(account.release(0, {device: update}, 50).double() * settings.divisor)
    moved = float(torch.linalg.vector_norm(released[0] - released[1]))
    expected = settings.clip_norm if math.isfinite(length) else 0.0
    assert moved == pytest.approx(expected, rel=5e-3, abs=1e-6)


def test_the_whole_run_is_one_event_and_its_sensitivity_is_that_of_the_worst_unit(start, tmp_path):
    result = start(**BOUNDED)
    ledger = Ledger.open(tmp_path / "run" / LEDGER)
    (event,) = ledger.events()
    column = Encoder(6, 3).column
    dense = np.array([[column[i - j] if i >= j else 0.0 for j in range(6)] for i in range(6)])
    worst = max(
        np.linalg.norm(dense[:, list(steps)].sum(axis=1))
        for steps in [(a,) for a in range(6)] + [(a, b) for a in range(6) for b in range(a + 3, 6)]
    )
    assert event.sensitivity == pytest.approx(worst) and event.adjacency == "zero_out" and event.unit == "user"
    assert result.epsilon == pytest.approx(epsilon([event], 1e-3, "rdp"))
    mu = worst / 1.0
    assert epsilon([event], 1e-3, "own") == pytest.approx(epsilon_of_mu(mu, 1e-3), rel=1e-3)


def epsilon_of_mu(mu, delta):
    from scipy.optimize import brentq

    from privacy.accounting.summary import gaussian_delta

    return brentq(lambda e: gaussian_delta(mu, e) - delta, 0, 100)


def test_nobody_takes_part_too_early_or_too_often(make, tmp_path, monkeypatch):
    settings = make(**BOUNDED)
    account = BoundedAccount(settings, tmp_path, fresh=True)
    came: dict[int, list[int]] = {}
    for number in range(6):
        eager = range(8) if number < 3 else range(20)  # the same eight come again and again
        chosen = account.cohort(number, eager)
        assert len(chosen) <= settings.cohort
        account.release(number, {}, 4)
        for device in chosen:
            came.setdefault(device, []).append(number)
    assert all(len(rounds) <= 2 for rounds in came.values())
    assert all(b - a >= 3 for rounds in came.values() for a, b in itertools.pairwise(rounds))


def test_who_was_asked_counts_whatever_it_answered(make, tmp_path):
    account = BoundedAccount(make(**BOUNDED), tmp_path, fresh=True)
    chosen = account.cohort(0, range(20))
    account.release(0, {chosen[0]: torch.ones(4)}, 4)
    assert not set(chosen) & set(account.cohort(1, range(20)))


def test_an_update_of_a_device_that_was_not_asked_is_a_fault(make, tmp_path):
    account = BoundedAccount(make(**BOUNDED), tmp_path, fresh=True)
    (stranger,) = set(range(20)) - set(account.cohort(0, range(20))) - set(range(1, 20)) or {19}
    with pytest.raises(AccountError, match="not asked"):
        account.release(0, {stranger + 100: torch.ones(4)}, 4)


def test_a_bounded_run_resumes_bit_for_bit_with_seeded_noise(start, tmp_path, monkeypatch):
    whole = start("whole", **BOUNDED)
    crash_in_save(monkeypatch, 4)
    with pytest.raises(OSError, match="No space"):
        start("cut", **BOUNDED)
    resumed = start("cut", **BOUNDED)
    assert torch.equal(resumed.vector, whole.vector) and resumed.lost == ()
    assert len(Ledger.open(tmp_path / "cut" / LEDGER).events()) == 1


def test_a_bounded_run_with_secure_noise_loses_the_round_and_keeps_its_noise(start, tmp_path, monkeypatch):
    crash_in_save(monkeypatch, 4)
    with pytest.raises(OSError, match="No space"):
        start("cut", **BOUNDED, noise="secure")
    resumed = start("cut", **BOUNDED, noise="secure")
    assert resumed.lost == (3,) and [facts["round"] for facts in resumed.history] == [1, 2, 3, 5, 6]
    secret = tmp_path / "cut-secret"
    assert secret.stat().st_mode & 0o077 == 0
    assert all(path.stat().st_mode & 0o077 == 0 for path in secret.iterdir())


def test_without_its_secret_state_a_bounded_run_is_refused(start, tmp_path):
    def stop(facts):
        if facts.round == 3:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        start(progress=stop, **BOUNDED, noise="secure")
    newest = sorted((tmp_path / "run-secret").iterdir())[-1]
    data = bytearray(newest.read_bytes())
    data[-1] ^= 1
    newest.write_bytes(bytes(data))
    with pytest.raises(AccountError, match="damaged"):
        start(**BOUNDED, noise="secure")
    for path in (tmp_path / "run-secret").iterdir():
        path.unlink()
    with pytest.raises(AccountError, match="nobody knows who took part"):
        start(**BOUNDED, noise="secure")


@pytest.mark.parametrize("accountant", ["rdp", "pld", "own"])
def test_bounded_noise_is_calibrated_to_the_budget(make, accountant):
    settings = make(**BOUNDED, noise_multiplier=None, epsilon=3.0, accountant=accountant)
    noise = planned_bounded_noise(settings)
    probe = BoundedAccount.__new__(BoundedAccount)
    del probe
    event = CorrelatedNoise(Encoder(6, 3), Participation(3, 2), SeededNoise(0)).event(noise, unit="user")
    assert 2.8 < epsilon([event], settings.delta, accountant) <= 3.0


def test_arrivals_prefer_those_who_waited_longest():
    arrivals = GuardedArrivals(10, 3, Participation(1, 5))
    seen = []
    for step in range(4):
        chosen = arrivals.choose(range(10), step)
        arrivals.guard.admit(chosen, step)
        seen += chosen
    assert len(set(seen[:9])) == 9


# Adaptive clipping


def test_update_and_count_are_one_release_of_the_stated_noise():
    """1/z^2 = 1/u^2 + 1/c^2: published by Andrew et al., theorem 1, with c = 2 sigma_b."""
    u, sigma_b = 1.1, 5.0
    z = (u**-2 + (2 * sigma_b) ** -2) ** -0.5
    assert update_noise(z, 2 * sigma_b) == pytest.approx(u)


def test_adaptive_noise_has_the_stated_size_on_update_and_count(make, tmp_path):
    settings = make(adaptive={"enabled": True, "count_noise": 4.0})
    account = AdaptiveAccount(settings, tmp_path / LEDGER, fresh=True)
    released = account.release(0, {}, 20_000) * settings.divisor
    u = update_noise(1.0, 4.0)
    assert float(released.std()) == pytest.approx(u * settings.clip_norm, rel=0.03)
    # the whole vector's sensitivity times z is the same standard deviation
    vote = u * settings.clip_norm / 4.0
    assert math.hypot(settings.clip_norm, vote) * 1.0 == pytest.approx(u * settings.clip_norm)


def test_the_clipping_norm_finds_the_quantile(make, tmp_path):
    settings = make(
        adaptive={"enabled": True, "quantile": 0.5, "count_noise": 2.0},
        noise_multiplier=0.05,
        epsilon=1000.0,
        delta=0.04,
        rounds=60,
        clip_norm=10.0,
    )
    account = AdaptiveAccount.__new__(AdaptiveAccount)
    account.settings, account.update_noise, account.count_noise = settings, update_noise(0.05, 2.0), 2.0
    account.clip_norm, account._paid, account.repeatable = 10.0, 0, True
    account._pay = lambda number, **fields: None
    account.mechanism = GaussianSum(
        10.0, 0.05, __import__("privacy.events", fromlist=["Sampling"]).Sampling("poisson", 0.5), 10.0, SeededNoise(1)
    )
    lengths = np.linspace(0.2, 2.0, 10)
    for number in range(60):
        updates = {i: torch.full((4,), float(length / 2)) for i, length in enumerate(lengths)}
        account.release(number, updates, 4)
    assert 0.6 < account.clip_norm < 1.6  # the median is 1.1


def test_an_adaptive_run_pays_one_event_a_round_and_resumes_bit_for_bit(start, tmp_path):
    changes = {"adaptive": {"enabled": True, "count_noise": 5.0}}
    whole = start("whole", **changes)

    def stop(facts):
        if facts.round == 3:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        start("cut", progress=stop, **changes)
    resumed = start("cut", **changes)
    assert torch.equal(whole.vector, resumed.vector)
    ledger = Ledger.open(tmp_path / "cut" / LEDGER)
    assert {event.noise_multiplier for event in ledger.events()} == {1.0} and len(ledger.events()) == 5
    fields = [entry.body["public"] for entry in ledger.entries if entry.kind == "event"]
    assert all(f["update_noise"] ** -2 + f["count_noise"] ** -2 == pytest.approx(1.0) for f in fields)
    assert len({f["clip_norm"] for f in fields}) == 5  # it moved


# Refusals


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"trust": "secure_aggregation"}, "knows whom it asked"),
        ({"trust": "secure_aggregation", **BOUNDED}, "none can take back"),
        ({"trust": "secure_aggregation", **BOUNDED, "bounded": {}, "codec": "int8", "rounds": 4}, "masked words"),
        ({**BOUNDED, "adaptive": {"enabled": True}}, "only there"),
        ({**BOUNDED, "bounded": {"min_separation": 3, "max_participations": 3}}, "hold 2 at most"),
        ({**BOUNDED, "bounded": {"min_separation": 6}}, "need 30 participations"),
        ({"bounded": {"bands": 2}}, "nothing reads it"),
        ({"adaptive": {"quantile": 0.7}}, "nothing reads it"),
        ({"secure": {"threshold": 0.9}}, "nothing reads it"),
        ({"private": False, **BOUNDED}, "only private runs"),
        ({"trust": "device", **BOUNDED}, "needless"),
    ],
)
def test_modes_that_do_not_go_together_are_refused_in_a_sentence(make, changes, words):
    with pytest.raises(ValueError, match=words):
        make(**changes)


def test_a_count_that_would_take_all_the_noise_is_refused(make):
    with pytest.raises(ValueError, match="must be larger"):
        planned_noise(make(adaptive={"enabled": True, "count_noise": 0.9}))


def test_the_ceiling_of_any_mode_is_a_valid_open_run(make):
    plain = make(**BOUNDED).without_privacy()
    assert FederatedConfig.model_validate(plain.model_dump()) == plain


# Evaluation with a price


def test_evaluations_are_paid_for_from_the_same_budget(start, make, tmp_path):
    changes = {"private_evaluation": {"every": 2, "noise_multiplier": 8.0}, "rounds": 4}
    result = start(**changes)
    ledger = Ledger.open(tmp_path / "run" / LEDGER)
    labels = [(step, event.label) for step, event in zip(ledger.steps(), ledger.events(), strict=True)]
    assert [step for step, label in labels if label == "evaluation on the devices"] == [1, 3]
    assert len(labels) == 6 and result.epsilon == pytest.approx(epsilon(ledger.events(), 1e-3, "rdp"))
    assert ["evaluation" in facts for facts in result.history] == [False, True, False, True]
    assert torch.equal(result.vector, start("plain", rounds=4).vector)  # training is as it was
    calibrated = make(**changes, noise_multiplier=None, epsilon=6.0)
    assert planned_noise(calibrated) > planned_noise(make(rounds=4, noise_multiplier=None, epsilon=6.0))


def test_the_released_loss_is_the_noisy_mean_of_clipped_losses(make, tmp_path):
    settings = make(private_evaluation={"every": 1, "loss_bound": 2.0, "noise_multiplier": 0.5}, epsilon=500.0)
    account = PrivateAccount(settings, tmp_path / LEDGER, fresh=True)
    released = account.release_losses(0, {1: 1.0, 2: 50.0, 3: 0.5})
    noise = float(SeededNoise(3).normal(1, 1.0, step=2**32, dtype=torch.float64))
    assert released == pytest.approx((1.0 + 2.0 + 0.5 + noise) / settings.divisor, abs=1e-3)
    assert account.release_losses(0, {1: 1.0, 2: 50.0, 3: 0.5}) == released and len(account.ledger.events()) == 1


def test_a_loss_that_a_device_sends_unasked_is_not_looked_at(make, tiny_model, tiny_feeder, tmp_path, monkeypatch):
    from federated import wire

    original = wire.reply
    monkeypatch.setattr(wire, "reply", lambda update, message, loss=None: original(update, message, loss=1.5))
    told = []
    simulate(
        make(rounds=2), model=copy.deepcopy(tiny_model), feeder=tiny_feeder, run_dir=tmp_path, progress=told.append
    )
    assert [facts.loss for facts in told] == [None, None]
