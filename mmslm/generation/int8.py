"""Eight-bit weights for decoding on a CPU: a quarter of the bytes to read per token.

Decoding reads every weight once a token, so bytes are time. The language model's matrices become int8 (one scale per
output row), activations are quantised as they come (torch's dynamic quantisation); embeddings, norms, experts, the front
end and the projector keep their type. For inference only: such a model cannot be trained or saved, and anything but a
CPU is refused.
"""

import warnings

import torch
from torch import nn

from mmslm.model.modeling import MMSLMForConditionalGeneration

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def to_int8(model: MMSLMForConditionalGeneration) -> MMSLMForConditionalGeneration:
    """Quantise the language model's matrices and its head, in place; returns the model. Raises ValueError."""
    weight = model.get_input_embeddings().weight
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        raise ValueError(
            f"int8 starts from fp32 weights on a CPU; this model is {weight.dtype} on {weight.device}. Load it so."
        )
    wanted = {
        name: torch.ao.quantization.per_channel_dynamic_qconfig
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and ".image_expert" not in name
        and (name.rpartition(".")[2] in PROJECTIONS or name == "lm_head")
    }
    # The head is the embedding where they are tied; only the head's own copy becomes int8.
    model.config.tie_word_embeddings = False
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", DeprecationWarning
        )  # torch points to torchao, whose int8 swaps the embedding too
        torch.ao.quantization.quantize_dynamic(model, wanted, dtype=torch.qint8, inplace=True)
    return model


__all__ = ["to_int8"]
