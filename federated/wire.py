"""What travels between server and devices: one flat array each way, and the number of the round.

A reply to ``train`` holds the device's update and nothing else. No loss, no count of photos, no timing: such numbers
come from private data, and no mechanism covers them. (The non-private ceiling may send its loss; it makes no claim.)
"""

from __future__ import annotations

import warnings
from functools import lru_cache
from io import BytesIO
from typing import Any, Literal

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common.constant import SType
from numpy.typing import NDArray
from torch import Tensor

ADAPTERS, UPDATE, ROUND, FACTS, IDENTITY = "adapters", "update", "round", "facts", "identity"
VECTOR, DELTA = "vector", "delta"
_DESCR = {"float32": "<f4", "uint8": "|u1"}
PARTITION, PARTITIONS = "partition-id", "num-partitions"

TRAIN, EVALUATE, WHO = "train", "evaluate", "query.identity"


with warnings.catch_warnings():
    # torch says once a process that it cannot keep anybody from writing into read-only memory; here nobody does.
    warnings.simplefilter("ignore", UserWarning)
    torch.from_numpy(np.frombuffer(bytes(4), "<f4"))


@lru_cache(maxsize=8)
def _header(count: int, descr: str) -> bytes:
    """What stands before the numbers in numpy's format. Making it takes longer than using it, and a run's messages share
    one.
    """
    buffer = BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": descr, "fortran_order": False, "shape": (count,)})
    return buffer.getvalue()


def pack(values: NDArray[Any]) -> Array:
    """A one-dimensional float32 or uint8 array as Flower's array (numpy's format, no pickle)."""
    kind = str(values.dtype)
    if values.ndim != 1 or kind not in _DESCR:
        raise ValueError(f"an array of shape {values.shape} and {kind} was to travel; give [n] of float32 or uint8.")
    numbers = np.ascontiguousarray(values).data.cast("B")
    return Array(kind, (len(values),), SType.NUMPY, b"".join((_header(len(values), _DESCR[kind]), numbers)))


def unpack(array: Array, kind: Literal["float32", "uint8"], count: int | None = None) -> NDArray[Any]:
    """The values [n] in ``array``; they share its bytes and are read-only.

    Raises ValueError where the array is of another kind, has another length than ``count``, or holds other bytes than it
    declares. What it declares is judged before its bytes are read.
    """
    shape = tuple(array.shape)
    if array.dtype != kind or len(shape) != 1 or count not in (None, shape[0]):
        wanted = "(n,)" if count is None else f"({count},)"
        raise ValueError(f"the array is {array.dtype} of shape {shape}, and {wanted} of {kind} is expected")
    header, dtype = _header(int(shape[0]), _DESCR[kind]), np.dtype(_DESCR[kind])
    whole = len(header) + dtype.itemsize * shape[0]
    if array.stype != SType.NUMPY or len(array.data) != whole or not array.data.startswith(header):
        raise ValueError(f"the array's {len(array.data)} bytes are not what it declares ({shape[0]} of {kind})")
    return np.frombuffer(array.data, dtype=dtype, offset=len(header))


def to_array(vector: Tensor) -> Array:
    """A vector ``[d]`` float32 as Flower's array."""
    return pack(vector.detach().cpu().numpy())


def from_array(array: Array, dimension: int | None = None) -> Tensor:
    """The vector ``[d]`` float32 in ``array``. Raises ValueError as ``unpack``."""
    return torch.from_numpy(unpack(array, "float32", dimension).copy())


def view(array: Array, dimension: int) -> Tensor:
    """The vector ``[dimension]`` float32 in ``array``, on its own bytes: to be read and never written.

    A server holds a cohort's updates at once, and fresh memory for a second copy of each costs it more than the sum.
    Raises ValueError as ``unpack``.
    """
    return torch.from_numpy(unpack(array, "float32", dimension))


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
    """(vector [d], round number, layout) of a request; ValueError where a part is missing.

    The vector may be shared by all devices of the round: it is to be read and not written.
    """
    content = message.content
    try:
        array = content[ADAPTERS][VECTOR]
        number = content[ROUND]["number"]
        layout = content[ROUND]["layout"]
    except KeyError as missing:
        raise ValueError(
            f"the server's message has no {missing}; server and device run different versions of this app."
        ) from None
    if not isinstance(array, Array) or not isinstance(number, int) or not isinstance(layout, str):
        raise ValueError("the server's message has a part of the wrong type; server and device run different versions.")
    return _round_vector(array), number, layout


_latest: tuple[bytes | None, Tensor] = (None, torch.empty(0))


def _round_vector(array: Array) -> Tensor:
    """The vector of a round. In one process all devices of a round get the same bytes, which are decoded once."""
    global _latest
    data, vector = _latest  # one read: another thread may replace the pair
    if array.data is not data:
        data, vector = array.data, from_array(array)
        _latest = data, vector
    return vector


def arrays_of(content: RecordDict, name: str) -> ArrayRecord | None:
    """The arrays called ``name``. Flower's own view of them (``array_records``) copies every record when it is asked."""
    record = content.get(name)
    return record if isinstance(record, ArrayRecord) else None


def metrics_of(content: RecordDict, name: str) -> MetricRecord | None:
    """The metrics called ``name``, as ``arrays_of``."""
    record = content.get(name)
    return record if isinstance(record, MetricRecord) else None


def reply(update: Array, message: Message, *, loss: float | None = None) -> Message:
    """A device's answer. ``loss`` is given only by runs that claim no privacy."""
    content = RecordDict({UPDATE: ArrayRecord({DELTA: update})})
    if loss is not None:
        content[FACTS] = MetricRecord({"loss": loss})
    return Message(content, reply_to=message)
