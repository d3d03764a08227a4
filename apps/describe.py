"""``mmslm caption`` and ``mmslm ask``: the model on the command line, for one photo or a folder of them.

What is printed is what the page says, in its order: warnings, what is wrong with the photo, the doubt, the words. A photo
that cannot be used costs one sentence on standard error; the others are still described.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from apps import quality, safety
from apps.english import english
from apps.i18n import say
from apps.models import find_model

if TYPE_CHECKING:
    from PIL import Image

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
        text = framed(image, reply.text, reply.confidence, proven=quality.is_proven(narrator), level=level)
        print(f"{path}: {text}" if len(files) > 1 else text)
    return 2 if failed else 0


def framed(
    image: Image.Image, text: str, confidence: float, *, proven: bool, level: str = "ask", looks: bool = False
) -> str:
    """One line as the page says it. ``looks``: the question asked for what is else left out of people; ``proven`` as in
    ``quality.tier``."""
    text = safety.plain(text)
    text = text if looks else safety.people(text)
    text = safety.sentence(safety.quoted(text) if level == "text" else text)
    found = quality.flaws(image)
    tier = quality.tier(confidence, found, proven=proven) if text else "unknown"
    if looks and tier == "sure":
        tier = "unsure"
    notices = safety.notices(text) or (("unseen",) if level == "hazard" else ())
    parts = [say(f"notice.{name}") for name in notices] + [say(f"advice.{name}") for name in found]
    if tier != "sure":
        parts.append(say(f"tier.{tier}"))
    return " ".join([*parts, text] if tier != "unknown" else parts)


def ask_photo(path: Path, question: str, model: str | None) -> int:
    """Answer one question about one photo. Raises ValueError for a question that the model was never taught to read."""
    if not question.strip():
        raise ValueError('the question is empty; ask something, for example "what colour is the cup?".')
    if not english(question):
        raise ValueError(
            'the question is not in English, the only language that the model was taught; ask in English, for example "what '
            'colour is the cup?".'
        )
    from mmslm.data.photo import open_image
    from mmslm.generation import Narrator

    image = open_image(path)
    narrator = Narrator.load(find_model(model))
    reply = narrator.say(narrator.look(image), question)
    looks = safety.asks_for_looks(question)
    print(framed(image, reply.text, reply.confidence, proven=quality.is_proven(narrator), looks=looks))
    return 0
