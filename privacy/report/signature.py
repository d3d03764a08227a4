"""An optional ed25519 signature over a report: the one thing that a self-consistent forgery cannot reproduce.

The signature covers the canonical encoding (RFC 8785) of the report without its `signature` field, after a line that
names the schema. Whoever checks it must have the signer's public key from elsewhere: the key in the report only says
whose signature it claims to be.
"""

from __future__ import annotations

from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from privacy.canonical import canonical_bytes
from privacy.report.build import check_report
from privacy.report.models import SCHEMA_VERSION, Signature


def _message(report: dict[str, Any]) -> bytes:
    unsigned = {key: value for key, value in report.items() if key != "signature"}
    return f"{SCHEMA_VERSION}\n".encode() + canonical_bytes(unsigned)


def sign_report(report: dict[str, Any], private_key: Ed25519PrivateKey) -> dict[str, Any]:
    """The report with a signature by `private_key`; an earlier signature is replaced.

    Raises:
        ReportError: the object is not a report.
    """
    plain = check_report(report).to_json()
    public = private_key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    value = private_key.sign(_message(plain))
    return {**plain, "signature": Signature(public_key=public.hex(), value=value.hex()).model_dump()}


def signature_problem(report: dict[str, Any], trusted_key: str | None = None) -> str | None:
    """What is wrong with the report's signature, in a sentence; None where it is good.

    Args:
        trusted_key: the signer's public key (64 hexadecimal digits) as known from elsewhere. Without it, only the
            agreement of report and signature is checked.
    """
    signature = report.get("signature")
    if not signature:
        return "The report is not signed." if trusted_key else None
    if trusted_key is not None and signature["public_key"] != trusted_key.lower():
        return "The report is signed by another key than the one that was asked for."
    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(signature["public_key"]))
        key.verify(bytes.fromhex(signature["value"]), _message(report))
    except (InvalidSignature, ValueError):
        return "The signature does not fit the report: one of them was changed."
    return None
