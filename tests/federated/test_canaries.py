"""Canary devices in the real rounds: a true run is not contradicted, and each planted bug shows."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from federated import accounts
from federated.canaries import Canaries, audit_with_canaries
from federated.settings import FederatedConfig
from privacy import mechanism
from privacy.mechanism import GaussianSum
from privacy.sampling import PoissonSampler

DIMENSION = 3000


class Wide(nn.Module):
    """Many numbers to move, and no photos: everything in it is a canary's."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(DIMENSION))

    def adapter_parameters(self):
        return {"weight": self.weight}

    def forward(self, input_ids):
        return SimpleNamespace(logits=self.weight[:11].expand(*input_ids.shape, 11))


class Still:
    """Devices that are no canaries train on one token, which hardly moves anything."""

    def batches(self, model, device, round_number):
        tokens = torch.zeros(1, 2, dtype=torch.long)
        return [{"input_ids": tokens, "labels": tokens}]


def settings(**changes):
    return FederatedConfig(
        **{
            "households": 200,
            "rounds": 40,
            "sampling_rate": 0.5,
            "clip_norm": 1.0,
            "noise_multiplier": 10.0,
            "epsilon": 50.0,
            "delta": 1e-4,
            "accountant": "rdp",
            "noise": "simulation",
            "seed": 1,
            "workers": 1,
            "server": {"name": "sgd", "learning_rate": 1.0},
            **changes,
        }
    )


def audit(tmp_path, canaries=200, length=1.0, **changes):
    _, found = audit_with_canaries(
        settings(**changes), model=Wide(), feeder=Still(), run_dir=tmp_path, canaries=canaries, length=length
    )
    return found


def test_a_true_run_is_not_contradicted_and_the_bound_is_not_empty(tmp_path):
    strong = audit(tmp_path / "strong", noise_multiplier=1.0, epsilon=500.0)
    assert 0.5 < strong.bound.lower_bound <= strong.claimed  # something is found, and less than is claimed
    weak = audit(tmp_path / "weak")
    assert not weak.contradicted and weak.claimed < 4 and weak.estimate.epsilon < 2 * weak.claimed
    assert weak.bound.to_json()["m"] == 200 and not weak.estimate.is_bound


@pytest.mark.slow
def test_a_path_without_clipping_shows(tmp_path, monkeypatch):
    assert not audit(tmp_path / "clipped", length=100.0).contradicted
    monkeypatch.setattr(mechanism, "clip_vector", lambda vector, norm: (vector.double(), False, True))
    found = audit(tmp_path / "unclipped", length=100.0)
    assert found.contradicted and found.estimate.epsilon > found.claimed


@pytest.mark.slow
def test_noise_that_is_drawn_once_shows(tmp_path, monkeypatch):
    original = GaussianSum._finish

    def once(self, total, step):
        return original(self, total, step) if step == 0 else (total / self.divisor).to(torch.float32)

    monkeypatch.setattr(GaussianSum, "_finish", once)
    found = audit(tmp_path, rounds=60, noise_multiplier=12.0)
    assert found.contradicted and found.estimate.epsilon > found.claimed


@pytest.mark.slow
def test_a_cohort_that_is_fixed_instead_of_sampled_shows(tmp_path, monkeypatch):
    changes = {"households": 800, "sampling_rate": 0.25, "rounds": 40, "noise_multiplier": 2.5}
    assert not audit(tmp_path / "sampled", **changes).contradicted

    class Fixed(PoissonSampler):
        """Draws the devices of the first round in every round; here they happen to be the canaries."""

        def draw(self, step):
            import numpy as np

            return np.arange(self.population - 200, self.population)

    monkeypatch.setattr(accounts, "PoissonSampler", Fixed)
    found = audit(tmp_path / "fixed", **changes)
    assert found.contradicted and found.estimate.epsilon > found.claimed


def test_secure_sums_are_audited_like_any_other(tmp_path):
    found = audit(
        tmp_path,
        households=24,
        canaries=24,
        rounds=3,
        sampling_rate=0.25,
        trust="secure_aggregation",
        participation="bounded",
        noise_multiplier=2.0,
    )
    assert not found.contradicted


def test_canaries_that_test_nothing_are_refused(tmp_path):
    with pytest.raises(ValueError, match="makes none"):
        audit(tmp_path, private=False)
    with pytest.raises(ValueError, match="at least 2"):
        Canaries.plant(1, 10, 5, 0)
