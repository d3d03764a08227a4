"""What a node finds at its SuperLink's door, said in one sentence before Flower knocks.

Flower repeats a TLS error without a word, or prints a page about exit codes. A node's owner needs to know which of the
few things that go wrong it is: nobody is there, somebody else is, the certificate is old, or the key is not wanted.

What it refuses: to decide anything. The connection that matters checks certificate and key itself; this one only looks.
"""

from __future__ import annotations

import logging
import socket
import ssl
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

SECONDS = 10.0


def what_is_wrong(superlink: str, authority: Path) -> str | None:
    """Why the SuperLink at ``superlink`` (host:port) cannot be talked to, in one sentence; None where it can.

    authority: the certificate of the authority that must have signed the SuperLink's.
    """
    host, _, port = superlink.rpartition(":")
    host = host.strip("[]")
    try:
        context = ssl.create_default_context(cafile=str(authority))
    except (OSError, ssl.SSLError):
        return f"{authority} is missing or holds no certificate; copy this node's folder again."
    try:
        with (
            socket.create_connection((host, int(port)), timeout=SECONDS) as line,
            context.wrap_socket(line, server_hostname=host),
        ):
            return None
    except ssl.SSLCertVerificationError as error:
        return _of_certificate(superlink, error)
    except ssl.SSLError:
        return f"what listens at {superlink} speaks no TLS and is no SuperLink of ours; check address and port."
    except socket.gaierror:
        return f"the name {host!r} is not known to this machine; check it, or give the address with --superlink."
    except (OSError, ValueError) as error:
        return f"nobody answers at {superlink} ({error}); is the SuperLink running, and does its firewall let this machine in?"


def _of_certificate(superlink: str, error: ssl.SSLCertVerificationError) -> str:
    said = error.verify_message
    if "expired" in said:
        return (
            f"the certificate of the SuperLink at {superlink} has expired; its operator renews it with "
            "'mmslm deploy renew' (or this machine's clock is wrong)."
        )
    if "not yet valid" in said:
        return (
            f"the certificate of the SuperLink at {superlink} is not valid yet; set this machine's clock ({_today()})."
        )
    if "mismatch" in said:
        return (
            f"the certificate of the SuperLink at {superlink} is for other names; give one of those with --superlink, or "
            "its operator adds this one with 'mmslm deploy renew --name'."
        )
    return (
        f"the certificate of the SuperLink at {superlink} was not signed by this node's authority ({said}); this is "
        "another deployment's SuperLink, or somebody in between, and it gets nothing."
    )


def _today() -> str:
    import datetime

    return f"it says {datetime.datetime.now(datetime.UTC):%Y-%m-%d}"


def say_refusals(client: Any, number: int) -> None:
    """Make Flower's FleetHttpClient say in one sentence that the SuperLink does not want this node's key."""
    import httpx
    from flwr.supercore.error import ApiErrorCode, FlowerError

    activate = client.ActivateNode

    def activated(self: Any, request: Any, **options: Any) -> Any:
        try:
            return activate(self, request, **options)
        except httpx.HTTPStatusError as error:
            said = FlowerError.from_json(error.response.text)
            if said is not None and said.code == ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED:
                # One answer for three causes; the SuperLink tells strangers no more.
                logger.error(
                    "the SuperLink does not let node %d in: another process with its key is connected, or was until it "
                    "died less than a minute ago; or the key was revoked, or never registered (its operator restarts "
                    "'mmslm deploy superlink' with the key in superlink/nodes). It asks again",
                    number,
                )
            raise

    client.ActivateNode = activated
