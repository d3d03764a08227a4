"""Contact sheets: many photos on one page, with their captions."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from mmslm.data.photo import Photo


def contact_sheet(
    photos: Sequence[Photo],
    path: str | Path,
    size: int = 256,
    columns: int = 6,
    captions: bool | Sequence[str] = True,
) -> Path:
    """Writes a PNG with every photo at ``size`` pixels. ``captions``: the first detailed caption of each (True),
    none (False), or one text per photo, which may have several lines. The lettering is Pillow's own font, so only the
    pictures, not the whole sheet, have the same bytes on every platform."""
    if not photos:
        raise ValueError("got no photos: give at least one for a contact sheet.")
    if not isinstance(captions, bool) and len(captions) != len(photos):
        raise ValueError(f"got {len(captions)} captions for {len(photos)} photos: give one text per photo.")
    texts = [""] * len(photos)
    if captions is True:
        texts = [photo.captions[2] if len(photo.captions) > 2 else photo.captions[0] for photo in photos]
    elif captions is not False:
        texts = list(captions)
    letters = max(11, size // 18)
    font = ImageFont.load_default(letters)
    width = max(8, int(size / (letters * 0.52)))
    blocks = [[line for part in text.splitlines() for line in textwrap.wrap(part, width)] for text in texts]
    gap, line = max(4, size // 24), letters + 4
    columns = min(columns, len(photos))
    rows = [range(k, min(k + columns, len(photos))) for k in range(0, len(photos), columns)]
    heights = [size + gap + line * max(len(blocks[k]) for k in row) for row in rows]
    page = Image.new("RGB", (gap + columns * (size + gap), gap + sum(h + gap for h in heights)), (250, 249, 246))
    draw = ImageDraw.Draw(page)
    y = gap
    for row, height in zip(rows, heights, strict=True):
        for column, k in enumerate(row):
            x = gap + column * (size + gap)
            page.paste(photos[k].image(size), (x, y))
            for number, text in enumerate(blocks[k]):
                draw.text((x, y + size + gap // 2 + number * line), text, fill=(40, 40, 48), font=font)
        y += height + gap
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    page.save(path)
    return path
