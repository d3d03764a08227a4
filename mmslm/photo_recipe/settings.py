"""The settings of ``mmslm train``: one YAML for a captioner of real photos in COCO captions form.

`privacy.epsilon: null` trains without privacy, a number trains under it. It refuses a private run without public text
to train its tokenizer on: a vocabulary made of private captions would tell their words.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from mmslm.config import Section
from privacy.accounting import Accountant


class PhotoData(Section):
    """Folders in COCO captions form (mmslm.data.coco). `public_captions` is a COCO captions json, text only."""

    train: Path
    val: Path
    public_captions: Path | None = Field(None, description="public sentences: tokenizer and decoder of a private run")
    group_key: str | None = Field("class", description="key of an image by which held-out photos are spread")
    held_out: int = Field(8, ge=1, description="with measure: dev, the last so many training photos of each group")
    measure: Literal["val", "dev"] = Field("val", description="dev: held-out training photos, for choosing settings")


class TowerSettings(Section):
    """The frozen tower; `weights: null` trains a small convolutional front end from scratch instead."""

    name: str = "timm:mobilenetv2_100"
    weights: Path | None = Field(None, description="an npz of MobileNetV2 (converted), or a safetensors file of timm's")
    size: int = Field(256, ge=32, le=1024, description="pixels a side")
    grid: int = Field(2, ge=1, le=32, description="the map is averaged to grid x grid cells: image tokens")
    levels: tuple[int, ...] = Field((3,), description="earlier stages that stand beside the last map")
    views: int = Field(2, ge=1, le=8, description="turned and mirrored copies of each photo: photos from above")


class DecoderSettings(Section):
    """The language model's shape: the tiny family, as small as 1,680 photos allow."""

    hidden: int = Field(128, ge=16)
    layers: int = Field(2, ge=1)
    heads: int = Field(4, ge=1)
    key_value_heads: int = Field(2, ge=1)
    feed_forward: int = Field(344, ge=16)
    vocabulary: int = Field(700, ge=360, le=65_536)


class PublicReading(Section):
    """Private runs first read public sentences; the words of each also stand as a 'picture' before it."""

    steps: int = Field(300, ge=0)
    batch: int = Field(64, ge=1)
    learning_rate: float = Field(2e-3, gt=0)


class OpenTraining(Section):
    """Cross-entropy without privacy."""

    epochs: int = Field(30, ge=1)
    batch: int = Field(32, ge=1)
    learning_rate: float = Field(3e-3, gt=0, le=1)
    warmup: int = Field(100, ge=0)
    weight_decay: float = Field(0.1, ge=0)
    label_smoothing: float = Field(0.05, ge=0, lt=1)
    feature_dropout: float = Field(0.1, ge=0, lt=1)
    word_dropout: float = Field(0.05, ge=0, lt=1, description="share of a caption's input tokens that are hidden")
    average: float = Field(0.99, ge=0, lt=1, description="decay of the average of the weights that is kept")
    sharpen_from: float = Field(
        0.6, ge=0, le=1, description="share of training after which typical captions count more"
    )


class PrivateTraining(Section):
    """DP-SGD over photos: the unit is one photo with all its captions and views."""

    epsilon: float | None = Field(None, gt=0, description="null: no privacy")
    delta: float = Field(1e-4, gt=0, lt=1)
    accountant: Accountant = "pld"
    noise: Literal["simulation", "secure"] = "simulation"
    steps: int = Field(60, ge=1)
    sampling_rate: float = Field(0.3, gt=0, le=1)
    clip_norm: float = Field(0.3, gt=0)
    learning_rate: float = Field(1.5e-3, gt=0)
    decay: bool = Field(True, description="the learning rate falls to a tenth along a cosine")
    captions: int = Field(1, ge=1, description="captions (each with a view of its own) of a photo in a step: one loss")
    train: tuple[str, ...] = Field(("",), description="prefixes of the parameters that are trained; '' is all")
    average: float = Field(0.9, ge=0, lt=1, description="decay of the released average of the weights")
    trials: int | None = Field(None, ge=0, description="how many settings were tried on this data, for the report")


class Talking(Section):
    """How captions are chosen: `consensus` draws many and says the one most like the others; no reference is used."""

    method: Literal["consensus", "greedy"] = "consensus"
    samples: int = Field(32, ge=1, description="draws for each photo, spread over its views")
    temperature: float = Field(0.7, gt=0)
    tokens: int = Field(40, ge=4)


class PhotoRecipe(Section):
    """``configs/ucm.yaml``."""

    name: str = Field("photos", pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$")
    seed: int = Field(0, ge=0)
    data: PhotoData
    tower: TowerSettings = TowerSettings()
    decoder: DecoderSettings = DecoderSettings()
    reading: PublicReading = PublicReading()
    training: OpenTraining = OpenTraining()
    privacy: PrivateTraining = PrivateTraining()
    talking: Talking = Talking()
    cache: Path | None = Field(None, description="where features are kept (default: in the run's folder)")
    checkpoint_every: int = Field(100, ge=1, description="steps without privacy; a tenth of it with")
    threads: int = Field(1, ge=1)
    sheet_photos: int = Field(12, ge=1)

    @property
    def private(self) -> bool:
        """Whether this run trains under differential privacy."""
        return self.privacy.epsilon is not None

    @model_validator(mode="after")
    def _public_words(self) -> Self:
        if self.private and self.data.public_captions is None:
            raise ValueError(
                "a private run needs data.public_captions: its tokenizer must not be trained on private captions"
            )
        return self


__all__ = ["PhotoRecipe"]
