"""Keys and masks: agreement, derivation, expansion and signed statements, each bound to its session, stage and parties."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from federated.secure_aggregation.errors import SecureAggregationError
from federated.secure_aggregation.ring import Words

KEY_BYTES = 32
SESSION_BYTES = 32


def statement(stage: str, session: bytes, *parts: bytes | int) -> bytes:
    """What is signed, derived from or authenticated: unambiguous, because every part carries its length."""
    encoded = [b"mmslm-secagg-1", stage.encode(), session]
    encoded += [part.to_bytes(8, "big") if isinstance(part, int) else part for part in parts]
    return b"".join(len(part).to_bytes(8, "big") + part for part in encoded)


def survivors_statement(session: bytes, members: Iterable[int]) -> bytes:
    """What devices sign in the confirm stage: exactly who is still there."""
    return statement("survivors", session, *sorted(members))


def agree(private: X25519PrivateKey, public: bytes, stage: str, session: bytes, one: int, other: int) -> bytes:
    """A 32-byte key that only the two devices (and who holds one of their private keys) can derive."""
    try:
        shared = private.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        # A point of small order gives everybody the same secret.
        raise SecureAggregationError(f"device {other}'s public key is no usable X25519 key.") from None
    info = statement(stage, session, min(one, other), max(one, other))
    return HKDF(hashes.SHA256(), KEY_BYTES, salt=session, info=info).derive(shared)


def expand(key: bytes, dimension: int) -> Words:
    """A mask [dimension] of uniform words. One key makes one mask, so the nonce may be zero."""
    stream = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()
    return np.frombuffer(stream.update(bytes(4 * dimension)), dtype="<u4").astype(np.uint32, copy=False)


def is_signed(public: bytes, signature: bytes, message: bytes) -> bool:
    """Whether ``signature`` over ``message`` is by the holder of the Ed25519 key ``public``."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True
