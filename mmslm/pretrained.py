"""Model directories: built from pretrained parts, written whole or not at all, read without the network or pickles.

A directory holds config.json, model.safetensors, tokenizer.json, tokenizer_config.json, processor_config.json and
chat_template.jinja. It refuses directories with parts missing, damaged files, and weights in pickle formats.
"""

import json
import logging
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from mmslm.model.configuration import MMSLMConfig
from mmslm.model.modeling import MMSLMForConditionalGeneration
from mmslm.processing import MMSLMProcessor
from mmslm.registration import register

logger = logging.getLogger(__name__)

WEIGHTS = "model.safetensors"
MOST_TOKENS = 100  # of a picture, where nobody says how its cells are folded


def save_model(model: MMSLMForConditionalGeneration, processor: MMSLMProcessor, folder: str | Path) -> Path:
    """Write a model directory; what was there before stays until everything new is written."""
    target = Path(folder)
    part = target.with_name(target.name + ".part")
    if part.exists():
        shutil.rmtree(part)
    part.mkdir(parents=True)
    model.save_pretrained(part)
    processor.save_pretrained(part)
    if target.exists():
        for item in part.iterdir():
            item.replace(target / item.name)
        part.rmdir()
    else:
        part.replace(target)
    return target


def init_model(
    language: str | Path,
    vision: str,
    out_dir: str | Path,
    *,
    vision_weights: str | Path | None = None,
    vision_exit: int | None = None,
    image_size: int | None = None,
    pixel_shuffle: int | None = None,
    seed: int = 0,
) -> Path:
    """Build a vision-language model from pretrained parts and write it to `out_dir`.

    language: directory or hub name of a Llama-layout checkpoint. vision: "open_clip:ARCHITECTURE" or "timm:NAME" (a
    frozen tower), "conv_stem" or "patch" (from scratch). vision_weights, for a tower: a safetensors file, an open_clip
    tag, "pretrained" (timm) or "random". vision_exit: stop after this stage or block of the tower. image_size: pixels
    (default the tower's). pixel_shuffle: default the least that leaves at most 100 tokens a picture. The projector is
    new and must be trained. Raises FileNotFoundError and ValueError.
    """
    from mmslm import conversion
    from mmslm.tower_conversion import RANDOM, hub_repository

    tower = vision.startswith(("open_clip:", "timm:"))
    if not tower and vision not in ("conv_stem", "patch"):
        raise ValueError(f'vision is {vision!r}; give "open_clip:ARCHITECTURE", "timm:NAME", "conv_stem" or "patch".')
    if tower and vision_weights is None:
        raise ValueError(
            f"The tower {vision} needs vision_weights: a safetensors file, a pretrained tag, or 'random' on purpose."
        )
    if tower and str(vision_weights) != RANDOM and not Path(str(vision_weights)).is_file():
        hub_repository(vision, str(vision_weights))  # refused before anything large is read
    source = conversion.read_language(language)
    tokenizer = conversion.convert_tokenizer(source.folder)
    rows = len(source.weights["model.embed_tokens.weight"])
    text = conversion.text_config(source, max(rows, len(tokenizer)))
    front = conversion.vision_config(vision, vision_exit, image_size, vision_weights)
    if pixel_shuffle is None:
        sides = [s for s in range(1, front.grid_size + 1) if front.grid_size % s == 0]
        pixel_shuffle = next(s for s in sides if (front.grid_size // s) ** 2 <= MOST_TOKENS)
    config = conversion.model_config(text, front, tokenizer, pixel_shuffle, source.tied)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MMSLMForConditionalGeneration(config).eval()
        if tower and vision_weights is not None:
            conversion.load_tower(model, vision, vision_weights)
    conversion.load_language(model, source)
    model.tie_weights()
    conversion.match_projector(model)
    return save_model(model, MMSLMProcessor.build(tokenizer, config), out_dir)


def new_model(
    config: MMSLMConfig, *, tower_weights: str | Path | None = None, seed: int = 0
) -> MMSLMForConditionalGeneration:
    """A model with random weights drawn from `seed`, for example of `load_tier("tiny")`, in evaluation mode.

    tower_weights, for a tower front end: a safetensors file, an open_clip tag, "pretrained" (timm) or "random" on
    purpose; the projector is then scaled to the text embeddings. Raises ValueError where a tower has no weights named.
    """
    from mmslm import conversion

    tower = config.vision.kind == "tower"
    if tower and tower_weights is None:
        raise ValueError(
            f"The tower {config.vision.tower} needs tower_weights: a safetensors file, a pretrained tag, or 'random' "
            "on purpose."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MMSLMForConditionalGeneration(config).eval()
        if tower and tower_weights is not None:
            conversion.load_tower(model, str(config.vision.tower), tower_weights)
            conversion.match_projector(model)
    return model


def load_model(
    folder: str | Path, dtype: torch.dtype = torch.float32
) -> tuple[MMSLMForConditionalGeneration, MMSLMProcessor]:
    """The model (in evaluation mode) and processor of a directory.

    Raises FileNotFoundError where the directory or a part is missing, ValueError where weights are damaged, belong to
    another configuration, or are a pickle.
    """
    path = Path(folder)
    if not path.is_dir():
        raise FileNotFoundError(f"There is no model directory at {path}; check the path or train a model first.")
    if not (path / WEIGHTS).is_file():
        pickles = sorted(p.name for p in path.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".pkl", ".ckpt"))
        if pickles:
            raise ValueError(f"{path} holds {pickles[0]}, a pickle, which mmslm does not read; give {WEIGHTS}.")
    for name in ("config.json", WEIGHTS):
        if not (path / name).is_file():
            raise FileNotFoundError(f"{path} holds no {name}; give a model directory that mmslm wrote.")
    register()
    config = _config(path)
    model = _shell(config)
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    state: dict[str, torch.Tensor] = {}
    try:
        with safe_open(path / WEIGHTS, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118 (not a dict)
                state[name] = weights.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path / WEIGHTS} is damaged or cut short ({error}); copy or download it again.") from error
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    missing = sorted(set(expected) - set(state) - tied)
    wrong = sorted(name for name, value in state.items() if expected.get(name) != tuple(value.shape))
    if missing or wrong:
        raise ValueError(
            f"{path / WEIGHTS} does not fit its config.json (first difference: {(missing or wrong)[0]}); "
            "use the two files that were written together."
        )
    bad = next(
        (name for name, value in state.items() if value.is_floating_point() and not value.isfinite().all()), None
    )
    if bad is not None:
        raise ValueError(f"{path / WEIGHTS} holds numbers that are not finite in {bad}; use an earlier checkpoint.")
    # The file's own memory becomes the weights: nothing is held twice.
    model.load_state_dict(state, strict=False, assign=True)
    model.tie_weights()
    return model.to(dtype=dtype).eval(), MMSLMProcessor.load(path)  # type: ignore[call-arg, arg-type]


def _shell(config: MMSLMConfig) -> MMSLMForConditionalGeneration:
    """A model whose weights have no memory yet, where its parts allow that (all that they hold is in the weights)."""
    with torch.device("meta"):
        model = MMSLMForConditionalGeneration(config)
    kept = set(model.state_dict())
    if all(name in kept for name, _ in model.named_buffers()):
        return model
    return MMSLMForConditionalGeneration(config)


def _config(path: Path) -> MMSLMConfig:
    file = path / "config.json"
    try:
        kind = json.loads(file.read_text(encoding="utf-8"))["model_type"]
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is no configuration ({error}); copy it again.") from error
    if kind != MMSLMConfig.model_type:
        raise ValueError(f"{file} describes a {kind!r} model; an mmslm model is expected.")
    config: MMSLMConfig = MMSLMConfig.from_pretrained(path, local_files_only=True)
    return config


__all__ = ["init_model", "load_model", "new_model", "save_model"]
