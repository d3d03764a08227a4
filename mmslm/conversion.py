"""From pretrained parts to an mmslm model: a Llama-layout language model, and how it meets its image front end.

SmolLM2, MobileLLM, TinyLlama and other checkpoints of the Llama layout keep their function exactly: text-only logits of
the converted model are transformers' own. What cannot be converted exactly is refused by name: other activations, scaled
rotary positions, quantised weights, shared layers, unknown parameters. Weights are read from safetensors only. A name that
is no directory is fetched from the Hugging Face hub; nothing of it is executed.
"""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from mmslm.model.configuration import MMSLMConfig, MMSLMTextConfig, MMSLMVisionConfig
from mmslm.model.modeling import MMSLMForConditionalGeneration
from mmslm.tokenizer import ASSISTANT, BOS, CHAT_TEMPLATE, EOS, IMAGE, PAD, UNK, USER, MMSLMTokenizer
from mmslm.tower_conversion import load_tower, vision_config

logger = logging.getLogger(__name__)

LLAMA_TYPES = ("llama", "mobilellm")


@dataclass(frozen=True)
class LanguageSource:
    """A Llama-layout checkpoint: its configuration, its weights by name, and whether the head is the embedding."""

    config: dict[str, Any]
    weights: dict[str, Tensor]
    tied: bool
    folder: Path


def find_language(language: str | Path) -> Path:
    """The directory of a checkpoint, fetched from the hub where `language` is no directory (its json and safetensors
    files only). Raises FileNotFoundError."""
    path = Path(language)
    if path.is_dir():
        return path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(language), allow_patterns=["*.json", "*.safetensors"]))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise FileNotFoundError(
            f"There is no directory {language} and the hub did not give a model of that name ({type(error).__name__}); "
            "give a directory with config.json and safetensors."
        ) from error


def read_language(language: str | Path) -> LanguageSource:
    """Read and check a Llama-layout checkpoint. Raises FileNotFoundError or ValueError that names what is in the way."""
    folder = find_language(language)
    file = folder / "config.json"
    if not file.is_file():
        raise FileNotFoundError(f"{folder} holds no config.json; give the directory of a Llama-layout checkpoint.")
    config = json.loads(file.read_text(encoding="utf-8"))
    kind = config.get("model_type")
    if kind not in LLAMA_TYPES:
        raise ValueError(
            f"{folder} holds a {kind!r} model; only the Llama layout ({', '.join(LLAMA_TYPES)}) is converted."
        )
    rope = config.get("rope_scaling") or {}
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    rope_type = (config.get("rope_parameters") or {}).get("rope_type", rope_type)
    refused = {
        f"the activation {config.get('hidden_act')!r} (SwiGLU needs 'silu')": config.get("hidden_act", "silu")
        != "silu",
        f"rotary positions of type {rope_type!r}": rope_type != "default",
        "quantised weights": bool(config.get("quantization_config")),
        "shared layers (layer_sharing)": bool(config.get("layer_sharing")),
        "biases in the feed-forward": bool(config.get("mlp_bias")),
        "a sliding window": bool(config.get("sliding_window")),
    }
    for what, present in refused.items():
        if present:
            raise ValueError(f"{folder} uses {what}, which cannot be converted exactly; choose another checkpoint.")
    weights = _read_weights(folder)
    embedding, head = weights.get("model.embed_tokens.weight"), weights.pop("lm_head.weight", None)
    if embedding is None:
        raise ValueError(f"{folder} has no model.embed_tokens.weight; its parameters are not in the Llama layout.")
    tied = head is None or torch.equal(head, embedding)
    if not tied and head is not None:
        weights["lm_head.weight"] = head
    return LanguageSource(config, weights, tied, folder)


def _read_weights(folder: Path) -> dict[str, Tensor]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    else:
        files = [path.name for path in sorted(folder.glob("*.safetensors"))]
    if not files:
        raise FileNotFoundError(f"{folder} holds no safetensors weights; pickles are not read, convert them first.")
    weights: dict[str, Tensor] = {}
    for name in files:
        if "/" in name or "\\" in name:
            raise ValueError(f"{index} names {name!r}, which lies outside the checkpoint's directory.")
        weights.update(load_file(folder / name))
    return {name: value for name, value in weights.items() if not name.endswith("rotary_emb.inv_freq")}


