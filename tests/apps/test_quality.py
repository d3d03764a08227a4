"""The photo's flaws are named, confidence becomes three words, and disagreement is marked where it is."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import pytest
from apps_support import picture
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageFilter

from apps import quality

SHARED = Path(os.environ.get("MMSLM_SHARED_DATA") or Path(__file__).parents[3] / "shared" / "data")


def test_a_good_photo_has_no_flaw() -> None:
    assert [quality.flaws(picture(seed)) for seed in range(8)] == [()] * 8


@pytest.mark.parametrize(
    ("image", "flaw"),
    [
        (Image.new("RGB", (200, 200), (90, 90, 90)), "blank"),
        (ImageEnhance.Brightness(picture(1)).enhance(0.15), "dark"),
        (Image.blend(picture(1), Image.new("RGB", (240, 180), "white"), 0.9), "bright"),
        (picture(1).filter(ImageFilter.GaussianBlur(3)), "blur"),
        (Image.blend(picture(1), Image.new("RGB", (240, 180), (128, 128, 128)), 0.86), "flat"),
        (picture(1).resize((40, 30)), "small"),
        (picture(1, (900, 100)), "narrow"),
    ],
)
def test_each_flaw_is_named(image: Image.Image, flaw: str) -> None:
    assert flaw in quality.flaws(image)


@pytest.mark.parametrize("size", [(1, 1), (1, 400), (400, 1), (9, 9)])
def test_tiny_and_odd_pictures_are_measured_too(size: tuple[int, int]) -> None:
    found = quality.flaws(Image.new("RGB", size, (10, 200, 30)))
    assert found == ("blank",)


def test_real_photos_pass_and_their_blurred_copies_do_not() -> None:
    archives = [*SHARED.glob("coco_open/*.zip"), *SHARED.glob("fsa_color/*.zip")]
    if not archives:
        pytest.skip(f"there are no photos under {SHARED}")
    photos = []
    for archive in archives:
        with zipfile.ZipFile(archive) as file:
            names = [name for name in file.namelist() if name.lower().endswith((".jpg", ".jpeg", ".png"))]
            photos += [
                Image.open(io.BytesIO(file.read(name))).convert("RGB")
                for name in names[:: max(1, len(names) // 20)][:20]
            ]
    blurred = [image.filter(ImageFilter.GaussianBlur(max(image.size) * 3 / 256)) for image in photos]
    assert sum(bool(quality.flaws(image)) for image in photos) <= 0.05 * len(photos)
    assert sum("blur" in quality.flaws(image) for image in blurred) >= 0.9 * len(photos)


@given(st.floats(0, 1), st.floats(0, 1))
def test_more_confidence_never_sounds_less_sure(a: float, b: float) -> None:
    order = ["unknown", "unsure", "sure"]
    low, high = sorted((a, b))
    assert order.index(quality.tier(low, proven=True)) <= order.index(quality.tier(high, proven=True))


def test_a_spoilt_photo_is_never_sure_and_a_blank_one_is_not_guessed_at() -> None:
    assert quality.tier(0.99, proven=True) == "sure"
    assert quality.tier(0.99, ["blur"], proven=True) == "unsure"
    assert quality.tier(0.99, ["small"], proven=True) == "sure"
    assert quality.tier(0.99, ["blank"], proven=True) == "unknown"
    assert quality.tier(float("nan"), proven=True) == "unknown"


def test_words_that_looks_do_not_confirm_are_marked_and_only_they() -> None:
    text = "A red kettle stands beside a blue cup."
    spans, verdict = quality.compare(text, [text.replace("blue cup", "green mug")] * 3 + [text])
    assert "".join(part for part, _ in spans) == text
    assert [part for part, doubtful in spans if doubtful] == ["blue", "cup"]
    assert verdict == "differ"
    assert quality.compare(text, [text, text])[1] == "agree"
    assert quality.compare(text, ["Dogs run.", "Trees grow fast."])[1] == "nothing"
    # The same things in another order agree.
    assert quality.compare(text, ["A blue cup beside a red kettle stands."] * 3)[1] == "agree"


@given(st.text(max_size=80), st.lists(st.text(max_size=80), max_size=4))
def test_the_spans_always_join_to_the_text(text: str, others: list[str]) -> None:
    spans, _ = quality.compare(text, others)
    assert "".join(part for part, _ in spans) == text


def test_the_other_looks_show_the_same_scene_and_never_mirror_it() -> None:
    image = picture(3)
    for other in quality.looks(image):
        assert min(other.size) >= min(image.size) * 0.8
        # The left half stays the left half: it is closer to the original's left than to its right.
        small, view = image.resize((32, 24)).convert("L"), other.resize((32, 24)).convert("L")
        flipped = small.transpose(Image.Transpose.FLIP_LEFT_RIGHT)

        def distance(a: Image.Image, b: Image.Image) -> int:
            return sum(abs(x - y) for x, y in zip(a.tobytes(), b.tobytes(), strict=True))

        assert distance(view, small) < distance(view, flipped)


def test_nothing_is_sure_while_the_confidence_was_not_held_against_unfamiliar_scenes() -> None:
    assert [quality.tier(value, proven=False) for value in (0.99, 0.8, 0.5, 0.2)] == ["unsure"] * 3 + ["unknown"]
