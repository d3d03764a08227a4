"""What an mmslm model is made of: its language model, its image front end and its image experts.

One `MMSLMConfig` describes a model completely; `config.json` in a model directory is this object. It refuses shapes
that cannot work (heads that do not divide the width, an image that does not divide into its grid, experts on layers
that do not exist) with one sentence that names the field, what was given and what is expected.
"""

import functools
from typing import Any, Literal, TypeVar

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassError
from transformers import PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

ConfigClass = TypeVar("ConfigClass", bound=type)


def plain_errors(config: ConfigClass) -> ConfigClass:
    """Make a strict configuration raise ValueError with our own sentence instead of a wrapper around it."""
    strict_init = config.__init__  # type: ignore[misc]

    @functools.wraps(strict_init)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            strict_init(self, *args, **kwargs)
        except StrictDataclassClassValidationError as error:
            raise ValueError(str(error.__cause__)) from error
        except StrictDataclassError as error:
            raise ValueError(" ".join(str(error).split())) from error

    config.__init__ = init  # type: ignore[misc]
    return config


@plain_errors
@strict
class MMSLMTextConfig(PreTrainedConfig):
    """The compact language model: RMSNorm, RoPE, grouped-query attention, SwiGLU (the Llama layout).

    Sizes are counts of units; `rope_parameters` is `{"rope_type": "default", "rope_theta": float}`;
    `max_position_embeddings` is the longest sequence in tokens, image tokens included.

    Switches, each off by default:
    layer_repeats  every block runs so many times in a row with one set of weights (MobileLLM's block-wise sharing);
                   `num_hidden_layers` counts runs, each with a cache slot of its own
    qk_norm        RMSNorm on queries and keys before the rotary positions (Henry et al. 2020, arXiv:2010.04245)
    prefix_lm      the image tokens of a run of pictures see each other in both directions (PaliGemma, arXiv:2407.07726)
    text_window    a token sees the last so many tokens and, whatever their distance, all earlier image tokens
                   (global tokens as in Longformer, arXiv:2004.05150)
    linear_attention  sums of keys times values instead of softmax attention, so that the cache does not grow with the
                   text (see model/linear.py); not together with text_window
    """

    model_type = "mmslm_text"
    keys_to_ignore_at_inference = ("past_key_values",)

    vocab_size: int = 2048
    hidden_size: int = 192
    intermediate_size: int = 512
    num_hidden_layers: int = 6
    num_attention_heads: int = 6
    num_key_value_heads: int = 2
    head_dim: int | None = None
    max_position_embeddings: int = 512
    rms_norm_eps: float = 1e-5
    rope_parameters: dict | None = None
    attention_bias: bool = False
    mlp_bias: bool = False
    layer_repeats: int = 1
    qk_norm: bool = False
    prefix_lm: bool = False
    text_window: int | None = None
    linear_attention: bool = False
    initializer_range: float = 0.04
    use_cache: bool = True
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2

    def __post_init__(self, **kwargs: Any) -> None:
        if self.head_dim is None:
            self.head_dim = self.hidden_size // max(self.num_attention_heads, 1)
        if self.rope_parameters is None:
            self.rope_parameters = {"rope_type": "default", "rope_theta": 10000.0}
        super().__post_init__(**kwargs)

    @property
    def num_blocks(self) -> int:
        """How many blocks have weights of their own."""
        return self.num_hidden_layers // self.layer_repeats

    @property
    def layer_types(self) -> list[str]:
        """What transformers' caches keep for each run of a block; absent where it is keys and values."""
        if not self.linear_attention:
            raise AttributeError("layer_types")
        return ["mmslm_linear"] * self.num_hidden_layers

    def validate_layer_type(self) -> None:
        """transformers checks its own names; ours are all of one kind."""

    def validate_architecture(self) -> None:
        """Refuse shapes that cannot work. Raises ValueError."""
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"text_config.{name} is {getattr(self, name)}; give a whole number of at least 1.")
        if self.num_key_value_heads < 1 or self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"text_config.num_attention_heads is {self.num_attention_heads}, which num_key_value_heads "
                f"({self.num_key_value_heads}) does not divide; choose a divisor."
            )
        if self.head_dim is None or self.head_dim < 2 or self.head_dim % 2:
            raise ValueError(f"text_config.head_dim is {self.head_dim}; rotary positions need an even number.")
        if self.layer_repeats < 1 or self.num_hidden_layers % self.layer_repeats:
            raise ValueError(
                f"text_config.num_hidden_layers is {self.num_hidden_layers}, which layer_repeats "
                f"({self.layer_repeats}) does not divide; choose a divisor."
            )
        if self.text_window is not None and self.text_window < 1:
            raise ValueError(f"text_config.text_window is {self.text_window}; give at least 1, or null for no window.")
        if self.linear_attention and self.text_window is not None:
            raise ValueError(
                "text_config.linear_attention and text_window do not go together: a sum cannot forget what left the "
                "window; choose one."
            )
        rope = self.rope_parameters or {}
        if rope.get("rope_type", "default") != "default":
            raise ValueError(
                f"text_config.rope_parameters asks for rope_type {rope['rope_type']!r}; only 'default' is supported."
            )
        if not float(rope.get("rope_theta", 0.0)) > 0.0:
            raise ValueError(
                f"text_config.rope_parameters needs a positive rope_theta, got {rope.get('rope_theta')!r}."
            )


