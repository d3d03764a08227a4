"""What the command line prints is framed as the page frames it: warnings, flaws, doubt, words."""

from __future__ import annotations

import pytest
from apps_support import picture
from PIL import Image, ImageFilter

from apps.describe import framed


@pytest.mark.parametrize(
    ("text", "confidence", "level", "said"),
    [
        ("a blue cup", 0.95, "short", "A blue cup."),
        ("a blue cup", 0.6, "short", "I may be wrong: A blue cup."),
        ("a blue cup", 0.1, "short", "I cannot tell what this is."),
        ("", 0.99, "short", "I cannot tell what this is."),
        ("GATE 4", 0.95, "text", "“GATE 4”."),
        ("an old man with a cup", 0.95, "short", "A person with a cup."),
    ],
)
def test_doubt_and_policy_come_with_the_words(text: str, confidence: float, level: str, said: str) -> None:
    assert framed(picture(1), text, confidence, proven=True, level=level).rstrip(".") == said.rstrip(".")


def test_warnings_come_first_then_what_is_wrong_with_the_photo() -> None:
    line = framed(picture(1).filter(ImageFilter.GaussianBlur(4)), "a kettle", 0.99, proven=True)
    heat, blur, doubt = line.index("Heat or fire"), line.index("The photo is blurred"), line.index("I may be wrong")
    assert heat < blur < doubt < line.index("A kettle.")
    assert framed(picture(1), "a cup", 0.99, proven=True, level="hazard").startswith(
        "No danger is named, but there may be one"
    )
    assert "I cannot tell" in framed(Image.new("RGB", (64, 64), "grey"), "a cup", 0.99, proven=True)


def test_looks_are_told_when_asked_for_and_never_as_certain() -> None:
    assert framed(picture(1), "a woman", 0.99, proven=True, looks=True) == "I may be wrong: A woman."
