"""A device's side of secure aggregation: one object per session, five steps, each once and in order.

The device believes the server nothing that it can check: keys must be signed by identities that it knew before, shares
must decrypt under the names of sender, receiver and session, and at least t devices must have signed the same set of
survivors before it gives a share away. Of one other device it never gives both secrets.

What it refuses is raised as SecureAggregationError; afterwards the object takes part in nothing more.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from numpy.typing import NDArray

from federated.secure_aggregation import shamir
from federated.secure_aggregation.errors import SecureAggregationError
from federated.secure_aggregation.masks import (
    SESSION_BYTES,
    agree,
    expand,
    is_signed,
    statement,
    survivors_statement,
)
from federated.secure_aggregation.ring import Ring, Words


class Identity:
    """A device's lasting Ed25519 key. ``public`` goes into the directory that every device is given beforehand."""

    def __init__(self, private: Ed25519PrivateKey | None = None) -> None:
        self._private = private or Ed25519PrivateKey.generate()
        self.public = self._private.public_key().public_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        """A signature [64 bytes]."""
        return self._private.sign(message)


@dataclass(frozen=True)
class Advert:
    """A device's two session keys (X25519, 32 bytes each) and its signature over both, the session and its number."""

    encryption: bytes
    masking: bytes
    signature: bytes


@dataclass(frozen=True)
class Unmasking:
    """Shares that a device gives away: of the own masks of survivors, of the masking keys of those that dropped."""

    own_masks: dict[int, bytes]
    masking_keys: dict[int, bytes]


