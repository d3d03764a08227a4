"""What the frozen tower sees, computed once: features of every photo and of its turned and mirrored views.

Photos from above have no up, so all eight views are true ones; a private run draws among them inside a photo's one
loss, at no cost in privacy. Features are kept in float16 beside the run, in chunks: a run that was stopped goes on with
the next one. Without a tower, the pixels themselves are kept. It refuses a cache of other settings.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmslm.data.coco import CocoPhoto
from mmslm.model.modeling import MMSLMForConditionalGeneration
from mmslm.model.tower import FrozenTower
from mmslm.processing import normalise, to_pixels

CHUNK = 64


def view(pixels: Tensor, number: int) -> Tensor:
    """View `number` (0..7) of pixels [..., H, W]: quarter turns, from 4 on of the mirror image. 0 is the photo."""
    mirrored = pixels.flip(-1) if number >= 4 else pixels
    return torch.rot90(mirrored, number % 4, (-2, -1))


def view_numbers(count: int) -> tuple[int, ...]:
    """Which views a recipe of `count` views takes: turns and mirrors in turn, the photo itself first."""
    return (0, 5, 2, 7, 1, 4, 3, 6)[:count]


def see(
    model: MMSLMForConditionalGeneration,
    photos: Sequence[CocoPhoto],
    views: int,
    folder: Path,
    progress: Callable[[int], None],
) -> Tensor:
    """What stands in front of the projector, [photos, views, cells, d] float16; pixels [photos, views, 3, H, W] uint8
    where the front end is trained. `progress(n)`: n more photos are done."""
    side = model.config.vision.image_size
    settings = {"vision": model.config.vision.to_diff_dict(), "weights": _print(model)}
    key = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for start in range(0, len(photos), CHUNK):
        chunk = photos[start : start + CHUNK]
        names = hashlib.sha256("\n".join(photo.id for photo in chunk).encode()).hexdigest()[:8]
        pixels: npt.NDArray[np.uint8] | None = None
        parts = []
        for number in view_numbers(views):
            # A file for each view, so that a recipe with more of them takes over those that are there.
            path = folder / f"{key}-{start:06d}-{names}-{number}.safetensors"
            if not path.exists():
                if pixels is None:
                    pixels = np.stack([to_pixels(photo.image(), side) for photo in chunk])
                part = path.with_suffix(".part")
                save_file({"seen": _look(model, pixels, number)}, part)
                part.replace(path)
            parts.append(load_file(path)["seen"])
        found.append(torch.stack(parts, dim=1))
        progress(len(chunk))
    return torch.cat(found)


@torch.inference_mode()
def _look(model: MMSLMForConditionalGeneration, pixels: npt.NDArray[np.uint8], number: int) -> Tensor:
    """One view of pixels [n, H, W, 3]: features [n, cells, d] float16, or the pixels [n, 3, H, W] themselves."""
    tower = model.model.vision_tower
    if not isinstance(tower, FrozenTower):
        return view(torch.from_numpy(pixels).movedim(-1, 1), number).contiguous()
    # Channels last in memory: the same products, twice as fast on a CPU.
    tower.trunk.to(memory_format=torch.channels_last)
    whole = view(normalise(pixels), number).contiguous()
    seen = [tower(whole[start : start + 8, None]) for start in range(0, len(whole), 8)]
    return torch.cat(seen).to(torch.float16)


def _print(model: MMSLMForConditionalGeneration) -> str:
    """A fingerprint of the frozen weights; nothing where the front end is trained."""
    tower = model.model.vision_tower
    if not isinstance(tower, FrozenTower):
        return ""
    sums = [float(value.double().abs().sum()) for value in tower.state_dict().values()]
    return hashlib.sha256(repr(sums).encode()).hexdigest()


def encode(model: MMSLMForConditionalGeneration, seen: Tensor) -> Tensor:
    """seen [B, cells, d] (or pixels [B, 3, H, W] uint8) -> image tokens [B, T, D], with gradients for what trains."""
    if seen.dtype == torch.uint8:
        pixels = seen.to(torch.float32).div_(127.5).sub_(1.0)
        return model.encode_images(pixels[:, None])
    tokens: Tensor = model.model.projector(seen.to(torch.float32))
    return tokens


__all__ = ["encode", "see", "view", "view_numbers"]
