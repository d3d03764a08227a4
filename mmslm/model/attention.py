"""Attention arithmetic shared by the language model and the image front end: rotary positions and one `attend`.

`attend` uses the fused kernel of torch, except when training in a 16-bit type on a CPU, where the fused kernel's
backward pass is three to six times slower than two matrix products and a softmax (measured; benchmarks/inference.py).
Refuses nothing: shapes are checked where configurations are made.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


class RotaryTable:
    """Cosines and sines of rotary positions, computed once per device (Su et al. 2021, arXiv:2104.09864).

    Not a module and without buffers: nothing to save, nothing to initialise after loading.
    """

    def __init__(self, head_dim: int, theta: float, length: int) -> None:
        self.head_dim = head_dim
        self.theta = theta
        self.length = length
        self._tables: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def _table(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if device not in self._tables:
            # On the CPU in fp32 in any case, so that every device sees the same angles.
            steps = torch.arange(0, self.head_dim, 2, dtype=torch.float)
            frequency = 1.0 / (self.theta ** (steps / self.head_dim))
            angle = torch.arange(self.length, dtype=torch.float)[:, None] * frequency
            angle = torch.cat((angle, angle), dim=-1)
            self._tables[device] = (angle.cos().to(device), angle.sin().to(device))
        return self._tables[device]

    def __call__(self, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """position_ids [B or 1, T] -> cos and sin, each [B or 1, 1, T, head_dim], fp32."""
        cos, sin = self._table(position_ids.device)
        return cos[position_ids].unsqueeze(1), sin[position_ids].unsqueeze(1)

    def span(self, start: int, stop: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Positions start..stop-1 as views: cos and sin, each [1, 1, stop - start, head_dim]."""
        cos, sin = self._table(device)
        return cos[None, None, start:stop], sin[None, None, start:stop]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position applied to x [B, heads, T, head_dim] (halves paired, as Llama checkpoints expect)."""
    first, second = x.chunk(2, dim=-1)
    return x * cos.to(x.dtype) + torch.cat((-second, first), dim=-1) * sin.to(x.dtype)


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """query [B, H, T, d], key and value [B, G, S, d] with G dividing H -> [B, H, T, d].

    mask: boolean, broadcastable to [B, H, T, S], true = may attend; or None. causal: query t sees keys up to t
    (needs T = S and no mask).
    """
    groups = query.shape[1] // key.shape[1]
    slow_kernel = query.requires_grad and query.device.type == "cpu" and query.dtype != torch.float32
    if slow_kernel and query.shape[2] > 1:
        return _attend_by_products(query, key, value, mask, causal)
    if groups > 1 and mask is None and key.shape[-1] <= 256:
        return F.scaled_dot_product_attention(query, key, value, is_causal=causal, enable_gqa=True)
    if groups > 1 and query.shape[2] == 1:
        batch, heads, _, width = query.shape
        packed = query.reshape(batch, heads // groups, groups, width)
        out = F.scaled_dot_product_attention(packed, key, value, attn_mask=mask)
        return out.reshape(batch, heads, 1, width)
    if groups > 1:
        key, value = repeat_heads(key, groups), repeat_heads(value, groups)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal)


def repeat_heads(x: Tensor, times: int) -> Tensor:
    """x [B, G, S, d] -> [B, G * times, S, d], every head repeated in place."""
    batch, heads, length, width = x.shape
    return x[:, :, None].expand(batch, heads, times, length, width).reshape(batch, heads * times, length, width)


def _attend_by_products(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    batch, heads, length, width = query.shape
    shared, keys = key.shape[1], key.shape[2]
    # Queries that share a key head are stacked along time, so no key or value is copied.
    stacked = (query * width**-0.5).reshape(batch, shared, heads // shared * length, width)
    scores = (stacked @ key.transpose(-1, -2)).view(batch, heads, length, keys)
    if causal:
        bias = torch.full((length, keys), float("-inf"), dtype=scores.dtype, device=scores.device).triu(1)
        scores = scores + bias  # one addition: masking in place costs ten times as much here
    elif mask is not None:
        # The lowest finite number, so that a row of padding without any key to see stays finite.
        scores = scores + torch.where(mask, 0.0, torch.finfo(scores.dtype).min).to(scores.dtype)
    weights = torch.softmax(scores, dim=-1).view(batch, shared, heads // shared * length, keys)
    return (weights @ value).view(batch, heads, length, width)


def compute_type(x: Tensor) -> Tensor:
    """x in autocast's type where autocast is on, so that the projections that share x convert it once."""
    kind = x.device.type
    if kind != "meta" and torch.is_autocast_enabled(kind):
        return x.to(torch.get_autocast_dtype(kind))
    return x


__all__ = ["RotaryTable", "attend", "compute_type", "repeat_heads", "rotate"]
