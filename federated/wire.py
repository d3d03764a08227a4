"""What travels between server and devices: one flat array each way, and the number of the round.

A reply to ``train`` holds the device's update and nothing else. No loss, no count of photos, no timing: such numbers
come from private data, and no mechanism covers them. (The non-private ceiling may send its loss; it makes no claim.)
"""

from __future__ import annotations

from functools import lru_cache
from io import BytesIO

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common.constant import SType
from torch import Tensor

ADAPTERS, UPDATE, ROUND, FACTS, IDENTITY = "adapters", "update", "round", "facts", "identity"
VECTOR, DELTA = "vector", "delta"
PARTITION, PARTITIONS = "partition-id", "num-partitions"

TRAIN, EVALUATE, WHO = "train", "evaluate", "query.identity"


@lru_cache(maxsize=8)
def _header(dimension: int) -> bytes:
    """What stands before the numbers in numpy's format, for ``dimension`` of float32. Making it takes longer than using
    it, and all messages of a run share one.
    """
    buffer = BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": (dimension,)})
    return buffer.getvalue()


def to_array(vector: Tensor) -> Array:
    """A vector ``[d]`` float32 as Flower's array (numpy's format, no pickle)."""
    if vector.dim() != 1 or vector.dtype != torch.float32:
        raise ValueError(
            f"a vector of shape {tuple(vector.shape)} and {vector.dtype} was to travel; give [d] of float32."
        )
    numbers = np.ascontiguousarray(vector.detach().cpu().numpy())
    return Array("float32", (len(numbers),), SType.NUMPY, _header(len(numbers)) + numbers.tobytes())


def from_array(array: Array, dimension: int | None = None) -> Tensor:
    """The vector ``[d]`` float32 in ``array``.

    Raises ValueError where the array is anything else, or has another length than ``dimension``. What it declares is
    judged before its bytes are read.
    """
    shape = tuple(array.shape)
    if array.dtype != "float32" or len(shape) != 1 or dimension not in (None, shape[0]):
        wanted = "(d,)" if dimension is None else f"({dimension},)"
        raise ValueError(f"the array is {array.dtype} of shape {shape}, and {wanted} of float32 is expected")
    header = _header(int(shape[0]))
    if array.stype != SType.NUMPY or len(array.data) != len(header) + 4 * shape[0] or not array.data.startswith(header):
        raise ValueError(
            f"the array's {len(array.data)} bytes are not what it declares ({shape[0]} numbers of float32)"
        )
    return torch.from_numpy(np.frombuffer(array.data, dtype=np.float32, offset=len(header)).copy())


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
