"""Attention whose memory does not grow: a running sum of keys times values instead of a cache of all of them.

Kernelised attention with features elu(x) + 1 (Katharopoulos et al. 2020, arXiv:2006.16236), rotary positions in the
numerator only, so that the denominator stays positive (Su et al. 2021, arXiv:2104.09864, section 3.3). The parallel form
(all tokens at once), the chunked form and the recurrent form (one token at a time, carrying the state) are one function
and give the same numbers. It has no parameters and never mixes samples; padding on either side adds nothing to the sums.
A window is refused where configurations are made: a sum cannot forget.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.cache_utils import STATIC_LAYER_TYPE_MAPPING, CacheLayerMixin

from mmslm.model.attention import rotate

KIND = "mmslm_linear"  # what a configuration calls these layers when transformers builds a cache for it
CHUNK = 128
State = tuple[Tensor, Tensor]


class StateLayer(CacheLayerMixin):
    """What transformers' caches keep of a layer: the sums [B, G, d, d] and [B, G, d], and how many tokens are in them."""

    _layer_type = KIND
    supports_early_init = False

    def __init__(self, **_: Any) -> None:
        super().__init__()
        self.cumulative_length = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Sums of nothing."""
        self.keys, self.values = torch.zeros_like(key_states), torch.zeros_like(value_states)
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, count: int = 0, **_: Any) -> State:  # type: ignore[override]
        """Add the sums of `count` new tokens; returns the sums of the tokens before them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        before = self.keys, self.values
        self.keys, self.values = self.keys + key_states, self.values + value_states
        self.cumulative_length += count
        return before

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """As if all tokens were kept."""
        return self.cumulative_length + query_length, 0

    def get_seq_length(self) -> int:
        """How many tokens are in the sums."""
        return self.cumulative_length

    def get_max_length(self) -> int:
        """No limit."""
        return -1


STATIC_LAYER_TYPE_MAPPING[KIND] = StateLayer  # of fixed size, whatever the kind of cache


def linear_attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cos: Tensor,
    sin: Tensor,
    mask: Tensor | None,
    cache: Any = None,
    slot: int = 0,
    chunk: int = CHUNK,
) -> Tensor:
    """query [B, H, T, d], key and value [B, G, T, d] before rotation, G dividing H -> [B, H, T, d] in query's type.

    mask: None (causal), boolean [B, 1, 1, T] (false at padding; causal), or [B or 1, 1, T, T] (the whole pattern among
    these tokens). cache: gives the sums of earlier tokens for `slot` and takes those of these. Sums are fp32.
    """
    with torch.autocast(query.device.type, enabled=False):
        asked, stored, value32 = F.elu(query.float()) + 1.0, F.elu(key.float()) + 1.0, value.float()
        pattern = mask if mask is not None and mask.shape[2] > 1 else None
        if mask is not None and pattern is None:
            stored = stored * mask.transpose(2, 3)
        turned = rotate(stored, cos, sin)
        before: State | None = None
        if cache is not None:
            seen = stored if pattern is None else stored * pattern[:, :, -1:].transpose(2, 3)
            own = turned if pattern is None else rotate(seen, cos, sin)
            before = cache.update(own.transpose(2, 3) @ value32, seen.sum(dim=2), slot, query.shape[2])
        batch, heads, length, width = query.shape
        shared = key.shape[1]
        size = length if pattern is not None else chunk
        outputs = []
        for start in range(0, length, size):
            part = slice(start, start + size)
            k, r, v = stored[:, :, part], turned[:, :, part], value32[:, :, part]
            span = k.shape[2]
            # Queries that share a key head are stacked, so no key or value is copied.
            plain = asked[:, :, part].reshape(batch, shared, heads // shared * span, width)
            spun = rotate(asked[:, :, part], cos[:, :, part], sin[:, :, part]).reshape(plain.shape)
            top, bottom = spun @ r.transpose(2, 3), plain @ k.transpose(2, 3)
            allowed = pattern if pattern is not None else _lower(span, query.device)
            stacked = (batch, shared * (heads // shared), span, span)
            top = (top.view(stacked) * allowed).view(top.shape)
            bottom = (bottom.view(stacked) * allowed).view(bottom.shape).sum(dim=-1, keepdim=True)
            out = top @ v
            if before is not None:
                out = out + spun @ before[0]
                bottom = bottom + plain @ before[1][..., None]
            outputs.append((out / bottom.clamp(min=1e-6)).view(batch, heads, span, width))
            if start + size < length:
                added = r.transpose(2, 3) @ v, k.sum(dim=2)
                before = added if before is None else (before[0] + added[0], before[1] + added[1])
    mixed = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)
    return mixed.to(query.dtype)


def _lower(size: int, device: torch.device) -> Tensor:
    return torch.ones(size, size, dtype=torch.bool, device=device).tril()


__all__ = ["KIND", "StateLayer", "linear_attend"]
