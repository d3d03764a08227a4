"""``mmslm caption`` and ``mmslm ask``: the model on the command line, for one photo or a folder of them.

A photo that cannot be used costs one sentence on standard error; the others are still described.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from apps.models import find_model

PHOTO_ENDINGS = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}


def photos_in(paths: Iterable[Path]) -> Iterator[Path]:
    """Files as given; the pictures in a folder, sorted by name."""
    for path in paths:
        if path.is_dir():
            found = sorted(p for p in path.iterdir() if p.suffix.lower() in PHOTO_ENDINGS and p.is_file())
            if not found:
                raise ValueError(f"{path} holds no picture ({', '.join(sorted(PHOTO_ENDINGS))}); give another folder.")
            yield from found
        else:
            yield path


def caption_photos(paths: list[Path], model: str | None, level: str, alt_text: Path | None) -> int:
    """Describe each photo on a line of its own; 0 if all were described, else 2."""
    if alt_text is not None:
        from apps.alt_text import run

        return run(list(photos_in(paths)), alt_text, model_dir=find_model(model), level=level)
    from mmslm.data.photo import open_image
    from mmslm.generation import Narrator
    from mmslm.prompts import CAPTION_PROMPTS

    files = list(photos_in(paths))
    narrator = Narrator.load(find_model(model))
    failed = 0
    for path in files:
        try:
            image = open_image(path)
        except (OSError, ValueError) as error:
            print(f"mmslm caption: {error}", file=sys.stderr)
            failed += 1
            continue
        reply = narrator.say(narrator.look(image), CAPTION_PROMPTS[level])
        print(f"{path}: {reply.text}" if len(files) > 1 else reply.text)
    return 2 if failed else 0


def ask_photo(path: Path, question: str, model: str | None) -> int:
    """Answer one question about one photo."""
    if not question.strip():
        raise ValueError('the question is empty; ask something, for example "what colour is the cup?".')
    from mmslm.data.photo import open_image
    from mmslm.generation import Narrator

    image = open_image(path)
    narrator = Narrator.load(find_model(model))
    print(narrator.say(narrator.look(image), question).text)
    return 0
