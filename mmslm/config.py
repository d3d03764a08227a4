"""Run configuration: pydantic models read from one YAML file per run.

Unknown keys are refused with the nearest known one; so are wrong types and values out of range. Every problem of a file
is told at once, one sentence each. A file is read with the safe YAML loader only, and duplicate keys are refused (YAML
would silently keep the last one).
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Hashable
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

SIZE_LIMIT = 1 << 20  # a configuration is a page of text; anything larger is the wrong file


class ConfigError(ValueError):
    """A configuration that cannot be used; its message says which key, what was given and what is expected."""


class Section(BaseModel):
    """A part of a run configuration: frozen, and unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class SceneSource(Section):
    """Which public scenes a central run draws."""

    seed: int = Field(0, ge=0)
    photos: int = Field(60_000, ge=1, description="distinct public pictures")
    size: int = Field(96, ge=16, le=1024, description="pixels a side")
    turns: int = Field(4, ge=1, le=12, description="question-answer turns per picture, captions included")
    imagined: int = Field(
        15_000, ge=1, description="scenes in words only: words are public, pictures of private things are not"
    )


class Optimisation(Section):
    """How long and how fast a central run trains."""

    steps: int = Field(..., ge=1)
    batch: int = Field(32, ge=1)
    learning_rate: float = Field(1e-3, gt=0, le=1)
    warmup: int = Field(200, ge=0)
    weight_decay: float = Field(0.05, ge=0)
    text_share: float = Field(0.15, ge=0, le=0.9, description="share of steps that train on text alone")
    word_image_share: float = Field(
        0.0, ge=0, le=0.9, description="share of steps whose 'picture' is word embeddings: teaches the words' pathway"
    )
    spelling_weight: float = Field(0.2, ge=0, description="weight of the image tokens' spelling beside the replies")
    threads: int = Field(2, ge=1)
    autocast: bool = Field(False, description="bfloat16 autocast")
    checkpoint_every: int = Field(500, ge=1)


class TokenizerRecipe(Section):
    vocabulary: int = Field(2048, ge=300, le=65_536)
    lines: int = Field(60_000, ge=1_000)


class BaseRecipe(Section):
    """``configs/base_scenes.yaml``: how the base model that ships in the package was made."""

    name: str = "base"
    seed: int = Field(0, ge=0)
    tier: str = "nano"
    scenes: SceneSource = SceneSource()
    tokenizer: TokenizerRecipe = TokenizerRecipe()
    optimisation: Optimisation


Model = TypeVar("Model", bound=BaseModel)


class _UniqueKeys(yaml.SafeLoader):
    """The safe loader, refusing a key that stands twice, and aliases (a few lines of them expand to gigabytes)."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.get_event()
            raise ConfigError(f"line {event.start_mark.line + 1} uses a YAML alias; write the value out.")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise ConfigError(f"key {key!r} stands twice (line {key_node.start_mark.line + 1}); keep one.")
            seen.add(key)
        return super().construct_mapping(node, deep)


def find_config(name: str | Path) -> Path:
    """The file that ``name`` means: a path, or the name of a configuration that ships with the package."""
    path = Path(name)
    if path.is_file():
        return path
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; give a YAML file, for example configs/quickstart.yaml.")
    shipped = Path(str(resources.files("mmslm"))) / "configs" / (path.stem + ".yaml")
    checkout = Path(__file__).parents[1] / "configs" / (path.stem + ".yaml")
    for candidate in (shipped, checkout):
        if candidate.is_file():
            return candidate
    raise ConfigError(
        f"no configuration at {path}; give the path of a YAML file, or the name of a shipped one (quickstart)."
    )


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; ConfigError with the line where it cannot be read."""
    try:
        if path.stat().st_size > SIZE_LIMIT:
            raise ConfigError(
                f"{path} has {path.stat().st_size:,} bytes; a configuration is under 1 MiB: is this the right file?"
            )
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8 text; save it as UTF-8.") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from None
    try:
        data = yaml.load(text, Loader=_UniqueKeys)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise ConfigError(f"{path}, line {line}: {error.problem}; mend the YAML there.") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}.") from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path} holds {type(data).__name__}, not a mapping of keys to values.")
    return data


def load_config(path: str | Path, model: type[Model], overrides: dict[str, Any] | None = None) -> Model:
    """Read ``path`` into ``model``. ``overrides`` are dotted keys (``federated.rounds``) that win over the file."""
    found = find_config(path)
    data = read_yaml(found)
    for dotted, value in (overrides or {}).items():
        *parents, last = dotted.split(".")
        place = data
        for key in parents:
            place = place.setdefault(key, {})
            if not isinstance(place, dict):
                raise ConfigError(f"{dotted!r}: {key!r} is a value, not a section; name a key of a section.")
        place[last] = value
    try:
        return model.model_validate(data)
    except ValidationError as error:
        problems = "\n".join(f"  {_sentence(item, model)}" for item in error.errors())
        raise ConfigError(f"{found} cannot be used:\n{problems}") from None


def _sentence(item: Any, model: type[BaseModel]) -> str:
    """One problem of pydantic's as one sentence: which key, what is wrong, what to do."""
    where = ".".join(str(part) for part in item["loc"]) or "the file"
    if item["type"] == "extra_forbidden":
        known = _keys_at(model, item["loc"][:-1])
        near = difflib.get_close_matches(str(item["loc"][-1]), known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys here: {', '.join(sorted(known))}."
        return f"unknown key {where!r}; {hint}"
    if item["type"] == "missing":
        return f"key {where!r} is missing; add it."
    if isinstance(item["input"], dict) and item["type"] == "value_error":
        # A section's own check: its message says what was given; the whole section would bury it.
        return f"{where}: {item['msg'].removeprefix('Value error, ').rstrip('.')}."
    return f"{where} is {item['input']!r}: {item['msg'][0].lower()}{item['msg'][1:]}."


def _keys_at(model: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    current: Any = model
    for part in location:
        field = getattr(current, "model_fields", {}).get(part)
        if field is None:
            return []
        current = field.annotation
    return list(getattr(current, "model_fields", {}))


def config_hash(config: BaseModel) -> str:
    """SHA-256 of the resolved configuration in canonical JSON: the same settings, the same hash."""
    text = json.dumps(config.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
