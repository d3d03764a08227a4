"""A commitment to a data set: equal for equal data, and of no use to somebody without the key.

A plain hash of a small data set can be guessed by trying photos. With a secret key it cannot, and the key's owner can
still show later which data a run used. Keep the key with the data; runs that share data must share it.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable

_MINIMUM_KEY = 16


def data_commitment(key: bytes, items: Iterable[bytes]) -> str:
    """HMAC-SHA256 over the sorted hashes of the items (photos, records): 64 hexadecimal digits, whatever their order.

    Raises:
        ValueError: the key has fewer than 16 bytes.
    """
    if len(key) < _MINIMUM_KEY:
        raise ValueError(f"The commitment's key has {len(key)} bytes; give at least {_MINIMUM_KEY} random ones.")
    mac = hmac.new(key, digestmod=hashlib.sha256)
    for digest in sorted(hashlib.sha256(item).digest() for item in items):
        mac.update(digest)
    return mac.hexdigest()
