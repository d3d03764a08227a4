"""The sheet shows every photo and every word, its colours can be read, and its choice of photos is blind to scores."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFont
from standins import PROMPTS, SIZE, Constant, Oracle, scenes

from mmslm.evaluation import sheet
from mmslm.evaluation.evaluate import evaluate
from mmslm.evaluation.results import Evaluation
from mmslm.evaluation.sheet import Entry, Voice, contact_sheet, evaluation_sheet

RED = Image.new("RGB", (40, 30), (200, 20, 20))


def luminance(colour: tuple[int, int, int]) -> float:
    """Relative luminance as WCAG 2.2 defines it."""
    parts = [value / 255 for value in colour]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: tuple[int, int, int], second: tuple[int, int, int]) -> float:
    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("colour", [sheet.INK, sheet.QUIET, *sheet.SPEAKERS.values()])
def test_all_text_can_be_read_by_weak_eyes(colour: tuple[int, int, int]) -> None:
    assert contrast(colour, sheet.CARD) >= 4.5
    assert contrast(sheet.INK, sheet.PAPER) >= 4.5
    assert contrast(sheet.QUIET, sheet.PAPER) >= 4.5


def words_of(lines: list[str]) -> str:
    return "".join(lines).replace(" ", "")


@pytest.mark.parametrize(
    "text",
    ["a cup", "a large red cup stands on the wooden table beside a kettle", "x" * 90, "two " + "y" * 60 + " end", ""],
)
def test_text_wraps_within_its_width_and_loses_no_letter(text: str) -> None:
    font = ImageFont.load_default(17)
    lines = sheet._lines(text, font, 200)
    assert words_of(lines) == text.replace(" ", "")
    assert all(font.getlength(line) <= 200 for line in lines)


def test_very_long_text_is_cut_with_a_mark() -> None:
    font = ImageFont.load_default(17)
    lines = sheet._lines("word " * 500, font, 200)
    assert lines[-1].endswith("...")
    assert font.getlength(lines[-1]) <= 200


def test_the_sheet_grows_with_its_text_and_its_rows() -> None:
    def height(count: int, text: str) -> int:
        entry = Entry(RED, (Voice("before", "Before", text), Voice("after", "After", "a cup")))
        return contact_sheet([entry] * count, title="Sheet").height

    assert height(1, "short") == height(2, "short") < height(3, "short")
    assert height(1, "a long caption " * 30) > height(1, "short")


def test_photos_are_shown_in_their_own_colours() -> None:
    drawn = np.asarray(contact_sheet([Entry(RED, (Voice("after", "After", "a cup"),))], title="Sheet"))
    share = (np.abs(drawn.astype(int) - (200, 20, 20)).sum(-1) < 6).mean()
    assert share > 0.1


def test_the_same_entries_draw_the_same_bytes() -> None:
    entry = Entry(RED, (Voice("after", "After", "a cup", "1 of 2 things named"),))
    assert contact_sheet([entry], title="A").tobytes() == contact_sheet([entry], title="A").tobytes()


def results(photos: list[Any], narrator: Any) -> Evaluation:
    return evaluate(narrator, photos, prompts=PROMPTS, image_size=SIZE, questions_per_photo=0, draws=50)


def test_photos_are_chosen_without_regard_to_scores_one_of_each_owner_first() -> None:
    photos = scenes(4, 3)
    good, bad = results(photos, Oracle(photos)), results(photos, Constant("a bus"))
    chosen = sheet._spread(photos, 4)
    assert {photo.owner for photo in chosen} == {f"household-{index}" for index in range(4)}
    drawn = evaluation_sheet(photos, bad, good, count=4, columns=2)
    also = evaluation_sheet(list(reversed(photos)), bad, good, count=4, columns=2)
    assert drawn.tobytes() == also.tobytes()


def test_remarks_tell_what_was_found_and_invented() -> None:
    photos = scenes(1, 1)
    truth = sorted(photos[0].scene.kinds)
    [row] = results(photos, Oracle(photos)).of(style="short").captions
    assert sheet._voice("after", "After", row).remark == f"{len(truth)} of {len(truth)} things named, none invented"
    [row] = results(photos, Constant("a stop sign")).of(style="short").captions
    assert sheet._voice("after", "After", row).remark == f"0 of {len(truth)} things named, invented: stop sign"


def test_what_cannot_be_drawn_is_refused() -> None:
    entry = Entry(RED, (Voice("after", "After", "a cup"),))
    with pytest.raises(ValueError, match="no entries"):
        contact_sheet([], title="Sheet")
    with pytest.raises(ValueError, match="leave no room"):
        contact_sheet([entry], title="Sheet", card_width=240)
    with pytest.raises(ValueError, match="no font"):
        contact_sheet([entry], title="Sheet", font=__file__)
    photos = scenes(1, 1)
    with pytest.raises(ValueError, match="none of these photos"):
        evaluation_sheet(photos, *[results(photos, Oracle(photos))] * 2, style="other")
