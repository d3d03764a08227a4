"""Identities: each device's lasting signing key, and the directory of everybody's public ones.

The directory must reach the devices by another way than through the server, or the server could invent devices. Three
ways here:

    KeysOnDisk      a node is started with ``identity=PEM-FILE directory=JSON-FILE`` in its node configuration
    KeysInProcess   one process plays all devices: made when first asked for, kept in memory
    simulated       derived from a seed, by every device alike; for runs with ``noise: simulation`` only

``write_identities`` makes the files for a deployment. What it refuses: key files that others may read, and directories
that are no table of device numbers and 32-byte keys.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from flwr.app import Context

from federated.secure_aggregation.device import Identity
from federated.settings import FederatedConfig

IDENTITY, DIRECTORY = "identity", "directory"


class Keys(Protocol):
    """Where a device finds its identity and the others' public ones."""

    def identity(self, device: int) -> Identity:
        """The device's own key."""

    def public(self, members: Iterable[int]) -> dict[int, bytes]:
        """number -> public identity [32 bytes] of those named. ValueError where one is not in the directory."""


class KeysInProcess:
    """Keys for devices that are all played by this process. ``seed``: derived from it (a simulation), None: random."""

    def __init__(self, seed: int | None = None) -> None:
        self._seed = seed
        self._made: dict[int, Identity] = {}
        self._lock = threading.Lock()

    def identity(self, device: int) -> Identity:
        with self._lock:
            if device not in self._made:
                private = None
                if self._seed is not None:
                    text = f"simulated identity|{self._seed}|{device}"
                    private = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(text.encode()).digest())
                self._made[device] = Identity(private)
            return self._made[device]

    def public(self, members: Iterable[int]) -> dict[int, bytes]:
        return {number: self.identity(number).public for number in members}


class KeysOnDisk:
    """The key and the directory that this node was given files of."""

    def __init__(self, identity: Path, directory: Path) -> None:
        if identity.stat().st_mode & 0o077:
            raise ValueError(f"others may read {identity}; it is this device's secret, so: chmod 600 {identity}.")
        private = load_pem_private_key(identity.read_bytes(), password=None)
        if not isinstance(private, Ed25519PrivateKey):
            raise ValueError(f"{identity} holds no Ed25519 key; make one with write_identities.")
        self._identity = Identity(private)
        self._directory = read_directory(directory)

    def identity(self, device: int) -> Identity:
        if self._directory.get(device) != self._identity.public:
            raise ValueError(f"the directory lists another key for device {device} than this node has; enrol it again.")
        return self._identity

    def public(self, members: Iterable[int]) -> dict[int, bytes]:
        missing = sorted(set(members) - set(self._directory))
        if missing:
            raise ValueError(f"the directory does not list the devices {missing[:5]}; this device takes no part.")
        return {number: self._directory[number] for number in members}


def keys_of_node(context: Context, settings: FederatedConfig) -> Keys:
    """What the node was started with; in a simulation, keys that follow from the seed."""
    identity, directory = (context.node_config.get(name) for name in (IDENTITY, DIRECTORY))
    if isinstance(identity, str) and isinstance(directory, str):
        return KeysOnDisk(Path(identity), Path(directory))
    if settings.noise == "simulation":
        return KeysInProcess(settings.seed)
    raise ValueError(
        "this node has no identity for secure aggregation; start it with --node-config \"identity='KEY.pem' "
        "directory='directory.json' ...\" (write_identities makes both)."
    )


def read_directory(path: Path) -> dict[int, bytes]:
    """number -> public identity, from a JSON object of device numbers and 64 hexadecimal digits."""
    try:
        table = {int(number): bytes.fromhex(key) for number, key in json.loads(path.read_text()).items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"{path} is no directory of devices ({error}); make one with write_identities.") from None
    if any(len(key) != 32 or number < 0 for number, key in table.items()):
        raise ValueError(
            f"{path} lists a key that is not 32 bytes, or a device below 0; make it with write_identities."
        )
    return table


def write_identities(folder: Path, devices: Iterable[int]) -> Mapping[int, Path]:
    """One ``device-N.pem`` for each device, readable by the owner alone, and ``directory.json`` for all of them.

    Hand each device its own key file and the directory, by another way than through the server. FileExistsError where a
    key is there already: a new one would shut its device out.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    written, directory = {}, {}
    for number in devices:
        private = Ed25519PrivateKey.generate()
        path = folder / f"device-{number}.pem"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        with open(os.open(path, flags, 0o600), "wb") as file:  # noqa: PTH123 - a descriptor
            file.write(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        written[number] = path
        directory[number] = private.public_key().public_bytes_raw().hex()
    (folder / "directory.json").write_text(json.dumps(directory, indent=1) + "\n")
    return written
