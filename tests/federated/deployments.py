"""Small runs of the real apps, for the tests that start a deployment or Ray."""

from __future__ import annotations

import time
from pathlib import Path

from federated.devices import SceneHouseholds
from federated.job import Work
from federated.settings import AdapterConfig, FederatedConfig
from federated.simulation import train_on_photos


def settings(**changes) -> FederatedConfig:
    """A run of seconds. The noise is given and seeded, so that no test waits for a calibration."""
    facts = {
        "households": 2,
        "rounds": 3,
        "sampling_rate": 0.9,
        "photos_per_household": 2,
        "delta": 0.05,
        "epsilon": 80.0,
        "accountant": "rdp",
        "noise_multiplier": 3.0,
        "noise": "simulation",
        "adapters": AdapterConfig(rank=2, layers=(1,)),
    }
    return FederatedConfig.model_validate(facts | changes)


def work(settings: FederatedConfig, base: Path, run_dir: Path) -> Work:
    return Work(settings, run_dir, base=str(base))


def in_process(settings: FederatedConfig, base: Path, run_dir: Path):
    """The same run in this process."""
    population = SceneHouseholds(settings.households, settings.photos_per_household)
    return train_on_photos(settings, base=base, population=population, run_dir=run_dir).result


def until(condition, seconds: float = 60.0, what: str = "it") -> None:
    """Return when ``condition()``; fail where it does not come true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds:.0f} s"
        time.sleep(0.05)


def rounds_done(run_dir: Path) -> int:
    found = sorted((run_dir / "rounds").glob("round-*.safetensors"))
    return int(found[-1].stem.removeprefix("round-")) if found else 0
