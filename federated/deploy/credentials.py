"""A deployment's folder: its certificate authority, the SuperLink's certificate, and one key for every node.

    DIR/deployment.yaml          who is who: address of the SuperLink, names in its certificate, nodes
    DIR/authority/ca.key         signs certificates; needed again only for a new server certificate, so keep it offline
    DIR/superlink/               for the SuperLink's machine: ca.crt, server.pem, server.key, nodes/*.pub, its state
    DIR/nodes/NNNN/              for one node's machine: ca.crt, node.key, node.yaml; copy this folder and nothing else

Keys are P-384, in files that only their owner can read (0600, folders 0700), written so that they are never readable by
others, not even for a moment. Nothing is overwritten: a key that a node already uses must not disappear.

What it refuses: a folder that holds anything, names that are no host, numbers that are no count, and files whose
permissions were opened.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CURVE = ec.SECP384R1
AUTHORITY_YEARS, SERVER_YEARS = 10, 2
MOST_NODES = 10_000
_HOST = re.compile(
    r"^(?=.{1,253}$)([a-zA-Z0-9_]([a-zA-Z0-9_-]{0,61}[a-zA-Z0-9_])?\.)*[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?$"
)
_DIGITS = re.compile(r"^[0-9.]+$")


class DeploymentError(ValueError):
    """A deployment's folder that cannot be used; the message says what is wrong and what to do."""


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
    good_for = [_subject(name) for name in dict.fromkeys([host, *names, "127.0.0.1", "::1", "localhost"])]
    for place in (folder, folder / "authority", folder / "superlink", folder / "superlink" / "nodes", folder / "nodes"):
        place.mkdir(mode=0o700, parents=place == folder, exist_ok=True)
        place.chmod(0o700)
    authority_key = ec.generate_private_key(CURVE())
    authority = _authority(authority_key)
    server_key = ec.generate_private_key(CURVE())
    server = _server(server_key, authority_key, authority, good_for)
    certificate = authority.public_bytes(serialization.Encoding.PEM)
    _write(folder / "authority" / "ca.key", _pem(authority_key))
    _write(folder / "superlink" / "ca.crt", certificate, mode=0o644)
    _write(folder / "superlink" / "server.pem", server.public_bytes(serialization.Encoding.PEM), mode=0o644)
    _write(folder / "superlink" / "server.key", _pem(server_key))
    deployment = Deployment(folder, host, port, nodes)
    for number in range(nodes):
        place = deployment.node(number)
        place.mkdir(mode=0o700)
        key = ec.generate_private_key(CURVE())
        _write(place / "node.key", _openssh(key))
        _write(folder / "superlink" / "nodes" / f"{number:04d}.pub", _public(key), mode=0o644)
        _write(place / "ca.crt", certificate, mode=0o644)
        facts = {"number": number, "nodes": nodes, "superlink": deployment.address}
        _write(place / "node.yaml", yaml.safe_dump(facts, sort_keys=False).encode(), mode=0o644)
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
    return node


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


def _subject(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    # Digits and dots that are no address are a mistyped address, not a host.
    if not _HOST.match(name) or _DIGITS.match(name):
        raise DeploymentError(
            f"{name!r} is neither an address nor a host name; write it without https:// and port, such as 192.0.2.7."
        )
    return x509.DNSName(name)


def _authority(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mmslm deployment authority")])
    usage = _usage(digital_signature=False, sign=True)
    return (
        _builder(name, name, key, AUTHORITY_YEARS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA384())
    )


def _server(
    key: ec.EllipticCurvePrivateKey,
    authority_key: ec.EllipticCurvePrivateKey,
    authority: x509.Certificate,
    good_for: Sequence[x509.GeneralName],
) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mmslm superlink")])
    return (
        _builder(name, authority.subject, key, SERVER_YEARS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True, sign=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(good_for), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False)
        .sign(authority_key, hashes.SHA384())
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, years: int
) -> x509.CertificateBuilder:
    # A day of grace: clocks of small devices are often behind.
    today = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(today - datetime.timedelta(days=1))
        .not_valid_after(today + datetime.timedelta(days=365 * years))
    )


def _usage(*, digital_signature: bool, sign: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=sign,
        crl_sign=sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


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
