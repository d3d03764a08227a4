"""Each mode's account keeps its promises, and a bug planted into its own path is named."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from federated import accounts, adaptive, bounded, on_device
from federated.account_checks import check_account
from federated.bench import Bench
from federated.on_device import Books, train_privately
from federated.settings import FederatedConfig
from privacy.audit.empirical.invariants import check_noise, check_sensitivity
from privacy.correlated import CorrelatedNoise
from privacy.mechanism import GaussianSum
from privacy.noise import SeededNoise
from privacy.sampling import GuardedArrivals, PoissonSampler

BOUNDED = {"participation": "bounded", "bounded": {"min_separation": 2, "max_participations": 2, "bands": 1}}
MODES = {
    "central": {},
    "adaptive": {"adaptive": {"enabled": True, "count_noise": 5.0}},
    "bounded": BOUNDED,
    "correlated": {**BOUNDED, "bounded": {"min_separation": 2, "max_participations": 2, "bands": 3}},
}


def settings(mode):
    common = {"households": 60, "rounds": 4, "sampling_rate": 0.2, "clip_norm": 0.5, "epsilon": 900.0, "delta": 1e-3}
    kind = {"accountant": "rdp", "noise_multiplier": 1.3, "noise": "simulation"}
    return FederatedConfig(**{**common, **kind, **MODES[mode]})


def broken(mode, folder):
    return {finding.check for finding in check_account(settings(mode), folder) if not finding.passed}


@pytest.mark.parametrize("mode", MODES)
def test_an_honest_account_keeps_every_promise(mode, tmp_path):
    findings = check_account(settings(mode), tmp_path)
    assert {finding.check for finding in findings} == {"noise", "sensitivity", "sampler"}
    assert all(finding.passed for finding in findings), findings


def unclipped(vector, clip_norm):
    return vector.double(), False, True


@pytest.mark.parametrize(("mode", "place"), [("adaptive", adaptive), ("bounded", bounded), ("correlated", bounded)])
def test_a_path_without_clipping_is_named(mode, place, tmp_path, monkeypatch):
    monkeypatch.setattr(place, "clip_vector", unclipped)
    monkeypatch.setattr("privacy.mechanism.clip_vector", unclipped)
    assert broken(mode, tmp_path) == {"sensitivity"}


@pytest.mark.parametrize("mode", ["central", "adaptive"])
@pytest.mark.parametrize("later", ["none", "the same"])
def test_noise_that_is_drawn_once_is_named(mode, later, tmp_path, monkeypatch):
    def once(self, total, step):
        if later == "the same" or step == 0:
            self.noise.add_(total, self.std, step=0)
        return (total / self.divisor).float()

    monkeypatch.setattr(GaussianSum, "_finish", once)
    assert broken(mode, tmp_path) == {"noise"}


@pytest.mark.parametrize("mode", ["bounded", "correlated"])
@pytest.mark.parametrize("later", ["none", "the same"])
def test_bounded_noise_that_is_drawn_once_is_named(mode, later, tmp_path, monkeypatch):
    def once(self, shape, std, *, step, stream=0, dtype=torch.float32):
        drawn = self.source.normal(shape, std, step=0, dtype=dtype)
        return drawn if later == "the same" or step == 0 else torch.zeros_like(drawn)

    monkeypatch.setattr(CorrelatedNoise, "normal", once)
    assert broken(mode, tmp_path) == {"noise"}


class FixedCohort(PoissonSampler):
    def draw(self, step):
        return np.arange(12)


class AlwaysTheFirst(GuardedArrivals):
    """Asks the same devices in every round, and looks away."""

    def choose(self, present, step):
        self.guard.load_state_dict({"last": {}, "count": {}})
        return list(present)[:12]


@pytest.mark.parametrize("mode", MODES)
def test_a_fixed_cohort_is_named(mode, tmp_path, monkeypatch):
    monkeypatch.setattr(accounts, "PoissonSampler", FixedCohort)
    monkeypatch.setattr(bounded, "GuardedArrivals", AlwaysTheFirst)
    assert broken(mode, tmp_path) == {"sampler"}


def test_accounts_that_add_no_noise_themselves_are_refused(tmp_path):
    with pytest.raises(ValueError, match="adds the noise itself"):
        check_account(settings("central").without_privacy(), tmp_path)


# On the device --------------------------------------------------------------------------------------------------------


class Linear(nn.Module):
    """A table, a trained layer: what the clipping engine can take apart."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(11, 40).requires_grad_(False)
        self.layer = nn.Linear(40, 11, bias=False)

    def adapter_parameters(self):
        return {"layer": self.layer.weight}

    def forward(self, input_ids):
        return SimpleNamespace(logits=self.layer(self.table(input_ids)))


class Photos:
    """So many photos; the last is the loudest."""

    def __init__(self, count):
        self.count = count

    def batches(self, model, device, round_number):
        tokens = torch.randint(11, (self.count, 6), generator=torch.Generator().manual_seed(3))
        return [{"input_ids": tokens, "labels": tokens}]


def device_checks(folder, rate=1.0):
    """(noise, sensitivity) of the update that a device sends, against the settings."""
    chosen = {"trust": "device", "on_device": {"sampling_rate": rate}, "participation": "poisson"}
    config = settings("central").model_copy(update={"local_steps": 1, "local_learning_rate": 1.0})
    config = FederatedConfig(**{**config.model_dump(), **chosen, "photos_per_household": 4, "clip_norm": 1e-3})
    places, model = iter(range(10**6)), Linear()

    def update(photos, seed, number=0):
        bench = Bench(model, Photos(photos), config.model_copy(update={"seed": seed}))
        book = Books(folder / str(next(places))).of(0, bench.settings)
        return train_privately(bench, 0, number, bench.adapters.read() * 0, book)

    scale = config.clip_norm / (rate * 4)
    still = [update(1, seed, number) - update(1, 0) for seed, number in ((1, 0), (1, 1), (2, 0), (2, 1))]
    noise = check_noise(lambda place: still[place], std=1.3 * scale, repeats=4)
    moved = check_sensitivity(lambda photos, seed: update(photos, seed), [(3, 4), (1, 2)], bound=scale, relative=0.02)
    return noise, moved


def test_a_device_keeps_its_promises(tmp_path):
    assert all(finding.passed for finding in device_checks(tmp_path))


def test_a_device_that_does_not_clip_is_named(tmp_path, monkeypatch):
    clip = on_device.FlatClip
    monkeypatch.setattr(on_device, "FlatClip", lambda norm: clip(100 * norm))
    _, moved = device_checks(tmp_path)
    assert not moved.passed


def test_a_device_that_draws_its_noise_once_is_named(tmp_path, monkeypatch):
    stream = SeededNoise._stream
    monkeypatch.setattr(SeededNoise, "_stream", lambda self, step, number, size: stream(self, 0, number, size))
    noise, _ = device_checks(tmp_path)
    assert not noise.passed
