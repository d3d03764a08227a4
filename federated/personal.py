"""Personal adapters: a part of every device's model that is its own, never leaves it, and survives restarts.

    fedper   some adapters (by name) are personal: trained with the rest, kept on the device, absent from its update
             (Arivazhagan et al. 2019, 1912.00818)
    ditto    beside the shared adapters, which travel as ever, each device trains a full set of its own that is pulled
             towards the shared ones:  v <- v - lr (gradient of its loss + strength (v - shared))
             (Li et al. 2021, 2012.04221)

Privacy: a personal adapter is a function of the device's own photos and of what the server released. It is not part of
any release and costs nothing; whoever reads the device's disk reads it (``federated.device_store``).

What is refused: fedper without a name that any adapter carries, or with all of them (nothing would travel).
"""

from __future__ import annotations

from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from federated.device_store import DeviceStore
from federated.settings import Section
from federated.vector import AdapterVector

PERSONAL = "personal"


class PersonalConfig(Section):
    """The section ``personal``."""

    kind: Literal["fedper", "ditto"]
    names: tuple[str, ...] = Field(
        default=(), description="fedper: texts; adapters whose name contains one are personal"
    )
    strength: float = Field(
        default=0.1, ge=0, le=1000, description="ditto: pull towards the shared adapters; 0 is alone"
    )
    steps: int = Field(default=1, ge=1, le=10_000, description="ditto: steps of the personal adapters a round")
    learning_rate: float = Field(default=0.1, gt=0, le=1000, description="ditto: of those steps")

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.kind == "fedper") != bool(self.names):
            raise ValueError("fedper needs names of the personal adapters, and ditto takes none: all of them are.")
        return self


class Personal:
    """The personal side of a bench: which coordinates are a device's own, and where it keeps them."""

    def __init__(self, config: PersonalConfig, store: DeviceStore, adapters: AdapterVector) -> None:
        self.config, self.store = config, store
        self.own = torch.zeros(adapters.dimension, dtype=torch.bool)  # fedper: personal coordinates
        if config.kind == "fedper":
            self.own = named(adapters, config.names)
            if not bool(self.own.any()) or bool(self.own.all()):
                raise ValueError(
                    f"the names {', '.join(config.names)} make {'all' if bool(self.own.any()) else 'none'} of the "
                    f"adapters personal; some must be and some must travel (there are {', '.join(adapters.shapes)})."
                )

    def load(self, device: int, round_number: int, shared: Tensor) -> Tensor:
        """What ``device`` works with at the start of the round: its own where it has any, else ``shared [d]``."""
        held = self.store.load(device, PERSONAL, before=round_number, dimension=len(shared))
        if held is None:
            return shared
        return torch.where(self.own, held, shared) if self.config.kind == "fedper" else held

    def save(self, device: int, round_number: int, vector: Tensor) -> None:
        self.store.save(device, PERSONAL, round_number, vector)


def named(adapters: AdapterVector, texts: tuple[str, ...]) -> Tensor:
    """[d] bool: coordinates of adapters whose name contains one of ``texts``."""
    pieces = [
        torch.full((int(torch.Size(shape).numel()),), any(text in name for text in texts))
        for name, shape in adapters.shapes.items()
    ]
    return torch.cat(pieces)
