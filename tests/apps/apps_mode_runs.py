"""A tiny run of every privacy mode, trained and reported by the product's own path."""

from __future__ import annotations

from types import SimpleNamespace

import torch
import yaml
from torch import nn

from apps.run_config import RunConfig
from apps.run_report import write_run_report
from federated.settings import FederatedConfig
from federated.simulation import simulate

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


def report_of(mode, folder):
    federated = FederatedConfig(**{**COMMON, **MODES[mode]})
    simulate(federated, model=Linear(), feeder=Feeder(), run_dir=folder)
    settings = RunConfig(name=mode, federated=federated, ceiling=None)
    (folder / "model").mkdir()
    (folder / "model" / "model.safetensors").write_bytes(b"weights after")
    (folder / "config.yaml").write_text(yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False))
    base = folder.with_name("base")
    base.mkdir()
    (base / "model.safetensors").write_bytes(b"weights before")
    path, _ = write_run_report(settings, folder, base, {"mmslm": "0"})
    return path
