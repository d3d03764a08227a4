"""``mmslm calibrate``: hold a model's confidence against what came true, and fit a curve if that helps."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path


def add(command: Callable[..., argparse.ArgumentParser]) -> None:
    """The command's arguments."""
    calibrate = command(
        "calibrate", _calibrate, "hold a model's confidence against held-out scenes; fit a curve if it helps"
    )
    calibrate.add_argument("model", help="a model's folder, a run's folder, or 'base'")
    calibrate.add_argument("--photos", type=int, default=1200, help="held-out public scenes, half to fit on")
    calibrate.add_argument("--households", type=int, default=600, help="photos of held-out households to judge on")
    calibrate.add_argument("--out", type=Path, default=None, help="where the figure goes (default: the model's folder)")


def _calibrate(arguments: argparse.Namespace) -> int:
    from apps.models import find_model
    from mmslm.evaluation.calibrate import calibrate, write
    from mmslm.generation import Narrator

    folder = Path(find_model(arguments.model))
    verdict = calibrate(
        Narrator.load(folder), photos=arguments.photos, households=arguments.households, progress=_progress()
    )
    files = write(verdict, arguments.out or folder)
    print(verdict.to_text())
    if verdict.better:
        files.append(verdict.calibration.save(arguments.out or folder))
        print("the curve is better on both, and was kept")
    else:
        print("the curve is not better on both, so none was kept: the model's own confidence stays")
    print("written: " + ", ".join(map(str, files)))
    return 0


def _progress() -> Callable[[int, int], None]:
    shown = sys.stderr.isatty()

    def tell(done: int, total: int) -> None:
        if shown:
            print(f"\r{done:,} of {total:,} replies", end="\n" if done == total else "", file=sys.stderr, flush=True)

    return tell


__all__ = ["add"]
