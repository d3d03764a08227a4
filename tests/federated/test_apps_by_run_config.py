"""The two app objects that Flower loads, driven by run configuration alone, do what the library call does, bit for bit."""

from __future__ import annotations

import pytest
import torch
from flwr.app import Context, RecordDict
from safetensors import safe_open

from federated.client_app import app as client
from federated.devices import SceneHouseholds
from federated.grid import InProcessGrid
from federated.job import RESULT
from federated.server_app import app as server
from federated.settings import AdapterConfig, FederatedConfig
from federated.simulation import train_on_photos

SETTINGS = FederatedConfig(
    households=6,
    rounds=2,
    sampling_rate=0.6,
    photos_per_household=2,
    delta=0.05,
    epsilon=80.0,
    accountant="rdp",
    noise_multiplier=1.5,
    noise="simulation",
    adapters=AdapterConfig(rank=2, layers=(1,)),
)


def run(run_config):
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=run_config)
    with InProcessGrid(client, devices=6, run_config=run_config, workers=2) as grid:
        server(grid, context)


def test_the_apps_that_flower_loads_give_the_adapters_of_the_library_call(tiny_base, tmp_path):
    run(SETTINGS.to_run_config() | {"base": str(tiny_base), "data": "scenes", "run-dir": str(tmp_path / "flower")})
    direct = train_on_photos(SETTINGS, base=tiny_base, population=SceneHouseholds(6, 2), run_dir=tmp_path / "direct")
    with safe_open(tmp_path / "flower" / RESULT, framework="pt") as file:
        assert torch.equal(file.get_tensor("vector"), direct.result.vector)
        assert file.metadata()["fingerprint"] == SETTINGS.fingerprint()


def test_a_relative_run_directory_and_an_unknown_key_are_refused(tiny_base):
    with pytest.raises(ValueError, match="absolute path"):
        run(SETTINGS.to_run_config() | {"base": str(tiny_base), "run-dir": "runs/here"})
    with pytest.raises(ValueError, match="roundz"):
        run(SETTINGS.to_run_config() | {"roundz": 3})
