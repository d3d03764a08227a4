"""A whole deployment on this machine: certificates, keys, SuperLink, SuperNodes; for trials, tests and measurements.

Everything is as it would be between machines (TLS, registered keys, a process for each part), only the network is loopback.
It is ended when the block is left. The parts are forked from this process, which has imported already what they need.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from federated.deploy.control import Control
from federated.deploy.credentials import Deployment, create, open_node, public_key_bytes
from federated.deploy.family import Family
from federated.deploy.programs import Running, environment, free_port, stopped_afterwards, wait_until

START_SECONDS = 120.0  # on a busy machine
POLL = 0.25  # seconds between the questions of an idle node; loopback can bear it


@contextlib.contextmanager
def deployed(folder: Path, *, nodes: int, own: str = "", poll: float = POLL) -> Iterator[Deployment]:
    """A running deployment with ``nodes`` nodes, each registered. ``own``: the nodes' own settings."""
    deployment = create(folder, host="127.0.0.1", port=free_port(), nodes=nodes)
    with stopped_afterwards([]) as programs:
        programs.append(start_superlink(deployment))
        wait_for_superlink(deployment, programs)
        register_all(deployment)
        programs.append(start_nodes(deployment, range(nodes), own=own, poll=poll))
        yield deployment


def start_superlink(deployment: Deployment, *, host: str = "127.0.0.1", network: Path | None = None) -> Family:
    """The SuperLink and its worker; their words go to superlink/superlink.log."""
    from federated.deploy import superlink

    return Family(
        "the SuperLink",
        lambda: superlink.serve(deployment, host=host),
        environment=environment(deployment.superlink / "flwr"),
        log=deployment.superlink / "superlink.log",
        network=network,
    )


def start_nodes(
    deployment: Deployment,
    numbers: Sequence[int],
    *,
    own: str = "",
    poll: float = POLL,
    superlink: str | None = None,
    network: Path | None = None,
) -> Family:
    """Some nodes and their workers; their words go to the first one's node.log."""
    from federated.deploy import supernode

    opened = [open_node(deployment.node(number)) for number in numbers]
    return Family(
        f"nodes {', '.join(map(str, numbers))}",
        lambda: supernode.serve(opened, superlink=superlink, poll=poll, own=own),
        environment=environment(opened[0].folder / "flwr"),
        log=opened[0].folder / "node.log",
        network=network,
    )


def wait_for_superlink(deployment: Deployment, programs: Sequence[Running]) -> None:
    """Return when the SuperLink answers over TLS."""
    with Control(f"127.0.0.1:{deployment.port}", deployment.superlink / "ca.crt") as control:
        wait_until(control.answers, programs, seconds=START_SECONDS, what="the SuperLink")


def register_all(deployment: Deployment) -> int:
    """Register every node's key; how many were new."""
    with Control(f"127.0.0.1:{deployment.port}", deployment.superlink / "ca.crt") as control:
        return sum(control.register(public_key_bytes(path), f"node {path.stem}") for path in deployment.public_keys())
