"""A model small enough that one-sample backward passes of the whole of it take milliseconds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmslm.model import MMSLMConfig, MMSLMForConditionalGeneration

IMAGE = 4
EACH = 4  # image tokens per picture: 32 px / 8 = 4 x 4 cells, folded 2 x 2


def tiny_config(**changes: Any) -> MMSLMConfig:
    text = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 96,
        "initializer_range": 0.2,
    }
    vision = {
        "image_size": 32,
        "stem_channels": (6, 8),
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    text.update(changes.pop("text", {}))
    vision.update(changes.pop("vision", {}))
    return MMSLMConfig(text_config=text, vision_config=vision, initializer_range=0.2, **changes)


def tiny_model(seed: int = 0, **changes: Any) -> MMSLMForConditionalGeneration:
    torch.manual_seed(seed)
    return MMSLMForConditionalGeneration(tiny_config(**changes)).eval()


def train_randomly(model: MMSLMForConditionalGeneration, seed: int = 1) -> None:
    """Experts as if trained: every adapter number is drawn anew."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.adapter_parameters().values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)


def row(images: int, text: int, seed: int, between: int = 0) -> list[int]:
    """<bos>, pictures (with `between` words after each but the last) and `text` words."""
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(7, 64, (text + images * between,), generator=generator).tolist()
    ids = [1]
    for _ in range(images):
        ids += [IMAGE] * EACH + [words.pop() for _ in range(between)]
    return ids + words[:text]


def batch_of(rows: list[list[int]], side: str = "right", seed: int = 0, labelled: int = 3) -> dict[str, Tensor]:
    """Rows padded to one length, with random pictures; the last `labelled` tokens of each row carry labels."""
    length = max(len(ids) for ids in rows)
    most = max(ids.count(IMAGE) // EACH for ids in rows)
    batch = {
        "input_ids": torch.zeros(len(rows), length, dtype=torch.long),
        "attention_mask": torch.zeros(len(rows), length, dtype=torch.long),
        "labels": torch.full((len(rows), length), -100),
    }
    for index, ids in enumerate(rows):
        start = 0 if side == "right" else length - len(ids)
        stop = start + len(ids)
        batch["input_ids"][index, start:stop] = torch.tensor(ids)
        batch["attention_mask"][index, start:stop] = 1
        batch["labels"][index, stop - labelled : stop] = torch.tensor(ids[-labelled:])
    if most:
        generator = torch.Generator().manual_seed(seed)
        batch["pixel_values"] = torch.rand(len(rows), most, 3, 32, 32, generator=generator) * 2 - 1
    return batch


def alone(batch: dict[str, Tensor], index: int) -> dict[str, Tensor]:
    """One sample of a batch without its padding and without the pictures it does not have."""
    kept = batch["attention_mask"][index].bool()
    single = {name: batch[name][index : index + 1, kept] for name in ("input_ids", "attention_mask", "labels")}
    count = int((single["input_ids"] == IMAGE).sum()) // EACH
    if count:
        single["pixel_values"] = batch["pixel_values"][index : index + 1, :count]
    return single