class Device:
    """One device in one session.

    number: >= 0, its place in the directory. directory: number -> public identity of all that may take part.
    session: 32 bytes, new for every sum; a device must refuse one that it has seen. threshold: t, above half of the
    directory's size.
    """

    def __init__(
        self,
        number: int,
        identity: Identity,
        directory: Mapping[int, bytes],
        session: bytes,
        ring: Ring,
        threshold: int,
    ) -> None:
        if directory.get(number) != identity.public:
            raise ValueError(f"the directory has another identity for device {number}; enrol the device again.")
        check_session(session, threshold, len(directory))
        self.number, self._identity, self._directory = number, identity, dict(directory)
        self._session, self._ring, self._threshold = session, ring, threshold
        self._encryption, self._masking = X25519PrivateKey.generate(), X25519PrivateKey.generate()
        self._own_mask = secrets.token_bytes(32)
        self._adverts: dict[int, Advert] = {}
        self._post: dict[int, bytes] = {}
        self._survivors: frozenset[int] = frozenset()
        self._kept = b""
        self._stage = "advertise"

    def advertise(self) -> Advert:
        """Stage 1: the session's public keys, signed."""
        self._enter("advertise")
        encryption = self._encryption.public_key().public_bytes_raw()
        masking = self._masking.public_key().public_bytes_raw()
        signed = statement("keys", self._session, self.number, encryption, masking)
        self._stage = "share"
        return Advert(encryption, masking, self._identity.sign(signed))

    def share(self, adverts: Mapping[int, Advert]) -> dict[int, bytes]:
        """Stage 2: shares of this device's two secrets, encrypted to each of the others: number -> ciphertext."""
        self._enter("share")
        self._enough(len(adverts), "advertised keys")
        if self.number not in adverts:
            raise SecureAggregationError(f"device {self.number} was left out of the list of keys; it takes no part.")
        for number, advert in adverts.items():
            check_advert(number, advert, self._directory, self._session)
        if len({key for advert in adverts.values() for key in (advert.encryption, advert.masking)}) != 2 * len(adverts):
            raise SecureAggregationError("two devices advertise one key; the list was put together by somebody else.")
        self._adverts = dict(adverts)
        points = [number + 1 for number in sorted(adverts)]
        key_shares = shamir.split(self._masking.private_bytes_raw(), points, self._threshold)
        mask_shares = shamir.split(self._own_mask, points, self._threshold)
        post = {}
        for number in sorted(adverts):
            both = key_shares[number + 1] + mask_shares[number + 1]
            if number == self.number:
                self._kept = both
                continue
            header = statement("shares", self._session, self.number, number)
            # A key of its own for each direction and session seals exactly one message, so the nonce may be zero.
            post[number] = ChaCha20Poly1305(self._post_key(number, sender=self.number)).encrypt(bytes(12), both, header)
        self._stage = "masked"
        return post

    def masked(
        self, vector: NDArray[np.floating], post: Mapping[int, bytes], noise: NDArray[np.int64] | None = None
    ) -> Words:
        """Stage 3: the vector in the ring plus noise and masks, [d] words. ``post``: sender -> ciphertext to this device.

        ``noise``: this device's share of it, [d] integers in units of the ring's grid.
        """
        self._enter("masked")
        unknown = set(post) - set(self._adverts)
        if unknown or self.number in post:
            raise SecureAggregationError(
                f"post came from {sorted(unknown) or self.number}, which advertised no keys here."
            )
        self._enough(len(post) + 1, "devices that shared their secrets")
        self._post = dict(post)
        words = self._ring.encode(vector) + expand(self._own_mask, self._ring.dimension)
        if noise is not None:
            if noise.dtype != np.int64 or noise.shape != words.shape:
                raise ValueError(f"the noise is {noise.dtype} of shape {noise.shape}; int64 {words.shape} is expected.")
            words = words + noise.astype(np.uint32)  # two's complement: negative noise wraps as it must
        for other in sorted(post):
            key = agree(self._masking, self._adverts[other].masking, "mask", self._session, self.number, other)
            mask = expand(key, self._ring.dimension)
            words = words + mask if self.number < other else words - mask
        self._stage = "confirm"
        return words

    def confirm(self, survivors: frozenset[int]) -> bytes:
        """Stage 4: a signature under who is still there."""
        self._enter("confirm")
        if self.number not in survivors or not survivors <= set(self._post) | {self.number}:
            raise SecureAggregationError(
                "the server's list of survivors lacks this device or names one that never shared."
            )
        self._enough(len(survivors), "survivors")
        self._survivors = frozenset(survivors)
        self._stage = "unmask"
        return self._identity.sign(survivors_statement(self._session, survivors))

    def unmask(self, signatures: Mapping[int, bytes]) -> Unmasking:
        """Stage 5: the shares that the sum needs, after t survivors have signed the list that this device signed."""
        self._enter("unmask")
        agreed = survivors_statement(self._session, self._survivors)
        valid = [
            number
            for number, signature in signatures.items()
            if number in self._survivors and is_signed(self._directory[number], signature, agreed)
        ]
        self._enough(len(valid), "survivors that signed the same list")
        own_masks, masking_keys = {}, {}
        for sender in sorted({*self._post, self.number}):
            key_share, mask_share = self._open(sender)
            if sender in self._survivors:
                own_masks[sender] = mask_share
            else:
                masking_keys[sender] = key_share
        self._stage = "done"
        return Unmasking(own_masks, masking_keys)

    def freeze(self) -> dict[str, bytes]:
        """Everything that the next step needs, secrets included: for where a device keeps what nobody else may read."""
        return {
            "stage": self._stage.encode(),
            "secrets": self._encryption.private_bytes_raw() + self._masking.private_bytes_raw() + self._own_mask,
            "kept": self._kept,
            "survivors": number_bytes(self._survivors),
            **parcel("adverts", {n: a.encryption + a.masking + a.signature for n, a in self._adverts.items()}),
            **parcel("post", self._post),
        }

    def thaw(self, frozen: Mapping[str, bytes]) -> None:
        """Goes on where `freeze` was called. SecureAggregationError where it is not that."""
        try:
            secret = frozen["secrets"]
            self._encryption = X25519PrivateKey.from_private_bytes(secret[:32])
            self._masking = X25519PrivateKey.from_private_bytes(secret[32:64])
            self._own_mask, self._kept = secret[64:96], frozen["kept"]
            self._stage = frozen["stage"].decode()
            self._survivors = frozenset(read_numbers(frozen["survivors"]))
            self._adverts = {n: Advert(v[:32], v[32:64], v[64:]) for n, v in read_parcel(frozen, "adverts").items()}
            self._post = read_parcel(frozen, "post")
        except (KeyError, ValueError) as error:
            raise SecureAggregationError(f"device {self.number} lost what it knew of this session ({error}).") from None

    def _open(self, sender: int) -> tuple[bytes, bytes]:
        if sender == self.number:
            both = self._kept
        else:
            header = statement("shares", self._session, sender, self.number)
            try:
                both = ChaCha20Poly1305(self._post_key(sender, sender=sender)).decrypt(
                    bytes(12), self._post[sender], header
                )
            except InvalidTag:
                raise SecureAggregationError(
                    f"the post of device {sender} to device {self.number} was altered, swapped or replayed."
                ) from None
        if len(both) != 2 * shamir.SHARE_BYTES:
            raise SecureAggregationError(f"the post of device {sender} holds {len(both)} bytes, not two shares.")
        return both[: shamir.SHARE_BYTES], both[shamir.SHARE_BYTES :]

    def _post_key(self, other: int, *, sender: int) -> bytes:
        stage = "post to the higher number" if sender < max(other, self.number) else "post to the lower number"
        return agree(self._encryption, self._adverts[other].encryption, stage, self._session, self.number, other)

    def _enter(self, stage: str) -> None:
        if self._stage != stage:
            raise SecureAggregationError(
                f"device {self.number} was asked for {stage!r} and is at {self._stage!r}; each step is done once, in order."
            )
        # Whatever is refused on the way leaves it so; a step that succeeds names the next one.
        self._stage = "refused"

    def _enough(self, count: int, what: str) -> None:
        if count < self._threshold:
            raise SecureAggregationError(
                f"there are {count} {what} and {self._threshold} are needed; the sum is given up."
            )


