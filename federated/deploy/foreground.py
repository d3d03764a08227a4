"""What ``mmslm deploy`` does: the programs of a deployment in the foreground, and what its operator may ask.

The SuperLink's command registers every public key in ``superlink/nodes`` when it starts, so adding a node is adding a
file. A key that was revoked moves to ``superlink/revoked`` and is registered no more.

What it refuses: to look after a deployment that it cannot read, or a SuperLink that is not there.
"""

from __future__ import annotations

import errno
import logging
import signal
import socket
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
    days_left,
    open_deployment,
    open_node,
    private_folder,
    public_key_bytes,
    renew,
)
from federated.deploy.loopback import register_all, start_superlink, wait_for_superlink

logger = logging.getLogger(__name__)

SOON = 60  # days; from then on a certificate's end is announced


def superlink(folder: Path, listen: str | None, say: Callable[[str], None]) -> int:
    """Run the SuperLink until it is stopped; its exit code."""
    deployment = open_deployment(folder)
    on_this_machine = deployment.host in ("127.0.0.1", "localhost", "::1")
    host = listen or ("127.0.0.1" if on_this_machine else "0.0.0.0")
    left = days_left(deployment)
    if left < SOON:
        say(f"the certificate ends in {left} days; renew it with: mmslm deploy renew {folder}")
    require_free(host, deployment.port)
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


def require_free(host: str, port: int) -> None:
    """DeploymentError where this machine cannot listen on ``host``:``port``."""
    try:
        family, kind, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(
                socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
            )  # as the server does: a port that was just left is free
            probe.bind(address)
    except socket.gaierror:
        raise DeploymentError(
            f"--listen {host} is not an address of this machine; give one, or 0.0.0.0 for all."
        ) from None
    except OSError as error:
        why = {
            errno.EADDRINUSE: "another program listens there, perhaps this SuperLink already; stop it",
            errno.EACCES: "ports below 1024 are root's; make the deployment with a higher --port",
            errno.EADDRNOTAVAIL: "that is not an address of this machine; give --listen one that is, or 0.0.0.0 for all",
        }.get(error.errno or 0, str(error.strerror))
        raise DeploymentError(f"cannot listen on {host}:{port}: {why}.") from None


def renewed(folder: Path, names: Sequence[str]) -> str:
    """Renew the SuperLink's certificate; what to do next."""
    end = renew(folder, names)
    return (
        f"the SuperLink's certificate is good until {end}; restart 'mmslm deploy superlink' to use it "
        f"(on its machine, if that is another: copy {folder}/superlink/server.pem there first)"
    )


def supernode(
    folder: Path,
    numbers: Sequence[int] | None,
    *,
    superlink: str | None = None,
    photos: Path | None = None,
    base: Path | None = None,
    poll: float = 0.5,
    store: Path | None = None,
    epsilon: float | None = None,
) -> int:
    """Run one or several nodes until they are stopped."""
    from federated.deploy import supernode as nodes

    if not 0.02 <= poll <= 60:
        raise DeploymentError(f"--poll is {poll:g}; give 0.02 to 60 seconds.")
    if photos is not None and not photos.is_dir():
        raise DeploymentError(f"there is no folder {photos}; give this device's photos in COCO captions form.")
    if base is not None and not (base / "config.json").is_file():
        raise DeploymentError(
            f"there is no model in {base} (no config.json); give this device's copy of the base model."
        )
    if epsilon is not None and not 0 < epsilon < 1000:
        raise DeploymentError(f"--epsilon is {epsilon:g}; give this device's privacy budget, above 0.")
    own = [f"data={nodes.setting(photos.absolute())}"] if photos is not None else []
    own += [f"base={nodes.setting(base.absolute())}"] if base is not None else []
    own += [f"epsilon={float(epsilon)}"] if epsilon is not None else []
    opened = node_folders(folder, numbers)
    for option, value in (("--photos", photos), ("--store", store), ("--epsilon", epsilon)):
        if value is not None and len(opened) > 1:
            raise DeploymentError(f"{option} belongs to one device; start each node with its own command.")
    for node in opened:
        private_folder(store or node.store)
    nodes.main_in(opened, superlink=superlink, poll=poll, own=" ".join(own), store=store)
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
