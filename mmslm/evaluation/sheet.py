"""A contact sheet: photos with what the model said before, what it says after, and what a person would say.

One PNG, drawn with Pillow and the typeface that Pillow carries (Latin letters; for other scripts give a font file), so
it looks the same wherever it is made. Text wraps and is never cut without a mark; text and its background differ enough
for weak eyes (WCAG 2.2, contrast at least 4.5 to 1; a test computes it). Photos are chosen by their ids, not by their
scores: a sheet of the best cases proves nothing.

The sheet contains the photos themselves. It is for photos that may be shown, and it refuses an empty list.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from mmslm.data.photo import Photo
from mmslm.evaluation.results import CaptionRow, Evaluation

Colour = tuple[int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

PAPER: Colour = (244, 241, 235)
CARD: Colour = (255, 255, 255)
EDGE: Colour = (222, 216, 205)
INK: Colour = (28, 32, 38)
QUIET: Colour = (92, 96, 104)
# One colour for each speaker; "after" is the one to look at.
SPEAKERS: dict[str, Colour] = {
    "before": (130, 78, 20),
    "after": (0, 98, 84),
    "ceiling": (86, 66, 150),
    "reference": (70, 76, 86),
}

_MARGIN, _GAP, _PAD, _BAR = 36, 22, 18, 4
_MOST_LINES = 14


@dataclass(frozen=True)
class Voice:
    """One text under a photo: who says it (a key of SPEAKERS), the heading, the text and an optional remark."""

    speaker: str
    heading: str
    text: str
    remark: str = ""


@dataclass(frozen=True)
class Entry:
    """One card: a picture and the texts beside it, top to bottom."""

    image: Image.Image
    voices: tuple[Voice, ...]


def contact_sheet(
    entries: Sequence[Entry],
    *,
    title: str,
    subtitle: str = "",
    columns: int = 2,
    card_width: int = 720,
    photo_size: int = 304,
    font: str | Path | None = None,
) -> Image.Image:
    """Draws cards in rows of `columns`; sizes are in pixels. `font` is a TrueType or OpenType file."""
    if not entries:
        raise ValueError("no entries were given for a contact sheet; give at least one photo with its captions")
    if columns < 1 or photo_size < 32 or card_width < photo_size + 200:
        raise ValueError(
            f"columns={columns}, photo_size={photo_size}, card_width={card_width} leave no room; expected at least "
            "one column, 32 pixels of photo and 200 of text beside it"
        )
    type_ = _Typeface(font)
    columns = min(columns, len(entries))
    text_width = card_width - photo_size - 3 * _PAD
    blocks = [_text_block(entry, type_, text_width) for entry in entries]
    heights = [max(photo_size, block.height) + 2 * _PAD for block in blocks]
    rows = [range(start, min(start + columns, len(entries))) for start in range(0, len(entries), columns)]
    row_heights = [max(heights[index] for index in row) for row in rows]

    width = 2 * _MARGIN + columns * card_width + (columns - 1) * _GAP
    heading = _lines(title, type_.of(30), width - 2 * _MARGIN)
    below = _lines(subtitle, type_.of(16), width - 2 * _MARGIN) if subtitle else []
    top = _MARGIN + 40 * len(heading) + 24 * len(below) + 18
    height = top + sum(row_heights) + _GAP * (len(rows) - 1) + _MARGIN
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    for place, line in enumerate(heading):
        draw.text((_MARGIN, _MARGIN - 6 + 40 * place), line, fill=INK, font=type_.of(30), stroke_width=0.4)
    for place, line in enumerate(below):
        draw.text((_MARGIN, _MARGIN + 40 * len(heading) + 24 * place), line, fill=QUIET, font=type_.of(16))

    for row, row_height in zip(rows, row_heights, strict=True):
        for column, index in enumerate(row):
            left = _MARGIN + column * (card_width + _GAP)
            box = (left, top, left + card_width - 1, top + row_height - 1)
            draw.rounded_rectangle(box, radius=14, fill=CARD, outline=EDGE)
            _paste_rounded(sheet, entries[index].image, (left + _PAD, top + _PAD), photo_size)
            sheet.paste(blocks[index], (left + photo_size + 2 * _PAD, top + _PAD))
        top += row_height + _GAP
    return sheet


def evaluation_sheet(
    photos: Sequence[Photo],
    before: Evaluation,
    after: Evaluation,
    ceiling: Evaluation | None = None,
    *,
    style: str = "detailed",
    count: int = 12,
    title: str = "What training changed",
    subtitle: str = "",
    columns: int = 2,
    font: str | Path | None = None,
) -> Image.Image:
    """The sheet of `count` evaluated photos: captions of one style, reference, and things found and invented.

    Photos are taken in the order of a hash of their ids, one of each owner before a second of any.
    """
    tables = [{(row.owner, row.photo): row for row in item.captions if row.style == style} for item in (before, after)]
    last = None if ceiling is None else {(r.owner, r.photo): r for r in ceiling.captions if r.style == style}
    known = [photo for photo in photos if all((str(photo.owner), str(photo.id)) in table for table in tables)]
    if not known:
        raise ValueError(
            f"none of these photos has a caption of style {style!r} in both evaluations; give those it has"
        )
    entries = []
    for photo in _spread(known, count):
        key = (str(photo.owner), str(photo.id))
        voices = [_voice("before", "Before", tables[0][key]), _voice("after", "After", tables[1][key])]
        if last is not None and key in last:
            voices.append(_voice("ceiling", "Without privacy", last[key]))
        voices.append(Voice("reference", "Reference", _reference(tables[1][key], style)))
        entries.append(Entry(photo.image(), tuple(voices)))
    return contact_sheet(entries, title=title, subtitle=subtitle, columns=columns, font=font)


def _spread(photos: Sequence[Photo], count: int) -> list[Photo]:
    ranked = sorted(photos, key=lambda photo: hashlib.sha256(f"{photo.owner}/{photo.id}".encode()).digest())
    turn: dict[str, int] = {}
    order = []
    for place, photo in enumerate(ranked):
        turn[photo.owner] = turn.get(photo.owner, 0) + 1
        order.append((turn[photo.owner], place, photo))
    order.sort(key=lambda entry: entry[:2])
    return [photo for _, _, photo in order[:count]]


def _voice(speaker: str, heading: str, row: CaptionRow) -> Voice:
    remark = ""
    account = row.things
    if account is not None:
        invented = ", ".join(dict.fromkeys(account.hallucinated))
        remark = f"{len(account.found)} of {len(account.present)} things named" + (
            f", invented: {invented}" if invented else ", none invented"
        )
    return Voice(speaker, heading, row.caption or "(nothing)", remark)


def _reference(row: CaptionRow, style: str) -> str:
    """The reference most like the style: the shortest for "short", else the longest."""
    return (min if style == "short" else max)(row.references, key=len)


class _Typeface:
    """One typeface at any size, loaded once per size."""

    def __init__(self, path: str | Path | None) -> None:
        self._path = path
        self._sizes: dict[int, Font] = {}

    def of(self, size: int) -> Font:
        if size not in self._sizes:
            try:
                loaded = ImageFont.load_default(size) if self._path is None else ImageFont.truetype(self._path, size)
            except OSError as error:
                raise ValueError(f"{self._path} is no font that can be read; give a .ttf or .otf file") from error
            self._sizes[size] = loaded
        return self._sizes[size]


def _text_block(entry: Entry, type_: _Typeface, width: int) -> Image.Image:
    """The voices of a card on white, `width` pixels wide, as high as they need."""
    inner = width - _BAR - 12
    heading, body, small = type_.of(14), type_.of(17), type_.of(13)
    layout = []
    height = 0
    for voice in entry.voices:
        lines = _lines(voice.text, body, inner)
        remark = _lines(voice.remark, small, inner) if voice.remark else []
        used = 20 + 23 * len(lines) + 18 * len(remark) + 2
        layout.append((voice, lines, remark, height, used))
        height += used + 12
    block = Image.new("RGB", (width, max(1, height - 12)), CARD)
    draw = ImageDraw.Draw(block)
    for voice, lines, remark, top, used in layout:
        colour = SPEAKERS[voice.speaker]
        draw.rounded_rectangle((0, top + 1, _BAR - 1, top + used - 2), radius=2, fill=colour)
        left = _BAR + 12
        draw.text((left, top), voice.heading, fill=colour, font=heading, stroke_width=0.3)
        place = top + 20
        for line in lines:
            draw.text((left, place), line, fill=INK, font=body)
            place += 23
        for line in remark:
            draw.text((left, place), line, fill=QUIET, font=small)
            place += 18
    return block


def _lines(text: str, font: Font, width: float) -> list[str]:
    """Breaks text into lines of at most `width` pixels: at spaces, inside a word only where it fits no line."""
    lines: list[str] = []
    line = ""
    for word in text.split():
        candidate = f"{line} {word}" if line else word
        if font.getlength(candidate) <= width:
            line = candidate
            continue
        if line:
            lines.append(line)
        while font.getlength(word) > width and len(word) > 1:
            cut = next(size for size in range(len(word), 0, -1) if size == 1 or font.getlength(word[:size]) <= width)
            lines.append(word[:cut])
            word = word[cut:]
        line = word
    lines.append(line)
    if len(lines) > _MOST_LINES:
        kept = lines[_MOST_LINES - 1]
        while kept and font.getlength(kept + " ...") > width:
            kept = kept[:-1]
        lines = [*lines[: _MOST_LINES - 1], kept + " ..."]
    return lines


def _paste_rounded(sheet: Image.Image, image: Image.Image, corner: tuple[int, int], size: int) -> None:
    """Pastes the picture's middle square with round corners; small pictures are enlarged smoothly."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.convert("RGB").crop((left, top, left + side, top + side))
    square = square.resize((size, size), Image.Resampling.LANCZOS)
    mask = Image.new("L", (4 * size, 4 * size), 0)
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, 4 * size - 1, 4 * size - 1), radius=40, fill=255)
    sheet.paste(square, corner, mask.resize((size, size), Image.Resampling.BOX))
