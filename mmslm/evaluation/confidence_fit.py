"""Fits a narrator's calibration on photos that nobody trained on: from how sure it was to how often it was right.

A caption is right where it names no kind of thing that is not there; an answer where it is the expected one. The photos
must be public or held out: the fitted numbers go into the model's folder. It refuses photos without exact truth.
"""

from __future__ import annotations

from collections.abc import Sequence

from mmslm.data.photo import Photo
from mmslm.evaluation.evaluate import evaluate
from mmslm.generation import Calibration, Narrator

STYLES = ("short", "detailed")
QUESTIONS = 3


def fit_calibration(narrator: Narrator, photos: Sequence[Photo]) -> Calibration:
    """Ask ``narrator`` about ``photos`` (at least some dozens) and fit. Raises ValueError without truth."""
    if any(photo.truth is None for photo in photos):
        raise ValueError("a photo without exact truth was given; calibrate on scenes, where right and wrong are known.")
    plain = Narrator(narrator.model, narrator.processor)  # raw confidence, whatever calibration is there already
    found = evaluate(
        plain, photos, styles=STYLES, questions_per_photo=QUESTIONS, image_size=narrator.processor.image_size
    )
    pairs = [
        (row.confidence, set(row.mentioned) <= set(row.present))
        for row in found.captions
        if row.confidence is not None and row.mentioned is not None and row.present is not None
    ]
    pairs += [
        (row.confidence, row.given.strip() == row.expected) for row in found.answers if row.confidence is not None
    ]
    return Calibration.fit([confidence for confidence, _ in pairs], [right for _, right in pairs])
