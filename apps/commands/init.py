"""``mmslm init``: a vision-language model from a pretrained language model and a pretrained image tower."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable
from pathlib import Path

# Read before the command line turns the hub off for everything: a person's own wish stays.
_WISHED_OFFLINE = os.environ.get("HF_HUB_OFFLINE")


def add(command: Callable[..., argparse.ArgumentParser]) -> None:
    """The command's arguments."""
    init = command("init", _init, "build a model from a pretrained language model and image tower")
    init.add_argument(
        "--language",
        required=True,
        metavar="DIR|NAME",
        help="a Llama-layout checkpoint: a folder, or a name on the hub",
    )
    init.add_argument(
        "--vision", required=True, metavar="KIND", help="open_clip:ARCHITECTURE, timm:NAME, conv_stem or patch"
    )
    init.add_argument(
        "--weights",
        default=None,
        metavar="FILE|TAG",
        help="of the tower: a safetensors file, an open_clip tag, 'pretrained' (timm), or 'random' on purpose",
    )
    init.add_argument("--exit", type=int, default=None, metavar="K", help="leave the tower after stage or block K")
    init.add_argument("--image-size", type=int, default=None, metavar="PIXELS", help="default: the tower's own")
    init.add_argument(
        "--pixel-shuffle", type=int, default=None, metavar="S", help="fold S x S cells into one image token"
    )
    init.add_argument("--seed", type=int, default=0, help="of the new projector")
    init.add_argument("--out", type=Path, required=True, metavar="DIR", help="the model's new folder")


def _init(arguments: argparse.Namespace) -> int:
    out: Path = arguments.out
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is not empty; give a new folder, so that nothing finished is overwritten.")
    tag = arguments.weights not in (None, "random") and not Path(arguments.weights).exists()
    named = re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", arguments.language) and not Path(arguments.language).exists()
    fetched = [arguments.language] if named else []
    fetched += [f"{arguments.vision} ({arguments.weights})"] if tag else []
    if fetched and _WISHED_OFFLINE is None:
        # A name that is no folder asks for the hub; nothing else in mmslm does.
        os.environ["HF_HUB_OFFLINE"] = "0"
        print("fetching " + " and ".join(fetched))

    from mmslm.model.describe import describe_text
    from mmslm.pretrained import init_model, load_model

    init_model(
        arguments.language,
        arguments.vision,
        out,
        vision_weights=arguments.weights,
        vision_exit=arguments.exit,
        image_size=arguments.image_size,
        pixel_shuffle=arguments.pixel_shuffle,
        seed=arguments.seed,
    )
    model, _ = load_model(out)
    print(describe_text(model.config))
    print(f"the model is in {out}; its projector is new: train it before you use it")
    return 0
