"""Named model sizes: one frozen YAML per tier in configs/tiers, read into an `MMSLMConfig`.

It refuses names without a file, naming those that exist, and keys that no configuration has.
"""

from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from mmslm.model.configuration import MMSLMConfig, MMSLMTextConfig, MMSLMVisionConfig


def tier_folders() -> list[Path]:
    """Where tiers are looked for: the installed package, then a checkout."""
    return [Path(str(resources.files("mmslm"))) / "configs" / "tiers", Path(__file__).parents[2] / "configs" / "tiers"]


def tier_names() -> list[str]:
    """The tiers that exist, sorted."""
    return sorted({path.stem for folder in tier_folders() if folder.is_dir() for path in folder.glob("*.yaml")})


def load_tier(name: str | Path, vocab_size: int | None = None) -> MMSLMConfig:
    """The configuration of a tier ("nano") or of a YAML file of the same form.

    vocab_size: of the tokenizer that the model will speak, where it differs from the tier's. Raises ValueError.
    """
    candidates = [Path(name)] if str(name).endswith((".yaml", ".yml")) else []
    candidates += [folder / f"{name}.yaml" for folder in tier_folders()]
    path = next((path for path in candidates if path.is_file()), None)
    if path is None:
        raise ValueError(
            f"There is no tier {str(name)!r}; choose one of {', '.join(tier_names())} or give a YAML file."
        )
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds no mapping of keys to values; write it like the other tiers.")
    _refuse_unknown(path, "", values, MMSLMConfig)
    _refuse_unknown(path, "text_config.", values.get("text_config") or {}, MMSLMTextConfig)
    _refuse_unknown(path, "vision_config.", values.get("vision_config") or {}, MMSLMVisionConfig)
    if vocab_size is not None:
        values["text_config"] = {**(values.get("text_config") or {}), "vocab_size": vocab_size}
    return MMSLMConfig(**values)


def _refuse_unknown(path: Path, prefix: str, values: dict[str, Any], config: type) -> None:
    known = {key for base in config.__mro__ for key in getattr(base, "__annotations__", {})}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ValueError(f"{path} has the unknown key {prefix}{unknown[0]}; check its spelling.")


__all__ = ["load_tier", "tier_folders", "tier_names"]
