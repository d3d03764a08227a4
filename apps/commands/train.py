"""``mmslm train``: a captioner of real photos from its recipe, without privacy or under it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path


def add(command: Callable[..., argparse.ArgumentParser]) -> None:
    """The command's arguments."""
    train = command("train", _train, "train a captioner on photos in COCO captions form, and measure it")
    train.add_argument("config", help="a recipe, for example configs/ucm.yaml")
    train.add_argument("--out", type=Path, default=None, help="the run's folder (default: runs/NAME)")
    train.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override one setting")


def _train(arguments: argparse.Namespace) -> int:
    from apps.commands.overrides import overrides
    from mmslm.config import load_config
    from mmslm.photo_recipe.run import train_photos
    from mmslm.photo_recipe.settings import PhotoRecipe

    recipe = load_config(arguments.config, PhotoRecipe, overrides(arguments.set))
    out = arguments.out or Path("runs") / recipe.name
    table = train_photos(recipe, out)
    print(table)
    print(f"- results are in {out}/: {'report.html, ' if recipe.private else ''}metrics.json, sheet.png, model/")
    if recipe.private:
        print(f"  mmslm audit {out}")
    print(f"  mmslm caption PHOTO --model {out}")
    return 0
