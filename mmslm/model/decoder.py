"""The compact language model: a Llama-layout decoder whose feed-forwards may carry image experts.

Deep and thin, grouped-query attention, SwiGLU, tied embeddings, as in MobileLLM (Liu et al. 2024, arXiv:2402.14905).
Parameter names are Llama's, so converted checkpoints keep them and peft attaches by name. The first axis of every
tensor is the sample. It refuses both or neither of `input_ids` and `inputs_embeds`, and sequences longer than
`max_position_embeddings`.
"""

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast

from mmslm.model.attention import RotaryTable, attend, compute_type, rotate
from mmslm.model.base import MMSLMPreTrainedModel
from mmslm.model.configuration import MMSLMTextConfig
from mmslm.model.experts import ExpertSpec, ImageTokens, SwiGLUDelta
from mmslm.model.linear import linear_attend
from mmslm.model.masks import attention_pattern


class KeyValueCache(Protocol):
    """Anything that keeps keys and values per slot: transformers' caches, or generation's own."""

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        """Append [B, G, T, d] to slot `layer_idx` and return all keys and values of the slot."""


class SelfAttention(nn.Module):
    """Grouped-query attention with rotary positions: hidden [B, T, D] -> [B, T, D]."""

    def __init__(self, config: MMSLMTextConfig) -> None:
        super().__init__()
        self.head_dim = int(config.head_dim or 0)
        width, bias = config.hidden_size, config.attention_bias
        queries, keys = config.num_attention_heads * self.head_dim, config.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(width, queries, bias=bias)
        self.k_proj = nn.Linear(width, keys, bias=bias)
        self.v_proj = nn.Linear(width, keys, bias=bias)
        self.o_proj = nn.Linear(queries, width, bias=bias)
        self.linear = config.linear_attention
        self.q_norm = nn.RMSNorm(self.head_dim, eps=config.rms_norm_eps) if config.qk_norm else None
        self.k_norm = nn.RMSNorm(self.head_dim, eps=config.rms_norm_eps) if config.qk_norm else None

    def forward(
        self,
        hidden: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor | None,
        causal: bool,
        cache: KeyValueCache | None,
        slot: int,
    ) -> Tensor:
        batch, length, _ = hidden.shape
        shape = (batch, length, -1, self.head_dim)
        query, key = self.q_proj(hidden).view(shape), self.k_proj(hidden).view(shape)
        if self.q_norm is not None and self.k_norm is not None:
            query, key = compute_type(self.q_norm(query)), compute_type(self.k_norm(key))
        query, key = query.transpose(1, 2), key.transpose(1, 2)
        value = self.v_proj(hidden).view(shape).transpose(1, 2)
        if self.linear:
            mixed = linear_attend(query, key, value, cos, sin, mask, cache, slot)
            return self.o_proj(mixed.transpose(1, 2).reshape(batch, length, -1))
        query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        if cache is not None:
            key, value = cache.update(key, value, slot)
            if causal and key.shape[2] > length:
                # A static cache gives back its whole length; the mask says "causal" only before anything was kept.
                key, value = key[:, :, :length], value[:, :, :length]
        mixed = attend(query, key, value, mask, causal)
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, length, -1))