@plain_errors
@strict
class MMSLMVisionConfig(PreTrainedConfig):
    """The image front end. `kind` chooses it; the other fields size it.

    conv_stem  three strided 3x3 convolutions to a grid of image_size / 8, then transformer blocks; LayerNorm only, so
               it can be trained under per-sample clipping. `stem_channels` are the first two convolutions' widths.
    patch      no encoder: a linear embedding of patches of `patch_size` pixels, as in Mono-InternVL (arXiv:2410.08202)
    tower      a frozen pretrained tower, `tower` = "open_clip:ARCHITECTURE" or "timm:NAME", whose feature map of
               `tower_grid` x `tower_grid` cells of width `hidden_size` is read at its end or, with `tower_exit` k,
               after its stage or block k (from 0). Made by `mmslm.pretrained.init_model`. A finer map is averaged to
               that grid; `tower_levels` are earlier stages or blocks whose maps, averaged to it too, stand in front of
               the map in each cell (`hidden_size` counts them all).

    `image_size` is the side in pixels of the square picture that the model sees.
    """

    model_type = "mmslm_vision"

    kind: Literal["conv_stem", "patch", "tower"] = "conv_stem"
    image_size: int = 96
    num_channels: int = 3
    stem_channels: list[int] | tuple[int, ...] = (32, 80)
    patch_size: int = 8
    tower: str | None = None
    tower_grid: int | None = None
    tower_exit: int | None = None
    tower_levels: list[int] | tuple[int, ...] = ()
    tower_mean: list[float] | tuple[float, ...] = (0.5, 0.5, 0.5)
    tower_std: list[float] | tuple[float, ...] = (0.5, 0.5, 0.5)
    hidden_size: int = 160
    intermediate_size: int = 480
    num_hidden_layers: int = 4
    num_attention_heads: int = 5
    layer_norm_eps: float = 1e-6
    initializer_range: float = 0.04

    @property
    def grid_size(self) -> int:
        """Side of the feature map that the front end gives, in cells."""
        if self.kind == "tower":
            return int(self.tower_grid or 0)
        return self.image_size // (8 if self.kind == "conv_stem" else self.patch_size)

    def validate_architecture(self) -> None:
        """Refuse shapes that cannot work. Raises ValueError."""
        if self.num_channels != 3:
            raise ValueError(f"vision_config.num_channels is {self.num_channels}; pictures are RGB, give 3.")
        if self.kind == "conv_stem":
            self._validate_conv_stem()
        elif self.kind == "patch":
            if self.patch_size < 1 or self.image_size < 1 or self.image_size % self.patch_size:
                raise ValueError(
                    f"vision_config.image_size is {self.image_size}, which patch_size ({self.patch_size}) does not "
                    "divide; choose a divisor."
                )
        elif not (self.tower or "").startswith(("open_clip:", "timm:")):
            raise ValueError(f'vision_config.tower is {self.tower!r}; give "open_clip:ARCHITECTURE" or "timm:NAME".')
        elif not self.tower_grid or self.tower_grid < 1:
            raise ValueError(
                f"vision_config.tower_grid is {self.tower_grid}; give the side of the tower's feature map."
            )

    def _validate_conv_stem(self) -> None:
        if self.image_size < 16 or self.image_size % 8:
            raise ValueError(f"vision_config.image_size is {self.image_size}; give a multiple of 8 of at least 16.")
        if len(self.stem_channels) != 2 or min(self.stem_channels) < 1:
            raise ValueError(f"vision_config.stem_channels is {self.stem_channels}; give two widths of at least 1.")
        if self.num_attention_heads < 1 or self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"vision_config.hidden_size is {self.hidden_size}, which num_attention_heads "
                f"({self.num_attention_heads}) does not divide; choose a divisor."
            )


