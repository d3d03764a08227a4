"""The whole model: picture and words in, logits and one loss per sample out.

`MMSLMForConditionalGeneration` is a transformers model (`from_pretrained`, `save_pretrained`, `generate`, peft) and
keeps the sample as the first axis throughout, so per-sample gradients are exact. It refuses image tokens without a
picture, pictures without image tokens, and image tokens that do not fill whole pictures.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPooling, ModelOutput

from mmslm.model.base import MMSLMPreTrainedModel
from mmslm.model.configuration import MMSLMConfig
from mmslm.model.decoder import MMSLMLanguageModel
from mmslm.model.experts import ExpertSpec, ImageTokens, LowRankDelta, MLPDelta
from mmslm.model.losses import IGNORED, label_positions, mean_over_own_tokens, token_loss
from mmslm.model.vision import Projector, VisionBlock, build_front_end


@dataclass
class MMSLMOutput(ModelOutput):
    """What a forward pass gives.

    loss: scalar, mean over all labelled tokens, nats. per_sample_loss: [B], mean over each sample's own tokens.
    logits: [B, T, V], or [B, M, V] at the labelled positions with `logits_at="labels"`; then `targets` [B, M] are the
    aligned labels (-100 = none).
    """

    loss: Tensor | None = None
    per_sample_loss: Tensor | None = None
    logits: Tensor | None = None
    targets: Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    image_hidden_states: Tensor | None = None
    last_hidden_state: Tensor | None = None


class MMSLMModel(MMSLMPreTrainedModel):
    """Front end, projector and language model without the vocabulary head."""

    config: MMSLMConfig
    config_class = MMSLMConfig

    def __init__(self, config: MMSLMConfig) -> None:
        super().__init__(config)
        self.vision_tower = build_front_end(config.vision)
        self.projector = Projector(config)
        self.language_model = MMSLMLanguageModel(config.text)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.embed_tokens = value  # type: ignore[assignment]

    def encode_images(self, pixel_values: Tensor) -> Tensor:
        """pixel_values [B, N, 3, H, W] in [-1, 1] -> image features [B, N*T, D], ready to stand among embeddings."""
        features: Tensor = self.projector(self.vision_tower(pixel_values.to(self.projector.fc1.weight.dtype)))
        return features

    def get_image_features(self, pixel_values: Tensor, **_: Any) -> BaseModelOutputWithPooling:
        """transformers' name for `encode_images`: the features are `pooler_output`."""
        features = self.encode_images(pixel_values)
        return BaseModelOutputWithPooling(last_hidden_state=features, pooler_output=features)  # type: ignore[arg-type]

    def get_placeholder_mask(self, input_ids: Tensor, image_features: Tensor) -> Tensor:
        """Where the image tokens are, [B, T] boolean. Raises ValueError where they do not fit the features."""
        mask: Tensor = input_ids == self.config.image_token_id
        counts = mask.sum(dim=1)
        each = self.config.tokens_per_image
        if bool((counts % each).any()) or int(counts.max()) > image_features.shape[1]:
            raise ValueError(
                f"The samples have {counts.tolist()} image tokens, but every picture takes {each} and "
                f"{image_features.shape[1] // each} pictures were given per sample; use the processor."
            )
        return mask

    def merge(self, input_ids: Tensor, embeds: Tensor, image_features: Tensor) -> tuple[Tensor, ImageTokens | None]:
        """embeds [B, T, D] with image_features [B, K, D] at the image tokens, in order, and where those are."""
        mask = self.get_placeholder_mask(input_ids, image_features)
        images = ImageTokens.locate(mask)
        if images is None:
            return embeds, None
        features = image_features.to(embeds.dtype)
        width = images.span[1] - images.span[0] if images.span is not None else images.index.shape[1]  # type: ignore[union-attr]
        # Image tokens keep their order in both forms, so the k-th of a row takes its k-th feature.
        return images.put(embeds, features[:, :width]), images

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        mm_token_type_ids: Tensor | None = None,
        image_features: Tensor | None = None,
        mm_encoder_outputs: dict[str, Any] | None = None,
        segment_ids: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        **_: Any,
    ) -> MMSLMOutput:
        """See `MMSLMForConditionalGeneration.forward`."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give exactly one of input_ids and inputs_embeds.")
        if image_features is None and mm_encoder_outputs and mm_encoder_outputs.get("image") is not None:
            encoded = mm_encoder_outputs["image"]
            image_features = encoded if isinstance(encoded, Tensor) else encoded.pooler_output
        images: ImageTokens | None = None
        image_mask: Tensor | None = None
        if input_ids is None:
            assert inputs_embeds is not None
            if pixel_values is not None or image_features is not None:
                raise ValueError("Pictures need input_ids, which say where the image tokens are; inputs_embeds do not.")
            if mm_token_type_ids is not None:
                # Embeddings that already hold image features (prompt tuning): the kinds say where.
                image_mask = mm_token_type_ids[:, -inputs_embeds.shape[1] :] == 1
                images = ImageTokens.locate(image_mask)
        else:
            inputs_embeds = self.language_model.embed_tokens(input_ids)
            started = past_key_values is not None and int(past_key_values.get_seq_length()) > 0
            image_mask = input_ids == self.config.image_token_id
            if bool(image_mask.any()):
                if image_features is None:
                    if pixel_values is None:
                        raise ValueError(
                            "The text has image tokens but no picture; give pixel_values or image_features."
                        )
                    image_features = self.encode_images(pixel_values)
                inputs_embeds, images = self.merge(input_ids, inputs_embeds, image_features)
            elif not started and (pixel_values is not None or image_features is not None):
                raise ValueError(
                    "A picture was given but the text has no image token; build the prompt with the processor."
                )
        out = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            images=images,
            image_mask=image_mask,
            segment_ids=segment_ids,
            output_hidden_states=output_hidden_states,
        )
        return MMSLMOutput(
            last_hidden_state=out.last_hidden_state,
            past_key_values=out.past_key_values,
            hidden_states=out.hidden_states,
            image_hidden_states=image_features,
        )


class MMSLMForConditionalGeneration(MMSLMPreTrainedModel, GenerationMixin):
    """A small vision-language model with its vocabulary head."""

    config: MMSLMConfig
    config_class = MMSLMConfig
    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: MMSLMConfig) -> None:
        super().__init__(config)
        self.model = MMSLMModel(config)
        self.lm_head = nn.Linear(config.text.hidden_size, config.text.vocab_size, bias=False)
        if config.image_experts is not None:
            self._build_experts(ExpertSpec.from_dict(config.image_experts, config.text.num_blocks))
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.language_model.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.lm_head = value  # type: ignore[assignment]

    def encode_images(self, pixel_values: Tensor) -> Tensor:
        """pixel_values [B, N, 3, H, W] in [-1, 1] -> image features [B, N*T, D] for the `image_features` argument."""
        return self.model.encode_images(pixel_values)

    def get_image_features(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """transformers' name for `encode_images`: the features are `pooler_output`."""
        return self.model.get_image_features(pixel_values, **kwargs)

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        mm_token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        image_features: Tensor | None = None,
        mm_encoder_outputs: dict[str, Any] | None = None,
        segment_ids: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        logits_at: Literal["all", "labels"] = "all",
        output_hidden_states: bool | None = None,
        **_: Any,
    ) -> MMSLMOutput:
        """Logits, and losses where `labels` are given.

        input_ids: [B, T]. pixel_values: [B, N, 3, H, W] in [-1, 1]; a sample with fewer than N pictures is filled with
        anything, its image tokens decide. image_features: [B, N*T_img, D] instead of pixel_values. attention_mask:
        [B, T], 1 = real token. mm_token_type_ids: [B, T], 1 = image; needed only with inputs_embeds. labels: [B, T],
        -100 = no loss. segment_ids: [B, T], packed samples (0 = padding) that do not see each other; per_sample_loss is
        then per row, `losses.per_segment_loss` gives each sample's. logits_at: "labels" forms logits only where a label
        follows (several times cheaper in training). Raises ValueError where pictures and image tokens do not fit.
        """
        out = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            mm_token_type_ids=mm_token_type_ids,
            image_features=image_features,
            mm_encoder_outputs=mm_encoder_outputs,
            segment_ids=segment_ids,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
        )
        hidden = out.last_hidden_state
        targets = loss = sample_loss = None
        if logits_at == "labels":
            if labels is None:
                raise ValueError('logits_at="labels" needs labels; give them or ask for "all".')
            index, targets = label_positions(labels)
            hidden = hidden.gather(1, index[..., None].expand(-1, -1, hidden.shape[-1]))
        elif isinstance(logits_to_keep, Tensor):
            hidden = hidden[:, logits_to_keep]
        elif logits_to_keep:
            hidden = hidden[:, -logits_to_keep:]
        logits = self.lm_head(hidden)
        if labels is not None:
            if targets is None:
                if logits.shape[1] != labels.shape[1]:
                    raise ValueError("labels and logits_to_keep do not go together; keep all logits to form a loss.")
                losses, wanted = token_loss(logits[:, :-1], labels[:, 1:]), labels[:, 1:]
            else:
                losses, wanted = token_loss(logits, targets), targets
            sample_loss = mean_over_own_tokens(losses, wanted)
            loss = losses.sum() / (wanted != IGNORED).sum().clamp(min=1)
        return MMSLMOutput(
            loss=loss,
            per_sample_loss=sample_loss,
            logits=logits,
            targets=targets,
            past_key_values=out.past_key_values,
            hidden_states=out.hidden_states,
            image_hidden_states=out.image_hidden_states,
            last_hidden_state=out.last_hidden_state,
        )

    # Image experts ----------------------------------------------------------------------------------------------------

    def add_image_experts(
        self,
        rank: int,
        layers: Sequence[int] | None = None,
        train: Literal["b", "ab"] = "ab",
        seed: int = 0,
        include: Sequence[str] = ("decoder",),
        kind: Literal["low_rank", "full"] = "low_rank",
    ) -> None:
        """Give image tokens experts that do not change the function yet.

        kind: "low_rank" is W + B A on image tokens, B = 0; "full" a feed-forward of their own, a copy of the text's.
        rank: columns of A and B (0 for full). layers: decoder blocks (default all). train: "b" keeps the seeded random
        A frozen. include: of "decoder", "vision", "projector"; the last two see image tokens only, so text-only logits
        keep their bits in any case. Raises ValueError for a second call or values that make no sense.
        """
        if self.config.image_experts is not None:
            raise ValueError(
                f"This model has image experts already ({self.config.image_experts}); load a model without."
            )
        spec = ExpertSpec.make(rank, layers, train, seed, include, kind, self.config.text.num_blocks)
        self._build_experts(spec)
        generator = torch.Generator().manual_seed(spec.seed)
        for _, module in sorted(self._deltas().items()):
            module.reset(generator)
        self.config.image_experts = spec.to_dict()

    def _build_experts(self, spec: ExpertSpec) -> None:
        if "decoder" in spec.include:
            self.model.language_model.add_image_experts(spec)
        if "vision" in spec.include:
            blocks = [module for module in self.model.vision_tower.modules() if isinstance(module, VisionBlock)]
            if not blocks:
                raise ValueError(
                    f"A {self.config.vision.kind} front end has no blocks that could carry experts; "
                    'leave "vision" out of include.'
                )
            for block in blocks:
                block.image_expert = _delta_for(block.fc1, block.fc2, spec)
        if "projector" in spec.include:
            self.model.projector.image_expert = _delta_for(self.model.projector.fc1, self.model.projector.fc2, spec)

    def _deltas(self) -> dict[str, LowRankDelta]:
        return {name: module for name, module in self.named_modules() if isinstance(module, LowRankDelta)}

    def adapter_parameters(self) -> dict[str, nn.Parameter]:
        """What a device trains and sends: the experts' trainable parameters by name, sorted. Empty without experts."""
        train = (self.config.image_experts or {}).get("train", "ab")
        found: dict[str, nn.Parameter] = {}
        for name, module in self._deltas().items():
            if train == "ab":
                found[f"{name}.a.weight"] = cast(nn.Parameter, module.a.weight)
            found[f"{name}.b.weight"] = cast(nn.Parameter, module.b.weight)
        found.update({name: p for name, p in self.named_parameters() if ".image_mlp." in name})
        return dict(sorted(found.items()))

    def freeze_base(self) -> None:
        """Only the adapter parameters stay trainable. Raises ValueError for a model without experts."""
        adapters = self.adapter_parameters()
        if not adapters:
            raise ValueError(
                "This model has no image experts, so nothing would stay trainable; call add_image_experts first."
            )
        self.requires_grad_(False)
        for parameter in adapters.values():
            parameter.requires_grad_(True)


def _delta_for(fc1: nn.Linear, fc2: nn.Linear, spec: ExpertSpec) -> MLPDelta:
    delta = MLPDelta(fc1.in_features, fc1.out_features, fc2.out_features, spec.rank, spec.train)
    return delta.to(fc1.weight.device, fc1.weight.dtype)


__all__ = ["MMSLMForConditionalGeneration", "MMSLMModel", "MMSLMOutput"]
