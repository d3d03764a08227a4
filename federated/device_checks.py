"""Direct checks of the engine with which devices protect their own photos, promise by promise.

The product's own local step (``federated.on_device.train_privately``: its sampler, clipping, noise, divisor and ledger) runs on
one small linear layer with photos that we make: silent ones, whose gradient is zero, and loud ones. What is expected comes
from the settings. It touches no private data, and no model: clipping of the real layers is the engine's own, tested apart.

    noise          each local step's noise is fresh and as strong as was paid for
    sensitivity    no photo moves a step by more than C
    sampler        a device's photos are drawn by independent coins
"""

from __future__ import annotations

import secrets
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from federated.account_checks import unpriced
from federated.bench import Bench
from federated.on_device import Books, PhotoCoins, train_privately
from federated.settings import FederatedConfig
from privacy.audit.empirical.invariants import check_noise, check_sensitivity
from privacy.audit.empirical.release import check_coins
from privacy.audit.empirical.result import Finding

WIDTH, WORDS, LOUD, SILENT = 384, 8, 1, 0
MANY = 50  # photos: enough to tell whether coins are fair


class Probe(nn.Module):
    """A frozen table, a trained layer: word 0 is silent, all others are so loud that clipping has to cut them."""

    def __init__(self, clip_norm: float) -> None:
        super().__init__()
        drawn = torch.randn(WORDS, WIDTH, generator=torch.Generator().manual_seed(5)) * max(1.0, clip_norm) * 100
        drawn[SILENT] = 0.0
        self.table = nn.Embedding(WORDS, WIDTH, _weight=drawn).requires_grad_(False)
        self.layer = nn.Linear(WIDTH, WORDS, bias=False)

    def adapter_parameters(self) -> dict[str, nn.Parameter]:
        return dict(self.layer.named_parameters())

    def forward(self, input_ids: Tensor) -> Any:
        return SimpleNamespace(logits=self.layer(self.table(input_ids)))


class Photos:
    """As many photos of six words as are given, each of one word."""

    def __init__(self, words: list[int]) -> None:
        self.words = words

    def batches(self, model: nn.Module, device: int, round_number: int) -> list[dict[str, Tensor]]:
        tokens = torch.tensor(self.words)[:, None].expand(-1, 6).contiguous()
        return [{"input_ids": tokens, "labels": (tokens + 1) % WORDS}]


def check_device(settings: FederatedConfig, folder: Path, *, noise: float) -> list[Finding]:
    """The findings for one device's local steps. folder: an empty one. noise: over C, as the device's ledger states it.

    Raises ValueError for other modes.
    """
    if settings.trust != "device":
        raise ValueError("only devices that protect their own photos can be checked so; give a run with trust: device.")
    plain = unpriced(settings, noise).model_copy(update={"local_steps": 1, "local_learning_rate": 1.0})
    every = plain.on_device.model_copy(update={"sampling_rate": 1.0})
    opened, model = iter(range(10**6)), Probe(settings.clip_norm)

    def update(words: list[int], number: int = 0, **changes: Any) -> Tensor:
        bench = Bench(model, Photos(words), plain.model_copy(update=changes))
        book = Books(folder / f"{next(opened):04d}").of(0, bench.settings)
        return train_privately(bench, 0, number, bench.adapters.read() * 0, book)

    photos = settings.photos_per_household
    scale = settings.clip_norm / (settings.on_device.sampling_rate * photos)
    still = [
        update([SILENT] * photos, number, seed=seed) for seed in (secrets.randbits(62), 1) for number in (0, 1)
    ]  # two devices' first two rounds
    sure: dict[str, Any] = {"noise": "simulation", "on_device": every}  # every photo is in the step, under one noise
    moved = check_sensitivity(
        lambda words, seed: update(words, seed=seed, **sure),
        [([SILENT] * photos, [LOUD] + [SILENT] * (photos - 1)), ([LOUD, SILENT], [LOUD, LOUD + 1])],
        bound=settings.clip_norm / photos,
        relative=1e-2 + 1e-4 * noise**2,
    )
    coins = PhotoCoins(MANY, plain, None if settings.noise == "secure" else secrets.randbits(62))
    return [
        check_noise(lambda place: still[place], std=noise * scale, repeats=len(still)),
        moved,
        *check_coins(coins, rate=settings.on_device.sampling_rate, population=MANY),
    ]
