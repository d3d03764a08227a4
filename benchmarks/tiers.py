"""What the words of doubt are worth: how often "Fairly sure", "I may be wrong" and "I cannot tell" are right.

Run ``python benchmarks/tiers.py --photos 500``. The base model captions and answers three sets of scenes that no recipe
numbers: public scenes to choose the bounds of confidence on, other public scenes, and photos of households (half of their
things the model never saw) to judge them on. An answer is right when it equals the truth, a caption when it names nothing
that is not there. The rule: "Fairly sure" starts at the lowest confidence from which replies are right at least 90 times in
100, "I cannot tell" ends at the highest below which at most 40 in 100 are right. Prints one JSON line per set and kind of
reply as the apps' bounds sort them were the confidence proven, and the rule's bounds beside those.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).parents[1])

PROMISE = 0.90
HOPELESS = 0.40
BEYOND = 20_000_000
GRID = [step / 100 for step in range(20, 100)]
FEWEST = 50


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="base")
    parser.add_argument("--photos", type=int, default=500, help="of each set")
    options = parser.parse_args(arguments)

    import torch

    from apps import quality
    from apps.models import find_model
    from mmslm.data.scenes import household, public_photo
    from mmslm.generation import Narrator

    torch.set_num_threads(1)
    narrator = Narrator.load(find_model(options.model))
    sets: dict[str, Callable[[int], Any]] = {
        "to choose on": lambda number: public_photo(BEYOND + number),
        "other public scenes": lambda number: public_photo(2 * BEYOND + number),
        "households": lambda number: household(2 * BEYOND + number // 2).photo(number % 2),
    }
    for name, photo in sets.items():
        began = time.process_time()
        replies = told(narrator, [photo(number) for number in range(options.photos)])
        spent = time.process_time() - began
        if name == "to choose on":
            line = {"bounds by the rule": bounds([pair for kind in replies.values() for pair in kind])}
            print(json.dumps({**line, "bounds in use": [quality.UNKNOWN_BELOW, quality.SURE_FROM]}))
        for kind, pairs in replies.items():
            print(
                json.dumps(
                    {
                        "set": name,
                        "kind": kind,
                        **table(pairs, lambda value: quality.tier(value, proven=True)),
                        "cpu_s": round(spent, 1),
                    }
                )
            )


def told(narrator: Any, photos: Sequence[Any]) -> dict[str, list[tuple[float, bool]]]:
    """Confidence, as the apps take it, and whether it was right, of every answer and every caption."""
    from mmslm.evaluation.calibration import outcomes
    from mmslm.evaluation.evaluate import evaluate

    size = narrator.processor.image_size
    found = evaluate(narrator, photos, styles=("short", "detailed"), questions_per_photo=4, image_size=size, draws=10)
    kinds = {kind: outcomes(found, kind) for kind in ("answers", "captions")}
    return {kind: list(zip(values, right, strict=True)) for kind, (values, right, _) in kinds.items()}


def bounds(pairs: Sequence[tuple[float, bool]]) -> dict[str, float | None]:
    """What the rule chooses on these replies; None where it finds nothing."""

    def share(kept: Sequence[bool]) -> float | None:
        return sum(kept) / len(kept) if len(kept) >= FEWEST else None

    above = {bound: share([right for value, right in pairs if value >= bound]) for bound in GRID}
    below = {bound: share([right for value, right in pairs if value < bound]) for bound in GRID}
    return {
        "sure from": next((bound for bound in GRID if (above[bound] or 0.0) >= PROMISE), None),
        "unknown below": next(
            (bound for bound in reversed(GRID) if (1.0 if below[bound] is None else below[bound]) <= HOPELESS), None
        ),
    }


def table(pairs: Sequence[tuple[float, bool]], tier: Callable[[float], str]) -> dict[str, Any]:
    """How many replies each tier has, and how many of them were right, in per cent."""
    rows: dict[str, Any] = {}
    for name in ("sure", "unsure", "unknown"):
        kept = [right for value, right in pairs if tier(value) == name]
        rows[name] = {"replies": len(kept), "right_%": round(100 * sum(kept) / len(kept), 1) if kept else None}
    return rows


if __name__ == "__main__":
    main()