def text_config(source: LanguageSource, vocab_size: int) -> MMSLMTextConfig:
    """The configuration of the converted language model, with `vocab_size` tokens."""
    config = source.config
    heads = int(config["num_attention_heads"])
    theta = (config.get("rope_parameters") or {}).get("rope_theta", config.get("rope_theta", 10000.0))
    return MMSLMTextConfig(
        vocab_size=vocab_size,
        hidden_size=int(config["hidden_size"]),
        intermediate_size=int(config["intermediate_size"]),
        num_hidden_layers=int(config["num_hidden_layers"]),
        num_attention_heads=heads,
        num_key_value_heads=int(config.get("num_key_value_heads") or heads),
        head_dim=int(config["head_dim"]) if config.get("head_dim") else None,
        max_position_embeddings=int(config["max_position_embeddings"]),
        rms_norm_eps=float(config["rms_norm_eps"]),
        rope_parameters={"rope_type": "default", "rope_theta": float(theta)},
        attention_bias=bool(config.get("attention_bias", False)),
    )


@torch.no_grad()
def load_language(model: MMSLMForConditionalGeneration, source: LanguageSource) -> None:
    """Put the checkpoint's weights into the model; rows of new tokens start at the mean of the old ones.

    Where the checkpoint's embedding is longer than its vocabulary, new tokens take those rows as they are.

    Raises ValueError for a parameter that one of the two does not have.
    """
    language = model.model.language_model
    expected = dict(language.named_parameters())
    given = {name.removeprefix("model."): value for name, value in source.weights.items() if name != "lm_head.weight"}
    expected = {name: p for name, p in expected.items() if ".image_" not in name}
    unknown, missing = sorted(set(given) - set(expected)), sorted(set(expected) - set(given))
    if unknown or missing:
        found = f"the parameter {unknown[0]}" if unknown else f"no parameter {missing[0]}"
        raise ValueError(f"{source.folder} has {found}, unlike the Llama layout, and cannot be converted exactly.")
    for name, value in given.items():
        target = expected[name]
        if name == "embed_tokens.weight":
            _fill_rows(target, value)
        elif target.shape != value.shape:
            raise ValueError(
                f"{source.folder}: {name} has shape {tuple(value.shape)}, but its config.json says {tuple(target.shape)}."
            )
        else:
            target.copy_(value)
    if not source.tied:
        _fill_rows(model.lm_head.weight, source.weights["lm_head.weight"])


def _fill_rows(target: Tensor, rows: Tensor) -> None:
    target[: len(rows)].copy_(rows)
    target[len(rows) :].copy_(rows.float().mean(dim=0).to(target.dtype))


def convert_tokenizer(folder: Path) -> MMSLMTokenizer:
    """The checkpoint's own tokenizer with mmslm's special tokens added behind its vocabulary.

    Raises FileNotFoundError without a tokenizer.json.
    """
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise FileNotFoundError(
            f"{folder} holds no tokenizer.json; save the checkpoint's tokenizer in the fast format."
        )
    settings: dict[str, Any] = {}
    if (folder / "tokenizer_config.json").is_file():
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))

    def named(key: str, default: str) -> str:
        value = settings.get(key)
        return str(value["content"] if isinstance(value, dict) else value or default)

    tokenizer = MMSLMTokenizer(
        tokenizer_file=str(file),
        bos_token=named("bos_token", BOS),
        eos_token=named("eos_token", EOS),
        unk_token=named("unk_token", UNK),
        pad_token=PAD,
        extra_special_tokens=[IMAGE, USER, ASSISTANT],
        clean_up_tokenization_spaces=False,
        padding_side="right",
        chat_template=CHAT_TEMPLATE,
    )
    return tokenizer


def model_config(
    language: MMSLMTextConfig, vision: MMSLMVisionConfig, tokenizer: MMSLMTokenizer, pixel_shuffle: int, tied: bool
) -> MMSLMConfig:
    """The whole configuration for these parts."""
    language.pad_token_id, language.bos_token_id = tokenizer.pad_token_id, tokenizer.bos_token_id
    language.eos_token_id = tokenizer.eos_token_id
    return MMSLMConfig(
        text_config=language,
        vision_config=vision,
        pixel_shuffle=pixel_shuffle,
        image_token_id=tokenizer.image_token_id,
        tie_word_embeddings=tied,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


@torch.no_grad()
def match_projector(model: MMSLMForConditionalGeneration) -> None:
    """Scale the projector's last layer so that image tokens are as large as text embeddings (root mean square)."""
    side = model.config.vision.image_size
    noise = torch.rand(4, 1, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
    wanted = model.model.language_model.embed_tokens.weight.float().pow(2).mean().sqrt()
    found = model.encode_images(noise).float().pow(2).mean().sqrt()
    projector = model.model.projector
    projector.fc2.weight.mul_(wanted / found)
    projector.fc2.bias.mul_(wanted / found)


__all__ = [
    "LanguageSource",
    "convert_tokenizer",
    "find_language",
    "load_language",
    "load_tower",
    "match_projector",
    "model_config",
    "read_language",
    "text_config",
    "vision_config",
]
