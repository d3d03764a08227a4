"""``mmslm deploy``: certificates and keys, the SuperLink, the nodes, and runs on them."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

PORT = 8000


def add(command: Callable[..., argparse.ArgumentParser]) -> None:
    """The command's arguments."""
    deploy = command(
        "deploy", _needs_more, "set up and run a deployment: init, superlink, supernode, status, revoke, renew, run"
    )
    parts = deploy.add_subparsers(dest="part", required=True, metavar="PART")

    def part(name: str, handler: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        sub = parts.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        sub.set_defaults(handler=handler)
        return sub

    init = part("init", _init, "write a certificate authority, the SuperLink's certificate, and a key for every node")
    init.add_argument("folder", type=Path, metavar="DIR")
    init.add_argument("--host", default="127.0.0.1", help="where nodes find the SuperLink: an address or a name")
    init.add_argument("--port", type=int, default=PORT)
    init.add_argument("--nodes", type=int, required=True, help="how many nodes get a key")
    init.add_argument(
        "--name", action="append", default=[], help="a further name or address of the SuperLink's machine"
    )

    superlink = part("superlink", _superlink, "run the SuperLink in the foreground, and register the nodes' keys")
    superlink.add_argument("folder", type=Path, metavar="DIR")
    superlink.add_argument(
        "--listen", default=None, help="address to listen on (default: 127.0.0.1, or all if init had another host)"
    )

    supernode = part("supernode", _supernode, "run nodes in the foreground, each with a worker that keeps the model")
    supernode.add_argument(
        "folder", type=Path, metavar="DIR", help="the deployment's folder with --node, or one node's own"
    )
    supernode.add_argument("--node", type=int, action="append", default=None, metavar="N", help="may be given again")
    supernode.add_argument("--superlink", default=None, metavar="HOST:PORT", help="another address than init wrote")
    supernode.add_argument(
        "--photos", type=Path, default=None, help="this device's photos, a folder in COCO captions form"
    )
    supernode.add_argument("--base", type=Path, default=None, help="this device's copy of the base model")
    supernode.add_argument(
        "--store",
        type=Path,
        default=None,
        metavar="DIR",
        help="where this device keeps what never leaves it (default: 'store' beside its key)",
    )
    supernode.add_argument(
        "--epsilon", type=float, default=None, help="this device's own budget in runs with 'trust: device'"
    )
    supernode.add_argument(
        "--poll", type=float, default=0.5, metavar="SECONDS", help="between questions to the SuperLink"
    )

    status = part("status", _status, "say which nodes are connected, and how the runs went")
    status.add_argument("folder", type=Path, metavar="DIR")

    revoke = part("revoke", _revoke, "take a node's key out: it is refused from now on")
    revoke.add_argument("folder", type=Path, metavar="DIR")
    revoke.add_argument("--node", type=int, required=True, metavar="N")

    renew = part("renew", _renew, "write a new certificate for the SuperLink, for two more years")
    renew.add_argument("folder", type=Path, metavar="DIR")
    renew.add_argument("--name", action="append", default=[], help="a further name or address that it is good for")

    run = part("run", _run, "train on this deployment (as 'mmslm federate --runtime deployed')")
    run.add_argument("folder", type=Path, metavar="DIR")
    run.add_argument("config", help="a YAML file as of 'mmslm run'")
    run.add_argument("--out", type=Path, default=None, help="the run's folder (default: runs/NAME)")
    run.add_argument(
        "--deadline", type=float, default=300.0, metavar="SECONDS", help="how long a round waits (default 300)"
    )
    run.add_argument("--wait-for", type=int, default=None, metavar="N", help="devices to wait for (default: all)")
    run.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override one setting")


def _needs_more(arguments: argparse.Namespace) -> int:
    raise ValueError("say which part: mmslm deploy init, superlink, supernode, status, revoke, renew or run.")


def _init(arguments: argparse.Namespace) -> int:
    from federated.deploy.credentials import create

    made = create(
        arguments.folder, host=arguments.host, port=arguments.port, nodes=arguments.nodes, names=arguments.name
    )
    where = arguments.folder
    print(f"a deployment for {made.nodes} nodes at {made.address} is in {where}")
    print(f"  here:                  mmslm deploy superlink {where}")
    print(f"  on each node's machine: copy {where}/nodes/NNNN there, then: mmslm deploy supernode NNNN")
    print(f"  keep offline:          {where}/authority/ca.key")
    return 0


def _superlink(arguments: argparse.Namespace) -> int:
    from federated.deploy.foreground import superlink

    return superlink(arguments.folder, arguments.listen, lambda line: print(line, flush=True))


def _supernode(arguments: argparse.Namespace) -> int:
    from federated.deploy.foreground import supernode

    return supernode(
        arguments.folder,
        arguments.node,
        superlink=arguments.superlink,
        photos=arguments.photos,
        base=arguments.base,
        poll=arguments.poll,
        store=arguments.store,
        epsilon=arguments.epsilon,
    )


def _status(arguments: argparse.Namespace) -> int:
    from federated.deploy.foreground import status

    print(status(arguments.folder))
    return 0


def _revoke(arguments: argparse.Namespace) -> int:
    from federated.deploy.foreground import revoke

    print(revoke(arguments.folder, arguments.node))
    return 0


def _renew(arguments: argparse.Namespace) -> int:
    from federated.deploy.foreground import renewed

    print(renewed(arguments.folder, arguments.name))
    return 0


def _run(arguments: argparse.Namespace) -> int:
    from apps.commands.overrides import overrides
    from apps.federate import federate

    folder = federate(
        arguments.config,
        overrides(arguments.set),
        runtime="deployed",
        out=arguments.out,
        deployment=arguments.folder,
        deadline=arguments.deadline,
        wait_for=arguments.wait_for,
    )
    print(f"- the trained model is in {folder / 'model'}")
    return 0
