"""How an update travels: whole, halved, as bytes, or only its largest entries. One flat array per message in any case.

    fp32    as it is: 4 bytes a number
    bf16    rounded to bfloat16: 2 bytes a number
    int8    blocks of 1024 numbers share a scale; each is rounded up or down at random so that it is right on average
            (stochastic rounding; Alistarh et al., 2017, QSGD): 1 byte a number
    topk    the largest hundredth of the entries; what was left out is kept on the device and added to its next update
            (error feedback; Stich et al., 2018; Karimireddy et al., 2019): 0.08 bytes a number

Order is part of the privacy argument. Rounding may lengthen a vector, so a codec must never stand between the clipping
and the noise. Here it stands before both: the server clips what it decoded (``privacy.mechanism`` clips, sums and adds
noise in one call), and the sensitivity is that of the clipped vector whatever a device sent.

What a decoder refuses: another length than the run's, entries out of place or twice, scales and values that are not
finite. Nothing in a message says how it is to be decoded: the run's settings do.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from federated.settings import CodecName

Payload = NDArray[np.uint8]

BLOCK = 1024
KEPT_SHARE = 0.01


class CodecError(ValueError):
    """A payload that cannot be what a device of this run encoded."""


class Codec(Protocol):
    """Turns a vector ``[d]`` float32 into bytes and back."""

    def encode(self, vector: Tensor, generator: np.random.Generator) -> Payload:
        """The payload, uint8 [n]; n depends on d alone."""

    def decode(self, payload: Payload, dimension: int) -> Tensor:
        """The vector [dimension] float32. Raises CodecError."""


class Float32:
    """The numbers themselves, little-endian."""

    def encode(self, vector: Tensor, generator: np.random.Generator) -> Payload:
        return np.frombuffer(vector.numpy().astype("<f4", copy=False).tobytes(), dtype=np.uint8)

    def decode(self, payload: Payload, dimension: int) -> Tensor:
        _check_length(payload, 4 * dimension)
        return _finite(np.frombuffer(payload.tobytes(), dtype="<f4"))


class BFloat16:
    """The upper half of each number, rounded to nearest."""

    def encode(self, vector: Tensor, generator: np.random.Generator) -> Payload:
        return vector.to(torch.bfloat16).view(torch.uint8).numpy().copy()

    def decode(self, payload: Payload, dimension: int) -> Tensor:
        _check_length(payload, 2 * dimension)
        return _finite(torch.from_numpy(payload.copy()).view(torch.bfloat16).to(torch.float32).numpy())


class Int8:
    """Per block a float32 scale, then one signed byte a number."""

    def encode(self, vector: Tensor, generator: np.random.Generator) -> Payload:
        exact = vector.numpy().astype(np.float64)
        blocks = -(-len(exact) // BLOCK)
        padded = np.zeros(blocks * BLOCK)
        padded[: len(exact)] = exact
        table = padded.reshape(blocks, BLOCK)
        scales = (np.abs(table).max(axis=1) / 127).astype("<f4")
        divisor = np.where(scales > 0, scales, 1).astype(np.float64)[:, None]
        # Rounded up with a probability equal to the part that rounding down would lose.
        levels = np.clip(np.floor(table / divisor + generator.random(table.shape)), -127, 127).astype(np.int8)
        return np.concatenate([scales.view(np.uint8), levels.reshape(-1)[: len(exact)].view(np.uint8)])

    def decode(self, payload: Payload, dimension: int) -> Tensor:
        blocks = -(-dimension // BLOCK)
        _check_length(payload, 4 * blocks + dimension)
        scales = np.frombuffer(payload[: 4 * blocks].tobytes(), dtype="<f4")
        levels = payload[4 * blocks :].view(np.int8).astype(np.float32)
        return _finite(levels * np.repeat(scales, BLOCK)[:dimension])


class TopK:
    """Places (uint32, ascending) and values (float32) of the largest entries. ``residual`` is what was never sent."""

    def __init__(self, residual: Tensor | None = None) -> None:
        self.residual = residual

    @staticmethod
    def kept(dimension: int) -> int:
        """How many entries travel: a hundredth, at least one."""
        return max(1, round(KEPT_SHARE * dimension))

    def encode(self, vector: Tensor, generator: np.random.Generator) -> Payload:
        whole = vector if self.residual is None else vector + self.residual
        values = whole.numpy()
        count = self.kept(len(values))
        places = np.sort(np.argpartition(-np.abs(values), count - 1)[:count])
        self.residual = whole.clone()
        self.residual[torch.from_numpy(places)] = 0.0
        return np.concatenate([places.astype("<u4").view(np.uint8), values[places].astype("<f4").view(np.uint8)])

    def decode(self, payload: Payload, dimension: int) -> Tensor:
        count = self.kept(dimension)
        _check_length(payload, 8 * count)
        places = np.frombuffer(payload[: 4 * count].tobytes(), dtype="<u4").astype(np.int64)
        if places[-1] >= dimension or (np.diff(places) <= 0).any():
            raise CodecError(f"the update's places are not {count} different ones below {dimension} in ascending order")
        vector = np.zeros(dimension, dtype=np.float32)
        vector[places] = np.frombuffer(payload[4 * count :].tobytes(), dtype="<f4")
        return _finite(vector)


def codec(name: CodecName, residual: Tensor | None = None) -> Codec:
    """The codec of that name. ``residual``: what a device kept from its last update (topk only)."""
    if name == "topk":
        return TopK(residual)
    plain: dict[str, Codec] = {"fp32": Float32(), "bf16": BFloat16(), "int8": Int8()}
    return plain[name]


def _check_length(payload: Payload, expected: int) -> None:
    if payload.dtype != np.uint8 or payload.ndim != 1 or len(payload) != expected:
        raise CodecError(
            f"the update has {payload.size} bytes of {payload.dtype}, and {expected} of uint8 are expected"
        )


def _finite(values: NDArray[np.float32]) -> Tensor:
    if not np.isfinite(values).all():
        raise CodecError("the update holds values that are not finite")
    return torch.from_numpy(np.array(values, dtype=np.float32))