class SwiGLU(nn.Module):
    """The feed-forward (Shazeer 2020, arXiv:2002.05202), with at most one expert for image tokens: low-rank or full."""

    def __init__(self, config: MMSLMTextConfig) -> None:
        super().__init__()
        width, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = nn.Linear(width, inner, bias=bias)
        self.up_proj = nn.Linear(width, inner, bias=bias)
        self.down_proj = nn.Linear(inner, width, bias=bias)
        self.image_expert: SwiGLUDelta | None = None
        self.image_mlp: SwiGLU | None = None

    def forward(self, x: Tensor, images: ImageTokens | None = None) -> Tensor:
        """x [B, T, D] -> [B, T, D]; `images` says which tokens take the expert, if there is one."""
        if self.image_mlp is not None and images is not None:
            return images.dispatch(x, self._text, self.image_mlp)
        expert = self.image_expert
        if expert is None or images is None:
            return self._text(x)
        gate, up = self.gate_proj(x), self.up_proj(x)
        seen = images.take(x)
        gate = images.add(gate, expert.gate_proj(seen))
        up = images.add(up, expert.up_proj(seen))
        inner = F.silu(gate) * up
        return images.add(self.down_proj(inner), expert.down_proj(images.take(inner)))

    def _text(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class DecoderLayer(GradientCheckpointingLayer):
    """One pre-norm block: attention, then feed-forward."""

    def __init__(self, config: MMSLMTextConfig) -> None:
        super().__init__()
        self.self_attn = SelfAttention(config)
        self.mlp = SwiGLU(config)
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(
        self,
        hidden: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor | None,
        causal: bool,
        past_key_values: KeyValueCache | None,
        slot: int,
        images: ImageTokens | None,
    ) -> Tensor:
        normed = compute_type(self.input_layernorm(hidden))
        hidden = hidden + self.self_attn(normed, cos, sin, mask, causal, past_key_values, slot)
        return hidden + self.mlp(compute_type(self.post_attention_layernorm(hidden)), images)


class MMSLMLanguageModel(MMSLMPreTrainedModel):
    """Token embeddings, the blocks and the final norm; logits are formed by the model around it."""

    config: MMSLMTextConfig
    config_class = MMSLMTextConfig

    def __init__(self, config: MMSLMTextConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_blocks))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        rope = config.rope_parameters or {}
        self.rotary = RotaryTable(
            int(config.head_dim or 0), float(rope["rope_theta"]), int(config.max_position_embeddings)
        )
        self.gradient_checkpointing = False
        self.post_init()

    def add_image_experts(self, spec: ExpertSpec) -> None:
        """Give the blocks of `spec` an image expert that does not change the function yet."""
        config = self.config
        for index in spec.layers:
            mlp = self.layers[index].mlp
            assert isinstance(mlp, SwiGLU)
            weight = mlp.gate_proj.weight
            if spec.kind == "full":
                mlp.image_mlp = SwiGLU(config).to(weight.device, weight.dtype)
                mlp.image_mlp.load_state_dict(mlp.state_dict(), strict=False)
            else:
                delta = SwiGLUDelta(config.hidden_size, config.intermediate_size, spec.rank, spec.train)
                mlp.image_expert = delta.to(weight.device, weight.dtype)

    def run(
        self,
        hidden: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor | None,
        causal: bool,
        cache: KeyValueCache | None,
        images: ImageTokens | None,
        states: list[Tensor] | None = None,
    ) -> Tensor:
        """The blocks and the final norm: hidden [B, T, D] -> [B, T, D]. `states` collects each block's input.

        The lean generation loop calls this directly: everything that transformers' `generate` prepares again for
        every token is prepared once by the caller.
        """
        for slot in range(self.config.num_hidden_layers):
            layer = self.layers[slot // self.config.layer_repeats]  # a shared block keeps a cache slot per run
            if states is not None:
                states.append(hidden)
            hidden = layer(hidden, cos, sin, mask, causal, past_key_values=cache, slot=slot, images=images)
        hidden = self.norm(hidden)
        if states is not None:
            states.append(hidden)
        return hidden

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        images: ImageTokens | None = None,
        image_mask: Tensor | None = None,
        segment_ids: Tensor | None = None,
        output_hidden_states: bool | None = None,
        **_: Any,
    ) -> BaseModelOutputWithPast:
        """hidden states [B, T, D] of `input_ids` [B, T] or `inputs_embeds` [B, T, D].

        attention_mask: [B, S] over past and present (1 = real token) or a boolean [B, 1, T, S]. images and image_mask
        [B, T]: where image tokens are. segment_ids [B, T]: packed samples, 0 = padding. Raises ValueError.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give exactly one of input_ids and inputs_embeds.")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        length = inputs_embeds.shape[1]
        seen = past_key_values.get_seq_length() if past_key_values is not None else 0
        # A static cache counts in a tensor.
        past = int(seen) if position_ids is None or past_key_values is None else 0
        if length + past > self.config.max_position_embeddings:
            raise ValueError(
                f"The sequence has {length + past} tokens, but this model takes at most "
                f"{self.config.max_position_embeddings}; shorten the text or give fewer pictures."
            )
        if segment_ids is not None:
            position_ids = _packed_positions(segment_ids, position_ids, attention_mask, past_key_values)
        elif position_ids is not None and bool((position_ids[:, 1:] < position_ids[:, :-1]).any()):
            raise ValueError(
                "position_ids start again within a row, as packed samples do, but there are no segment_ids: the samples "
                "would see each other. Give segment_ids (Collator.pack makes them)."
            )
        else:
            position_ids = self._positions(position_ids, attention_mask, past, length, inputs_embeds.device)
        mask: Tensor | None
        if self.config.linear_attention:
            mask, causal = self._linear_mask(inputs_embeds, attention_mask, image_mask, segment_ids), True
        elif segment_ids is not None or self.config.prefix_lm or self.config.text_window is not None:
            mask = self._pattern(inputs_embeds, attention_mask, past_key_values, image_mask, segment_ids)
            causal = False
        else:
            mask, causal = self._mask(inputs_embeds, attention_mask, past_key_values, position_ids)
        cos, sin = self.rotary(position_ids)
        states: list[Tensor] | None = [] if output_hidden_states else None
        hidden = self.run(inputs_embeds, cos, sin, mask, causal, past_key_values, images, states)
        return BaseModelOutputWithPast(
            last_hidden_state=hidden,  # type: ignore[arg-type]
            past_key_values=past_key_values,
            hidden_states=tuple(states) if states is not None else None,  # type: ignore[arg-type]
        )

    @staticmethod
    def _positions(
        position_ids: Tensor | None, attention_mask: Tensor | None, past: int, length: int, device: torch.device
    ) -> Tensor:
        if position_ids is not None:
            return position_ids
        if attention_mask is not None and attention_mask.dim() == 2 and attention_mask.shape[1] == past + length:
            # Left padding: the first real token is at position 0, as it is alone.
            return (attention_mask.long().cumsum(1) - 1).clamp(min=0)[:, past:]
        return torch.arange(past, past + length, device=device)[None]

    def _linear_mask(
        self, embeds: Tensor, attention_mask: Tensor | None, image_mask: Tensor | None, segment_ids: Tensor | None
    ) -> Tensor | None:
        """Among these tokens alone (earlier ones are summed): padding [B, 1, 1, T], or the pattern [B or 1, 1, T, T]."""
        length = embeds.shape[1]
        visible = None
        if attention_mask is not None:
            visible = attention_mask if attention_mask.dim() == 2 else attention_mask[:, 0, -1]
            visible = visible[:, -length:].bool()
        if segment_ids is None and not (self.config.prefix_lm and image_mask is not None and bool(image_mask.any())):
            return None if visible is None else visible[:, None, None]
        return attention_pattern(
            torch.arange(length, device=embeds.device),
            length,
            visible=visible,
            image=image_mask,
            segments=segment_ids,
            prefix_lm=self.config.prefix_lm,
        )

    def _pattern(
        self,
        embeds: Tensor,
        attention_mask: Tensor | None,
        cache: Cache | None,
        image_mask: Tensor | None,
        segment_ids: Tensor | None,
    ) -> Tensor:
        """The boolean mask [B or 1, 1, T, S] of prefix images, windows and packed samples."""
        batch, length = embeds.shape[:2]
        image = image_mask if image_mask is not None else embeds.new_zeros(batch, length, dtype=torch.bool)
        past, keys = 0, length
        if cache is not None:
            past, keys = int(cache.get_seq_length()), int(cache.get_mask_sizes(length, 0)[0])
            # The cache keeps which of its keys are image tokens: later queries see those at any distance.
            earlier = getattr(cache, "image_keys", image.new_zeros(batch, 0))[:batch, :past]
            image = torch.cat((earlier, image), dim=1)
            cache.image_keys = image  # type: ignore[attr-defined]
            image = F.pad(image, (0, keys - image.shape[1]))
        visible = None
        if attention_mask is not None and attention_mask.dim() == 2:
            visible = F.pad(attention_mask.bool(), (0, keys - attention_mask.shape[1]))
        elif attention_mask is not None:
            visible = attention_mask.bool()[:, 0, -1]  # what the last query sees is what is no padding
        return attention_pattern(
            torch.arange(past, past + length, device=embeds.device),
            keys,
            visible=visible,
            image=image,
            segments=segment_ids,
            prefix_lm=self.config.prefix_lm,
            window=self.config.text_window,
        )

    def _mask(
        self, embeds: Tensor, attention_mask: Tensor | None, cache: Cache | None, position_ids: Tensor
    ) -> tuple[Tensor | None, bool]:
        """The boolean mask [B, 1, T, S], or None with whether attention is purely causal."""
        length = embeds.shape[1]
        if attention_mask is not None and attention_mask.dim() == 4:
            return attention_mask, False
        if cache is None:
            if attention_mask is None:
                return None, length > 1
            if bool((attention_mask[:, 1:] <= attention_mask[:, :-1]).all()):
                # Padded on the right or not at all: no real token sees padding when attention is causal.
                return None, length > 1
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=embeds,
            attention_mask=attention_mask,
            past_key_values=cache,
            position_ids=position_ids,
        )
        return (mask, False) if isinstance(mask, Tensor) else (None, length > 1)


def _packed_positions(
    segment_ids: Tensor, position_ids: Tensor | None, attention_mask: Tensor | None, cache: Cache | None
) -> Tensor:
    """Positions that start at 0 in every segment; refuses what would mix packed samples. Raises ValueError."""
    if cache is not None:
        raise ValueError("Packed samples cannot be decoded with a cache: set use_cache=False, or unpack them first.")
    if attention_mask is not None:
        raise ValueError("Packed samples take no attention_mask; segment_ids hide padding (0) and other samples.")
    starts = torch.ones_like(segment_ids, dtype=torch.bool)
    starts[:, 1:] = segment_ids[:, 1:] != segment_ids[:, :-1]
    index = torch.arange(segment_ids.shape[1], device=segment_ids.device)[None]
    positions = index - torch.where(starts, index, 0).cummax(dim=1).values
    if position_ids is not None and not torch.equal(position_ids, positions):
        raise ValueError("position_ids do not start again where segment_ids change; leave position_ids out.")
    return positions


__all__ = ["DecoderLayer", "KeyValueCache", "MMSLMLanguageModel", "SelfAttention", "SwiGLU"]
