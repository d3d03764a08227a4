"""Discrete Gaussian noise on the integers, exact: for sums that are formed in a ring, by parties that each add a share.

N_Z(0, v) has P(x) proportional to exp(-x^2 / 2v) on the integers. It is drawn by the rejection of Canonne, Kamath and
Steinke (2004.00010): a discrete Laplace proposal of scale t, accepted with probability exp(-(|y| - v/t)^2 / 2v). Every
comparison of a uniform number with an exponential is decided as if the uniform had infinitely many bits: in fp64 where
the two are further apart than its error could be, else in high precision with more bits. So no floating-point rounding
enters the law of the result (given that exp and log of fp64 are good to 2**-45).

Why the Gaussian event prices it (`shares` below does the arithmetic). Let h parties each add N_Z(0, v) to an integer x,
and let eta = 2 exp(-2 pi^2 r^2), r^2 = 9 (1e-77). With v >= 2 r^2, the law of x + noise is, at every point, within a
factor exp(+-4 h eta) of K(x + N(0, h v - r^2)), where the kernel K moves a real y to an integer z with probability
proportional to exp(-(z - y)^2 / 2 r^2), whatever x is. Proof: by Poisson summation the sum of exp(-(z - y)^2 / 2 r^2)
over the integers z is r sqrt(2 pi) (1 +- eta) for every y. Hence K's output has the density of N(x, h v) at z, times a
factor within 1 +- 2 eta; and the convolution of two discrete Gaussians is the discrete Gaussian of the summed variance
times such a sum again, with r^2 replaced by v v' / (v + v') >= v / 2 >= r^2 (cf. Kairouz, Liu, Steinke 2102.06387). []
So a release of d coordinates costs what a Gaussian of variance h v - r^2 costs, by every accountant and with every kind of
sampling, plus 8 h d eta: below 1e-60 for anything that fits a computer, and so never seen in a double.

Refuses: variances that are no integers from 18 to 2**50 for shares.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable
from decimal import Context, Decimal, localcontext

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from numpy.typing import NDArray

Integers = NDArray[np.int64]

SMOOTHING = 9  # r^2: variance that is given up so that the discrete law is a continuous one, rounded at random
MOST_VARIANCE = 2**50  # beyond it v and y would not be exact in fp64
_MARGIN = 2.0**-45


def key_for(*parts: int | str) -> bytes:
    """A 32-byte key that is a function of ``parts``: for simulations that repeat themselves only."""
    return hashlib.sha256("|".join(["discrete noise", *map(str, parts)]).encode()).digest()


def shares(variance: float, parties: int) -> int:
    """The variance of each of ``parties`` shares whose sum is priced as a Gaussian of ``variance`` (in grid units).

    Raises ValueError where a share would be below 18 (too coarse a grid) or above 2**50.
    """
    if parties < 1 or not (math.isfinite(variance) and variance > 0):
        raise ValueError(f"a variance of {variance} was to be shared by {parties} parties; expected both above 0.")
    share = math.ceil(variance / parties * (1 + 2.0**-40) + SMOOTHING / parties)
    if not 2 * SMOOTHING <= share <= MOST_VARIANCE:
        raise ValueError(
            f"a share of the noise has variance {share} in units of the grid, and {2 * SMOOTHING} to 2**50 are expected; "
            "use a finer or a coarser grid."
        )
    return share


def discrete_gaussian(variance: int, count: int, key: bytes | None = None) -> Integers:
    """``count`` independent draws of N_Z(0, variance), int64.

    variance: an integer from 1 to 2**50. key: 32 bytes for a repeatable draw, None for the operating system's randomness.
    """
    if isinstance(variance, bool) or not isinstance(variance, int) or not 1 <= variance <= MOST_VARIANCE:
        raise ValueError(f"the variance is {variance!r}; expected an integer from 1 to 2**50.")
    if key is not None and len(key) != 32:
        raise ValueError(f"the key has {len(key)} bytes; expected 32.")
    source = Cipher(algorithms.AES(key or os.urandom(32)), modes.CTR(bytes(16))).encryptor()
    result = np.zeros(count, dtype=np.int64)
    filled = 0
    while filled < count:
        wanted = min(1 << 16, 64 + int(2.2 * (count - filled)))
        drawn = _candidates(variance, wanted, source)[: count - filled]
        result[filled : filled + len(drawn)] = drawn
        filled += len(drawn)
    return result


def _words(source: CipherContext, count: int) -> NDArray[np.uint64]:
    return np.frombuffer(source.update(bytes(8 * count)), dtype="<u8").astype(np.uint64, copy=False)


def _candidates(variance: int, count: int, source: CipherContext) -> Integers:
    """Those of ``count`` proposals that are accepted."""
    log_scale = max(0, math.ceil(math.log2(variance) / 2))
    scale = 1 << log_scale  # t, a power of two: u / t and v / t are exact
    words = _words(source, count)
    rest = (words & np.uint64(scale - 1)).astype(np.int64)
    negative = (words >> np.uint64(63)).astype(bool)
    kept = _below_exp(_words(source, count), rest / scale, source, lambda i: (int(rest[i]), scale))
    rest, negative = rest[kept], negative[kept]
    size = rest + scale * _geometric(_words(source, len(rest)), source)
    kept = ~(negative & (size == 0))
    size, negative = size[kept], negative[kept]
    gap = size - variance / scale
    # (|y| - v/t)^2 / 2v as a ratio of integers: (|y| t - v)^2 / (2 v t^2)
    kept = _below_exp(
        _words(source, len(size)),
        gap * gap / (2.0 * variance),
        source,
        lambda i: ((int(size[i]) * scale - variance) ** 2, 2 * variance * scale * scale),
    )
    size, negative = size[kept], negative[kept]
    return np.where(negative, -size, size)


def _geometric(words: NDArray[np.uint64], source: CipherContext) -> Integers:
    """How many of e^-1, e^-2, ... lie above each uniform number: P(at least k) = e^-k."""
    uniform = np.maximum(words.astype(np.float64) * 2.0**-64, 2.0**-64)
    depth = -np.log(uniform)
    result = np.floor(depth).astype(np.int64)
    unsure = (np.abs(depth - np.rint(depth)) < 2.0**-38) | (uniform < _MARGIN)
    for i in np.flatnonzero(unsure):
        lazy = _Uniform(int(words[i]), source)
        exact = 0
        while lazy.below_exp(exact + 1, 1):
            exact += 1
        result[i] = exact
    return result


def _below_exp(
    words: NDArray[np.uint64],
    exponent: NDArray[np.float64],
    source: CipherContext,
    ratio: Callable[[int], tuple[int, int]],
) -> NDArray[np.bool_]:
    """Whether each uniform number lies below exp(-exponent); ``ratio(i)`` gives the exponent exactly."""
    uniform = words.astype(np.float64) * 2.0**-64
    bound = np.exp(-exponent)
    below = uniform < bound
    for i in np.flatnonzero(np.abs(uniform - bound) <= _MARGIN):
        below[i] = _Uniform(int(words[i]), source).below_exp(*ratio(int(i)))
    return below


class _Uniform:
    """A uniform number of [0, 1) that gets as many bits as a decision needs."""

    def __init__(self, word: int, source: CipherContext) -> None:
        self._value, self._bits, self._source = word, 64, source

    def below_exp(self, top: int, bottom: int) -> bool:
        """Whether it lies below exp(-top / bottom), top >= 0, bottom > 0."""
        if top == 0:
            return True
        while True:
            digits = int(0.31 * self._bits) + 30
            with localcontext(Context(prec=digits)):
                power = (-Decimal(top) / Decimal(bottom)).exp()
                slack = Decimal(10) ** (5 - digits) * (1 + abs(Decimal(top) / Decimal(bottom)))
                unit = Decimal(2) ** -self._bits
                low, high = Decimal(self._value) * unit, Decimal(self._value + 1) * unit
                if high + slack <= power:
                    return True
                if low - slack >= power:
                    return False
            self._value = (self._value << 64) | int(_words(self._source, 1)[0])
            self._bits += 64
