"""What ``mmslm deploy`` does: the programs of a deployment in the foreground, and what its operator may ask.

The SuperLink's command registers every public key in ``superlink/nodes`` when it starts, so adding a node is adding a
file. A key that was revoked moves to ``superlink/revoked`` and is registered no more.

What it refuses: to look after a deployment that it cannot read, or a SuperLink that is not there.
"""

from __future__ import annotations

import logging
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from federated.deploy.control import Control
from federated.deploy.credentials import (
    Deployment,
    DeploymentError,
    NodeFolder,
    open_deployment,
    open_node,
    public_key_bytes,
)
from federated.deploy.loopback import register_all, start_superlink, wait_for_superlink

logger = logging.getLogger(__name__)


def superlink(folder: Path, listen: str | None, say: Callable[[str], None]) -> int:
    """Run the SuperLink until it is stopped; its exit code."""
    deployment = open_deployment(folder)
    on_this_machine = deployment.host in ("127.0.0.1", "localhost", "::1")
    host = listen or ("127.0.0.1" if on_this_machine else "0.0.0.0")
    _stop_on_term()
    program = start_superlink(deployment, host=host)
    try:
        wait_for_superlink(deployment, [program])
        new = register_all(deployment)
        keys = len(deployment.public_keys())
        say(f"the SuperLink listens on {host}:{deployment.port}; {keys} keys may take part ({new} new)")
        say(f"what it says is in {program.log}")
        while program.alive:
            time.sleep(0.2)
        say(f"the SuperLink ended: {program.last_words()}")
        return 1
    finally:
        program.stop()


def supernode(
    folder: Path,
    numbers: Sequence[int] | None,
    *,
    superlink: str | None = None,
    photos: Path | None = None,
    base: Path | None = None,
    poll: float = 0.5,
) -> int:
    """Run one or several nodes until they are stopped."""
    from federated.deploy import supernode as nodes

    if not 0.02 <= poll <= 60:
        raise DeploymentError(f"--poll is {poll:g}; give 0.02 to 60 seconds.")
    if photos is not None and not photos.is_dir():
        raise DeploymentError(f"there is no folder {photos}; give this device's photos in COCO captions form.")
    own = [f"data='{photos.absolute()}'"] if photos is not None else []
    own += [f"base='{base.absolute()}'"] if base is not None else []
    opened = node_folders(folder, numbers)
    if photos is not None and len(opened) > 1:
        raise DeploymentError("--photos belongs to one device; start each node with its own command.")
    nodes.main_in(opened, superlink=superlink, poll=poll, own=" ".join(own))
    return 0


def node_folders(folder: Path, numbers: Sequence[int] | None) -> list[NodeFolder]:
    """The nodes that ``folder`` means: one node's own, or some of a whole deployment's."""
    if (folder / "node.yaml").is_file():
        node = open_node(folder)
        if numbers not in (None, [node.number]):
            raise DeploymentError(f"{folder} is node {node.number}'s own folder; leave --node out.")
        return [node]
    deployment = open_deployment(folder)
    if not numbers:
        raise DeploymentError(f"say which of the nodes 0 to {deployment.nodes - 1} this machine is: --node 0.")
    return [open_node(deployment.node(number)) for number in dict.fromkeys(numbers)]


def status(folder: Path) -> str:
    """Nodes and runs, one line each."""
    with _control(open_deployment(folder)) as control:
        nodes = [f"{name}: {state}" for name, state in control.nodes()]
        runs = [f"run {number}: {state}" for number, state in control.runs()]
    return "\n".join([*nodes, *(runs or ["no run yet"])])


def revoke(folder: Path, number: int) -> str:
    """Refuse a node from now on, also when the SuperLink is started again."""
    deployment = open_deployment(folder)
    deployment.node(number)  # refuses a number that is no node's
    path = deployment.superlink / "nodes" / f"{number:04d}.pub"
    if not path.exists():
        raise DeploymentError(f"node {number} holds no key that may take part; was it revoked before?")
    with _control(deployment) as control:
        known = control.unregister(public_key_bytes(path))
    aside = deployment.superlink / "revoked"
    aside.mkdir(mode=0o700, exist_ok=True)
    path.rename(aside / path.name)
    return f"node {number} is refused from now on" + ("" if known else " (it was not registered)")


def _control(deployment: Deployment) -> Control:
    return Control(f"127.0.0.1:{deployment.port}", deployment.superlink / "ca.crt")


def _stop_on_term() -> None:
    def stop(number: int, frame: FrameType | None) -> None:
        sys.exit(0)

    signal.signal(signal.SIGTERM, stop)
