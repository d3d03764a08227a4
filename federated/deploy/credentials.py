"""A deployment's folder: its certificate authority, the SuperLink's certificate, and one key for every node.

    DIR/deployment.yaml          who is who: address of the SuperLink, names in its certificate, nodes
    DIR/authority/ca.key         signs certificates; needed again only for a new server certificate, so keep it offline
    DIR/superlink/               for the SuperLink's machine: ca.crt, server.pem, server.key, nodes/*.pub, its state
    DIR/nodes/NNNN/              for one node's machine: ca.crt, node.key, node.yaml, and for secure aggregation its
                                 signing key identity.pem and everybody's public ones, directory.json; copy this folder
                                 and nothing else

Keys are P-384 (for TLS and nodes) and Ed25519 (for secure aggregation), in files that only their owner can read (0600,
folders 0700), written so that they are never readable by others, not even for a moment. Nothing is overwritten: a key that
a node already uses must not disappear. Only the server's certificate is replaced, by ``renew``, for the same key.

What it refuses: a folder that holds anything, names that are no host, numbers that are no count, files whose
permissions were opened, and a certificate that has expired or another authority signed.
"""

from __future__ import annotations

import datetime
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from federated.deploy.certificates import (
    CURVE,
    DeploymentError,
    authority_certificate,
    load,
    require_signed_by,
    server_certificate,
    subject,
)

MOST_NODES = 10_000


@dataclass(frozen=True)
class Deployment:
    """An opened folder. ``host`` and ``port`` are where nodes find the SuperLink."""

    folder: Path
    host: str
    port: int
    nodes: int

    @property
    def address(self) -> str:
        """host:port, as Flower's programs want it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def superlink(self) -> Path:
        return self.folder / "superlink"

    def node(self, number: int) -> Path:
        if not 0 <= number < self.nodes:
            raise DeploymentError(
                f"there is no node {number}; this deployment has nodes 0 to {self.nodes - 1}. "
                "Make one with more nodes (mmslm deploy init --nodes)."
            )
        return self.folder / "nodes" / f"{number:04d}"

    def public_keys(self) -> list[Path]:
        """The keys that may take part, in the order of node numbers."""
        return sorted((self.superlink / "nodes").glob("*.pub"))


@dataclass(frozen=True)
class NodeFolder:
    """What a node's machine was given."""

    folder: Path
    number: int
    nodes: int
    superlink: str

    @property
    def certificate(self) -> Path:
        return self.folder / "ca.crt"

    @property
    def key(self) -> Path:
        return self.folder / "node.key"

    @property
    def identity(self) -> Path:
        """The key that signs in secure sums; a deployment made by an older mmslm has none."""
        return self.folder / "identity.pem"

    @property
    def directory(self) -> Path:
        """Everybody's public ones."""
        return self.folder / "directory.json"

    @property
    def store(self) -> Path:
        """Where the device keeps what is its own between rounds, where its owner names no other place."""
        return self.folder / "store"


