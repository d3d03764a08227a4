"""Shows what the embedded data set looks like: ``python -m mmslm.data.scenes sheet.png``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from mmslm.data.scenes.photos import ScenePhoto, household, public_photo
from mmslm.data.scenes.sheet import contact_sheet


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes a contact sheet of public photos, or of one row per household. Returns 0, or 2 with one sentence."""
    parser = argparse.ArgumentParser(prog="python -m mmslm.data.scenes", description=__doc__)
    parser.add_argument("path", help="the PNG to write")
    parser.add_argument("--split", choices=("public", "households"), default="public")
    parser.add_argument("--first", type=int, default=0, help="first photo, or first household")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--columns", type=int, default=6)
    parser.add_argument("--size", type=int, default=256, help="pixels per photo")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    try:
        photos: list[ScenePhoto] = []
        for row in range(given.rows):
            for column in range(given.columns):
                if given.split == "public":
                    photos.append(public_photo(given.first + row * given.columns + column, given.seed))
                else:
                    photos.append(household(given.first + row, given.seed).photo(column))
        path = contact_sheet(photos, given.path, size=given.size, columns=given.columns)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write(f"{len(photos)} photos on {path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
