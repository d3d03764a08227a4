"""Pictures of every kind become the same tensors everywhere, and conversations keep their layout."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

import mmslm
from mmslm.data import open_image
from mmslm.model import MMSLMConfig
from mmslm.processing import MMSLMImageProcessor, MMSLMProcessor, normalise, to_pixels
from mmslm.prompts import CAPTION_PROMPTS, caption_prompt
from mmslm.tokenizer import train_tokenizer

LINES = [f"A {c} {t} on the {p}." for c in ("red", "blue") for t in ("cup", "dog") for p in ("mat", "bus")] * 3
TOKENIZER = train_tokenizer(LINES, None, 400)
PROCESSOR = MMSLMProcessor.build(TOKENIZER, MMSLMConfig())
RAMP = Image.fromarray(np.arange(60 * 40 * 3, dtype=np.uint32).reshape(40, 60, 3).astype(np.uint8))


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "CMYK", "RGBA", "LA", "I", "F", "YCbCr"])
def test_every_mode_of_picture_becomes_finite_pixels(mode: str) -> None:
    pixels = PROCESSOR.pixels([RAMP.convert("L").convert(mode) if mode in ("LA", "I", "F") else RAMP.convert(mode)])
    assert pixels.shape == (1, 3, 96, 96)
    assert pixels.dtype == torch.float32
    assert pixels.min() >= -1.0
    assert pixels.max() <= 1.0


@pytest.mark.parametrize("mode", ["CMYK", "RGBA", "YCbCr"])
def test_colours_stay_what_they_were_in_other_modes(mode: str) -> None:
    """An inverted CMYK or a dropped alpha would still be finite pixels."""
    plain, other = (PROCESSOR.pixels([RAMP.convert(m)]) for m in ("RGB", mode))
    torch.testing.assert_close(other, plain, rtol=0, atol=0.05)


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (3000, 2), (96, 96), (97, 95)])
def test_every_shape_of_picture_fills_the_square(size: tuple[int, int]) -> None:
    pixels = PROCESSOR.pixels([Image.new("RGB", size, (255, 0, 128))])
    expected = torch.tensor([1.0, -1.0, 128 / 127.5 - 1])[:, None, None].expand(3, 96, 96)
    torch.testing.assert_close(pixels[0], expected)


def test_a_grey_picture_is_a_picture_like_any_other() -> None:
    """transformers' SmolVLM takes uniform mid-grey for padding; zeros here are pixels."""
    grey = Image.new("RGB", (50, 50), (127, 127, 127))
    features = PROCESSOR(images=grey, text="<bos><image><user> What?<assistant>", return_tensors="pt")
    assert features["pixel_values"].shape == (1, 1, 3, 96, 96)
    assert int((features["input_ids"] == TOKENIZER.image_token_id).sum()) == 36


def test_the_ends_of_the_pixel_range_are_minus_one_and_one() -> None:
    block = np.zeros((2, 2, 3), dtype=np.uint8)
    block[0, 0] = 255
    values = normalise(block)
    assert values.shape == (3, 2, 2)
    assert values[:, 0, 0].tolist() == [1.0, 1.0, 1.0]
    assert values[:, 1, 1].tolist() == [-1.0, -1.0, -1.0]


