"""The settings of ``mmslm run``: one YAML, whose ``federated`` section is the federated room's own.

It refuses unknown keys (with the nearest known one), a budget that no noise can meet, and a cohort larger than the data
has devices, before anything is written.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from federated.settings import FederatedConfig
from mmslm.config import Section


class DataConfig(Section):
    """Whose photos. scenes: the embedded households. coco: a folder in COCO captions form, one device per owner."""

    source: Literal["scenes", "coco"] = "scenes"
    seed: int = Field(0, ge=0, description="of the embedded households")
    folder: Path | None = Field(None, description="coco: captions.json with images.zip or images/")
    owner_key: str | None = Field(None, description="coco: which key of an image names its owner, e.g. photographer")
    commitment_key: Path | None = Field(
        None,
        description="coco: the data's secret key (default: .commitment-key beside the runs); never in a run's folder",
    )

    @model_validator(mode="after")
    def _folder_with_coco(self) -> Self:
        if (self.source == "coco") != (self.folder is not None):
            raise ValueError("source coco needs a folder, and source scenes takes none; give the two together.")
        return self


class CeilingConfig(Section):
    """The same adapters on the pooled photos of the same households, without privacy: what could be had at most."""

    steps: int = Field(200, ge=1)
    batch: int = Field(48, ge=1)
    learning_rate: float = Field(0.01, gt=0)


class EvaluationConfig(Section):
    """Held-out households: none of them took part, so nothing of this costs privacy."""

    households: int = Field(60, ge=5)
    photos_per_household: int = Field(2, ge=1)
    questions_per_photo: int = Field(4, ge=0)
    styles: tuple[Literal["short", "detailed", "hazard"], ...] = ("detailed",)
    batch: int = Field(32, ge=1)
    sheet_photos: int = Field(12, ge=1)


class RunConfig(Section):
    """``configs/quickstart.yaml`` and its like."""

    name: str = Field("run", pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$")
    base: str = Field("base", description="a model directory, or 'base' for the one in the package")
    data: DataConfig = DataConfig()
    federated: FederatedConfig
    ceiling: CeilingConfig | None = CeilingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
