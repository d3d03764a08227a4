"""SuperNodes of a deployment: Flower's own loop, asked more often, beside a warm worker; both revived when they die.

One command serves one node, or several that live on one machine: everything is imported once, and each node and each
worker is forked from that. A node or worker that ends is started again, later each time. Ending the command ends all.

What is the device's own (``federated.device_store``, its privacy ledger) lies in its store on this machine's disk and
outlives every process here.

What it refuses: a node's folder whose key others can read, a store that others may look into.
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

from federated.deploy.called_off import tasks_end_with_their_message
from federated.deploy.credentials import DeploymentError, NodeFolder, private_folder
from federated.deploy.doorstep import say_refusals, what_is_wrong
from federated.deploy.family import FIRST_PAUSE, Part, speak, supervise
from federated.deploy.pauses import NodeClock, shorten_pulls
from federated.deploy.programs import be_quiet, environment, free_port

logger = logging.getLogger(__name__)

POLL = 0.5  # seconds between the questions of a node that nobody has written to for a while
LONGEST_WAIT = 15.0  # seconds between looks for a SuperLink that is not there


def serve(
    nodes: Sequence[NodeFolder],
    *,
    superlink: str | None = None,
    poll: float = POLL,
    own: str = "",
    store: Path | None = None,
) -> None:
    """Run until stopped. ``superlink``: another address than the folders say. ``own``: settings of these machines' own
    (Flower's form, ``data='/home/me/photos'``), which a server's run configuration cannot change. ``store``: where the
    device keeps what is its own, where it is not its folder; for a single node.
    """
    # Imported before the forks, so that they share it.
    from federated.client_app import app
    from federated.deploy import worker

    shorten_pulls()
    with tempfile.TemporaryDirectory(prefix="mmslm-node-") as scratch:
        parts: list[Part] = []
        for node in nodes:
            private_folder(store or node.store)
            secret, port = secrets.token_bytes(32), free_port()
            secret_file = Path(scratch) / f"{node.number}.secret"
            secret_file.touch(mode=0o600)
            secret_file.write_bytes(secret)
            runtime = f"127.0.0.1:{port}"
            there = superlink or node.superlink
            line = command(node, there, port, secret_file, own, store)
            parts.append(Part(f"node {node.number}", lambda n=node, a=there, li=line: _node(n, a, li, poll)))  # type: ignore[misc]
            parts.append(
                Part(
                    f"worker {node.number}",
                    lambda runtime=runtime, secret=secret: worker.work(runtime, secret, app, poll=min(poll, 0.2)),  # type: ignore[misc]
                )
            )
        supervise(parts)


def command(
    node: NodeFolder, superlink: str, port: int, secret: Path, own: str = "", store: Path | None = None
) -> list[str]:
    """Flower's command line for a node whose worker is ours."""
    return [
        "flower-supernode",
        *("--root-certificates", str(node.certificate.absolute())),
        *("--superlink", superlink),
        *("--auth-supernode-private-key", str(node.key.absolute())),
        *("--node-config", configuration(node, own, store)),
        *("--isolation", "process"),
        *("--superexec-auth-secret-file", str(secret)),
        *("--host", "127.0.0.1"),
        *("--port", str(port)),
    ]


def configuration(node: NodeFolder, own: str = "", store: Path | None = None) -> str:
    """The node's own configuration in Flower's form: who it is, where its things are; ``own`` stands before all of it."""
    place = (store or node.store).absolute()
    # A server's run may name any folder; a node that was told of none has only the embedded scenes to give.
    facts = {"data": "'scenes'", "store": setting(place), "book": setting(place / "ledger")}
    if node.identity.exists() and node.directory.exists():
        facts |= {"identity": setting(node.identity.absolute()), "directory": setting(node.directory.absolute())}
    given = {key for key in facts if re.search(rf"(^|\s){key}\s*=", own)}
    words = [f"partition-id={node.number}", f"num-partitions={node.nodes}"]
    words += [f"{key}={value}" for key, value in facts.items() if key not in given]
    return " ".join([*words, own]).strip()


def setting(path: Path) -> str:
    """A path as Flower's configuration quotes it. DeploymentError for one that it cannot quote."""
    if "'" in str(path) or not str(path).isprintable():
        raise DeploymentError(
            f"the path {str(path)!r} holds a quote or a line break; rename it, or give another place."
        )
    return f"'{path}'"


def wait_for_a_welcome(superlink: str, node: NodeFolder) -> None:
    """Return when the SuperLink is there and shows the right certificate; until then say once what is wrong."""
    said, pause = None, FIRST_PAUSE
    while wrong := what_is_wrong(superlink, node.certificate):
        if wrong != said:
            logger.error("node %d waits: %s", node.number, wrong)
            said = wrong
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_WAIT)
    if said is not None:
        logger.info("node %d goes on: the SuperLink answers", node.number)


def _node(node: NodeFolder, superlink: str, line: list[str], poll: float) -> None:
    from flwr.supernode import fleet_http_connection, start_client_internal
    from flwr.supernode.cli.flower_supernode import flower_supernode

    wait_for_a_welcome(superlink, node)
    say_refusals(fleet_http_connection.FleetHttpClient, node.number)
    # Flower's loop has no switch for its pauses.
    start_client_internal.time = NodeClock(poll)  # type: ignore[assignment]
    start_client_internal._pull_and_store_message = tasks_end_with_their_message(
        start_client_internal._pull_and_store_message
    )
    sys.argv = line
    flower_supernode()


def main_in(
    nodes: Sequence[NodeFolder], *, superlink: str | None, poll: float, own: str, store: Path | None = None
) -> None:
    """``serve`` with the environment and the log of a program of its own. Each node's state lies in its folder."""
    os.environ.update(environment(nodes[0].folder / "flwr"))
    be_quiet()
    speak()
    serve(nodes, superlink=superlink, poll=poll, own=own, store=store)