def create(folder: Path, *, host: str, port: int, nodes: int, names: Sequence[str] = ()) -> Deployment:
    """Write a new deployment into ``folder``. ``names``: further hosts or addresses that the certificate is good for.

    The certificate is always good for 127.0.0.1, ::1 and localhost too: the SuperLink's own parts reach it there.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DeploymentError(
            f"{folder} is not empty, and keys in use must not be lost; give a folder that is not there."
        )
    if not 1 <= nodes <= MOST_NODES:
        raise DeploymentError(f"asked for {nodes} nodes; give 1 to {MOST_NODES:,}.")
    if not 1 <= port <= 65535:
        raise DeploymentError(f"port {port} is out of range; give 1 to 65535.")
    good_for = [subject(name) for name in dict.fromkeys([host, *names, "127.0.0.1", "::1", "localhost"])]
    for place in (folder, folder / "authority", folder / "superlink", folder / "superlink" / "nodes", folder / "nodes"):
        place.mkdir(mode=0o700, parents=place == folder, exist_ok=True)
        place.chmod(0o700)
    authority_key = ec.generate_private_key(CURVE())
    authority = authority_certificate(authority_key)
    server_key = ec.generate_private_key(CURVE())
    server = server_certificate(server_key.public_key(), authority_key, authority, good_for)
    certificate = authority.public_bytes(serialization.Encoding.PEM)
    _write(folder / "authority" / "ca.key", _pem(authority_key))
    _write(folder / "superlink" / "ca.crt", certificate, mode=0o644)
    _write(folder / "superlink" / "server.pem", server.public_bytes(serialization.Encoding.PEM), mode=0o644)
    _write(folder / "superlink" / "server.key", _pem(server_key))
    deployment = Deployment(folder, host, port, nodes)
    from federated.secure_aggregation.keys import write_identities  # Flower comes with it, and a second

    identities = write_identities(folder / "nodes", range(nodes))
    directory = folder / "nodes" / "directory.json"
    directory.chmod(0o644)
    for number in range(nodes):
        place = deployment.node(number)
        place.mkdir(mode=0o700)
        key = ec.generate_private_key(CURVE())
        _write(place / "node.key", _openssh(key))
        _write(folder / "superlink" / "nodes" / f"{number:04d}.pub", _public(key), mode=0o644)
        _write(place / "ca.crt", certificate, mode=0o644)
        identities[number].rename(place / "identity.pem")
        # One file under many names: ten thousand copies of ten thousand keys would be seven gigabytes.
        (place / "directory.json").hardlink_to(directory)
        facts = {"number": number, "nodes": nodes, "superlink": deployment.address}
        _write(place / "node.yaml", yaml.safe_dump(facts, sort_keys=False).encode(), mode=0o644)
    directory.unlink()
    # Last: a folder without it was not finished.
    text = yaml.safe_dump(
        {"host": host, "port": port, "nodes": nodes, "certificate names": [str(n.value) for n in good_for]}
    )
    _write(folder / "deployment.yaml", text.encode(), mode=0o644)
    return deployment


def open_deployment(folder: Path) -> Deployment:
    """The deployment in ``folder``, its secrets checked to be readable by their owner only."""
    facts = _read_yaml(folder / "deployment.yaml", "mmslm deploy init")
    try:
        deployment = Deployment(folder, str(facts["host"]), int(facts["port"]), int(facts["nodes"]))
    except (KeyError, TypeError, ValueError):
        raise DeploymentError(
            f"{folder / 'deployment.yaml'} lacks host, port or nodes; restore it, or make a new one."
        ) from None
    check_secret(deployment.superlink / "server.key")
    return deployment


def renew(folder: Path, names: Sequence[str] = (), *, today: datetime.datetime | None = None) -> datetime.date:
    """A new certificate for the SuperLink's key, good for the names of the old one and ``names``; the day of its end.

    Needs authority/ca.key, superlink/ca.crt and superlink/server.pem. Nodes notice nothing: the authority is the same.
    ``today``: for tests.
    """
    facts = _read_yaml(folder / "deployment.yaml", "mmslm deploy init")
    authority_file, server_file = folder / "authority" / "ca.key", folder / "superlink" / "server.pem"
    if not authority_file.exists():
        raise DeploymentError(
            f"{authority_file} is not here; put the authority's key back for this command, and away again."
        )
    check_secret(authority_file)
    authority_key = serialization.load_pem_private_key(authority_file.read_bytes(), password=None)
    authority, old = load(folder / "superlink" / "ca.crt"), load(server_file)
    if (
        not isinstance(authority_key, ec.EllipticCurvePrivateKey)
        or authority_key.public_key() != authority.public_key()
    ):
        raise DeploymentError(f"{authority_file} is not the key of superlink/ca.crt; restore the one that init wrote.")
    require_signed_by(authority, old, server_file)
    found = old.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    good_for = list(dict.fromkeys([*found, *map(subject, names)]))
    server_key = old.public_key()
    assert isinstance(server_key, ec.EllipticCurvePublicKey)  # ours: the authority has signed it
    new = server_certificate(server_key, authority_key, authority, good_for, today)
    facts["certificate names"] = [str(name.value) for name in good_for]
    for path, data in (
        (server_file, new.public_bytes(serialization.Encoding.PEM)),
        (folder / "deployment.yaml", yaml.safe_dump(facts).encode()),
    ):
        beside = path.with_name(path.name + ".new")
        beside.unlink(missing_ok=True)
        _write(beside, data, mode=0o644)
        beside.replace(path)
    return new.not_valid_after_utc.date()


def days_left(deployment: Deployment, today: datetime.datetime | None = None) -> int:
    """For so many days the SuperLink's certificate is good. DeploymentError where it is not, or is another authority's."""
    authority_file, server_file = deployment.superlink / "ca.crt", deployment.superlink / "server.pem"
    authority, server = load(authority_file), load(server_file)
    require_signed_by(authority, server, server_file)
    today = today or datetime.datetime.now(datetime.UTC)
    if authority.not_valid_after_utc <= today:
        raise DeploymentError(
            f"the authority's certificate {authority_file} expired on {authority.not_valid_after_utc:%Y-%m-%d}; make a new "
            "deployment with 'mmslm deploy init' and give every node its new folder."
        )
    if server.not_valid_after_utc <= today:
        raise DeploymentError(
            f"the SuperLink's certificate {server_file} expired on {server.not_valid_after_utc:%Y-%m-%d}; renew it with: "
            f"mmslm deploy renew {deployment.folder}"
        )
    return (server.not_valid_after_utc - today).days


def open_node(folder: Path) -> NodeFolder:
    """A node's own folder, as it was copied to its machine."""
    facts = _read_yaml(folder / "node.yaml", "copying nodes/NNNN from the deployment's folder")
    try:
        node = NodeFolder(folder, int(facts["number"]), int(facts["nodes"]), str(facts["superlink"]))
    except (KeyError, TypeError, ValueError):
        raise DeploymentError(
            f"{folder / 'node.yaml'} lacks number, nodes or superlink; copy the node's folder again."
        ) from None
    check_secret(node.key)
    if node.identity.exists():
        check_secret(node.identity)
    return node


