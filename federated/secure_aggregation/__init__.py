"""Secure aggregation: the server learns the sum of the devices' vectors, and of no device more than that.

The protocol of Bonawitz et al., 2017, "Practical Secure Aggregation for Privacy-Preserving Machine Learning", with the
consistency round that its defence against a lying server needs. Every device masks its vector with a mask of its own and
one shared with each other device; the shared ones cancel in the sum; those of devices that drop are reconstructed from
secret shares. X25519 key agreement, HKDF-SHA256, ChaCha20 masks from 256-bit keys, ChaCha20-Poly1305 for the shares,
Shamir's sharing over a 521-bit field, Ed25519 signatures by keys that the devices know beforehand.

    advertise   device -> its two session keys, signed                                  server -> all keys
    share       device -> shares of its secrets, encrypted to each other device         server -> each its post
    masked      device -> its vector, quantised into the ring of 32 bits, and masked    server -> who is still there
    confirm     device -> its signature under who is still there                        server -> all signatures
    unmask      device -> shares: of the own masks of those there, of the keys of those gone

With threshold t out of n devices it protects against

- a server that follows the protocol, with up to t - 1 devices that tell it everything;
- a server that lies and up to c devices that help it, where 2t > n + c: it cannot show two sets of survivors to t honest
  devices each. A threshold of two thirds of n leaves c up to n/3.

It does not protect against: what the sum itself tells (add noise to it: ``privacy.mechanism``), a device that sends a
false vector (nobody can look at it; the ring bounds it in no norm), a server that shuts devices out, or devices that
all share one owner. The directory of identity keys must reach the devices by another way than through the server.
"""

from federated.secure_aggregation.device import Device, Identity
from federated.secure_aggregation.errors import SecureAggregationError
from federated.secure_aggregation.ring import Ring
from federated.secure_aggregation.server import Server

__all__ = ["Device", "Identity", "Ring", "SecureAggregationError", "Server"]
