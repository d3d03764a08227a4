"""A curve is kept only where it is better on every set of replies that it was not fitted on."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from mmslm.data.scenes import public_photo
from mmslm.evaluation.calibrate import Replies, collect, judge, write
from mmslm.generation import Narrator


def replies(seed: int, slope: float, intercept: float, count: int = 3000) -> Replies:
    """Replies that are right as often as the curve says."""
    rng = np.random.default_rng(seed)
    raw = rng.uniform(0.05, 0.98, count)
    chance = 1 / (1 + np.exp(-(slope * np.log(raw / (1 - raw)) + intercept)))
    return Replies(raw.tolist(), (rng.uniform(size=count) < chance).tolist())


def test_an_overconfident_model_is_mended_and_an_honest_one_left_alone(tmp_path: Path) -> None:
    off = judge(replies(0, 0.5, -1.0), {"here": replies(1, 0.5, -1.0), "there": replies(2, 0.55, -0.9)})
    assert off.better
    assert all(each.after.ece < 0.05 < each.before.ece for each in off.judged)
    # Fitted on one world, judged in another where the raw confidence was right: refused.
    moved = judge(replies(3, 0.5, -1.0), {"here": replies(4, 0.5, -1.0), "there": replies(5, 1.0, 0.0)})
    assert moved.judged[0].better
    assert not moved.better
    table, figure = write(off, tmp_path)
    assert json.loads(table.read_text())["judged"]["here"]["after"]["count"] == 3000
    drawing = ElementTree.parse(figure).getroot()
    assert len(drawing.findall(".//{*}circle")) == sum(len(each.after.bins) for each in off.judged)


@pytest.mark.slow
def test_the_base_models_own_confidence_is_collected() -> None:
    found = collect(Narrator.load("base"), [public_photo(30_000_000 + index) for index in range(3)], 96)
    assert len(found.confidence) == len(found.right) >= 3 * 2
    assert all(0.0 <= value <= 1.0 for value in found.confidence)
