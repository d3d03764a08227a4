"""The ``mmslm`` command line: parses, calls the room that does the work, and words its errors.

Nothing heavy is imported before a command needs it, so ``mmslm --help`` answers at once. Every error that a person can
mend is one sentence on standard error (``--debug`` shows where it came from). Exit codes: 0 done, 1 a claim is false or
cannot be proven (``audit``), 2 the input cannot be used, 130 stopped by the person.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from apps.commands import audit, calibrate, deploy, devices, federate, init, report, train
from apps.commands.overrides import overrides as _overrides

Handler = Callable[[argparse.Namespace], int]

QUIET = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}


def _run(arguments: argparse.Namespace) -> int:
    from apps.run import check, run

    overrides = _overrides(arguments.set)
    if arguments.check:
        print(check(arguments.config, overrides))
        return 0
    run(arguments.config, overrides, out=arguments.out, restart=arguments.restart)
    return 0


def _base(arguments: argparse.Namespace) -> int:
    from mmslm.base_model import train_base
    from mmslm.config import BaseRecipe, load_config

    recipe = load_config(arguments.config, BaseRecipe, _overrides(arguments.set))
    print(train_base(recipe, arguments.out))
    return 0


def _caption(arguments: argparse.Namespace) -> int:
    from apps.describe import caption_photos

    return caption_photos(arguments.photos, arguments.model, arguments.level, arguments.alt_text)


def _ask(arguments: argparse.Namespace) -> int:
    from apps.describe import ask_photo

    return ask_photo(arguments.photo, arguments.question, arguments.model)


def _app(arguments: argparse.Namespace) -> int:
    from apps.shell import launch

    launch(
        arguments.which,
        model_dir=arguments.model,
        host=arguments.host,
        port=arguments.port,
        auth=arguments.auth,
        open_browser=arguments.open,
    )
    return 0


def _scenes(arguments: argparse.Namespace) -> int:
    from mmslm.data.scenes import contact_sheet, household, public_photo

    if arguments.photos < 1:
        raise ValueError(f"--photos is {arguments.photos}; ask for at least 1.")
    if arguments.household is None:
        photos = [public_photo(index, seed=arguments.seed) for index in range(arguments.photos)]
    else:
        home = household(arguments.household, seed=arguments.seed)
        photos = [home.photo(index) for index in range(arguments.photos)]
    contact_sheet(photos, arguments.out, size=arguments.size)
    print(f"{len(photos)} pictures with their captions are in {arguments.out}")
    return 0


def _describe(arguments: argparse.Namespace) -> int:
    from mmslm.model import load_tier
    from mmslm.model.configuration import MMSLMConfig
    from mmslm.model.describe import describe_text

    folder = Path(arguments.config)
    if (folder / "config.json").is_file():
        config = MMSLMConfig.from_pretrained(folder, local_files_only=True)
        assert isinstance(config, MMSLMConfig)
    else:
        config = load_tier(arguments.config)
    if arguments.experts is not None:
        if config.image_experts is not None:
            raise ValueError(f"{arguments.config} has image experts already; leave --experts out.")
        full = arguments.experts == "full"
        if not full and not arguments.experts.isdigit():
            raise ValueError(f"--experts is {arguments.experts!r}; give 'full' or the rank of low-rank experts.")
        rank = 0 if full else int(arguments.experts)
        config.image_experts = {"rank": rank, "kind": "full" if full else "low_rank"}
    print(describe_text(config))
    return 0


def parser() -> argparse.ArgumentParser:
    """The whole command line, without importing what the commands need."""
    top = argparse.ArgumentParser(
        prog="mmslm",
        description="Train a small vision-language model on photos that never leave people's devices, "
        "prove what that cost in privacy, and use it to describe photos.",
    )
    top.add_argument("--debug", action="store_true", help="show where an error came from, and log more")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, handler: Handler, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        sub.set_defaults(handler=handler)
        return sub

    def settings(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override one setting")

    run = command("run", _run, "train federated under differential privacy, audit the report, measure what it bought")
    run.add_argument("config", help="a YAML file, or the name of a shipped one (quickstart)")
    run.add_argument("--out", type=Path, default=None, help="the run's folder (default: runs/NAME)")
    run.add_argument("--check", action="store_true", help="only check the configuration and say what it would cost")
    run.add_argument("--restart", action="store_true", help="move an earlier run in that folder aside and begin anew")
    settings(run)

    base = command("base", _base, "train the base model from its recipe, on public scenes only")
    base.add_argument("config", help="a recipe, for example configs/base_scenes.yaml")
    base.add_argument("--out", type=Path, default=Path("runs/base"), help="where the model and its cache go")
    settings(base)

    federate.add(command)
    deploy.add(command)
    audit.add(command)
    report.add(command)
    devices.add(command)
    init.add(command)
    calibrate.add(command)
    train.add(command)

    model_help = "a model's folder, a run's folder, or 'base' (default: the newest run, else the base model)"

    caption = command("caption", _caption, "describe photos (or a folder of them)")
    caption.add_argument("photos", nargs="+", type=Path, metavar="PHOTO")
    caption.add_argument("--model", default=None, help=model_help)
    caption.add_argument("--level", choices=("short", "detailed", "hazard", "text"), default="detailed")
    caption.add_argument("--alt-text", type=Path, default=None, metavar="FILE", help="write a csv, html or json file")

    ask = command("ask", _ask, "ask a question about a photo")
    ask.add_argument("photo", type=Path)
    ask.add_argument("question")
    ask.add_argument("--model", default=None, help=model_help)

    app = command("app", _app, "open the apps in a browser: captioner, assistant, privacy dashboard")
    app.add_argument("which", nargs="?", choices=("captioner", "assistant", "privacy"), default=None)
    app.add_argument("--model", default=None, help=model_help)
    app.add_argument("--host", default="127.0.0.1", help="anything but loopback demands --auth")
    app.add_argument("--port", type=int, default=7860)
    app.add_argument("--auth", default=None, metavar="NAME:PASSWORD")
    app.add_argument("--open", action="store_true", help="open the page in the default browser")

    scenes = command("scenes", _scenes, "draw a contact sheet of the embedded data set")
    scenes.add_argument("--out", type=Path, default=Path("scenes.png"))
    scenes.add_argument("--photos", type=int, default=24)
    scenes.add_argument("--household", type=int, default=None, help="one household's photos instead of public ones")
    scenes.add_argument("--size", type=int, default=256, help="pixels a side")
    scenes.add_argument("--seed", type=int, default=0)

    describe = command("describe", _describe, "say what a model costs: parameters, bytes, FLOPs, cache")
    describe.add_argument("config", help="a tier (nano, tiny, small), a YAML file of one, or a model's folder")
    describe.add_argument("--experts", default=None, metavar="full|RANK", help="as it is with image experts")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the process's exit code."""
    arguments = parser().parse_args(argv)
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    logging.basicConfig(level=logging.INFO if arguments.debug else logging.WARNING, format="%(levelname)s %(message)s")
    handler: Handler = arguments.handler
    try:
        return handler(arguments)
    except KeyboardInterrupt as stop:
        said = str(stop) or "Stopped; what was finished is kept, and the same command goes on."
        print(f"mmslm {arguments.command}: {said}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if arguments.debug or not _told(error):
            raise
        print(f"mmslm {arguments.command}: {_sentence(error)}", file=sys.stderr)
        return 2


def _told(error: Exception) -> bool:
    """Whether the error is worded for a person: ours are ValueError, OSError and the federated room's RunFailed."""
    ours = type(error).__module__.split(".")[0] in {"mmslm", "privacy", "federated", "apps"}
    return ours or isinstance(error, ValueError | OSError | FloatingPointError)


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror + (f": {error.filename}" if error.filename else "")
    return str(error)


if __name__ == "__main__":
    sys.exit(main())
