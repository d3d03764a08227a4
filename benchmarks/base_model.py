"""What a model says about held-out public photos and held-out households: `python benchmarks/base_model.py [MODEL]`.

Prints one JSON line per split. Photos are numbered far beyond those of the recipe, so none was trained on.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

# Python puts this folder first on the path, where apps.py would hide the package of that name.
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]

from apps.models import find_model  # noqa: E402
from mmslm.data.scenes import household, public_photo  # noqa: E402
from mmslm.evaluation.evaluate import evaluate  # noqa: E402
from mmslm.generation import Narrator  # noqa: E402

BEYOND = 10_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="base")
    parser.add_argument("--photos", type=int, default=400)
    arguments = parser.parse_args()
    narrator = Narrator.load(Path(find_model(arguments.model)))
    splits = {
        "public": [public_photo(BEYOND + index) for index in range(arguments.photos)],
        "households": [household(BEYOND + index // 2).photo(index % 2) for index in range(arguments.photos)],
    }
    for name, photos in splits.items():
        found = evaluate(narrator, photos, styles=("detailed",), questions_per_photo=4, image_size=96)
        scores = {key: None if value is None else round(value, 3) for key, value in found.scores.items()}
        print(json.dumps({"split": name, "photos": len(photos), **scores}))


if __name__ == "__main__":
    main()
