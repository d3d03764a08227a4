"""A photo recipe from its settings to a measured model: every stage is kept, so a stopped run goes on where it was.

A private run trains its tokenizer and its decoder's first weights on public sentences; the private photos are touched
by noised steps only, and its metrics come from the released model alone. It refuses a folder with a run of other
settings.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor
from tqdm import tqdm

from mmslm.config import ConfigError, config_hash
from mmslm.data.coco import CocoPhoto, CocoPhotos
from mmslm.evaluation.captions import DocumentFrequency
from mmslm.evaluation.sheet import Entry, Voice, contact_sheet
from mmslm.evaluation.tokens import tokenise
from mmslm.mobilenet import MEAN, NAME, STD, convert_mobilenet
from mmslm.model.configuration import MMSLMConfig, MMSLMTextConfig, MMSLMVisionConfig
from mmslm.model.modeling import MMSLMForConditionalGeneration
from mmslm.photo_recipe.account import BASE, CONFIG, PhotoAccount
from mmslm.photo_recipe.batches import Captions
from mmslm.photo_recipe.floors import nearest, nearest_caption, neighbours_consensus
from mmslm.photo_recipe.learning import read_publicly, train_openly, train_privately
from mmslm.photo_recipe.measure import as_table, measure
from mmslm.photo_recipe.settings import PhotoRecipe
from mmslm.photo_recipe.talking import Talker, say_all
from mmslm.photo_recipe.views import see
from mmslm.pretrained import load_model, new_model, save_model
from mmslm.processing import MMSLMProcessor
from mmslm.prompts import CAPTION_PROMPTS
from mmslm.tokenizer import MMSLMTokenizer, train_tokenizer

logger = logging.getLogger(__name__)

REPORTED = ("torch", "transformers", "timm", "numpy", "dp-accounting", "safetensors")
NEIGHBOURS = 10
SCRATCH_SIDE = 96  # pixels a side where the front end is trained from scratch


def train_photos(recipe: PhotoRecipe, out: Path) -> str:
    """Run `recipe` in the folder `out`; returns the table of scores. Raises ConfigError for another run's folder."""
    return _Run(recipe, out).go()


