"""Pretrained image towers from open_clip and timm: what they take, and how they get their weights.

Weights come from a safetensors file, or from the hub by an open_clip tag or timm's own name, as safetensors and nothing
else: tags that exist as a pickle only are refused by name, and so are tags that were trained with another activation
than the architecture computes.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from mmslm.model.configuration import MMSLMVisionConfig
from mmslm.model.modeling import MMSLMForConditionalGeneration

RANDOM = "random"
HUB_FILES = ("open_clip_model.safetensors", "model.safetensors")


def vision_config(
    vision: str, exit_after: int | None = None, image_size: int | None = None, weights: str | Path | None = None
) -> MMSLMVisionConfig:
    """The configuration of a front end: "conv_stem", "patch", "open_clip:ARCHITECTURE" or "timm:NAME".

    image_size: pixels; default the tower's own, or 96. weights: an open_clip tag, or a file that states one, whose
    normalisation of pictures is taken. Raises ValueError for an unknown tower, size or early exit.
    """
    if vision in ("conv_stem", "patch"):
        return MMSLMVisionConfig(kind=vision, image_size=image_size or 96)  # type: ignore[arg-type]
    from mmslm.model.tower import make_trunk, read_features

    trunk: Any = make_trunk(vision)
    side, mean, std = _tower_input(vision, trunk, str(weights))
    mean, std = stated_pixels(weights) or (mean, std)
    side = image_size or side
    try:
        with torch.no_grad():
            features = read_features(trunk.eval(), torch.zeros(1, 3, side, side), exit_after)
    except (AssertionError, RuntimeError) as error:
        raise ValueError(f"{vision} does not take pictures of {side} pixels ({error}); choose another size.") from error
    return MMSLMVisionConfig(
        kind="tower",
        tower=vision,
        tower_exit=exit_after,
        tower_grid=round(features.shape[1] ** 0.5),
        tower_mean=mean,
        tower_std=std,
        image_size=side,
        hidden_size=int(features.shape[2]),
    )


def _tower_input(vision: str, trunk: Any, tag: str) -> tuple[int, list[float], list[float]]:
    """The side, mean and standard deviation that a tower was trained with."""
    library, _, name = vision.partition(":")
    if library == "open_clip":
        import open_clip

        settings = open_clip.get_model_config(name)["vision_cfg"]
        # Pretrained tags say how their pictures were normalised; an architecture without a tag takes CLIP's own.
        tags = open_clip.list_pretrained_tags_by_model(name)
        given = open_clip.get_pretrained_cfg(name, tag if tag in tags else tags[0]) if tags else {}
        mean = given.get("mean") or settings.get("image_mean") or open_clip.OPENAI_DATASET_MEAN
        std = given.get("std") or settings.get("image_std") or open_clip.OPENAI_DATASET_STD
        size = settings["image_size"]
        return int(size if isinstance(size, int) else size[0]), list(mean), list(std)
    cfg = trunk.pretrained_cfg
    return int(cfg["input_size"][-1]), list(cfg["mean"]), list(cfg["std"])


def stated_pixels(weights: str | Path | None) -> tuple[list[float], list[float]] | None:
    """The mean and standard deviation of pixels that a safetensors file states in its metadata (as
    `mmslm.mobilenet.convert_mobilenet` writes it), three numbers each; None where it states nothing."""
    if weights is None or not Path(weights).is_file() or Path(weights).suffix != ".safetensors":
        return None
    with safe_open(weights, framework="pt") as file:
        said = file.metadata() or {}
    if not {"mean", "std"} <= set(said):
        return None
    mean, std = ([float(number) for number in said[key].split()] for key in ("mean", "std"))
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ValueError(
            f"{weights} states a pixel mean of {said['mean']!r} and std of {said['std']!r}; give three each."
        )
    return mean, std


def load_tower(model: MMSLMForConditionalGeneration, vision: str, weights: str | Path) -> None:
    """Give the frozen tower its weights: a safetensors file of the tower (or of the whole CLIP), a tag, or "random".

    Raises ValueError where they do not fit.
    """
    from mmslm.model.tower import FrozenTower, make_trunk

    tower = model.model.vision_tower
    assert isinstance(tower, FrozenTower)
    trunk = make_trunk(vision)
    if str(weights) != RANDOM:
        if Path(weights).is_file():
            if Path(weights).suffix != ".safetensors":
                raise ValueError(f"{weights} is no safetensors file; pickled weights are not read.")
            state = load_file(weights)
        else:
            state = load_file(_fetch(vision, str(weights)))
        if any(key.startswith("visual.") for key in state):  # a whole CLIP: its text tower has keys of the same names
            state = {key.removeprefix("visual."): value for key, value in state.items() if key.startswith("visual.")}
        state = {key.removeprefix("trunk."): value for key, value in state.items()}
        keys = set(trunk.state_dict())
        missing = sorted(keys - set(state))
        if missing:
            raise ValueError(f"{weights} has no {missing[0]}, so it is not the tower {vision}; check both.")
        _check_shapes(trunk.state_dict(), state, f"{weights} is not the tower {vision}")
        trunk.load_state_dict({key: value for key, value in state.items() if key in keys})
    tower.use(trunk)


def _check_shapes(expected: dict[str, Tensor], state: dict[str, Tensor], what: str) -> None:
    for key, value in expected.items():
        if state[key].shape != value.shape:
            raise ValueError(
                f"{what}: {key} has shape {tuple(state[key].shape)}, expected {tuple(value.shape)}; check both."
            )


def hub_repository(vision: str, tag: str) -> str:
    """Where the hub keeps the weights of a tag. Raises ValueError for a tag that does not exist, exists as a pickle only, or
    was trained with another activation."""
    library, _, name = vision.partition(":")
    if library == "open_clip":
        import open_clip

        known = open_clip.list_pretrained_tags_by_model(name)
        if tag not in known:
            raise ValueError(
                f"{tag!r} is neither a file nor a pretrained tag of {name} ({', '.join(known) or 'none'})."
            )
        given = open_clip.get_pretrained_cfg(name, tag)
        settings = open_clip.get_model_config(name)
        computed, trained = bool(settings.get("quick_gelu")), bool(given.get("quick_gelu"))
        if trained != computed and "timm_model_name" not in settings["vision_cfg"]:
            other = name.removesuffix("-quickgelu") if computed else f"{name}-quickgelu"
            raise ValueError(
                f"The tag {tag!r} was trained {'with' if trained else 'without'} QuickGELU, unlike {name}; choose {other}."
            )
        repository = str(given.get("hf_hub") or "").rpartition("/")[0]
    else:
        import timm

        if tag != "pretrained":
            raise ValueError(f'{tag!r} is no file; for timm towers give a safetensors file or "pretrained".')
        found = timm.get_pretrained_cfg(name)
        repository = str(found.hf_hub_id or "") if found is not None else ""
    if not repository:
        raise ValueError(f"{vision} with the weights {tag!r} exists as a pickle only, which is not read.")
    return repository


def _fetch(vision: str, tag: str) -> Path:
    """The safetensors file of a tag, from the hub or its cache. Raises ValueError where there is none."""
    repository = hub_repository(vision, tag)
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    for file in HUB_FILES:
        try:
            return Path(hf_hub_download(repository, file))
        except LocalEntryNotFoundError as error:
            raise ValueError(
                f"The weights {tag!r} of {vision} are not on this machine and the hub cannot be reached; give a "
                "safetensors file."
            ) from error
        except EntryNotFoundError:
            continue
        except (HfHubHTTPError, OSError) as error:
            raise ValueError(f"The hub did not give the weights {tag!r} of {vision} ({error}).") from error
    raise ValueError(f"The hub holds the weights {tag!r} of {vision} as a pickle only, which is not read.")


__all__ = ["RANDOM", "hub_repository", "load_tower", "stated_pixels", "vision_config"]
