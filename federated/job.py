"""What Flower's run configuration describes: which base model, which photos, which run directory, which settings.

Both apps read the same keys, so that under ``flwr run`` nothing is configured twice:

    base       a model directory, or "base" for the one that ships in the package
    data       "scenes" (the embedded households), or a folder of COCO captions with their pictures
    data-seed  seed of the scenes
    data-owner which key of a COCO image entry names its owner ("" makes every photo a device)
    held-out   so many owners take no part, to be asked afterwards (of all owners, every fifth; 0 holds out none)
    deadline   seconds that a round waits for its devices; 0 waits for all
    wait-for   the first round waits (two minutes at most) until so many devices are connected
    run-dir    where the server keeps checkpoints, ledger and the trained adapters; an absolute path, because Flower
               starts apps in folders of its own
    ...        every other key is one of ``federated.settings.FederatedConfig``, dashes for underscores
               ("server.learning-rate")

A device's owner has the last word about the device: ``base``, ``data`` and ``data-owner`` in a node's own configuration
(``--node-config``) stand before the server's, so a server cannot point at other files.

What it refuses: a missing key, a relative run directory, a base model that is not there.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import torch
from flwr.app import Context
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from federated.accounts import LEDGER
from federated.bench import Bench
from federated.checkpoint import write_atomically
from federated.device_store import store_of_node
from federated.devices import PhotoFeeder, PhotosByOwner, Population, SceneHouseholds, check_population
from federated.roster import device_number
from federated.settings import FederatedConfig, Scalar
from federated.strategy import Job, Result, RoundFacts
from federated.vector import AdapterVector
from mmslm.data.photo import Photo
from mmslm.pretrained import load_model
from mmslm.processing import MMSLMProcessor

logger = logging.getLogger(__name__)

OWN_KEYS = frozenset({"base", "data", "data-seed", "data-owner", "held-out", "deadline", "wait-for", "run-dir"})
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


def trained_model(base: Path, settings: FederatedConfig, vector: Tensor) -> tuple[nn.Module, MMSLMProcessor]:
    """The base model with the trained adapters ``vector [d]`` in it, and its processor."""
    model, processor = adapted_model(base, settings)
    AdapterVector(model.adapter_parameters()).write(vector)  # type: ignore[operator]
    return model, processor


def held_out_owners(photos: Sequence[Photo], count: int) -> set[str]:
    """Of the owners, sorted, every fifth until there are ``count``: they take no part and are asked afterwards."""
    return set(sorted({photo.owner for photo in photos})[::5][:count])


@dataclass(frozen=True)
class Work:
    """What is to be trained and where it is kept, for every runtime alike; the fields are the keys above."""

    settings: FederatedConfig
    run_dir: Path
    base: str = "base"
    data: str = "scenes"
    data_seed: int = 0
    data_owner: str = ""
    held_out: int = 0

    def population(self) -> Population:
        """The devices that train: the embedded households, or the owners of photos in a folder."""
        settings = self.settings
        if self.data == "scenes":
            return SceneHouseholds(settings.households, settings.photos_per_household, seed=self.data_seed)
        from mmslm.data.coco import CocoPhotos

        photos = CocoPhotos(Path(self.data), owner=self.data_owner or None)
        apart = held_out_owners(photos, self.held_out)
        return PhotosByOwner([photo for photo in photos if photo.owner not in apart], settings.photos_per_household)

    def run_config(self, *, deadline: float = 0.0, wait_for: int = 0) -> dict[str, Scalar]:
        """The whole run configuration, for a runtime in other processes: paths are made absolute."""
        return self.settings.to_run_config() | {
            "base": self.base if self.base == "base" else str(Path(self.base).absolute()),
            "data": self.data if self.data == "scenes" else str(Path(self.data).absolute()),
            "data-seed": self.data_seed,
            "data-owner": self.data_owner,
            "held-out": self.held_out,
            "deadline": float(deadline),
            "wait-for": wait_for,
            "run-dir": str(self.run_dir.absolute()),
        }

    @classmethod
    def of(cls, context: Context) -> Work:
        """What the run configuration of ``context`` says."""
        return cls(
            settings_of(context),
            run_dir=Path(_text(context, "run-dir", "")),
            base=_text(context, "base", "base"),
            data=_text(context, "data", "scenes"),
            data_seed=int(context.run_config.get("data-seed", 0)),
            data_owner=_text(context, "data-owner", ""),
            held_out=int(context.run_config.get("held-out", 0)),
        )


class OwnPhotos:
    """What one node knows of a population: its own photos. It is asked for no other device's."""

    def __init__(self, device: int, photos: Sequence[Photo], settings: FederatedConfig) -> None:
        self.size = settings.households
        self._device = device
        self._photos = sorted(photos, key=lambda photo: photo.id)[: settings.photos_per_household]

    def photos(self, device: int) -> list[Photo]:
        if device != self._device:
            raise ValueError(f"this node is device {self._device} and holds no photos of device {device}.")
        return self._photos


