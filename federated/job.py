"""What Flower's run configuration describes: which base model, which photos, which run directory, which settings.

Both apps read the same keys, so that under ``flwr run`` nothing is configured twice:

    base       a model directory, or "base" for the one that ships in the package
    data       "scenes" (the embedded households), or a folder of COCO captions with their pictures
    data-seed  seed of the scenes
    data-owner which key of a COCO image entry names its owner ("" makes every photo a device)
    run-dir    where the server keeps checkpoints, ledger and the trained adapters; an absolute path, because Flower
               starts apps in folders of its own
    ...        every other key is one of ``federated.settings.FederatedConfig``, dashes for underscores
               ("server.learning-rate")

What it refuses: a missing key, a relative run directory, a base model that is not there.
"""

from __future__ import annotations

import json
import logging
from importlib import resources
from pathlib import Path

import torch
from flwr.app import Context
from safetensors.torch import save
from torch import nn

from federated.bench import Bench
from federated.checkpoint import write_atomically
from federated.devices import PhotoFeeder, PhotosByOwner, Population, SceneHouseholds, check_population
from federated.settings import FederatedConfig
from federated.strategy import Job, Result, RoundFacts
from federated.vector import AdapterVector
from mmslm.pretrained import load_model
from mmslm.processing import MMSLMProcessor

logger = logging.getLogger(__name__)

OWN_KEYS = frozenset({"base", "data", "data-seed", "data-owner", "run-dir"})
RESULT = "adapters.safetensors"


def settings_of(context: Context) -> FederatedConfig:
    """The run's settings out of Flower's run configuration; ValueError for an unknown key or a bad value."""
    return FederatedConfig.from_run_config(context.run_config, other_keys=OWN_KEYS)


def base_directory(name: str | Path) -> Path:
    """The model directory that ``name`` means: a path, or "base" for the one in the package."""
    path = Path(str(resources.files("mmslm"))) / "assets" / "base" if str(name) == "base" else Path(name)
    if not (path / "config.json").is_file():
        raise FileNotFoundError(f"there is no model in {path} (no config.json); give a model directory, or 'base'.")
    return path


def adapted_model(base: Path, settings: FederatedConfig) -> tuple[nn.Module, MMSLMProcessor]:
    """The base model in directory ``base`` with fresh image experts, frozen but for them, and its processor."""
    # Weights are stored in bfloat16; adapters must train in float32, or small updates round away.
    model, processor = load_model(base_directory(base), dtype=torch.float32)
    adapters = settings.adapters
    model.add_image_experts(
        adapters.rank, layers=adapters.layers, train=adapters.train, seed=adapters.seed, include=adapters.include
    )
    model.freeze_base()
    return model, processor


def population_of(context: Context, settings: FederatedConfig) -> Population:
    """The photos that the key ``data`` names."""
    data = _text(context, "data", "scenes")
    seed = context.run_config.get("data-seed", 0)
    if data == "scenes":
        return SceneHouseholds(settings.households, settings.photos_per_household, seed=int(seed))
    from mmslm.data.coco import CocoPhotos

    owner = _text(context, "data-owner", "")
    return PhotosByOwner(CocoPhotos(Path(data), owner=owner or None), settings.photos_per_household)


def open_bench(context: Context) -> Bench:
    """A device's bench, for the ClientApp. One torch thread, as in every runtime: its numbers must not depend on cores."""
    torch.set_num_threads(1)
    settings = settings_of(context)
    population = population_of(context, settings)
    check_population(population, settings)
    model, processor = adapted_model(Path(_text(context, "base", "base")), settings)
    return Bench(model, PhotoFeeder(population, processor, settings), settings)


def open_job(context: Context) -> Job:
    """The server's job, for the ServerApp."""
    settings = settings_of(context)
    run_dir = Path(_text(context, "run-dir", ""))
    if not run_dir.is_absolute():
        raise ValueError(
            f"run-dir is {str(run_dir)!r}; give an absolute path (flwr run --run-config \"run-dir='/home/you/run'\"), "
            "because Flower starts apps in folders of its own."
        )
    model, _ = adapted_model(Path(_text(context, "base", "base")), settings)
    adapters = AdapterVector(model.adapter_parameters())  # type: ignore[operator]
    return Job(settings=settings, initial=adapters.read(), layout=adapters.layout(), run_dir=run_dir, progress=_tell)


def write_result(job: Job, result: Result) -> None:
    """The trained adapters and the public history into the run directory."""
    metadata = {"layout": job.layout, "fingerprint": job.settings.fingerprint()}
    write_atomically(job.run_dir / RESULT, save({"vector": result.vector.contiguous()}, metadata))
    history = json.dumps(
        {"rounds": list(result.history), "lost": list(result.lost), "epsilon": result.epsilon}, indent=1
    )
    write_atomically(job.run_dir / "history.json", history.encode())
    logger.info("trained adapters are in %s", job.run_dir / RESULT)


def _tell(facts: RoundFacts) -> None:
    spent = "no privacy" if facts.epsilon is None else f"epsilon {facts.epsilon:.3f} spent"
    logger.info("round %d of %d: %s, step norm %.4g", facts.round, facts.rounds, spent, facts.update_norm)


def _text(context: Context, key: str, default: str) -> str:
    value = context.run_config.get(key, default)
    if not isinstance(value, str):
        raise ValueError(f"run configuration key {key!r} is {value!r}; give text.")
    return value
