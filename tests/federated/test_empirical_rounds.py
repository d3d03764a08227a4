"""The attack on a federated run's own rounds: quiet on an honest one, loud where the product's real path is broken."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TinyFeeder, TinyModel

from federated import accounts
from federated.accounts import LEDGER, PrivateAccount
from federated.bench import Bench
from federated.empirical import attack_rounds, check_rounds, household_losses
from federated.secure_aggregation.plan import SecurePlan
from federated.settings import FederatedConfig
from federated.vector import AdapterVector
from privacy.accounting import epsilon as price
from privacy.audit.empirical.one_run import one_run_audit
from privacy.correlated import CorrelatedNoise
from privacy.mechanism import GaussianSum
from privacy.noise import SeededNoise
from privacy.sampling import PoissonSampler

SETTINGS = FederatedConfig(
    households=60,
    rounds=6,
    sampling_rate=0.5,
    clip_norm=0.1,
    epsilon=8.0,
    delta=1e-3,
    accountant="rdp",
    noise="simulation",
    seed=77,
    noise_multiplier=1.0,
)


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ledger of a whole run; what was trained does not matter to the attack."""
    folder = tmp_path_factory.mktemp("run")
    account = PrivateAccount(SETTINGS, folder / LEDGER, fresh=True)
    for number in range(SETTINGS.rounds):
        account.ledger.append(account.mechanism.event("federated round"), step=number)
    return folder / LEDGER


def test_an_honest_run_shows_a_part_of_its_epsilon(ledger: Path, tmp_path: Path) -> None:
    scores, coins = attack_rounds(SETTINGS, ledger, tmp_path, dimension=600, canaries=300, seed=1)
    audit = one_run_audit(scores[coins], scores[~coins], delta=SETTINGS.delta, method="steinke")
    assert 0.2 < audit.lower_bound < SETTINGS.epsilon


def test_an_honest_run_keeps_every_promise(ledger: Path, tmp_path: Path) -> None:
    findings = check_rounds(SETTINGS, ledger, tmp_path)
    assert {finding.check for finding in findings} == {"noise", "sensitivity", "sampler"}
    assert all(finding.passed for finding in findings), findings


class NoNoise(GaussianSum):
    def _finish(self, total, step):
        return (total / self.divisor).float()


class NoClipping(GaussianSum):
    def release(self, vectors, *, step, dimension):
        import torch

        return self._finish(sum((v.double() for v in vectors), torch.zeros(dimension, dtype=torch.float64)), step)


class NoiseOverTheDivisorTwice(GaussianSum):
    def _finish(self, total, step):
        self.noise.add_(total, self.std / self.divisor, step=step)
        return (total / self.divisor).float()


class HalfTheNoise(GaussianSum):
    @property
    def std(self):
        return self.noise_multiplier * self.clip_norm / 2


class FixedCohorts(PoissonSampler):
    def draw(self, step):
        return np.arange(step % 2, self.population, 2)


BUGS = {
    "noise": ("GaussianSum", NoNoise),
    "noise ": ("GaussianSum", HalfTheNoise),
    "noise  ": ("GaussianSum", NoiseOverTheDivisorTwice),
    "sensitivity": ("GaussianSum", NoClipping),
    "sampler": ("PoissonSampler", FixedCohorts),
}


@pytest.mark.parametrize("check", BUGS)
def test_a_bug_planted_into_the_products_own_path_is_found(
    check: str, ledger: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accounts, *BUGS[check])
    broken = {finding.check for finding in check_rounds(SETTINGS, ledger, tmp_path) if not finding.passed}
    assert broken == {check.strip()}


