"""What a configuration costs before anything is trained: parameters, bytes, arithmetic, cache.

Parameters are counted on a model without memory (torch's meta device); the image front end's arithmetic is counted by
torch's own FLOP counter on that model, the language model's from its matrices. One multiply-add is two FLOPs. It refuses
what the configuration refuses.
"""

from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mmslm.model.configuration import MMSLMConfig
from mmslm.model.modeling import MMSLMForConditionalGeneration

TIERS = (("nano", 10_000_000), ("tiny", 100_000_000), ("small", 500_000_000))


def tier_of(parameters: int) -> str:
    """The tier that so many parameters belong to: nano (to 10M), tiny (to 100M), small (to 500M) or large."""
    return next((name for name, limit in TIERS if parameters <= limit), "large")


def describe(config: MMSLMConfig, bytes_per_number: int = 4) -> dict[str, Any]:
    """What a model of this configuration is and costs.

    Keys: tier; parameters {unique, trainable, by_part {vision, projector, embeddings, decoder, image_experts, head}};
    bytes (weights); tokens_per_image; flops {image (front end and projector), token (one decoded token without and
    `token_with_full_context` with attention over the longest sequence), image_prefill (the image tokens through the
    decoder)}; cache_bytes {token, image, full_context}. bytes_per_number: 4 for fp32, 2 for bf16.
    """
    with torch.device("meta"):
        model = MMSLMForConditionalGeneration(config)
    unique = {id(p): p for p in model.parameters()}
    parts = dict.fromkeys(("vision", "projector", "embeddings", "decoder", "image_experts", "head"), 0)
    for name, parameter in model.named_parameters():
        parts[_part(name)] += parameter.numel()
    total = sum(p.numel() for p in unique.values())
    text, vision = config.text, config.vision
    pixels = torch.empty(1, 1, 3, vision.image_size, vision.image_size, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.encode_images(pixels)
    decoder = _matrix_numbers(model.model.language_model.layers, experts=False) * text.layer_repeats
    image_decoder = _matrix_numbers(model.model.language_model.layers, experts=True) * text.layer_repeats
    head = text.vocab_size * text.hidden_size
    attention = 4 * text.num_hidden_layers * text.num_attention_heads * int(text.head_dim or 0)  # per key seen
    each, longest = config.tokens_per_image, text.max_position_embeddings
    width = int(text.head_dim or 0)
    slots = text.num_hidden_layers * text.num_key_value_heads
    per_token, fixed = 2 * slots * width * bytes_per_number, 0
    prefill_attention, full_attention = attention * each * (each + 1) // 2, attention * longest
    if text.linear_attention:  # sums in fp32 whose size no token changes: added to per key head, read per query head
        per_token, fixed = 0, slots * (width + 1) * width * 4
        full_attention = 2 * text.num_hidden_layers * (text.num_attention_heads + text.num_key_value_heads) * width**2
        prefill_attention = full_attention * each
    return {
        "tier": tier_of(total),
        "parameters": {
            "unique": total,
            "trainable": sum(p.numel() for p in unique.values() if p.requires_grad),
            "by_part": parts,
        },
        "bytes": total * bytes_per_number + sum(b.numel() * bytes_per_number for b in model.buffers()),
        "tokens_per_image": each,
        "flops": {
            "image": int(counter.get_total_flops()),
            "image_prefill": 2 * image_decoder * each + prefill_attention,
            "token": 2 * (decoder + head),
            "token_with_full_context": 2 * (decoder + head) + full_attention,
        },
        "cache_bytes": {
            "token": per_token,
            "image": fixed + per_token * (each + 1),
            "full_context": fixed + per_token * longest,
        },
    }


def describe_text(config: MMSLMConfig, bytes_per_number: int = 4) -> str:
    """`describe` for reading: one fact per line."""
    facts = describe(config, bytes_per_number)
    counts, flops, cache = facts["parameters"], facts["flops"], facts["cache_bytes"]
    lines = [
        f"tier                {facts['tier']}",
        f"parameters          {counts['unique']:,} ({counts['trainable']:,} trainable)",
        *(f"  {name:<18}{number:,}" for name, number in counts["by_part"].items() if number),
        f"weights             {facts['bytes'] / 1e6:.1f} MB at {bytes_per_number} bytes a number",
        f"one picture         {facts['tokens_per_image']} tokens, {flops['image'] / 1e6:.0f} MFLOPs to encode, "
        f"{flops['image_prefill'] / 1e6:.0f} MFLOPs to read",
        f"one token           {flops['token'] / 1e6:.1f} MFLOPs ({flops['token_with_full_context'] / 1e6:.1f} at full context)",
        f"cache               {cache['token']:,} bytes a token, {cache['image'] / 1e3:.0f} kB a picture, "
        f"{cache['full_context'] / 1e6:.1f} MB at full context",
    ]
    return "\n".join(lines)


def _part(name: str) -> str:
    if ".image_expert." in name or ".image_mlp." in name:
        return "image_experts"
    for part, mark in (("vision", ".vision_tower."), ("projector", ".projector."), ("embeddings", ".embed_tokens.")):
        if mark in name:
            return part
    return "head" if name.startswith("lm_head") else "decoder"


def _matrix_numbers(layers: nn.Module, experts: bool) -> int:
    """Numbers in the matrices that one token is multiplied with; with `experts`, an image token."""
    total = 0
    for name, module in layers.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        replaced = ".mlp." in name and ".image_mlp." not in name and _has_full_expert(layers, name)
        if ".image_mlp." in name or ".image_expert." in name:
            total += module.weight.numel() if experts else 0
        elif not (experts and replaced):
            total += module.weight.numel()
    return total


def _has_full_expert(layers: nn.Module, name: str) -> bool:
    block = layers.get_submodule(name.split(".", 1)[0])
    return getattr(block.get_submodule("mlp"), "image_mlp", None) is not None


__all__ = ["describe", "describe_text", "tier_of"]
