"""``mmslm devices`` and ``mmslm partition``: rounds on a virtual clock, and who holds what."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path


def add(command: Callable[..., argparse.ArgumentParser]) -> None:
    """The commands' arguments."""
    devices = command("devices", _devices, "train federated on a virtual clock: simulated seconds, bytes and joules")
    devices.add_argument("config", help="a YAML file, or the name of a shipped one (clock, clock_fedbuff)")
    devices.add_argument("--out", type=Path, default=None, help="the run's folder (default: runs/NAME)")
    devices.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override one setting")

    partition = command("partition", _partition, "deal photos to devices and draw who holds what")
    partition.add_argument("data", help="'scenes', or a folder in COCO captions form")
    partition.add_argument("--by", choices=("owner", "dirichlet", "quantity", "class"), default="owner")
    partition.add_argument("--devices", type=int, default=20, help="how many (owner: as many as there are)")
    partition.add_argument("--concentration", type=float, default=0.3, help="dirichlet: small makes devices differ")
    partition.add_argument("--spread", type=float, default=1.0, help="quantity: deviation of log sizes; 0 is even")
    partition.add_argument("--classes-each", type=int, default=2, help="class: classes that one device holds")
    partition.add_argument(
        "--owner", default=None, metavar="KEY", help="COCO: the key of an image that names its owner"
    )
    partition.add_argument(
        "--label", default=None, metavar="KEY", help="COCO: the key that names its class (default: owner)"
    )
    partition.add_argument("--photos", type=int, default=400, help="scenes: how many photos, four a household")
    partition.add_argument("--seed", type=int, default=0)
    partition.add_argument("--out", type=Path, default=Path("partition.png"), help="the picture")
    partition.add_argument("--json", type=Path, default=None, metavar="FILE", help="also write photo ids by device")


def _devices(arguments: argparse.Namespace) -> int:
    from apps.commands.overrides import overrides
    from apps.devices import run_devices

    lines = run_devices(
        arguments.config,
        overrides(arguments.set),
        out=arguments.out,
        tell=lambda line: print(line, flush=True),
    )
    print("\n".join(lines))
    return 0


def _partition(arguments: argparse.Namespace) -> int:
    import json

    from apps.devices import deal

    dealt = deal(
        arguments.data,
        arguments.by,
        devices=arguments.devices,
        concentration=arguments.concentration,
        spread=arguments.spread,
        classes_each=arguments.classes_each,
        owner=arguments.owner,
        label=arguments.label,
        photos=arguments.photos,
        seed=arguments.seed,
    )
    dealt.picture().save(arguments.out)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(dealt.ids(), indent=1) + "\n", encoding="utf-8")
    sizes = [len(part) for part in dealt.partition]
    print(
        f"{sum(sizes):,} photos on {len(sizes):,} devices, {min(sizes)} to {max(sizes)} each, {len(set(dealt.labels))} "
        f"classes; no photo is lost or shared. The picture is {arguments.out}"
    )
    return 0
