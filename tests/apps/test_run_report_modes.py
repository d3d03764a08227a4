"""Reports of every privacy mode: made by the run's own path, and every claim follows from its evidence."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from apps.run_config import RunConfig
from apps.run_report import write_run_report
from federated.settings import FederatedConfig
from federated.simulation import simulate
from privacy.audit import audit_paths
from privacy.canonical import canonical_bytes
from privacy.report.recompute import Pricer

COMMON = {
    "households": 30,
    "rounds": 4,
    "sampling_rate": 0.2,
    "photos_per_household": 2,
    "clip_norm": 0.5,
    "epsilon": 30.0,
    "delta": 1e-3,
    "accountant": "own",
    "noise_multiplier": 1.5,
    "noise": "simulation",
    "workers": 1,
}
BOUNDED = {"participation": "bounded", "bounded": {"min_separation": 2, "max_participations": 2}}
MODES = {
    "adaptive": {"adaptive": {"enabled": True, "count_noise": 6.0}},
    "evaluated": {"private_evaluation": {"every": 2}},
    "bounded": {**BOUNDED, "bounded": {"min_separation": 2, "max_participations": 2, "bands": 3}},
    "secure": {**BOUNDED, "trust": "secure_aggregation"},
    "device": {"trust": "device"},
}


class Linear(nn.Module):
    """A table, a trained layer, a head: what the clipping engine can take apart."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(7, 4).requires_grad_(False)
        self.layer = nn.Linear(4, 7, bias=False)

    def adapter_parameters(self):
        return {"layer": self.layer.weight}

    def forward(self, input_ids):
        return SimpleNamespace(logits=self.layer(self.table(input_ids)))


class Feeder:
    def batches(self, model, device, round_number):
        tokens = torch.randint(7, (2, 5), generator=torch.Generator().manual_seed(device * 100 + round_number))
        return [{"input_ids": tokens, "labels": tokens}]


@pytest.fixture(scope="module")
def pricer():
    return Pricer()


def report_of(mode, folder):
    federated = FederatedConfig(**{**COMMON, **MODES[mode]})
    simulate(federated, model=Linear(), feeder=Feeder(), run_dir=folder)
    settings = RunConfig(name=mode, federated=federated, ceiling=None)
    (folder / "model").mkdir()
    (folder / "model" / "model.safetensors").write_bytes(b"weights after")
    (folder / "config.yaml").write_text(f"name: {mode}\n")
    base = folder.with_name("base")
    base.mkdir()
    (base / "model.safetensors").write_bytes(b"weights before")
    path, _ = write_run_report(settings, folder, base, {"mmslm": "0"})
    return path


@pytest.mark.parametrize("mode", sorted(MODES))
def test_a_report_of_each_mode_passes_its_audit(mode, tmp_path, pricer):
    path = report_of(mode, tmp_path / "run")
    (found,) = audit_paths([tmp_path / "run"], pricer=pricer).reports
    assert found.failed == (), found
    assert {check.id: check.verdict for check in found.checks}["integrity"] == "pass", found
    claim = json.loads(path.read_text())["claim"]
    assert claim["unit"] == ("example" if mode == "device" else "user")
    assert claim["adjacency"] == ("zero_out" if mode in ("bounded", "secure") else "add_or_remove_one")
    if mode == "secure":
        assert "no update alone" in claim["threat_model"]


def test_the_audit_finds_a_split_that_does_not_add_up(tmp_path, pricer):
    path = report_of("adaptive", tmp_path / "run")
    report = json.loads(path.read_bytes())
    report["mechanism"]["count_noise_multiplier"] = 60.0  # says that the count took less of the noise than it did
    path.write_bytes(canonical_bytes(report) + b"\n")
    (found,) = audit_paths([tmp_path / "run"], pricer=pricer).reports
    assert "clipping" in {check.id for check in found.failed}


def test_the_audit_finds_a_participation_bound_that_nobody_enforced(tmp_path, pricer):
    path = report_of("secure", tmp_path / "run")
    report = json.loads(path.read_bytes())
    report["sampling"]["participation_bound"] = 3
    path.write_bytes(canonical_bytes(report) + b"\n")
    (found,) = audit_paths([tmp_path / "run"], pricer=pricer).reports
    assert "sampler" in {check.id for check in found.failed}
