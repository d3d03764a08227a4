"""What `describe` says is what the model is."""

from __future__ import annotations

import pytest
import torch
from tiny_models import batch_of, row, tiny_config, tiny_model
from torch.utils.flop_counter import FlopCounterMode

from mmslm.generation.cache import SlotCache
from mmslm.model import describe, describe_text, load_tier
from mmslm.model.describe import tier_of


@pytest.mark.parametrize("experts", [None, {"rank": 2}, {"rank": 0, "kind": "full", "layers": [1]}])
def test_counts_are_those_of_the_model(experts: dict[str, object] | None) -> None:
    facts, model = describe(tiny_config(image_experts=experts)), tiny_model(image_experts=experts)
    assert facts["parameters"]["unique"] == sum(p.numel() for p in model.parameters())
    assert facts["parameters"]["by_part"]["image_experts"] == sum(
        p.numel() for p in model.adapter_parameters().values()
    )
    assert facts["parameters"]["by_part"]["head"] == 0, "the head is the embedding"
    assert sum(facts["parameters"]["by_part"].values()) == facts["parameters"]["unique"]
    assert facts["bytes"] == 4 * facts["parameters"]["unique"]


def test_arithmetic_is_what_torch_counts() -> None:
    facts, model = describe(tiny_config()), tiny_model()
    text = batch_of([row(0, 9, 0)])
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=text["input_ids"])
    length, attention = 10, 4 * 3 * 4 * 8
    # torch counts attention over the full square, decoding sees what is before it.
    counted = counter.get_total_flops() - attention * length * length
    assert counted == facts["flops"]["token"] * length
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.encode_images(torch.zeros(1, 1, 3, 32, 32))
    assert facts["flops"]["image"] == counter.get_total_flops()


def test_cache_bytes_are_those_of_a_filled_cache() -> None:
    config = tiny_config()
    facts = describe(config)
    cache = SlotCache.empty(3, 1, 2, config.tokens_per_image + 1, 8, torch.zeros(1))
    assert facts["cache_bytes"]["image"] == cache.bytes


def test_the_nano_tier_is_nano_and_is_described_in_words() -> None:
    facts = describe(load_tier("nano"), bytes_per_number=2)
    assert facts["tier"] == "nano"
    assert 4_000_000 < facts["parameters"]["unique"] < 4_300_000
    text = describe_text(load_tier("nano"))
    assert "36 tokens" in text
    assert f"{facts['parameters']['unique']:,}" in text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tier", "parameters", "trainable", "with_full_experts"),
    [("tiny", 33_399_360, 22_573_184, 47_555_136), ("small", 146_265_984, 135_439_808, 225_892_224)],
)
def test_larger_tiers_are_as_large_as_their_files_say(
    tier: str, parameters: int, trainable: int, with_full_experts: int
) -> None:
    config = load_tier(tier)
    facts = describe(config)
    assert (facts["tier"], facts["tokens_per_image"]) == (tier, 64)
    assert facts["parameters"]["unique"] == parameters
    assert facts["parameters"]["trainable"] == trainable, "the tower is frozen"
    config.image_experts = {"rank": 0, "kind": "full"}
    assert describe(config)["parameters"]["unique"] == with_full_experts


def test_tiers_have_limits() -> None:
    assert [tier_of(n) for n in (10**6, 5 * 10**7, 2 * 10**8, 10**9)] == ["nano", "tiny", "small", "large"]
