"""The base model: its recipe run from nothing, on public pictures and public words only.

Each part is kept on disk (pictures, tokenizer, checkpoints), so that a stopped run goes on. It refuses a folder that
holds a run of another recipe.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from mmslm.base_batches import Batches
from mmslm.config import BaseRecipe, ConfigError, config_hash
from mmslm.data.public_split import CELL, ImaginedScene, PublicPhotos, draw_public_photos, imagined_scene
from mmslm.model import load_tier
from mmslm.model.modeling import MMSLMForConditionalGeneration
from mmslm.processing import MMSLMProcessor
from mmslm.tokenizer import MMSLMTokenizer, train_tokenizer
from mmslm.training import AdamW, Batch, Progress, bfloat16_products, fit

logger = logging.getLogger(__name__)

TOLD_EVERY = 50


def train_base(recipe: BaseRecipe, out: Path) -> str:
    """Run ``recipe`` in the folder ``out``; returns a line of result. Raises ConfigError for another recipe's folder."""
    out.mkdir(parents=True, exist_ok=True)
    mark = out / "recipe.sha256"
    if mark.exists() and mark.read_text() != config_hash(recipe):
        raise ConfigError(f"{out} holds a run of another recipe; give another --out, or remove it.")
    mark.write_text(config_hash(recipe))

    photos, imagined = _data(recipe, out)
    tokenizer = _tokenizer(recipe, out, photos, imagined)
    torch.manual_seed(recipe.seed)
    torch.set_num_threads(recipe.optimisation.threads)
    config = load_tier(recipe.tier, vocab_size=len(tokenizer))
    if config.vision.image_size != recipe.scenes.size:
        raise ConfigError(
            f"scenes.size is {recipe.scenes.size}, but the tier {recipe.tier} sees {config.vision.image_size} pixels a side; "
            "give that size."
        )
    model = MMSLMForConditionalGeneration(config).train()
    processor = MMSLMProcessor.build(tokenizer, model.config)
    _train(recipe, out, model, Batches(recipe, photos, imagined, processor, model))

    folder = out / "model"
    # Weights are rounded to bfloat16 once, here: half the file, and every later number is measured on the rounded model.
    model.eval().to(torch.bfloat16).save_pretrained(folder)
    processor.save_pretrained(folder)
    size = (folder / "model.safetensors").stat().st_size
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return f"the base model is in {folder} ({parameters:,} parameters, {size / 1e6:.1f} MB)"


def _data(recipe: BaseRecipe, out: Path) -> tuple[PublicPhotos, list[ImaginedScene]]:
    scenes = recipe.scenes
    with tqdm(total=scenes.photos, desc="pictures", unit="") as bar:
        photos = draw_public_photos(
            out / f"pictures-{scenes.size}-{scenes.seed}",
            photos=scenes.photos,
            size=scenes.size,
            seed=scenes.seed,
            workers=recipe.optimisation.threads,
            progress=lambda more: _advance(bar, more),
        )
    side = scenes.size // CELL
    indices = tqdm(range(scenes.imagined), desc="imagined scenes", unit="")
    return photos, [imagined_scene(index, scenes.seed, side) for index in indices]


def _advance(bar: tqdm, more: int) -> None:
    bar.update(more)


def _tokenizer(recipe: BaseRecipe, out: Path, photos: PublicPhotos, imagined: list[ImaginedScene]) -> MMSLMTokenizer:
    folder = out / "tokenizer"
    if (folder / "tokenizer.json").is_file():
        return MMSLMTokenizer.load(folder)
    texts = [text for scene in imagined for turn in (*scene.captions, *scene.questions) for text in turn]
    texts += [text for turns in (*photos.captions, *photos.questions) for turn in turns for text in turn]
    step = max(1, len(texts) // recipe.tokenizer.lines)
    return train_tokenizer(texts[::step], folder, recipe.tokenizer.vocabulary)


def _train(recipe: BaseRecipe, out: Path, model: MMSLMForConditionalGeneration, batches: Batches) -> None:
    settings = recipe.optimisation
    update = AdamW(
        model,
        learning_rate=settings.learning_rate,
        steps=settings.steps,
        warmup=settings.warmup,
        weight_decay=settings.weight_decay,
    )
    checkpoint = out / "checkpoint.safetensors"
    first = _restore(checkpoint, model, update) if checkpoint.exists() else 0

    def losses_of(module: nn.Module, batch: Batch) -> Tensor:
        with bfloat16_products("cpu", settings.autocast):
            return batches.losses(module, batch)

    with (
        tqdm(total=settings.steps, initial=first, desc="base model", unit="step") as bar,
        (out / "loss.jsonl").open("a") as log,
    ):
        record = _recorder(bar, log)

        def on_step(progress: Progress) -> None:
            record(progress)
            if progress.step % settings.checkpoint_every == 0:
                _save(checkpoint, progress.step, model, update)

        fit(
            model,
            batches.iterate(first),
            update,
            steps=settings.steps,
            first_step=first,
            on_step=on_step,
            losses_of=losses_of,
        )


def _recorder(bar: tqdm, log: TextIO) -> Callable[[Progress], None]:
    began, recent = time.monotonic(), list[float]()

    def record(progress: Progress) -> None:
        recent.append(progress.loss)
        bar.update()
        if progress.step % TOLD_EVERY == 0:
            mean = sum(recent) / len(recent)
            recent.clear()
            bar.set_postfix(loss=f"{mean:.3f}")
            seconds = round(time.monotonic() - began)
            log.write(json.dumps({"step": progress.step, "loss": round(mean, 4), "seconds": seconds}) + "\n")
            log.flush()

    return record


def _save(path: Path, step: int, model: nn.Module, update: AdamW) -> None:
    """Weights and moments, written beside and renamed: a crash leaves the checkpoint before."""
    state = {"step": torch.tensor(step)}
    for name, parameter in model.named_parameters():
        moments = update.optimiser.state[parameter]
        state |= {
            f"weight/{name}": parameter.detach(),
            f"mean/{name}": moments["exp_avg"],
            f"square/{name}": moments["exp_avg_sq"],
        }
    part = path.with_suffix(".part")
    save_file(state, part)
    part.replace(path)


def _restore(path: Path, model: nn.Module, update: AdamW) -> int:
    saved = load_file(path)
    step = int(saved["step"])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(saved[f"weight/{name}"])
            update.optimiser.state[parameter] = {
                "step": torch.tensor(float(step)),
                "exp_avg": saved[f"mean/{name}"],
                "exp_avg_sq": saved[f"square/{name}"],
            }
    logger.info("resuming the base model after step %d", step)
    return step
