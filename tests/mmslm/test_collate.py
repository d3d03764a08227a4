"""Batches: padded on either side, the same each time, and never silently wrong."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from mmslm.data.collate import Collator, collate_encoded, draw_turns
from mmslm.data.scenes import household, public_photo
from mmslm.model import MMSLMConfig
from mmslm.processing import MMSLMProcessor
from mmslm.prompts import CAPTION_PROMPTS
from mmslm.tokenizer import train_tokenizer

TOKENIZER = train_tokenizer(["A red cup on the mat.", "Two blue dogs near a bus."] * 5, None, 400)
PROCESSOR = MMSLMProcessor.build(TOKENIZER, MMSLMConfig())
RED, BLUE = (Image.new("RGB", (20, 30), colour) for colour in ("red", "blue"))
ITEMS = [
    (RED, [("What?", "A red cup.")]),
    ([RED, BLUE], [("Which?", "Both."), ("Sure?", "yes")]),
    (None, [("Hi", "Two dogs.")]),
]


@pytest.mark.parametrize("side", ["right", "left"])
def test_items_become_rows_that_hold_exactly_their_conversation(side: str) -> None:
    batch = Collator(PROCESSOR, padding=side)(ITEMS)  # type: ignore[arg-type]
    assert batch["input_ids"].shape[1] % 16 == 0
    assert batch["pixel_values"].shape == (3, 2, 3, 96, 96)
    for row, (pictures, turns) in enumerate(ITEMS):
        count = 0 if pictures is None else len(pictures) if isinstance(pictures, list) else 1
        expected = PROCESSOR.encode_turns(turns, count)
        real = batch["attention_mask"][row].bool()
        assert batch["input_ids"][row, real].tolist() == expected.input_ids
        assert batch["labels"][row, real].tolist() == expected.labels
        assert (batch["labels"][row, ~real] == -100).all()
        assert int(batch["mm_token_type_ids"][row].sum()) == 36 * count
    assert real[-1] if side == "left" else real[0]
    torch.testing.assert_close(batch["pixel_values"][1], PROCESSOR.pixels([RED, BLUE]))
    assert not batch["pixel_values"][2].any()


def test_text_alone_has_no_pixels() -> None:
    assert "pixel_values" not in Collator(PROCESSOR)([ITEMS[2]])


def test_photos_give_the_same_batch_every_time_and_another_each_epoch() -> None:
    photos = [public_photo(0), household(3).photo(1)]
    first, again = (Collator(PROCESSOR, seed=5).photos(photos, turns=3) for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    other = Collator(PROCESSOR, seed=5).photos(photos, turns=3, epoch=1)
    assert (
        not torch.equal(first["input_ids"], other["input_ids"]) or first["input_ids"].shape != other["input_ids"].shape
    )


def test_drawn_turns_are_the_photos_own() -> None:
    photo = public_photo(2)
    turns = draw_turns(photo, 4, seed=1, captions=1)
    own = {(question.question, question.answer) for question in photo.questions}
    captions = [turn for turn in turns if turn not in own]
    assert len(turns) == 4
    assert len(captions) == 1
    assert captions[0][0] in CAPTION_PROMPTS.values()


def test_long_text_is_cut_with_its_labels_but_pictures_never() -> None:
    batch = Collator(PROCESSOR, max_length=48, multiple=1)([(RED, [("What?", "cup " * 100)])])
    assert batch["input_ids"].shape == (1, 48)
    assert int(batch["mm_token_type_ids"].sum()) == 36
    assert (batch["labels"] != -100).any()
    with pytest.raises(ValueError, match="no room for text"):
        Collator(PROCESSOR, max_length=48)([([RED, BLUE], [("What?", "x")])])


def test_arrays_and_images_give_the_same_batch() -> None:
    array = np.asarray(RED.resize((96, 96)))
    encoded = [PROCESSOR.encode_turns([("a", "b")])]
    from_array = collate_encoded(encoded, [[array]], PROCESSOR)
    from_image = collate_encoded(encoded, [[RED]], PROCESSOR)
    assert torch.equal(from_array["pixel_values"], from_image["pixel_values"])


def test_senseless_requests_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one item"):
        Collator(PROCESSOR)([])
    with pytest.raises(ValueError, match="'right'"):
        Collator(PROCESSOR, padding="both")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="multiple of 0"):
        Collator(PROCESSOR, multiple=0)


def test_packed_rows_hold_every_item_once_and_give_each_its_own_loss() -> None:
    from mmslm.model import MMSLMForConditionalGeneration
    from mmslm.model.losses import per_segment_loss

    torch.manual_seed(0)
    config = MMSLMConfig(text_config={"vocab_size": len(TOKENIZER), "num_hidden_layers": 2}, initializer_range=0.2)
    model = MMSLMForConditionalGeneration(config).eval()
    collator = Collator(PROCESSOR)
    batch = collator.pack(ITEMS, length=160)
    assert batch["input_ids"].shape[1] == 160
    sizes = [len(PROCESSOR.encode_turns(turns, n).input_ids) for n, (_, turns) in zip((1, 2, 0), ITEMS, strict=True)]
    counts = [int((batch["segment_ids"] == number).sum()) for number in (1, 2)]
    assert sum(counts) == sum(sizes)
    with torch.no_grad():
        packed = per_segment_loss(model(**batch).logits, batch["labels"], batch["segment_ids"], 2)
        alone = [model(**collator([item])).per_sample_loss[0] for item in ITEMS]
    found = sorted(float(loss) for loss in packed.flatten() if loss > 0)
    assert found == pytest.approx(sorted(float(loss) for loss in alone), rel=1e-4)


def test_packing_for_private_training_is_refused() -> None:
    with pytest.raises(ValueError, match="clip as one"):
        Collator(PROCESSOR).pack(ITEMS, length=160, private=True)
    with pytest.raises(ValueError, match="only 40"):
        Collator(PROCESSOR).pack(ITEMS, length=40)
