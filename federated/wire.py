"""What travels between server and devices: one flat array each way, and the number of the round.

A reply to ``train`` holds the device's update and nothing else. No loss, no count of photos, no timing: such numbers
come from private data, and no mechanism covers them. (The non-private ceiling may send its loss; it makes no claim.)
"""

from __future__ import annotations

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from torch import Tensor

ADAPTERS, UPDATE, ROUND, FACTS, IDENTITY = "adapters", "update", "round", "facts", "identity"
VECTOR, DELTA = "vector", "delta"
PARTITION, PARTITIONS = "partition-id", "num-partitions"

TRAIN, EVALUATE, WHO = "train", "evaluate", "query.identity"


def to_array(vector: Tensor) -> Array:
    """A vector ``[d]`` float32 as Flower's array (raw numpy bytes, no pickle)."""
    return Array(np.ascontiguousarray(vector.detach().cpu().numpy()))


def from_array(array: Array) -> Tensor:
    """Back into a tensor that owns its memory."""
    return torch.from_numpy(array.numpy())


def request(vector: Array, round_number: int, layout: str) -> RecordDict:
    """What the server asks of a device: train from ``vector`` in round ``round_number`` (from 0).

    ``vector`` is made once a round and shared: its bytes never change.
    """
    return RecordDict(
        {
            ADAPTERS: ArrayRecord({VECTOR: vector}),
            ROUND: ConfigRecord({"number": round_number, "layout": layout}),
        }
    )


def read_request(message: Message) -> tuple[Tensor, int, str]:
    """(vector [d], round number, layout) of a request; ValueError where a part is missing."""
    content = message.content
    try:
        array = content.array_records[ADAPTERS][VECTOR]
        number = content.config_records[ROUND]["number"]
        layout = content.config_records[ROUND]["layout"]
    except KeyError as missing:
        raise ValueError(
            f"the server's message has no {missing}; server and device run different versions of this app."
        ) from None
    if not isinstance(number, int) or not isinstance(layout, str):
        raise ValueError(
            "the server's message has a round of the wrong type; server and device run different versions."
        )
    return from_array(array), number, layout


def reply(delta: Tensor, message: Message, *, loss: float | None = None) -> Message:
    """A device's answer. ``loss`` is given only by runs that claim no privacy."""
    content = RecordDict({UPDATE: ArrayRecord({DELTA: to_array(delta)})})
    if loss is not None:
        content[FACTS] = MetricRecord({"loss": loss})
    return Message(content, reply_to=message)