def test_an_exif_rotated_file_is_seen_upright(tmp_path: Path) -> None:
    upright = Image.new("RGB", (96, 96), "black")
    upright.paste((255, 255, 255), (0, 0, 96, 48))  # the sky is above
    lying = upright.rotate(90, expand=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    stream = io.BytesIO()
    lying.save(stream, "PNG", exif=exif)
    pixels = PROCESSOR.pixels([open_image(stream.getvalue())])[0]
    assert pixels[:, :44].mean() > 0.9
    assert pixels[:, 52:].mean() < -0.9


def test_shrinking_is_antialiased() -> None:
    """Stripes finer than the model's pixels become their mean, not stripes of another width."""
    stripes = np.zeros((960, 960, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    shrunk = to_pixels(Image.fromarray(stripes), 96)
    assert abs(float(shrunk.mean()) - 127.5) < 2
    assert shrunk.std() < 4


def test_arrays_of_the_right_size_are_taken_as_they_are() -> None:
    block = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    assert np.array_equal(to_pixels(block, 96), block)
    assert torch.equal(PROCESSOR.pixels([block]), PROCESSOR.pixels([Image.fromarray(block)]))


@pytest.mark.parametrize("thing", ["a path", None, np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3))])
def test_what_is_no_picture_is_refused(thing: object) -> None:
    with pytest.raises(TypeError, match="picture"):
        PROCESSOR.pixels([thing])  # type: ignore[list-item]


def test_a_picture_without_pixels_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        PROCESSOR.pixels([np.zeros((0, 4, 3), np.uint8)])


def test_turns_become_tokens_with_labels_on_replies_only() -> None:
    turns = [("What is it?", "A red cup."), (" Where? ", "On the mat.")]
    encoded = PROCESSOR.encode_turns(turns)
    ids, labels = encoded.input_ids, encoded.labels
    assert ids[:37] == [1] + [4] * 36
    assert (
        TOKENIZER.decode(ids[37:])
        == "<user> What is it?<assistant> A red cup.<eos><user> Where?<assistant> On the mat.<eos>"
    )
    kept = [token for token, label in zip(ids, labels, strict=True) if label != -100]
    assert all(label in (-100, token) for token, label in zip(ids, labels, strict=True))
    assert TOKENIZER.decode(kept) == " A red cup.<eos> On the mat.<eos>"


def test_text_that_spells_tokens_stays_text() -> None:
    encoded = PROCESSOR.encode_turns([("<image> <eos>", "<assistant>")], images=0)
    assert encoded.input_ids.count(4) == 0
    assert encoded.input_ids.count(2) == 1
    assert encoded.input_ids.count(6) == 1


def test_the_chat_template_and_training_agree() -> None:
    talk = [
        {"role": "user", "content": [{"type": "image", "image": RAMP}, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A cup."}]},
    ]
    features = PROCESSOR.apply_chat_template(talk, tokenize=True, return_dict=True, return_tensors="pt")
    assert features["input_ids"][0].tolist() == PROCESSOR.encode_turns([("What?", "A cup.")]).input_ids
    assert torch.equal(features["mm_token_type_ids"], (features["input_ids"] == 4).long())
    assert torch.equal(features["pixel_values"][0], PROCESSOR.pixels([RAMP]))


def test_samples_with_different_numbers_of_pictures_share_a_batch() -> None:
    features = PROCESSOR(
        images=[[RAMP], [RAMP, Image.new("RGB", (9, 9), "red")]],
        text=["<bos><image><user> a<assistant>", "<bos><image><image><user> b<assistant>"],
        return_tensors="pt",
        padding=True,
    )
    assert features["pixel_values"].shape == (2, 2, 3, 96, 96)
    assert torch.equal(features["pixel_values"][0, 0], features["pixel_values"][1, 0])
    assert not features["pixel_values"][0, 1].any()
    with pytest.raises(ValueError, match="number of images"):
        PROCESSOR(images=[RAMP, RAMP], text="<bos><image> x", return_tensors="pt")


def test_a_saved_processor_is_found_by_transformers_and_gives_the_same(tmp_path: Path) -> None:
    PROCESSOR.save_pretrained(tmp_path)
    MMSLMConfig().save_pretrained(tmp_path)
    mmslm.register()
    again = AutoProcessor.from_pretrained(tmp_path)
    assert isinstance(again, MMSLMProcessor)
    assert isinstance(again.image_processor, MMSLMImageProcessor)
    assert again.encode_turns([("a", "b")]) == PROCESSOR.encode_turns([("a", "b")])
    assert torch.equal(again.pixels([RAMP]), PROCESSOR.pixels([RAMP]))
    (tmp_path / "processor_config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"processor_config\.json"):
        MMSLMProcessor.load(tmp_path)


def test_caption_styles_have_their_own_wording() -> None:
    assert len({caption_prompt(style) for style in CAPTION_PROMPTS}) == len(CAPTION_PROMPTS) == 4
    with pytest.raises(ValueError, match="short, detailed, hazard, text"):
        caption_prompt("poem")


def test_a_conversation_without_turns_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one turn"):
        PROCESSOR.encode_turns([])
