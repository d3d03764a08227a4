"""What all mmslm modules share as transformers models: capabilities and the initialisation of weights."""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init

from mmslm.model.experts import LowRankDelta


class MMSLMPreTrainedModel(PreTrainedModel):
    """Base class: safetensors only, SDPA attention, gradient checkpointing."""

    base_model_prefix = "model"
    input_modalities = ["image", "text"]  # noqa: RUF012 (transformers declares a list)
    supports_gradient_checkpointing = True
    _no_split_modules = ["DecoderLayer"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_sdpa = True
    _can_compile_fullgraph = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Normal(0, initializer_range) for weights, ones and zeros for norms; low-rank deltas start as no delta."""
        if isinstance(module, nn.Conv2d):
            # Fan-in scaling: three strided convolutions in a row would otherwise shrink the picture to nothing.
            fan = module.weight[0].numel()
            init.normal_(module.weight, mean=0.0, std=fan**-0.5)
            if module.bias is not None:
                init.zeros_(module.bias)
            return
        super()._init_weights(module)
        if isinstance(module, LowRankDelta):
            init.zeros_(module.b.weight)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """transformers' own, which makes every weight trainable; what is frozen by construction is then frozen again."""
        loaded = super().from_pretrained(*args, **kwargs)
        for module in (loaded[0] if isinstance(loaded, tuple) else loaded).modules():
            freeze: Any = getattr(module, "freeze_fixed", None)
            if freeze is not None:
                freeze()
        return loaded

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Write config.json and model.safetensors. Refuses `safe_serialization=False` with ValueError."""
        if kwargs.get("safe_serialization") is False:
            raise ValueError(
                "safe_serialization=False would write a pickle; mmslm models are saved as safetensors only."
            )
        super().save_pretrained(save_directory, *args, **kwargs)


__all__ = ["MMSLMPreTrainedModel"]