def private_folder(path: Path) -> Path:
    """``path`` as a folder of its owner's alone, made where it is not there. DeploymentError where others may look in."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise DeploymentError(f"{path} cannot be made a folder ({error.strerror}); give another place.") from None
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise DeploymentError(
            f"{path} will hold what comes from this device's photos, and others may look in (mode {mode:04o}); "
            f"do: chmod 700 {path}"
        )
    return path


def check_secret(path: Path) -> None:
    """Raise DeploymentError where a private key is missing, or others than its owner may read it."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except FileNotFoundError:
        raise DeploymentError(f"the private key {path} is missing; restore it, or make a new deployment.") from None
    if mode & 0o077:
        raise DeploymentError(f"the private key {path} can be read by others (mode {mode:04o}); do: chmod 600 {path}")


def public_key_bytes(path: Path) -> bytes:
    """A node's public key as Flower registers it."""
    from flwr.supercore.primitives.asymmetric import public_key_to_bytes

    key = serialization.load_ssh_public_key(path.read_bytes())
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise DeploymentError(f"{path} is no elliptic-curve key; use the one that 'mmslm deploy init' wrote.")
    return bytes(public_key_to_bytes(key))


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _openssh(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )


def _public(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)


def _write(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """A new file that was never readable by others than ``mode`` says; FileExistsError where it is there."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        os.fchmod(file.fileno(), mode)


def _read_yaml(path: Path, source: str) -> dict[str, Any]:
    try:
        facts = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DeploymentError(f"{path} is not there; it is made by {source}.") from None
    except (UnicodeDecodeError, yaml.YAMLError):
        raise DeploymentError(f"{path} is not YAML; restore it.") from None
    if not isinstance(facts, dict):
        raise DeploymentError(f"{path} is not what mmslm wrote; restore it.")
    return facts
