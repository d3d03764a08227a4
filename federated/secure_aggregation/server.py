"""The server's side of secure aggregation: collects a stage's messages, drops and names the bad ones, and sums.

A device that is silent, or sends what cannot be believed, is dropped from that stage on; the sum is over those whose
masked vector came. With fewer than the threshold at any stage there is no sum, and nobody's vector is revealed.

The server is not trusted with privacy (the devices check what they can), only with the sum's correctness.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from numpy.typing import NDArray

from federated.secure_aggregation import shamir
from federated.secure_aggregation.device import Advert, Unmasking, check_advert, check_session
from federated.secure_aggregation.errors import SecureAggregationError
from federated.secure_aggregation.masks import agree, expand, is_signed, survivors_statement
from federated.secure_aggregation.ring import Ring, Words

logger = logging.getLogger(__name__)


@dataclass
class Server:
    """One session. directory: number -> identity of all that may take part. dropped: number -> why, as it goes on."""

    directory: Mapping[int, bytes]
    session: bytes
    ring: Ring
    threshold: int
    dropped: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_session(self.session, self.threshold, len(self.directory))
        if self.ring.members < len(self.directory):
            raise ValueError(
                f"the ring has room for {self.ring.members} members and the directory lists {len(self.directory)}; make the "
                "ring for all of them."
            )
        self._adverts: dict[int, Advert] = {}
        self._masked: dict[int, Words] = {}
        self._senders: frozenset[int] = frozenset()

    def keys(self, adverts: Mapping[int, Advert]) -> dict[int, Advert]:
        """After stage 1: the keys to send to everybody in them."""
        self._adverts = {}
        for number in sorted(adverts):
            try:
                check_advert(number, adverts[number], self.directory, self.session)
            except SecureAggregationError as error:
                self._drop(number, str(error))
            else:
                self._adverts[number] = adverts[number]
        self._enough(self._adverts, "advertised keys")
        return dict(self._adverts)

    def posts(self, posts: Mapping[int, Mapping[int, bytes]]) -> dict[int, dict[int, bytes]]:
        """After stage 2: for each device that shared, sender -> ciphertext to it. ``posts``: sender -> its ciphertexts."""
        complete = {}
        for sender in sorted(posts):
            if sender in self._adverts and set(posts[sender]) == set(self._adverts) - {sender}:
                complete[sender] = posts[sender]
            else:
                self._drop(sender, "its shares are not addressed to exactly the devices that advertised keys")
        self._enough(complete, "devices that shared their secrets")
        self._senders = frozenset(complete)
        return {
            receiver: {sender: complete[sender][receiver] for sender in complete if sender != receiver}
            for receiver in complete
        }

    def survivors(self, masked: Mapping[int, Words]) -> frozenset[int]:
        """After stage 3: who is in the sum, to be confirmed by each of them."""
        self._masked = {}
        for number in sorted(masked):
            words = masked[number]
            if number not in self._senders:
                self._drop(number, "it sent a vector without having shared its secrets")
            elif words.dtype != np.uint32 or words.shape != (self.ring.dimension,):
                self._drop(number, f"its vector is {words.dtype} of shape {words.shape}")
            else:
                self._masked[number] = words
        self._enough(self._masked, "masked vectors")
        return frozenset(self._masked)

    def signatures(self, signatures: Mapping[int, bytes]) -> dict[int, bytes]:
        """After stage 4: the signatures to send to everybody in them."""
        agreed = survivors_statement(self.session, self._masked)
        valid = {}
        for number in sorted(signatures):
            if number in self._masked and is_signed(self.directory[number], signatures[number], agreed):
                valid[number] = signatures[number]
            else:
                self._drop(number, "it did not sign the list of survivors")
        self._enough(valid, "signatures under the list of survivors")
        return valid

    def total(self, unmaskings: Mapping[int, Unmasking]) -> NDArray[np.float64]:
        """After stage 5: the sum [d] of the survivors' clipped vectors, exact in the ring."""
        survivors, gone = set(self._masked), self._senders - set(self._masked)
        answers = {}
        for number in sorted(unmaskings):
            given = unmaskings[number]
            if number in survivors and set(given.own_masks) == survivors and set(given.masking_keys) == gone:
                answers[number] = given
            else:
                self._drop(number, "its shares are not those that the sum needs")
        self._enough(answers, "devices that gave their shares")
        words = np.zeros(self.ring.dimension, dtype=np.uint32)
        for masked in self._masked.values():
            words += masked
        for number in survivors:
            secret = shamir.join({giver + 1: answers[giver].own_masks[number] for giver in answers}, self.threshold)
            words -= expand(secret, self.ring.dimension)
        for number in gone:
            words = self._without_shared_masks(words, number, answers)
        return self.ring.decode(words)

    def _without_shared_masks(self, words: Words, gone: int, answers: Mapping[int, Unmasking]) -> Words:
        """Take out what the survivors added because they shared a mask with a device that then dropped."""
        secret = shamir.join({giver + 1: answers[giver].masking_keys[gone] for giver in answers}, self.threshold)
        private = X25519PrivateKey.from_private_bytes(secret)
        if private.public_key().public_bytes_raw() != self._adverts[gone].masking:
            raise SecureAggregationError(
                f"the shares of device {gone} give another key than it advertised; one is forged."
            )
        for number in self._masked:
            key = agree(private, self._adverts[number].masking, "mask", self.session, gone, number)
            mask = expand(key, self.ring.dimension)
            words = words - mask if number < gone else words + mask
        return words

    def _drop(self, number: int, why: str) -> None:
        logger.warning("device %d was dropped from the secure sum: %s", number, why)
        self.dropped[number] = why

    def _enough(self, present: Mapping[int, object], what: str) -> None:
        if len(present) < self.threshold:
            raise SecureAggregationError(
                f"there are {len(present)} {what} and {self.threshold} are needed; this sum is given up, and nothing of it is "
                "revealed."
            )
