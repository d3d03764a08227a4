"""``mmslm federate``: private training on the runtime of one's choice."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path


def add(command: Callable[..., argparse.ArgumentParser]) -> None:
    """The command's arguments."""
    sub = command("federate", _federate, "train federated in this process, on Ray, or on a deployment; and report")
    sub.add_argument("config", help="a YAML file as of 'mmslm run', or the name of a shipped one (federated)")
    sub.add_argument(
        "--runtime",
        choices=("process", "ray", "deployed"),
        default="process",
        help="process: this one (default); ray: Flower's simulation; deployed: SuperLink and SuperNodes",
    )
    sub.add_argument("--out", type=Path, default=None, help="the run's folder (default: runs/NAME)")
    sub.add_argument("--restart", action="store_true", help="move an earlier run in that folder aside and begin anew")
    sub.add_argument(
        "--deployment",
        type=Path,
        default=None,
        metavar="DIR",
        help="of 'mmslm deploy init'; else a trial one on loopback",
    )
    sub.add_argument(
        "--deadline",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="deployed: how long a round waits (default: for all)",
    )
    sub.add_argument(
        "--wait-for",
        type=int,
        default=None,
        metavar="N",
        help="deployed: devices to wait for at the start (default: all)",
    )
    sub.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override one setting")


def _federate(arguments: argparse.Namespace) -> int:
    from apps.commands.overrides import overrides
    from apps.federate import federate

    folder = federate(
        arguments.config,
        overrides(arguments.set),
        runtime=arguments.runtime,
        out=arguments.out,
        restart=arguments.restart,
        deployment=arguments.deployment,
        deadline=arguments.deadline,
        wait_for=arguments.wait_for,
    )
    print(f"- the trained model is in {folder / 'model'}")
    return 0
