"""Gaussian noise for releases: from a CSPRNG in real runs, from a seed in tests and simulations.

Both sources make 64-bit words (AES-256 in counter mode) into normals by the Box-Muller transform in fp64. They differ
only in the key: `SecureNoise` draws it from the operating system and never shows it; `SeededNoise` derives it from
(seed, step, stream, size), so that a draw is a pure function of them and a resumed simulation repeats itself.

Floating point. The support of floating-point noise added to a floating-point value depends on that value, and an
attacker who sees all the bits of the sum may tell two inputs apart (Mironov, CCS 2012; Jin et al. 2112.05307). What is
done here:
  - the noise has 63 random bits per uniform, tails to 9.3 standard deviations, and is added in fp64 (`add_`);
  - the noisy sum is rounded to a grid of 2**-12 of the standard deviation, a public power of two, and only that leaves.
    A grid cell holds about 2**40 doubles, so every cell is reachable from every input, with a probability within a
    relative 2**-35 or so of the ideal rounded Gaussian near the centre. Rounding is post-processing of the noisy sum
    and adds less than one part in 10**8 to the variance.
This is not a proof about a discrete mechanism: the clipped sum itself is rounded before the noise, and the libm behind
log, cos and sin is trusted to a few units in the last place. The cut tail has probability 2**-63 for each coordinate.
Timing is not hidden.

Refuses: a standard deviation that is negative or not finite, and results below fp32.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from torch import Tensor

GRID_BITS = 12  # the noisy sum is rounded to multiples of 2**-GRID_BITS * (std rounded down to a power of two)
_BLOCK = 1 << 16  # normals per block: 512 KiB of fp64 stays in the cache
_MASK = (1 << 63) - 1
_ZEROS = memoryview(bytes(8 * _BLOCK))  # what is encrypted: the keystream itself is wanted


class Noise(Protocol):
    """A source of Gaussian noise. `kind` goes into the report."""

    @property
    def kind(self) -> str:
        """ "csprng" or "seeded (simulation)"."""
        ...

    def normal(
        self, shape: int | Sequence[int], std: float, *, step: int, stream: int = 0, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Independent N(0, std**2) of the given shape."""
        ...

    def add_(self, total: Tensor, std: float, *, step: int, stream: int = 0) -> Tensor:
        """`total` + N(0, std**2) in place, added in fp64 and rounded to the public grid."""
        ...


def grid(std: float) -> float:
    """The spacing to which a sum with noise of standard deviation `std` > 0 is rounded: a power of two."""
    return math.ldexp(1.0, math.frexp(std)[1] - 1 - GRID_BITS)


def _checked_std(std: float) -> float:
    if not (math.isfinite(std) and std >= 0):
        raise ValueError(f"the noise's standard deviation is {std}; expected a finite number of at least 0.")
    return float(std)


class _BoxMuller:
    """Normals out of a stream of random bytes; subclasses say where the bytes come from."""

    def _stream(self, step: int, stream: int, size: int) -> CipherContext:
        raise NotImplementedError

    def _block(self, source: CipherContext, buffer: bytearray, count: int, std: float) -> Tensor:
        """`count` normals, fp64."""
        pairs = (count + 1) // 2
        source.update_into(_ZEROS[: 16 * pairs], buffer)
        words = torch.frombuffer(buffer, dtype=torch.int64, count=2 * pairs)
        uniform = words.bitwise_and_(_MASK).to(torch.float64)
        # (k + 1) / 2**63 lies in (0, 1]: the logarithm is finite, and small k keep all their bits, so tails are real.
        radius = uniform[:pairs].add_(1.0).mul_(2.0**-63).log_().mul_(-2.0).sqrt_().mul_(std)
        angle = uniform[pairs:].mul_(math.pi * 2.0**-62)
        result = torch.empty_like(uniform)
        torch.cos(angle, out=result[:pairs]).mul_(radius)
        torch.sin(angle, out=result[pairs:]).mul_(radius)
        return result[:count]

    def normal(
        self, shape: int | Sequence[int], std: float, *, step: int, stream: int = 0, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Independent N(0, std**2), on the CPU.

        shape: a size or a shape. step >= 0 and stream tell seeded draws apart (one stream per tensor of a step); a
        secure source ignores them. dtype: float32 or float64. Raises ValueError for another dtype or a bad std.
        """
        std = _checked_std(std)
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"noise was asked for in {dtype}; expected float32 or float64, cast the result if you must."
            )
        result = torch.empty(shape if isinstance(shape, int) else tuple(shape), dtype=dtype)
        flat = result.view(-1)
        for start, block in self._blocks(flat.numel(), step, stream, std):
            flat[start : start + block.numel()] = block
        return result

    def add_(self, total: Tensor, std: float, *, step: int, stream: int = 0) -> Tensor:
        """Adds N(0, std**2) to `total` in place and rounds to the grid; std 0 changes nothing.

        total: float32 or float64, contiguous, any device. Raises ValueError otherwise, or for a bad std.
        """
        std = _checked_std(std)
        if total.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"the sum to be noised is {total.dtype}; expected float32 or float64.")
        if not total.is_contiguous():
            raise ValueError("the sum to be noised is not contiguous; call .contiguous() first.")
        if std == 0.0:
            return total
        spacing = grid(std)
        flat = total.detach().view(-1)
        # in units of the grid, a power of two: scaling is exact
        for start, block in self._blocks(flat.numel(), step, stream, std / spacing):
            part = flat[start : start + block.numel()]
            noisy = block.to(part.device).add_(part, alpha=1.0 / spacing).round_()
            torch.mul(noisy, spacing, out=part)
        return total

    def _blocks(self, size: int, step: int, stream: int, std: float) -> Iterator[tuple[int, Tensor]]:
        """(start, N(0, std**2)) until `size` are drawn."""
        source = self._stream(step, stream, size)
        buffer = bytearray(8 * min(size + size % 2, _BLOCK) + 16)
        for start in range(0, size, _BLOCK):
            yield start, self._block(source, buffer, min(_BLOCK, size - start), std)


def _cipher(key: bytes) -> CipherContext:
    return Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()


class SecureNoise(_BoxMuller):
    """Noise nobody can predict or repeat: each draw has a fresh 256-bit key from the operating system.

    Safe across threads, forks and copies, because no state is kept between draws. The default in real runs.
    """

    kind = "csprng"

    def _stream(self, step: int, stream: int, size: int) -> CipherContext:
        return _cipher(os.urandom(32))


class SeededNoise(_BoxMuller):
    """Noise that repeats: a pure function of (seed, step, stream, size). For tests and simulations only.

    Whoever knows the seed can subtract the noise, so a report made with it says "seeded (simulation)".
    Two draws of one size in one step need two streams, or they are equal.
    """

    kind = "seeded (simulation)"

    def __init__(self, seed: int) -> None:
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise TypeError(f"the seed is of type {type(seed).__name__}; expected an integer.")
        self.seed = seed

    def _stream(self, step: int, stream: int, size: int) -> CipherContext:
        text = f"noise|{self.seed}|{int(step)}|{int(stream)}|{size}"
        return _cipher(hashlib.sha256(text.encode()).digest())
