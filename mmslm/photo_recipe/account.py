"""The account of a private photo run: sampler, engine, noise, budget and ledger bound together; and its report.

Unit: one photo with all its captions and views. Sensitivity: a photo's loss is the mean over some of its captions, its
gradient is clipped to C, and it is in a step by its own coin, so adding or removing it moves the sum by at most C. Every
step is an event in the ledger before its noise is drawn. It refuses a delta of 1 / N or more, a ledger of another run,
and steps beyond the budget.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import numpy as np
from torch import nn

from mmslm.config import config_hash
from mmslm.data.coco import CocoPhoto
from mmslm.photo_recipe.settings import PhotoRecipe
from privacy.accounting import epsilon as price
from privacy.accounting.calibration import calibrate_noise
from privacy.budget import Budget
from privacy.clipping.kinds import FlatClip
from privacy.ledger import Ledger, LedgerTruncatedError
from privacy.noise import SecureNoise, SeededNoise
from privacy.optimizer import DPAdamW, PrivateOptimizer, StepEvent, make_engine
from privacy.report import (
    Claim,
    DataFacts,
    Identity,
    Mechanism,
    Outside,
    SamplingFacts,
    build_report,
    data_commitment,
    now,
    write_report,
)
from privacy.report.commitment import commitment_key
from privacy.report.models import NoiseKind
from privacy.sampling import PoissonSampler

LEDGER, MODEL, CONFIG, BASE = "ledger.jsonl", "model/model.safetensors", "config.yaml", "base"


class PhotoAccount:
    """Everything that a private run over `photos` photos owes the ledger. `optimizer` draws, clips, accounts, noises."""

    def __init__(self, recipe: PhotoRecipe, model: nn.Module, photos: int, folder: Path) -> None:
        settings = recipe.privacy
        assert settings.epsilon is not None
        if settings.delta >= 1 / photos:
            raise ValueError(
                f"privacy.delta is {settings.delta:g}, but there are {photos} photos: at 1 / N = {1 / photos:.2g} a "
                "release may give one photo away whole; give a smaller delta."
            )
        self.recipe, self.photos, self.folder, self.stopped_early = recipe, photos, folder, False
        self.simulation = settings.noise == "simulation"
        self.sampler = PoissonSampler(
            photos, settings.sampling_rate, seed_or_generator=recipe.seed if self.simulation else None
        )
        self.ledger, self.noise_multiplier = self._open()
        past = self.ledger.events()
        self._paid = set(self.ledger.steps())
        self.budget = Budget(settings.epsilon, settings.delta, settings.accountant, events=past)
        # Rows are photo-major: `captions` rows of a photo follow each other and share its one loss.
        self.engine = make_engine(model, FlatClip(settings.clip_norm), folded=("model", "lm_head"))
        trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = PrivateOptimizer(
            self.engine,
            DPAdamW(trained, lr=settings.learning_rate),
            noise_multiplier=self.noise_multiplier,
            sampler=self.sampler,
            noise=SeededNoise(recipe.seed) if self.simulation else SecureNoise(),
            learning_rate=self._rate,
            before_release=self._pay,
        )

    def _rate(self, step: int) -> float:
        settings = self.recipe.privacy
        if not settings.decay:
            return settings.learning_rate
        return settings.learning_rate * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * step / settings.steps)))

    def _pay(self, event: StepEvent, *, step: int, learning_rate: float) -> None:
        if self.simulation and step in self._paid:
            return  # the same seed gives the same release again, bit for bit: it was paid for
        self.budget.allow(event)
        self.ledger.append(event, step=step, learning_rate=learning_rate)
        self.budget.spend(event)
        self._paid.add(step)

    def _open(self) -> tuple[Ledger, float]:
        settings, path = self.recipe.privacy, self.folder / LEDGER
        if path.exists():
            try:
                ledger = Ledger.open(path)
            except LedgerTruncatedError:
                ledger = Ledger.repair(path)
            if ledger.header.get("configuration") != config_hash(self.recipe):
                raise ValueError(f"the ledger {path} belongs to another configuration; give another --out.")
            return ledger, float(ledger.header["noise_multiplier"])
        assert settings.epsilon is not None
        noise = calibrate_noise(
            settings.epsilon,
            settings.delta,
            sampling=self.sampler.sampling,
            steps=settings.steps,
            accountant=settings.accountant,
        )
        header = {
            "kind": "photos",
            "unit": "example",
            "adjacency": "add_or_remove_one",
            "epsilon": settings.epsilon,
            "delta": settings.delta,
            "accountant": settings.accountant,
            "noise_multiplier": noise,
            "clip_norm": settings.clip_norm,
            "steps": settings.steps,
            "noise": self._kind,
            "configuration": config_hash(self.recipe),
        }
        return Ledger.create(path, header), noise

    @property
    def _kind(self) -> NoiseKind:
        return "seeded (simulation)" if self.simulation else "csprng"

    def spent(self) -> float:
        """Epsilon so far."""
        return self.budget.spent()

    def report(self, photos: list[CocoPhoto], versions: dict[str, str]) -> tuple[Path, Path]:
        """Write report.json and report.html beside the model. The model, the base and the settings are on the disk."""
        recipe, settings, folder = self.recipe, self.recipe.privacy, self.folder
        commitment = data_commitment(commitment_key(folder), _records(photos))
        self.ledger.remark(
            "finished",
            model_hash_after=file_hash(folder / MODEL),
            config_hash=file_hash(folder / CONFIG),
            data_commitment=commitment,
        )
        spent = price(self.ledger.events(), settings.delta, settings.accountant)
        steps = len(set(self.ledger.steps()))
        names = [MODEL, CONFIG, f"{BASE}/model.safetensors", "private.safetensors"]
        report = build_report(
            self.ledger,
            Claim(
                epsilon=math.ceil(spent * 1e4) / 1e4,
                delta=settings.delta,
                accountant=settings.accountant,
                adjacency="add_or_remove_one",
                unit="example",
                unit_definition="one photo with all its captions; views of it are inside its one loss",
                released="the noised weights after every step, and so their average, the final model",
                threat_model=(
                    "Whoever sees the weights after every step and knows all other photos and captions. Who trains is "
                    "trusted with the photos (central model)."
                ),
                scope="this_run",
                simulation=self.simulation,
            ),
            mechanism=Mechanism(
                clip_kind="flat",
                clip_norm=settings.clip_norm,
                divisor=self.optimizer.divisor,
                divisor_is_public=True,
                dtypes={"forward": "float32", "norm": "float64", "sum": "float32", "noise": "float64"},
                noise=self._kind,
            ),
            sampling=SamplingFacts.of(self.sampler, steps=steps),
            data=DataFacts(
                commitment=commitment,
                population=self.photos,
                population_is_public=True,
                deduplicated="not done: photos of one place may be neighbours in the collection",
                public_pretraining=(
                    "the image tower: ImageNet classification, frozen; the decoder: public captions, text only"
                    if recipe.tower.weights is not None
                    else "the decoder: public captions, text only"
                ),
                tokenizer_trained_on="public captions only",
                description=f"{self.photos} photos of {recipe.data.train.name} with all their captions",
            ),
            identity=Identity(
                name=recipe.name,
                created=now(),
                software=versions,
                config_hash=file_hash(folder / CONFIG),
                model_hash_before=file_hash(folder / BASE / "model.safetensors"),
                model_hash_after=file_hash(folder / MODEL),
                optimizer_steps=steps,
                files={name: file_hash(folder / name) for name in names if (folder / name).is_file()},
            ),
            outside=self._outside(),
        )
        return write_report(folder, report)

    def _outside(self) -> list[Outside]:
        trials = self.recipe.privacy.trials
        asked = "photos of another folder" if self.recipe.data.measure == "val" else "photos that were held out"
        statements = [
            Outside(kind="loss_curves", statement="No loss is kept or shown.", data="none"),
            Outside(
                kind="evaluation",
                statement=f"Metrics are of {asked}, none of which was trained on; choosing captions looks at no reference.",
                data="held_out_people",
                published=True,
            ),
            Outside(
                kind="checkpoint_selection",
                statement="The average of the steps' weights is released; none was selected.",
                data="none",
            ),
            Outside(kind="logs", statement="Logs hold step numbers and the spent epsilon.", data="none"),
            Outside(kind="compression", statement="The model was not compressed.", data="none"),
        ]
        if trials is not None:
            statements.append(
                Outside(
                    kind="hyperparameter_trials",
                    statement=(
                        "Settings were chosen by training on parts of these photos and looking at held-out ones; this "
                        "epsilon does not cover it."
                    ),
                    data="private",
                    count=trials,
                )
            )
        return statements


def _records(photos: list[CocoPhoto]) -> list[bytes]:
    """One item per photo: its pixels' hash and its captions."""
    found: list[bytes] = []
    for photo in photos:
        pixels = hashlib.sha256(np.asarray(photo.image()).tobytes()).hexdigest()
        found.append("\n".join([pixels, *photo.captions]).encode())
    return found


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


__all__ = ["BASE", "CONFIG", "LEDGER", "MODEL", "PhotoAccount"]
