"""Settings: unknown keys and promises that mean nothing are refused; Flower's flat form loses nothing."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from pydantic import ValidationError

from federated.job import OWN_KEYS
from federated.settings import AdapterConfig, FederatedConfig, ServerOptimiserConfig

GIVEN = {"households": 1000, "rounds": 50, "sampling_rate": 0.05}


def test_unknown_keys_are_refused():
    with pytest.raises(ValidationError, match="household_count"):
        FederatedConfig(**GIVEN, household_count=3)
    with pytest.raises(ValidationError, match="lr"):
        FederatedConfig(**GIVEN, server={"lr": 1.0})


def test_a_delta_that_permits_publishing_a_device_is_refused():
    with pytest.raises(ValidationError, match="publishing one"):
        FederatedConfig(**GIVEN, delta=1e-3)
    assert not FederatedConfig(**GIVEN, delta=1e-3, private=False).private


def test_a_cohort_of_less_than_one_device_is_refused():
    with pytest.raises(ValidationError, match="at least 1 is needed"):
        FederatedConfig(households=10, rounds=5, sampling_rate=0.05)


@pytest.mark.parametrize("layers", [None, (0, 3)])
def test_the_flat_form_round_trips(layers):
    settings = FederatedConfig(
        **GIVEN,
        noise_multiplier=1.25,
        server=ServerOptimiserConfig(name="momentum", learning_rate=0.5),
        adapters=AdapterConfig(rank=8, layers=layers, include=("decoder", "projector")),
    )
    flat = settings.to_run_config()
    assert all(isinstance(value, bool | int | float | str) for value in flat.values())
    assert FederatedConfig.from_run_config(flat) == settings
    assert FederatedConfig.from_run_config(flat | {"base": "x"}, other_keys=frozenset({"base"})) == settings


def test_an_unknown_flat_key_is_refused():
    with pytest.raises(ValueError, match="roundz"):
        FederatedConfig.from_run_config(FederatedConfig(**GIVEN).to_run_config() | {"roundz": 3})


def test_the_fingerprint_follows_everything_but_the_workers():
    settings = FederatedConfig(**GIVEN)
    assert settings.fingerprint() == settings.model_copy(update={"workers": 7}).fingerprint()
    assert settings.fingerprint() != settings.model_copy(update={"seed": 7}).fingerprint()
    assert settings.fingerprint() != settings.without_privacy().fingerprint()


def test_flowers_configuration_in_the_project_file_lists_every_key():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    stated = {}
    for name, value in project["tool"]["flwr"]["app"]["config"].items():
        stated |= {f"{name}.{key}": inner for key, inner in value.items()} if isinstance(value, dict) else {name: value}
    settings = FederatedConfig.from_run_config(stated, other_keys=OWN_KEYS)
    assert set(stated) == set(settings.to_run_config()) | OWN_KEYS  # Flower overrides no key that is missing there


def test_a_section_that_contradicts_itself_is_told_in_its_own_words(tmp_path):
    from mmslm.config import ConfigError, load_config

    path = tmp_path / "run.yaml"
    path.write_text("households: 1000\nrounds: 5\nsampling_rate: 0.1\ntrust: secure_aggregation\n")
    with pytest.raises(ConfigError) as told:
        load_config(path, FederatedConfig)
    assert "knows whom it asked; say participation: bounded." in str(told.value)
    assert "households" not in str(told.value) and not str(told.value).endswith("..")
