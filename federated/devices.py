"""Devices: who holds which photos, and how a device turns its photos into batches.

A population gives device i its photos. The feeder makes batches of them: it encodes each photo once with the frozen
image encoder and keeps the features (a few ten kilobytes a photo, bounded), because nothing that trains lies before
them.
Which captions and questions a device trains on in a round is drawn from (seed, device, round), so that every runtime,
every number of workers and every resumed run sees the same batches.

What it refuses: a device without photos, and more devices than the data has owners.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from federated.settings import FederatedConfig
from mmslm.data.collate import collate_encoded, draw_turns
from mmslm.data.photo import Photo
from mmslm.data.scenes import household
from mmslm.processing import MMSLMProcessor
from mmslm.training import Batch


class Population(Protocol):
    """Devices and their photos. Must be a pure function of the device's number."""

    @property
    def size(self) -> int:
        """How many devices there are."""

    def photos(self, device: int) -> Sequence[Photo]:
        """The photos of ``device`` in [0, size), always the same."""


class SceneHouseholds:
    """Households of the embedded scenes: device i is household ``first + i``."""

    def __init__(self, households: int, photos_per_household: int, *, seed: int = 0, first: int = 0) -> None:
        self.size = households
        self.photos_per_household = photos_per_household
        self.seed = seed
        self.first = first

    def photos(self, device: int) -> list[Photo]:
        home = household(self.first + _checked(device, self.size), seed=self.seed)
        return [home.photo(j) for j in range(self.photos_per_household)]


class PhotosByOwner:
    """Real photos, one device per owner, owners in sorted order; at most ``photos_per_household`` of each."""

    def __init__(self, photos: Sequence[Photo], photos_per_household: int | None = None) -> None:
        by_owner: dict[str, list[Photo]] = {}
        for photo in photos:
            by_owner.setdefault(photo.owner, []).append(photo)
        if not by_owner:
            raise ValueError("there are no photos to make devices of; give a folder that holds some.")
        self._photos = [sorted(by_owner[owner], key=lambda photo: photo.id) for owner in sorted(by_owner)]
        if photos_per_household is not None:
            self._photos = [held[:photos_per_household] for held in self._photos]
        self.size = len(self._photos)

    def photos(self, device: int) -> list[Photo]:
        return self._photos[_checked(device, self.size)]


def _checked(device: int, size: int) -> int:
    if not 0 <= device < size:
        raise ValueError(f"there is no device {device}; this population has devices 0 to {size - 1}.")
    return device


def check_population(population: Population, settings: FederatedConfig) -> None:
    """ValueError unless the data has a device for every household that the settings count on."""
    if population.size < settings.households:
        raise ValueError(
            f"the settings count on {settings.households} households and the data has {population.size}; lower "
            "'households' to what there is (fewer devices cost more noise), or bring more data."
        )


@dataclass(frozen=True)
class Held:
    """What a worker keeps of a device's photos: the photos, and what the frozen part of the model made of them.

    inputs: image features [P, T_img, D], or pixels [P, 1, 3, H, W] where experts before the decoder are trained.
    """

    photos: tuple[Photo, ...]
    inputs: Tensor

    @property
    def size(self) -> int:
        return self.inputs.numel() * self.inputs.element_size()


class PhotoFeeder:
    """Batches of a device's photos for the model. One feeder serves all workers.

    ``cache_bytes`` bounds the kept features; the least recently used device is forgotten first, and encoded again when
    it comes back (with equal results: a device's photos are always encoded together, as one batch).
    """

    def __init__(
        self, population: Population, processor: MMSLMProcessor, settings: FederatedConfig, cache_bytes: int = 256 << 20
    ) -> None:
        self.population = population
        self.processor = processor
        self.settings = settings
        self.cache_bytes = cache_bytes
        self._reuse_features = settings.adapters.include == ("decoder",)
        self._held: OrderedDict[int, Held] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def batches(self, model: nn.Module, device: int, round_number: int) -> list[Batch]:
        """The batches of ``device`` in ``round_number``: every photo once, at most ``local_batch`` photos in each."""
        held = self.held(model, device)
        settings = self.settings
        seed = settings.seed * 1_000_003 + device
        encoded = [
            self.processor.encode_turns(
                draw_turns(
                    photo,
                    settings.turns_per_photo,
                    seed=seed,
                    epoch=round_number,
                    captions=-(-settings.turns_per_photo // 2),
                )
            )
            for photo in held.photos
        ]
        name = "image_features" if self._reuse_features else "pixel_values"
        batches: list[Batch] = []
        for start in range(0, len(encoded), settings.local_batch):
            part = slice(start, start + settings.local_batch)
            batch = collate_encoded(encoded[part], [[] for _ in encoded[part]], self.processor, multiple=1)
            # Padding stands on the right and attention looks left: no labelled token sees it, and without a mask the
            # fused kernel runs.
            del batch["attention_mask"]
            batch[name] = held.inputs[part]
            batches.append(batch)
        return batches

    def held(self, model: nn.Module, device: int) -> Held:
        """The device's photos, encoded now or before."""
        with self._lock:
            if device in self._held:
                self._held.move_to_end(device)
                return self._held[device]
        photos = tuple(self.population.photos(device))
        if not photos:
            raise ValueError(f"device {device} holds no photo to train on.")
        with torch.no_grad():
            inputs = self.processor.pixels([photo.image(self.processor.image_size) for photo in photos]).unsqueeze(1)
            if self._reuse_features:
                inputs = model.encode_images(inputs)  # type: ignore[operator]
        held = Held(photos, inputs)
        with self._lock:
            self._keep(device, held)
        return held

    def _keep(self, device: int, held: Held) -> None:
        if device in self._held:
            return
        self._held[device] = held
        self._bytes += held.size
        while self._bytes > self.cache_bytes and len(self._held) > 1:
            _, forgotten = self._held.popitem(last=False)
            self._bytes -= forgotten.size