def number_bytes(numbers: Iterable[int]) -> bytes:
    """Numbers, ascending, four bytes each."""
    return np.array(sorted(numbers), dtype="<u4").tobytes()


def read_numbers(data: bytes) -> list[int]:
    """The inverse of `number_bytes`. ValueError for half a number."""
    return [int(number) for number in np.frombuffer(data, dtype="<u4")]


def parcel(name: str, items: Mapping[int, bytes]) -> dict[str, bytes]:
    """number -> bytes, all of one length, as two fields."""
    return {f"{name}.of": number_bytes(items), name: b"".join(items[number] for number in sorted(items))}


def read_parcel(fields: Mapping[str, object], name: str) -> dict[int, bytes]:
    """The inverse of `parcel`. KeyError or ValueError where the fields are none."""
    owners, data = fields[f"{name}.of"], fields[name]
    if not isinstance(owners, bytes) or not isinstance(data, bytes):
        raise ValueError(f"{name} is not bytes")
    numbers = read_numbers(owners)
    if len(set(numbers)) != len(numbers) or (len(data) % len(numbers) if numbers else len(data)):
        raise ValueError(f"{name} has {len(data)} bytes for {len(numbers)} devices")
    size = len(data) // len(numbers) if numbers else 0
    return {number: data[i * size : (i + 1) * size] for i, number in enumerate(numbers)}


def check_session(session: bytes, threshold: int, members: int) -> None:
    """ValueError unless the session is 32 bytes and more than half of the members are needed to unmask."""
    if len(session) != SESSION_BYTES:
        raise ValueError(f"the session has {len(session)} bytes; give {SESSION_BYTES} random ones, new for every sum.")
    if not members // 2 < threshold <= members:
        raise ValueError(
            f"the threshold is {threshold} of {members} devices; give more than half of them (two thirds against a server "
            f"that lies) and at most all."
        )


def check_advert(number: int, advert: Advert, directory: Mapping[int, bytes], session: bytes) -> None:
    """SecureAggregationError unless the keys are signed by the device that the directory names."""
    signed = statement("keys", session, number, advert.encryption, advert.masking)
    if number not in directory or not is_signed(directory[number], advert.signature, signed):
        raise SecureAggregationError(f"the keys of device {number} are not signed by its identity for this session.")
