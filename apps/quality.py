"""How far a description may be trusted: flaws of the photo that a person can mend, and three tiers of confidence.

``flaws`` measures the picture itself (dark, bright, blurred, without contrast, almost nothing, too small, a strip);
``tier`` turns the model's own confidence into words; ``compare`` marks the words on which several looks disagree.
Percentages are never shown: people read them as promises (MacLeod et al., CHI 2017); marking disagreement is what
helps people notice a false claim (Chen et al., ASSETS 2025).
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance

FLAWS = ("blank", "dark", "bright", "blur", "flat", "small", "narrow")
# Flaws that make what the model says unreliable; the others only cost detail.
SPOILING = frozenset({"blank", "dark", "bright", "blur", "flat"})
_SIDE = 256


@dataclass(frozen=True)
class Measures:
    """What ``flaws`` decides on; luminance in 0..1. ``sharpness``: share of edge energy at the finest scale."""

    mean: float
    low: float
    high: float
    spread: float
    sharpness: float
    side: int
    aspect: float


def measure(image: Image.Image) -> Measures:
    """Measures of an RGB picture, on a grey copy of at most 256 pixels a side."""
    width, height = image.size
    scale = min(1.0, _SIDE / max(width, height))
    size = (max(8, round(width * scale)), max(8, round(height * scale)))
    grey = np.asarray(image.convert("L").resize(size, Image.Resampling.BOX), dtype=np.float64) / 255.0
    fine = np.abs(np.diff(grey, axis=0))[:, :-1] + np.abs(np.diff(grey, axis=1))[:-1, :]
    # An edge that is sharp at this scale changes within one pixel; a blurred one takes several.
    wide = np.abs(grey[4:, :-4] - grey[:-4, :-4]) + np.abs(grey[:-4, 4:] - grey[:-4, :-4])
    top_fine, top_wide = np.percentile(fine, 99.0), np.percentile(wide, 99.0)
    sharpness = float(top_fine / top_wide) if top_wide > 1e-6 else 0.0
    low, high = (float(value) for value in np.percentile(grey, [5, 95]))
    return Measures(
        mean=float(grey.mean()),
        low=low,
        high=high,
        spread=float(grey.std()),
        sharpness=sharpness,
        side=min(width, height),
        aspect=max(width, height) / max(1, min(width, height)),
    )


def flaws(image: Image.Image) -> tuple[str, ...]:
    """The photo's flaws, the one to mend first first; empty when it is fine. A picture that shows nothing has only
    that one.
    """
    m = measure(image)
    if m.spread < 0.02:
        return ("blank",)
    found = []
    if m.high < 0.22:
        found.append("dark")
    if m.low > 0.70 or m.mean > 0.85:
        found.append("bright")
    if m.sharpness < BLURRED_BELOW:
        found.append("blur")
    if not found and m.high - m.low < 0.12:
        found.append("flat")
    if m.side < 48:
        found.append("small")
    if m.aspect > 4.0:
        found.append("narrow")
    return tuple(found)


# On 190 real photos (docs/apps.md) none was below 0.45; blurred by 0.8 % of the side, 95 % were below 0.42.
BLURRED_BELOW = 0.42
# By the rule of benchmarks/tiers.py, on public scenes: "sure" is right 9 times in 10 there, "unknown" at most 4 in 10. On homes
# that the model never saw "sure" is right 7 times in 10 only, at this bound or any other: docs/apps.md.
TIERS = ("unknown", "unsure", "sure")
SURE_FROM = 0.80
UNKNOWN_BELOW = 0.45


def tier(certainty: float, found: Sequence[str] = (), *, proven: bool) -> str:
    """ "sure", "unsure" or "unknown", from the model's confidence (0..1) and the photo's flaws.

    ``proven``: whether the confidence was held against unfamiliar scenes too (``is_proven``); else nothing is "sure".
    """
    if "blank" in found or not math.isfinite(certainty) or certainty < UNKNOWN_BELOW:
        return "unknown"
    if certainty < SURE_FROM or not proven or SPOILING.intersection(found):
        return "unsure"
    return "sure"


def is_proven(narrator: object) -> bool:
    """Whether the model's folder holds a calibration: ``mmslm calibrate`` writes one only where it made the confidence
    better both on scenes like those it learned from and on homes that it never saw.
    """
    return getattr(narrator, "calibration", None) is not None


def looks(image: Image.Image) -> tuple[Image.Image, ...]:
    """Four more looks at one photo, as another moment's photo might be: closer, shifted, lighter, darker. Never
    mirrored, since left and right are part of a description.
    """
    width, height = image.size
    dx, dy = max(1, width // 16), max(1, height // 16)
    return (
        image.crop((dx, dy, width - dx, height - dy)) if min(width, height) > 16 else image,
        image.crop((0, 0, width - dx, height - dy)) if min(width, height) > 16 else image,
        ImageEnhance.Brightness(image).enhance(1.18),
        ImageEnhance.Brightness(image).enhance(0.84),
    )


_WORD = re.compile(r"\w+(?:['’]\w+)?|[^\w\s]")
# fmt: off
_SMALL_WORDS = frozenset([
    "a", "an", "the", "is", "are", "was", "were", "be", "of", "in", "on", "at", "to", "and", "or", "with",
    "it", "its", "there", "this", "that", "these", "those", "some", "by", "for", "from", "as",
])
# fmt: on


def compare(text: str, others: Sequence[str]) -> tuple[list[tuple[str, bool]], str]:
    """Which words of ``text`` the other looks do not confirm.

    Returns spans that join to ``text`` exactly, each with True where it is doubtful (missing in at least half of the
    others, small words excepted), and "agree", "differ", or "nothing" when most of what it says is doubtful.
    """
    if not others:
        return [(text, False)], "agree"
    matches = list(_WORD.finditer(text))
    mine = [match.group(0).lower() for match in matches]
    votes = [0] * len(mine)
    for other in others:
        theirs = [match.group(0).lower() for match in _WORD.finditer(other)]
        known = set(theirs)
        aligned: set[int] = set()
        for block in difflib.SequenceMatcher(a=mine, b=theirs, autojunk=False).get_matching_blocks():
            aligned.update(range(block.a, block.a + block.size))
        for index, word in enumerate(mine):
            # The same word elsewhere in the sentence confirms it too: looks may order things differently.
            votes[index] += index in aligned or word in known
    content = [i for i, word in enumerate(mine) if word not in _SMALL_WORDS and word[0].isalnum()]
    doubtful = {i for i in content if votes[i] * 2 <= len(others)}
    spans: list[tuple[str, bool]] = []
    at = 0
    for index, match in enumerate(matches):
        if index in doubtful:
            if match.start() > at:
                spans.append((text[at : match.start()], False))
            spans.append((match.group(0), True))
            at = match.end()
    if at < len(text):
        spans.append((text[at:], False))
    if not doubtful:
        return spans, "agree"
    return spans, "nothing" if len(doubtful) * 3 > len(content) * 2 else "differ"
