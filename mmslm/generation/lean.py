"""One token through the language model with as little Python and as little memory traffic as it takes.

While a single reply is decoded every matrix meets one vector. Called on vectors, torch uses matrix-vector products, which
read memory a third faster than its general product does for one row (measured: benchmarks/inference.py); queries and keys
turn together; norms are three operations; quantised matrices that read the same vector are one (`fuse_int8`), since each
call quantises its input anew. The numbers are the language model's own up to rounding. It serves models whose attention is
plain: windows, prefix images and linear attention decode by the general path.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmslm.generation.cache import SlotCache
from mmslm.generation.int8 import fuse_int8, is_int8
from mmslm.model.decoder import SelfAttention, SwiGLU
from mmslm.model.modeling import MMSLMForConditionalGeneration

Joined = Callable[[Tensor], Tensor]


class LeanStep:
    """Decoding of one row, one token at a time. Plain weights are looked up at every step, so they may change between;
    quantised ones are fixed, so those that belong together are joined once."""

    def __init__(self, model: MMSLMForConditionalGeneration) -> None:
        text = model.config.text
        self.model = model
        self.heads, self.shared, self.width = (
            text.num_attention_heads,
            text.num_key_value_heads,
            int(text.head_dim or 0),
        )
        self.repeats, self.slots = text.layer_repeats, text.num_hidden_layers
        self.size = text.hidden_size
        sign = torch.ones(self.width)
        sign[: self.width // 2] = -1.0
        self.sign = sign
        # Quantised matrices want rows, plain ones are faster on vectors.
        self.quantised = is_int8(model.lm_head)
        self.joined: list[tuple[Joined, Joined]] = []
        if self.quantised:
            for layer in model.model.language_model.layers:
                attention, mlp = layer.self_attn, layer.mlp
                self.joined.append(
                    (
                        fuse_int8([attention.q_proj, attention.k_proj, attention.v_proj]),
                        fuse_int8([mlp.gate_proj, mlp.up_proj]),
                    )
                )

    @staticmethod
    def serves(model: MMSLMForConditionalGeneration) -> bool:
        """Whether the model's attention is plain."""
        text = model.config.text
        return not (text.linear_attention or text.prefix_lm or text.text_window is not None)

    def __call__(self, token: int, cache: SlotCache) -> Tensor:
        """Logits [1, V] after `token`, which is written into the cache (of one row) and counted."""
        language, position = self.model.model.language_model, cache.length
        x = language.embed_tokens.weight[token].view((1, self.size) if self.quantised else (self.size,))
        cos, sin = language.rotary.span(position, position + 1, x.device)
        cos, sin = cos.view(-1).to(x.dtype), (sin.view(-1) * self.sign.to(x.device)).to(x.dtype)
        for slot in range(self.slots):
            number = slot // self.repeats
            block = language.layers[number]
            mlp, attention = block.mlp, block.self_attn
            assert isinstance(mlp, SwiGLU) and isinstance(attention, SelfAttention)
            x = x + self._attend(attention, _norm(block.input_layernorm, x), cos, sin, cache, slot, position)
            normed = _norm(block.post_attention_layernorm, x)
            if self.joined:
                gate, up = self.joined[number][1](normed).chunk(2, dim=-1)
            else:
                gate, up = mlp.gate_proj(normed), mlp.up_proj(normed)
            x = x + mlp.down_proj(F.silu(gate) * up)
        cache.advance(1)
        logits: Tensor = self.model.lm_head(_norm(language.norm, x))
        return logits.view(1, -1)

    def _attend(
        self, attention: SelfAttention, x: Tensor, cos: Tensor, sin: Tensor, cache: SlotCache, slot: int, position: int
    ) -> Tensor:
        heads, shared, width = self.heads, self.shared, self.width
        if self.joined:
            all_three = self.joined[slot // self.repeats][0](x).view(-1, width)
            turned, value = all_three[: heads + shared], all_three[heads + shared :]
        else:
            turned = torch.cat((attention.q_proj(x), attention.k_proj(x)), dim=-1).view(heads + shared, width)
            value = attention.v_proj(x).view(shared, width)
        if attention.q_norm is not None and attention.k_norm is not None:
            turned = torch.cat((attention.q_norm(turned[:heads]), attention.k_norm(turned[heads:])))
        # Rolled by half a head, with the first half's sign in the sine: the rotation in three operations.
        turned = turned * cos + turned.roll(width // 2, dims=-1) * sin
        keys, values = cache.keys[slot], cache.values[slot]
        keys[0, :, position] = turned[heads:]
        values[0, :, position] = value
        # Queries that share a key head stand as its rows: no head is copied.
        queries = turned[:heads].view(1, shared, heads // shared, width)
        mixed = F.scaled_dot_product_attention(queries, keys[:, :, : position + 1], values[:, :, : position + 1])
        out: Tensor = attention.o_proj(mixed.view(*x.shape[:-1], heads * width))
        return out


def _norm(norm: nn.Module, x: Tensor) -> Tensor:
    """RMSNorm of one vector; sums in fp32 as the module has it."""
    assert isinstance(norm, nn.RMSNorm)
    wide, eps = x.float(), float(norm.eps or 0.0)
    flat = wide.view(-1)
    square = torch.dot(flat, flat)
    # On a CPU a Python number is the fastest scalar; elsewhere reading it would wait for the device.
    on_cpu = x.device.type == "cpu"
    scale = (square.item() / len(flat) + eps) ** -0.5 if on_cpu else torch.rsqrt(square / len(flat) + eps)
    return (wide * scale).to(x.dtype) * norm.weight


__all__ = ["LeanStep"]
