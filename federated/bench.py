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

from federated.device_store import DeviceStore
from federated.holdings import Holdings
from federated.personal import Personal, PersonalConfig
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
    """One worker's model. Not for two threads at once: ask :class:`Benches`.

    holdings: which adapters each device trains (all, where None). personal: adapters that stay on the device. store:
    where devices keep what is theirs between rounds; without one, only the process's memory does.
    """

    def __init__(
        self,
        model: nn.Module,
        feeder: Feeder,
        settings: FederatedConfig,
        *,
        holdings: Holdings | None = None,
        personal: Personal | None = None,
        store: DeviceStore | None = None,
    ) -> None:
        self.model = model.eval()  # no dropout: a device's update depends on its photos and the round only
        self.feeder = feeder
        self.settings = settings
        self.holdings, self.personal, self.store = holdings, personal, store
        self.adapters = AdapterVector(model.adapter_parameters())  # type: ignore[operator]

    def train(self, device: int, round_number: int, start: Tensor) -> tuple[Tensor, float]:
        """Train from ``start [d]`` on ``device``'s photos; returns (update [d] = trained - start, last loss).

        Coordinates that the device does not hold, or keeps to itself, are zero in the update.
        """
        held = self.holdings.mask(device) if self.holdings is not None else None
        if held is not None and not bool(held.any()):
            # Zeros, and not silence: whoever sees that somebody answered learns nothing of what it holds.
            return torch.zeros_like(start), float("nan")
        batches = self.feeder.batches(self.model, device, round_number)
        personal = self.personal
        own = personal.load(device, round_number, start) if personal is not None else start
        begin = own if personal is not None and personal.config.kind == "fedper" else start
        trained, loss = self._steps(batches, begin, held)
        update = trained - begin
        if personal is not None and personal.config.kind == "fedper":
            personal.save(device, round_number, trained)
            update[personal.own] = 0.0
        elif personal is not None:
            personal.save(device, round_number, self._ditto(personal.config, batches, own, start))
        return update, loss

    def _steps(self, batches: Sequence[Batch], start: Tensor, held: Tensor | None) -> tuple[Tensor, float]:
        """(adapters after the local steps from ``start``, last loss). ``held [d]``: the others stay as they are."""
        if held is None:
            self.adapters.write(start)
            loss = self._update(batches, self.settings.local_steps)
            return self.adapters.read(), loss
        # A device without an expert (or with a lower rank) computes without it: zero there, and zero after every step.
        vector, loss = torch.where(held, start, torch.zeros_like(start)), float("nan")
        for step in range(self.settings.local_steps):
            self.adapters.write(vector)
            loss = self._update(batches[step % len(batches) :], 1)
            vector = torch.where(held, self.adapters.read(), vector)
        return torch.where(held, vector, start), loss

    def _update(self, batches: Sequence[Batch], steps: int, learning_rate: float | None = None) -> float:
        settings = self.settings
        return local_update(
            self.model,
            batches,
            self.adapters.parameters,
            steps=steps,
            learning_rate=settings.local_learning_rate if learning_rate is None else learning_rate,
            autocast=settings.autocast,
        )

    def _ditto(self, config: PersonalConfig, batches: Sequence[Batch], own: Tensor, shared: Tensor) -> Tensor:
        """The device's own adapters after this round's steps, each pulled towards ``shared``."""
        for step in range(config.steps):
            self.adapters.write(own)
            self._update(batches[step % len(batches) :], 1, config.learning_rate)
            own = self.adapters.read() - config.learning_rate * config.strength * (own - shared)
        return own

    @torch.no_grad()
    def evaluate(self, device: int, round_number: int, vector: Tensor) -> float:
        """Mean loss of ``vector [d]`` over ``device``'s batches, nats per token; of its personal adapters, if any."""
        if self.personal is not None:
            vector = self.personal.load(device, round_number, vector)
        self.adapters.write(vector)
        losses = [sample_losses(self.model, batch) for batch in self.feeder.batches(self.model, device, round_number)]
        return float(torch.cat(losses).mean())

    def for_another_worker(self) -> Bench:
        """A bench with adapters of its own over the same frozen weights."""
        adapters = {id(parameter) for parameter in self.adapters.parameters.values()}
        shared: dict[int, Tensor] = {id(p): p for p in self.model.parameters() if id(p) not in adapters}
        shared |= {id(buffer): buffer for buffer in self.model.buffers()}
        return Bench(
            copy.deepcopy(self.model, memo=dict(shared)),
            self.feeder,
            self.settings,
            holdings=self.holdings,
            personal=self.personal,
            store=self.store,
        )


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
