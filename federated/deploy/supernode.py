"""SuperNodes of a deployment: Flower's own loop, asked more often, beside a warm worker; both revived when they die.

One command serves one node, or several that live on one machine: everything is imported once, and each node and each
worker is forked from that. A node or worker that ends is started again, later each time. Ending the command ends all.

What it refuses: a node's folder whose key others can read.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

from federated.deploy.called_off import tasks_end_with_their_message
from federated.deploy.credentials import NodeFolder
from federated.deploy.family import Part, speak, supervise
from federated.deploy.programs import be_quiet, environment, free_port

logger = logging.getLogger(__name__)

POLL = 0.5  # seconds between a node's questions to the SuperLink


def serve(nodes: Sequence[NodeFolder], *, superlink: str | None = None, poll: float = POLL, own: str = "") -> None:
    """Run until stopped. ``superlink``: another address than the folders say. ``own``: settings of these machines' own
    (Flower's form, ``data='/home/me/photos'``), which a server's run configuration cannot change.
    """
    # Imported before the forks, so that they share it.
    from federated.client_app import app
    from federated.deploy import worker

    with tempfile.TemporaryDirectory(prefix="mmslm-node-") as scratch:
        parts: list[Part] = []
        for node in nodes:
            secret, port = secrets.token_bytes(32), free_port()
            secret_file = Path(scratch) / f"{node.number}.secret"
            secret_file.touch(mode=0o600)
            secret_file.write_bytes(secret)
            runtime = f"127.0.0.1:{port}"
            line = command(node, superlink or node.superlink, port, secret_file, own)
            parts.append(Part(f"node {node.number}", lambda line=line: _node(line, poll)))  # type: ignore[misc]
            parts.append(
                Part(
                    f"worker {node.number}",
                    lambda runtime=runtime, secret=secret: worker.work(runtime, secret, app, poll=min(poll, 0.2)),  # type: ignore[misc]
                )
            )
        supervise(parts)


def command(node: NodeFolder, superlink: str, port: int, secret: Path, own: str = "") -> list[str]:
    """Flower's command line for a node whose worker is ours."""
    if not re.search(r"(^|\s)data\s*=", own):
        # A server's run may name any folder; a node that was told of none has only the embedded scenes to give.
        own = f"data='scenes' {own}"
    return [
        "flower-supernode",
        *("--root-certificates", str(node.certificate.absolute())),
        *("--superlink", superlink),
        *("--auth-supernode-private-key", str(node.key.absolute())),
        *("--node-config", f"partition-id={node.number} num-partitions={node.nodes} {own}".strip()),
        *("--isolation", "process"),
        *("--superexec-auth-secret-file", str(secret)),
        *("--host", "127.0.0.1"),
        *("--port", str(port)),
    ]


def _node(line: list[str], poll: float) -> None:
    from flwr.supernode import start_client_internal
    from flwr.supernode.cli.flower_supernode import flower_supernode

    # Flower's loop sleeps 3 s when no message waits and 0.5 s while the worker works, and has no switch for either.
    start_client_internal.time = SimpleNamespace(  # type: ignore[assignment]
        sleep=lambda seconds: time.sleep(min(seconds, poll if seconds > 1 else 0.05))
    )
    start_client_internal._pull_and_store_message = tasks_end_with_their_message(
        start_client_internal._pull_and_store_message
    )
    sys.argv = line
    flower_supernode()


def main_in(nodes: Sequence[NodeFolder], *, superlink: str | None, poll: float, own: str) -> None:
    """``serve`` with the environment and the log of a program of its own. Each node's state lies in its folder."""
    os.environ.update(environment(nodes[0].folder / "flwr"))
    be_quiet()
    speak()
    serve(nodes, superlink=superlink, poll=poll, own=own)