def test_without_noise_the_canaries_alone_show_it(
    ledger: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for place, kind in (("honest", GaussianSum), ("broken", NoNoise)):
        monkeypatch.setattr(accounts, "GaussianSum", kind)
        scores, coins = attack_rounds(SETTINGS, ledger, tmp_path / place, dimension=600, canaries=300, seed=1)
        found.append(one_run_audit(scores[coins], scores[~coins], delta=SETTINGS.delta, method="steinke"))
    assert found[1].v > found[0].v and found[1].v >= found[1].r - 1


MODES = {
    "adaptive": {"adaptive": {"enabled": True, "count_noise": 5.0}},
    "bounded": {
        "participation": "bounded",
        "noise_multiplier": 1.5,
        "bounded": {"min_separation": 2, "max_participations": 3, "bands": 3},
    },
    "secure": {
        "noise_multiplier": 1.5,
        "sampling_rate": 0.2,
        "participation": "bounded",
        "trust": "secure_aggregation",
        "bounded": {"min_separation": 2, "max_participations": 3},
    },
}


@pytest.mark.parametrize("mode", MODES)
def test_canaries_in_other_modes_show_a_part_of_epsilon_and_all_of_a_missing_noise(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = {**SETTINGS.model_dump(), "epsilon": 900.0, "noise_multiplier": 0.7, "rounds": 6}
    settings = FederatedConfig(**{**plain, **MODES[mode], "households": 80})
    (tmp_path / "run").mkdir()
    account = accounts.open_account(settings, tmp_path / "run", fresh=True)
    if mode == "adaptive":
        events = [(account.mechanism.event("federated round"), number) for number in range(settings.rounds)]
    else:
        events = [(account.event, 0)]
    for event, step in events:
        account.ledger.append(event, step=step)
    found = []
    for place in ("honest", "broken"):
        if place == "broken":
            monkeypatch.setattr(accounts, "GaussianSum", NoNoise)
            monkeypatch.setattr(CorrelatedNoise, "normal", lambda self, shape, std, **_: torch.zeros(shape).double())
            monkeypatch.setattr(SecurePlan, "noise", lambda self, _: np.zeros(self.dimension, dtype=np.int64))
        scores, coins = attack_rounds(
            settings, tmp_path / "run" / LEDGER, tmp_path / place, dimension=900, canaries=200, seed=1
        )
        found.append(one_run_audit(scores[coins], scores[~coins], delta=settings.delta, method="steinke"))
    honest, broken = found
    claimed = price([event for event, _ in events], settings.delta, "rdp")
    assert honest.lower_bound < claimed
    assert honest.v > honest.r / 2
    assert honest.lower_bound > 0 or mode == "secure"  # whose 32 canaries are too few for a bound
    assert broken.v > honest.v and broken.v >= broken.r - 1


def test_the_attack_never_draws_the_runs_own_noise_or_cohorts(
    ledger: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds = []
    seeded = SeededNoise.__init__
    monkeypatch.setattr(SeededNoise, "__init__", lambda self, seed: seeds.append(seed) or seeded(self, seed))
    for place in ("a", "b"):
        attack_rounds(SETTINGS, ledger, tmp_path / place, dimension=40, canaries=20)
    assert SETTINGS.seed not in seeds
    assert len(set(seeds) - {0}) >= 2


def test_a_run_without_privacy_is_not_attacked(ledger: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="claims no privacy"):
        attack_rounds(SETTINGS.without_privacy(), ledger, tmp_path, dimension=40)


def test_losses_fall_for_a_household_that_trained(
    tiny_model: TinyModel, tiny_feeder: TinyFeeder, tiny_settings: FederatedConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("federated.empirical.PhotoFeeder", lambda *_: tiny_feeder)  # no photos here: its own sequences
    initial = AdapterVector(tiny_model.adapter_parameters()).read()
    update, _ = Bench(tiny_model, tiny_feeder, tiny_settings).train(3, 0, initial)
    before, after = household_losses(
        tiny_model,
        None,
        tiny_settings,
        None,
        [3, 4],
        initial=initial,
        final=initial + update,  # type: ignore[arg-type]
    )
    assert after[0] < before[0]
    assert np.isfinite([before, after]).all()