@plain_errors
@strict
class MMSLMConfig(PreTrainedConfig):
    """A whole model: language model, image front end, projector, and (if any) image experts.

    `pixel_shuffle` s folds s x s neighbouring cells into one image token. `image_experts` is None or what
    `add_image_experts` was given (kind, rank, layers, train, seed, include): a saved model is rebuilt with its experts.
    """

    model_type = "mmslm"
    sub_configs_defaults = {  # noqa: RUF012 (transformers reads the class attribute)
        "text_config": SubConfigSpec(config_class=MMSLMTextConfig),
        "vision_config": SubConfigSpec(config_class=MMSLMVisionConfig),
    }

    text_config: dict | PreTrainedConfig | None = None
    vision_config: dict | PreTrainedConfig | None = None
    pixel_shuffle: int = 2
    image_token_id: int = 4
    image_experts: dict | None = None
    tie_word_embeddings: bool = True
    initializer_range: float = 0.04
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2

    @property
    def text(self) -> MMSLMTextConfig:
        """The language model's part, typed."""
        if not isinstance(self.text_config, MMSLMTextConfig):
            raise TypeError(f"text_config is a {type(self.text_config).__name__}; give an MMSLMTextConfig.")
        return self.text_config

    @property
    def vision(self) -> MMSLMVisionConfig:
        """The image front end's part, typed."""
        if not isinstance(self.vision_config, MMSLMVisionConfig):
            raise TypeError(
                f"vision_config is a {type(self.vision_config).__name__}; an MMSLMVisionConfig is expected."
            )
        return self.vision_config

    @property
    def tokens_per_image(self) -> int:
        """How many image tokens one picture takes in the sequence."""
        return (self.vision.grid_size // self.pixel_shuffle) ** 2

    def validate_architecture(self) -> None:
        """Refuse parts that do not fit together. Raises ValueError."""
        if self.pixel_shuffle < 1 or self.vision.grid_size % self.pixel_shuffle:
            raise ValueError(
                f"pixel_shuffle is {self.pixel_shuffle}, which does not divide the image grid of "
                f"{self.vision.grid_size} cells; choose a divisor."
            )
        if not 0 <= self.image_token_id < self.text.vocab_size:
            raise ValueError(
                f"image_token_id is {self.image_token_id}, outside the vocabulary of {self.text.vocab_size} tokens."
            )
        if self.tokens_per_image + 1 >= self.text.max_position_embeddings:
            raise ValueError(
                f"One picture takes {self.tokens_per_image} tokens, but max_position_embeddings is "
                f"{self.text.max_position_embeddings}; raise it or pixel_shuffle."
            )
        if self.image_experts is not None:
            from mmslm.model.experts import ExpertSpec  # a circular import at module level

            ExpertSpec.from_dict(self.image_experts, self.text.num_blocks)


__all__ = ["MMSLMConfig", "MMSLMTextConfig", "MMSLMVisionConfig"]
