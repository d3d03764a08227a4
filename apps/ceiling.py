"""The ceiling: the same adapters trained without privacy on the pooled photos of the same households.

It shows what privacy and devices cost together, and is made for simulations only: with real people, pooling their photos
is what all this avoids. It claims nothing, writes no ledger, and a finished one is not made again. A stopped one starts
over (it takes about a minute).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from apps.run_config import CeilingConfig
from federated.devices import Population
from federated.job import adapted_model
from federated.settings import FederatedConfig
from mmslm.data.collate import Collator
from mmslm.pretrained import save_model
from mmslm.training import AdamW, Batch, Progress, bfloat16_products, fit, sample_losses


def train_ceiling(
    settings: CeilingConfig,
    federated: FederatedConfig,
    *,
    base: Path,
    population: Population,
    folder: Path,
    progress: Callable[[Progress], None],
) -> None:
    """Train with AdamW on minibatches of pooled photos and write the model into ``folder``."""
    torch.set_num_threads(federated.workers)
    model, processor = adapted_model(base, federated)
    model.train()
    update = AdamW(
        model,
        learning_rate=settings.learning_rate,
        steps=settings.steps,
        warmup=min(20, settings.steps // 10 + 1),
        weight_decay=0.0,
    )

    def losses_of(module: nn.Module, batch: Batch) -> Tensor:
        with bfloat16_products("cpu", federated.autocast):
            return sample_losses(module, batch)

    batches = _batches(settings, federated, population, Collator(processor, seed=federated.seed))
    fit(model, batches, update, steps=settings.steps, on_step=progress, losses_of=losses_of)
    save_model(model.eval(), processor, folder / "model")  # type: ignore[arg-type]


def _batches(
    settings: CeilingConfig, federated: FederatedConfig, population: Population, collate: Collator
) -> Iterator[dict[str, Any]]:
    """Photos of random households of the training population, without end."""
    dice = np.random.default_rng([federated.seed, settings.batch])
    step = 0
    while True:
        photos = []
        for device in dice.integers(federated.households, size=settings.batch):
            held = population.photos(int(device))
            photos.append(held[int(dice.integers(len(held)))])
        yield collate.photos(photos, turns=federated.turns_per_photo, epoch=step)
        step += 1
