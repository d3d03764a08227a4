"""The two certificates of a deployment: an authority's, and the SuperLink's that it signs.

What it refuses: names that are no host, files that hold no certificate, and one that another authority signed.
"""

from __future__ import annotations

import datetime
import ipaddress
import re
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CURVE = ec.SECP384R1
AUTHORITY_YEARS, SERVER_YEARS = 10, 2
_HOST = re.compile(
    r"^(?=.{1,253}$)([a-zA-Z0-9_]([a-zA-Z0-9_-]{0,61}[a-zA-Z0-9_])?\.)*[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?$"
)
_DIGITS = re.compile(r"^[0-9.]+$")


class DeploymentError(ValueError):
    """A deployment's folder that cannot be used; the message says what is wrong and what to do."""


def subject(name: str) -> x509.GeneralName:
    """An address or a host name, as a certificate says it. DeploymentError for anything else."""
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


def load(path: Path) -> x509.Certificate:
    """The certificate in a PEM file. DeploymentError where there is none."""
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError):
        raise DeploymentError(f"{path} is missing or no certificate; restore it, or make a new deployment.") from None


def require_signed_by(authority: x509.Certificate, server: x509.Certificate, path: Path) -> None:
    """DeploymentError unless ``authority`` has signed ``server``, which is in ``path``."""
    try:
        server.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        raise DeploymentError(
            f"{path} was not signed by the authority in ca.crt beside it; restore the two that belong together."
        ) from None


def authority_certificate(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    """A certificate that may sign those of servers and no further authorities."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mmslm deployment authority")])
    usage = _usage(digital_signature=False, sign=True)
    return (
        _builder(name, name, key.public_key(), AUTHORITY_YEARS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA384())
    )


def server_certificate(
    key: ec.EllipticCurvePublicKey,
    authority_key: ec.EllipticCurvePrivateKey,
    authority: x509.Certificate,
    good_for: Sequence[x509.GeneralName],
    today: datetime.datetime | None = None,
) -> x509.Certificate:
    """The SuperLink's certificate for ``key``, good for the names ``good_for``. It signs nothing."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mmslm superlink")])
    return (
        _builder(name, authority.subject, key, SERVER_YEARS, today)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True, sign=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(good_for), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False)
        .sign(authority_key, hashes.SHA384())
    )


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    years: int,
    today: datetime.datetime | None = None,
) -> x509.CertificateBuilder:
    # A day of grace: clocks of small devices are often behind.
    today = today or datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
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
