"""A device's bench: the resident frozen model, its adapters, and the photos of whichever device is at work.

Loading a model for every device would cost more than training it. So each worker keeps one, writes the adapters of the
round into it, trains them on one device's photos, and reads them back. Workers share the frozen weights and own their
adapters: memory grows by the adapters only, and no worker sees another's.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from federated.settings import FederatedConfig
from federated.vector import AdapterVector
from mmslm.training import Batch, local_update, sample_losses


class AdaptedModel(Protocol):
    """What the federated room needs to know of a model."""

    def adapter_parameters(self) -> dict[str, nn.Parameter]: ...

    def freeze_base(self) -> None: ...


class Feeder(Protocol):
    """Gives the batches that a device trains on in a round; must be a pure function of its arguments."""

    def batches(self, model: nn.Module, device: int, round_number: int) -> Sequence[Batch]: ...


class Bench:
    """One worker's model. Not for two threads at once: ask :class:`Benches`."""

    def __init__(self, model: nn.Module, feeder: Feeder, settings: FederatedConfig) -> None:
        self.model = model.eval()  # no dropout: a device's update depends on its photos and the round only
        self.feeder = feeder
        self.settings = settings
        self.adapters = AdapterVector(model.adapter_parameters())  # type: ignore[operator]

    def train(self, device: int, round_number: int, start: Tensor) -> tuple[Tensor, float]:
        """Train from ``start [d]`` on ``device``'s photos; returns (update [d] = trained - start, last loss)."""
        batches = self.feeder.batches(self.model, device, round_number)
        self.adapters.write(start)
        loss = local_update(
            self.model,
            batches,
            self.adapters.parameters,
            steps=self.settings.local_steps,
            learning_rate=self.settings.local_learning_rate,
            autocast=self.settings.autocast,
        )
        return self.adapters.read() - start, loss

    @torch.no_grad()
    def evaluate(self, device: int, round_number: int, vector: Tensor) -> float:
        """Mean loss of ``vector [d]`` over ``device``'s batches, nats per token."""
        self.adapters.write(vector)
        losses = [sample_losses(self.model, batch) for batch in self.feeder.batches(self.model, device, round_number)]
        return float(torch.cat(losses).mean())

    def for_another_worker(self) -> Bench:
        """A bench with adapters of its own over the same frozen weights."""
        adapters = {id(parameter) for parameter in self.adapters.parameters.values()}
        shared: dict[int, Tensor] = {id(p): p for p in self.model.parameters() if id(p) not in adapters}
        shared |= {id(buffer): buffer for buffer in self.model.buffers()}
        return Bench(copy.deepcopy(self.model, memo=dict(shared)), self.feeder, self.settings)


class Benches:
    """One bench per thread, made when the thread first asks. ``first`` opens the bench that the others are made from."""

    def __init__(self, first: Callable[[], Bench]) -> None:
        self._open = first
        self._first: Bench | None = None
        self._lock = threading.Lock()
        self._own = threading.local()

    def mine(self) -> Bench:
        bench: Bench | None = getattr(self._own, "bench", None)
        if bench is None:
            with self._lock:
                if self._first is None:
                    self._first = bench = self._open()
                else:
                    bench = self._first.for_another_worker()
            self._own.bench = bench
        return bench
