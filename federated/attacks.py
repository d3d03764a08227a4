"""Planted hostile devices, to measure what they can do to a run (``benchmarks/attacks.py``). Never part of a real run.

    nan            an update of NaN
    huge           its update times a million
    wrong shape    an update that lacks its last number
    claims 1e9     its update turned round, and a billion examples claimed to weigh it
    sign flip      its update times -5
    back door      photos of one class labelled as another, and the update times 5 (Bagdasaryan et al. 2018, 1807.00459)

Reply attacks tamper with what an honest app answered; the back door trains on lies (``Mislabelled``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from flwr.app import Context, Message, MetricRecord
from torch import nn

from federated import wire
from federated.bench import Feeder
from federated.roster import device_number
from mmslm.training import Batch

Attack = Literal["none", "nan", "huge", "wrong shape", "claims 1e9", "sign flip", "back door"]
ATTACKS: tuple[Attack, ...] = ("none", "nan", "huge", "wrong shape", "claims 1e9", "sign flip", "back door")
EXAMPLES = "num-examples"
BOOST = 5.0
CLAIMED = 10**9

App = Callable[[Message, Context], Message]


def hostile(app: App, liars: frozenset[int], attack: Attack) -> App:
    """``app`` on every device; those in ``liars`` tamper with their answers to ``train``."""
    if attack not in ATTACKS:
        raise ValueError(f"there is no attack {attack!r}; there are {', '.join(ATTACKS)}.")

    def answer(message: Message, context: Context) -> Message:
        reply = app(message, context)
        if message.metadata.message_type != wire.TRAIN or device_number(context) not in liars or reply.has_error():
            return reply
        return _tamper(reply, attack)

    return answer


def _tamper(reply: Message, attack: Attack) -> Message:
    record = reply.content.array_records[wire.UPDATE]
    update = wire.unpack(record[wire.DELTA], "float32").copy()
    if attack == "nan":
        update[:] = np.nan
    elif attack == "huge":
        update *= 1e6
    elif attack == "wrong shape":
        update = update[:-1]
    elif attack == "claims 1e9":
        update = -update
        reply.content["claim"] = MetricRecord({EXAMPLES: float(CLAIMED)})
    elif attack == "sign flip":
        update *= -BOOST
    elif attack == "back door":
        update *= BOOST
    record[wire.DELTA] = wire.pack(update)
    return reply


class Mislabelled:
    """A feeder whose liars say ``target`` wherever the label is ``source``: the back door's training data."""

    def __init__(self, feeder: Feeder, liars: frozenset[int], source: int, target: int) -> None:
        self.feeder, self.liars, self.source, self.target = feeder, liars, source, target

    def batches(self, model: nn.Module, device: int, round_number: int) -> Sequence[Batch]:
        batches = self.feeder.batches(model, device, round_number)
        if device not in self.liars:
            return batches
        return [{**batch, "labels": self._relabel(batch["labels"])} for batch in batches]

    def _relabel(self, labels: torch.Tensor) -> torch.Tensor:
        return torch.where(labels == self.source, torch.full_like(labels, self.target), labels)