class _Run:
    def __init__(self, recipe: PhotoRecipe, out: Path) -> None:
        self.recipe, self.out = recipe, out
        out.mkdir(parents=True, exist_ok=True)
        mark = out / "recipe.sha256"
        if mark.exists() and mark.read_text() != config_hash(recipe):
            raise ConfigError(f"{out} holds a run of other settings; give another --out, or remove it.")
        mark.write_text(config_hash(recipe))
        (out / CONFIG).write_text(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False))
        self.cache = recipe.cache or out / "cache"
        self.cache.mkdir(parents=True, exist_ok=True)
        torch.set_num_threads(recipe.threads)

    def go(self) -> str:
        recipe = self.recipe
        everyone = list(CocoPhotos(recipe.data.train))
        held = self._held_out(everyone) if recipe.data.measure == "dev" else set()
        kept = [place for place in range(len(everyone)) if place not in held]
        photos = [everyone[place] for place in kept]
        asked = [everyone[place] for place in sorted(held)] or list(CocoPhotos(recipe.data.val))
        public = _sentences(recipe.data.public_captions) if recipe.data.public_captions else []
        # What a private run may weigh words by is public; elsewhere the training captions do it.
        weighed = public if recipe.private else [photo.captions for photo in photos]
        frequency = DocumentFrequency([[tokenise(text) for text in texts] for texts in weighed])

        tokenizer = self._tokenizer(weighed)
        model = self._new_model(tokenizer)
        processor = MMSLMProcessor.build(tokenizer, model.config)
        with self._timed("features"):
            seen = self._see(model, everyone, "training photos")
            shown = seen[sorted(held)] if held else self._see(model, asked, "photos to describe")
            seen = seen[kept]

        if not self._finished():
            account = self._train(model, processor, frequency, photos, seen, public)
            save_model(model, processor, self.out / "model")
            if account is not None:
                account.report(photos, {name: metadata.version(name) for name in REPORTED})
        model, processor = load_model(self.out / "model")
        return self._measure(model, processor, frequency, photos, asked, seen, shown)

    def _finished(self) -> bool:
        """Whether the model is there, and its report where it needs one."""
        model = (self.out / "model" / "model.safetensors").is_file()
        return model and (not self.recipe.private or (self.out / "report.json").is_file())

    def _held_out(self, photos: Sequence[CocoPhoto]) -> set[int]:
        """The places of the last photos of each group: neighbours in a collection often show one place, so a random
        choice would flatter."""
        data = self.recipe.data
        groups: dict[Any, list[int]] = {}
        for place, photo in enumerate(photos):
            groups.setdefault(photo.details.get(data.group_key or ""), []).append(place)
        return {place for group in groups.values() for place in group[-data.held_out :]}

    def _tokenizer(self, texts: Sequence[Sequence[str]]) -> MMSLMTokenizer:
        folder = self.out / "tokenizer"
        if (folder / "tokenizer.json").is_file():
            return MMSLMTokenizer.load(folder)
        lines = [text for group in texts for text in group]
        # The house's prompts belong to the vocabulary, or asking would cost more tokens than answering.
        lines += [prompt for prompt in CAPTION_PROMPTS.values() for _ in range(max(1, len(lines) // 100))]
        return train_tokenizer(lines, folder, self.recipe.decoder.vocabulary)

    def _new_model(self, tokenizer: MMSLMTokenizer) -> MMSLMForConditionalGeneration:
        recipe, shape = self.recipe, self.recipe.decoder
        text = MMSLMTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=shape.hidden,
            intermediate_size=shape.feed_forward,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.key_value_heads,
            max_position_embeddings=256,
        )
        vision, weights = self._vision()
        config = MMSLMConfig(
            text_config=text,
            vision_config=vision,
            pixel_shuffle=1 if weights else 2,
            image_token_id=tokenizer.image_token_id,
        )
        return new_model(config, tower_weights=weights, seed=recipe.seed)

    def _vision(self) -> tuple[MMSLMVisionConfig, Path | None]:
        """The front end's shape and the file of its weights; without a tower the house's convolutional stem."""
        tower = self.recipe.tower
        if tower.weights is None:
            return MMSLMVisionConfig(kind="conv_stem", image_size=SCRATCH_SIDE), None
        weights = tower.weights
        if weights.suffix == ".npz":
            weights = self.cache / f"{NAME}-{weights.stem}.safetensors"
            if not weights.is_file():
                convert_mobilenet(tower.weights, weights)
        from mmslm.model.tower import make_trunk, read_cells

        trunk = make_trunk(tower.name).eval()
        with torch.no_grad():
            width = read_cells(trunk, torch.zeros(1, 3, tower.size, tower.size), None, tower.levels, tower.grid).shape[
                2
            ]
        own = tower.name == f"timm:{NAME}"
        cfg: Any = getattr(trunk, "pretrained_cfg", {})
        vision = MMSLMVisionConfig(
            kind="tower",
            tower=tower.name,
            tower_grid=tower.grid,
            tower_levels=tower.levels,
            tower_mean=MEAN if own else tuple(cfg["mean"]),
            tower_std=STD if own else tuple(cfg["std"]),
            image_size=tower.size,
            hidden_size=int(width),
        )
        return vision, weights

    def _see(self, model: MMSLMForConditionalGeneration, photos: Sequence[CocoPhoto], title: str) -> Tensor:
        with tqdm(total=len(photos), desc=title, unit="photo") as bar:
            return see(model, photos, self.recipe.tower.views, self.cache / "seen", lambda more: _advance(bar, more))

    def _train(
        self,
        model: MMSLMForConditionalGeneration,
        processor: MMSLMProcessor,
        frequency: DocumentFrequency,
        photos: Sequence[CocoPhoto],
        seen: Tensor,
        public: Sequence[Sequence[str]],
    ) -> PhotoAccount | None:
        recipe, longest = self.recipe, self.recipe.talking.tokens
        if recipe.private:
            with self._timed("public reading"), _told("public sentences") as tell:
                sentences = Captions(public, processor, frequency, longest, typical=False)
                read_publicly(recipe, model, sentences, self.cache / f"reading-{self._public_key()}.safetensors", tell)
            save_model(model, processor, self.out / BASE)
        captions = Captions([photo.captions for photo in photos], processor, frequency, longest)
        with self._timed("training"), _told("private steps" if recipe.private else "training") as tell:
            if recipe.private:
                return train_privately(recipe, model, seen, captions, self.out, tell)
            train_openly(recipe, model, seen, captions, self.out / "open.safetensors", tell)
        return None

    def _public_key(self) -> str:
        """What public reading depends on: runs that differ only in private training share its result."""
        recipe = self.recipe
        parts = [recipe.seed, recipe.decoder, recipe.reading, recipe.tower, recipe.data.public_captions]
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]

    def _measure(
        self,
        model: MMSLMForConditionalGeneration,
        processor: MMSLMProcessor,
        frequency: DocumentFrequency,
        photos: Sequence[CocoPhoto],
        asked: Sequence[CocoPhoto],
        seen: Tensor,
        shown: Tensor,
    ) -> str:
        recipe, settings = self.recipe, self.recipe.talking
        references = [photo.captions for photo in asked]
        with self._timed("describing"), tqdm(total=len(asked), desc="describing", unit="photo") as bar:
            greedy, chosen = say_all(
                Talker(model, processor, settings.tokens),
                shown,
                samples=settings.samples,
                temperature=settings.temperature,
                frequency=frequency,
                seed=recipe.seed,
                progress=lambda more: _advance(bar, more),
            )
        rows = {"greedy": measure(greedy, references), "consensus of draws": measure(chosen, references)}
        if not recipe.private and recipe.tower.weights is not None:
            # Neighbours' captions are people's own words: a private run neither needs nor shows them.
            with self._timed("floors"):
                near = nearest(seen[:, 0], shown[:, 0], NEIGHBOURS)
                texts = [photo.captions for photo in photos]
                rows["floor: nearest photo's caption"] = measure(nearest_caption(near, texts), references)
                rows["floor: consensus of ten photos"] = measure(
                    neighbours_consensus(near, texts, frequency), references
                )
        said = chosen if settings.method == "consensus" else greedy
        parameters = sum(p.numel() for n, p in model.named_parameters() if not n.startswith("model.vision_tower."))
        result = {
            "name": recipe.name,
            "epsilon": recipe.privacy.epsilon,
            "delta": recipe.privacy.delta if recipe.private else None,
            "measured_on": str(recipe.data.val.name) if recipe.data.measure == "val" else "held-out training photos",
            "photos": len(asked),
            "parameters_without_tower": parameters,
            "scores": rows,
            "cpu_seconds": self._times(),
            "captions": {photo.id: text for photo, text in zip(asked, said, strict=True)},
        }
        _write(self.out / "metrics.json", json.dumps(result, indent=1) + "\n")
        self._sheet(asked, said, references)
        return as_table(rows)

    def _sheet(self, asked: Sequence[CocoPhoto], said: Sequence[str], references: Sequence[Sequence[str]]) -> None:
        step = max(1, len(asked) // self.recipe.sheet_photos)
        entries = [
            Entry(
                asked[place].image(),
                (
                    Voice("after", "the model says", said[place]),
                    Voice("reference", "a person wrote", references[place][0]),
                ),
            )
            for place in range(step // 2, len(asked), step)
        ]
        cost = f"epsilon {self.recipe.privacy.epsilon:g}" if self.recipe.private else "without privacy"
        sheet = contact_sheet(entries, title=f"{self.recipe.name}: photos that were not trained on", subtitle=cost)
        sheet.save(self.out / "sheet.png")

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        """Adds the CPU seconds of a stage to times.json, also where it is stopped."""
        began = time.process_time()
        try:
            yield
        finally:
            times = self._times()
            times[stage] = round(times.get(stage, 0.0) + time.process_time() - began, 1)
            _write(self.out / "times.json", json.dumps(times) + "\n")

    def _times(self) -> dict[str, float]:
        path = self.out / "times.json"
        found: dict[str, float] = json.loads(path.read_text()) if path.is_file() else {}
        return found


@contextmanager
def _told(title: str) -> Iterator[Any]:
    with tqdm(desc=title, unit="step") as bar:

        def tell(done: int, steps: int, loss: float | None) -> None:
            bar.total = steps
            bar.update(done - bar.n)
            if loss is not None and done % 10 == 0:
                bar.set_postfix(loss=f"{loss:.3f}")

        yield tell


def _advance(bar: Any, more: int) -> None:
    bar.update(more)


def _sentences(path: Path) -> list[list[str]]:
    """Public captions of a COCO json, one list per image. Raises ValueError for a file of another form."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        groups: dict[Any, list[str]] = {}
        for annotation in content["annotations"]:
            text = " ".join(str(annotation["caption"]).split())
            if text:
                groups.setdefault(annotation["image_id"], []).append(text)
    except FileNotFoundError:
        raise FileNotFoundError(f"There is no file {path}; data.public_captions names a COCO captions json.") from None
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no COCO captions json ({error}); give one with annotations.") from None
    if not groups:
        raise ValueError(f"{path} holds no caption; give a COCO captions json with annotations.")
    return list(groups.values())


def _write(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


__all__ = ["train_photos"]
