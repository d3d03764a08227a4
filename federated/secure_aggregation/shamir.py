"""Shamir's secret sharing of 32-byte secrets over the field of 2**521 - 1 (Shamir, 1979).

Any ``threshold`` shares give the secret; with fewer, every secret is equally likely. Coefficients come from the
operating system. What it refuses: too few shares, two shares at one point, and shares that do not lie on one polynomial
where more than the threshold are given (a forged share then shows instead of spoiling the sum).
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from functools import lru_cache

from federated.secure_aggregation.errors import SecureAggregationError

PRIME = 2**521 - 1
SECRET_BYTES = 32
SHARE_BYTES = 66


def split(secret: bytes, points: Sequence[int], threshold: int) -> dict[int, bytes]:
    """point -> share [66 bytes], for distinct points >= 1; any ``threshold`` of them give ``secret`` (32 bytes)."""
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"the secret has {len(secret)} bytes; {SECRET_BYTES} are shared.")
    if len(set(points)) != len(points) or not points or min(points) < 1:
        raise ValueError("shares are made for distinct points from 1 up; a point of 0 would be the secret itself.")
    if not 1 <= threshold <= len(points):
        raise ValueError(
            f"a threshold of {threshold} with {len(points)} shares cannot be met; give 1 to {len(points)}."
        )
    coefficients = [int.from_bytes(secret, "big"), *(secrets.randbelow(PRIME) for _ in range(threshold - 1))]
    return {point: _evaluate(coefficients, point).to_bytes(SHARE_BYTES, "big") for point in points}


def join(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """The secret out of at least ``threshold`` shares by point. Further shares are held against it."""
    if len(shares) < threshold:
        raise SecureAggregationError(f"{len(shares)} shares came and {threshold} are needed; the secret stays unknown.")
    points = sorted(shares)
    values = {}
    for point in points:
        value = int.from_bytes(shares[point], "big")
        if len(shares[point]) != SHARE_BYTES or value >= PRIME:
            raise SecureAggregationError(f"the share of point {point} is malformed.")
        values[point] = value
    used = points[:threshold]
    secret = _interpolate(used, values, 0)
    for point in points[threshold:]:
        if _interpolate(used, values, point) != values[point]:
            raise SecureAggregationError("the shares do not lie on one polynomial: at least one of them is forged.")
    if secret >= 2 ** (8 * SECRET_BYTES):
        raise SecureAggregationError("the shares give no secret of 32 bytes: at least one of them is forged.")
    return secret.to_bytes(SECRET_BYTES, "big")


def _evaluate(coefficients: Sequence[int], point: int) -> int:
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * point + coefficient) % PRIME
    return value


def _interpolate(points: Sequence[int], values: Mapping[int, int], at: int) -> int:
    weights = _weights(tuple(points), at)
    return sum(values[point] * weight for point, weight in zip(points, weights, strict=True)) % PRIME


@lru_cache(maxsize=4096)
def _weights(points: tuple[int, ...], at: int) -> tuple[int, ...]:
    """Lagrange's weights: every secret of a session is joined from the same points, so they are made once."""
    found = []
    for i in points:
        top = bottom = 1
        for j in points:
            if j != i:
                top = top * (at - j) % PRIME
                bottom = bottom * (i - j) % PRIME
        found.append(top * pow(bottom, -1, PRIME) % PRIME)
    return tuple(found)