def population_of(context: Context) -> Population:
    """The photos that a device works with: its owner's folder where the node names one, else what the run names."""
    work = Work.of(context)
    if "data" in context.node_config and work.data != "scenes":
        from mmslm.data.coco import CocoPhotos

        photos = CocoPhotos(Path(work.data), owner=work.data_owner or None)
        return OwnPhotos(device_number(context), photos, work.settings)
    return work.population()


def open_bench(context: Context) -> Bench:
    """A device's bench, for the ClientApp. One torch thread, as in every runtime: its numbers must not depend on cores."""
    torch.set_num_threads(1)
    work = Work.of(context)
    photos = population_of(context)
    check_population(photos, work.settings)
    model, processor = adapted_model(Path(work.base), work.settings)
    store = store_of_node(context.node_config, work.settings.fingerprint(), str(context.run_config.get("run-dir", "")))
    return Bench(model, PhotoFeeder(photos, processor, work.settings), work.settings, store=store)


def open_job(context: Context) -> Job:
    """The server's job, for the ServerApp."""
    torch.set_num_threads(1)
    work = Work.of(context)
    if not work.run_dir.is_absolute():
        raise ValueError(
            f"run-dir is {str(work.run_dir)!r}; give an absolute path (flwr run --run-config "
            "\"run-dir='/home/you/run'\"), because Flower starts apps in folders of its own."
        )
    model, _ = adapted_model(Path(work.base), work.settings)
    adapters = AdapterVector(model.adapter_parameters())  # type: ignore[operator]
    return Job(
        settings=work.settings,
        initial=adapters.read(),
        layout=adapters.layout(),
        run_dir=work.run_dir,
        progress=_tell,
        timeout=float(context.run_config.get("deadline", 0.0)) or None,
    )


def read_result(run_dir: Path, settings: FederatedConfig) -> Result:
    """What ``write_result`` left in ``run_dir``. ValueError where it is missing, damaged, or of other settings."""
    path = run_dir / RESULT
    try:
        with safe_open(path, framework="pt") as file:
            vector, metadata = file.get_tensor("vector"), file.metadata() or {}
        facts = json.loads((run_dir / "history.json").read_text(encoding="utf-8"))
        history, lost, epsilon = tuple(facts["rounds"]), tuple(facts["lost"]), facts["epsilon"]
        noise_multiplier = facts["noise_multiplier"]
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"the trained adapters in {run_dir} cannot be read ({error}); start again to resume."
        ) from None
    if metadata.get("fingerprint") != settings.fingerprint():
        raise ValueError(f"{path} was trained under other settings; give another run directory.")
    ledger = run_dir / LEDGER
    return Result(vector, history, lost, epsilon, noise_multiplier, ledger if ledger.exists() else None)


def write_result(job: Job, result: Result) -> None:
    """The trained adapters and the public history into the run directory."""
    metadata = {"layout": job.layout, "fingerprint": job.settings.fingerprint()}
    write_atomically(job.run_dir / RESULT, save({"vector": result.vector.contiguous()}, metadata))
    history = json.dumps(
        {
            "rounds": list(result.history),
            "lost": list(result.lost),
            "epsilon": result.epsilon,
            "noise_multiplier": result.noise_multiplier,
        },
        indent=1,
    )
    write_atomically(job.run_dir / "history.json", history.encode())
    logger.info("trained adapters are in %s", job.run_dir / RESULT)


def _tell(facts: RoundFacts) -> None:
    spent = "no privacy" if facts.epsilon is None else f"epsilon {facts.epsilon:.3f} spent"
    logger.info("round %d of %d: %s, step norm %.4g", facts.round, facts.rounds, spent, facts.update_norm)


def _text(context: Context, key: str, default: str) -> str:
    value = context.node_config.get(key) or context.run_config.get(key, default)
    if not isinstance(value, str):
        raise ValueError(f"run configuration key {key!r} is {value!r}; give text.")
    return value
