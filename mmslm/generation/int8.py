"""Eight-bit weights for decoding on a CPU: a quarter of the bytes to read per token.

Decoding reads every weight once a token, so bytes are time. The language model's matrices become int8 (one scale per
output row), activations are quantised as they come (torch's dynamic quantisation); embeddings, norms, experts, the front
end and the projector keep their type. For inference only: such a model cannot be trained or saved, and anything but a
CPU is refused.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

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


def is_int8(module: nn.Module) -> bool:
    """Whether the module is a matrix that `to_int8` made."""
    return isinstance(module, torch.ao.nn.quantized.dynamic.Linear)


def fuse_int8(parts: Sequence[Any]) -> Callable[[Tensor], Tensor]:
    """Quantised matrices [n_i, k] that read the same x as one call: x [.., k] -> [.., sum of n_i], to the bit what they
    give one by one (a scale per row, and x is quantised the same way each time).

    Holds a copy of their bytes. Raises TypeError for a module that is not quantised.
    """
    if not all(is_int8(part) for part in parts):
        raise TypeError("Only matrices that to_int8 made can be joined; quantise the model first.")
    weights = [part.weight() for part in parts]
    rows = torch.cat([weight.int_repr() for weight in weights])
    scales = torch.cat([weight.q_per_channel_scales() for weight in weights])
    zeros = torch.cat([weight.q_per_channel_zero_points() for weight in weights])
    joined = torch._make_per_channel_quantized_tensor(rows, scales, zeros, 0)
    biases = [part.bias() for part in parts]
    bias = None if biases[0] is None else torch.cat(biases)
    packed = torch.ops.quantized.linear_prepack(joined, bias)

    def apply(x: Tensor) -> Tensor:
        out: Tensor = torch.ops.quantized.linear_dynamic(x, packed, reduce_range=True)
        return out

    return apply


__all__ = ["fuse_int8", "is_int8", "to_int8"]
