"""A calibrated confidence says how often such replies are right, on photos that it was not fitted on."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmslm.data.scenes import public_photo
from mmslm.evaluation.confidence_fit import fit_calibration
from mmslm.evaluation.evaluate import evaluate
from mmslm.generation import Narrator
from mmslm.generation.confidence import calibration_error

BASE = Path(__file__).parents[3] / "mmslm" / "assets" / "base"


def answers(narrator: Narrator, first: int) -> tuple[list[float], list[bool]]:
    photos = [public_photo(first + index) for index in range(60)]
    rows = evaluate(narrator, photos, styles=(), questions_per_photo=3, image_size=96).answers
    return [float(row.confidence or 0.0) for row in rows], [row.given.strip() == row.expected for row in rows]


def test_calibration_lowers_the_error_on_other_photos() -> None:
    raw = Narrator.load(BASE)
    raw.calibration = None
    fitted = fit_calibration(raw, [public_photo(20_000_000 + index) for index in range(60)])
    before = calibration_error(*answers(raw, 21_000_000))
    after = calibration_error(*answers(Narrator(raw.model, raw.processor, fitted), 21_000_000))
    assert after < before
    assert after < 0.2


def test_photos_without_truth_are_refused() -> None:
    class Plain:
        truth = None

    with pytest.raises(ValueError, match="without exact truth"):
        fit_calibration(Narrator.load(BASE), [Plain()])  # type: ignore[list-item]
