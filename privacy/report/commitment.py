"""A commitment to a data set: equal for equal data, and of no use to somebody without the key.

A plain hash of a small data set can be guessed by trying photos. With a secret key it cannot, and the key's owner can
still show later which data a run used. Keep the key with the data; runs that share data must share it. It refuses a key
that others may read, or that lies in a run's folder, which is what one hands out.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterable
from pathlib import Path

from privacy.canonical import UnreadableError

KEY_NAME = ".commitment-key"  # beside the runs' folders
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


def commitment_key(folder: Path, path: Path | None = None) -> bytes:
    """The key for the run in `folder`, read from `path` (default: `.commitment-key` beside the folder), or made there.

    Raises:
        ValueError: the key lies in the run's folder, others may read it, or it holds something else.
        OSError: it cannot be read or written.
    """
    from privacy.report.keys import read_private, write_private  # cryptography, which only keys need

    path = path or folder.resolve().parent / KEY_NAME
    if path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"the commitment key {path} lies in the run's folder, which is handed out; keep it elsewhere.")
    try:
        held = read_private(path)
    except UnreadableError:
        if path.exists():
            raise
        key = secrets.token_bytes(32)
        write_private(path, key.hex().encode("ascii") + b"\n")
        return key
    try:
        return bytes.fromhex(held.decode("ascii").strip())
    except ValueError:
        raise ValueError(f"{path} holds no commitment key (hexadecimal digits); put the right file there.") from None


__all__ = ["KEY_NAME", "commitment_key", "data_commitment"]
