"""The phases of a photo recipe around the one training loop: public reading, training without privacy, private training.

Public reading teaches the decoder to say what its image tokens spell: each token of the "picture" is the sum of a few
words of the sentence, among noise (the word pictures of the base model; DeCap, arXiv:2303.03032). What is left for the
private photos is to spell, and the manner of their captions. Every phase is resumed from its checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mmslm.model.losses import mean_over_own_tokens, per_sample_loss
from mmslm.model.modeling import MMSLMForConditionalGeneration
from mmslm.photo_recipe.account import PhotoAccount
from mmslm.photo_recipe.batches import Captions, hide_words
from mmslm.photo_recipe.settings import PhotoRecipe
from mmslm.photo_recipe.state import Average, load_state, save_state
from mmslm.photo_recipe.views import encode
from mmslm.training import AdamW, Batch, Progress, Update, fit
from privacy.budget import BudgetExceeded

Tell = Callable[[int, int, float | None], None]  # steps done, of how many, loss (None where it is private)
MICRO_BATCH = 96  # rows that go through the private engine at once


def caption_losses(model: nn.Module, batch: Batch, smoothing: float = 0.0) -> Tensor:
    """[B] in nats per token: the loss of each row's caption; `smoothing` spreads so much of the target evenly."""
    assert isinstance(model, MMSLMForConditionalGeneration)
    features = batch["image_features"] if "image_features" in batch else encode(model, batch["seen"])
    out = model(input_ids=batch["input_ids"], labels=batch["labels"], image_features=features, logits_at="labels")
    assert out.logits is not None and out.targets is not None
    losses = per_sample_loss(out.logits, out.targets, aligned=True)
    if smoothing:
        even = torch.logsumexp(out.logits.float(), dim=-1) - out.logits.float().mean(dim=-1)
        losses = (1 - smoothing) * losses + smoothing * mean_over_own_tokens(even * (out.targets >= 0), out.targets)
    return losses


def read_publicly(
    recipe: PhotoRecipe, model: MMSLMForConditionalGeneration, sentences: Captions, checkpoint: Path, tell: Tell
) -> None:
    """Train on public sentences and the pictures that their words make."""
    settings = recipe.reading
    table = model.get_input_embeddings().weight
    assert isinstance(table, Tensor)
    cells = model.config.tokens_per_image

    def batches(first: int) -> Iterator[Batch]:
        for step in range(first, settings.steps):
            dice = np.random.default_rng([recipe.seed, 1, step])
            chosen = [
                sentences.draw(int(place), dice, sharp=False)[0]
                for place in dice.integers(len(sentences), size=settings.batch)
            ]
            yield {**sentences.rows(chosen), "image_features": _spelled(table, chosen, cells, dice)}

    update = AdamW(
        model,
        learning_rate=settings.learning_rate,
        steps=settings.steps,
        warmup=min(100, settings.steps // 10),
        weight_decay=0.05,
    )
    _run(recipe, model, batches, update, update.optimiser, 0.99, settings.steps, checkpoint, tell, caption_losses)


def _spelled(table: Tensor, captions: Sequence[Sequence[int]], cells: int, dice: np.random.Generator) -> Tensor:
    """Pictures [B, cells, D] that spell captions: in each cell the mean of a few of the words, among noise."""
    with torch.no_grad():
        spread = float(table.square().mean().sqrt())
        noise = dice.standard_normal((len(captions), cells, table.shape[1]), dtype=np.float32)
        features = torch.from_numpy(noise) * (0.5 * spread)
        for row, ids in enumerate(captions):
            words = np.asarray(ids[:-1] or ids)
            heard = dice.random((cells, len(words))) < 0.5
            weights = torch.from_numpy(heard / np.sqrt(np.maximum(1, heard.sum(1, keepdims=True)))).float()
            features[row] += float(dice.uniform(0.7, 1.6)) * (weights @ table[torch.from_numpy(words)])
    return features


def train_openly(
    recipe: PhotoRecipe,
    model: MMSLMForConditionalGeneration,
    seen: Tensor,
    captions: Captions,
    checkpoint: Path,
    tell: Tell,
) -> None:
    """Cross-entropy on seen [photos, views, ...] and their captions, without privacy."""
    settings = recipe.training
    each = -(-len(captions) // settings.batch)
    steps = settings.epochs * each

    def batches(first: int) -> Iterator[Batch]:
        for step in range(first, steps):
            epoch, place = divmod(step, each)
            order = np.random.default_rng([recipe.seed, 2, epoch]).permutation(len(captions))
            rows = order[place * settings.batch : (place + 1) * settings.batch]
            dice = np.random.default_rng([recipe.seed, 3, step])
            sharp = step >= settings.sharpen_from * steps
            chosen = [captions.draw(int(row), dice, sharp)[0] for row in rows]
            views = dice.integers(seen.shape[1], size=len(rows))
            batch = hide_words(captions.rows(chosen), settings.word_dropout, captions.unknown, dice)
            yield {**batch, "seen": _dropped(seen[torch.from_numpy(rows), torch.from_numpy(views)], settings, step)}

    def losses(module: nn.Module, batch: Batch) -> Tensor:
        return caption_losses(module, batch, settings.label_smoothing)

    update = AdamW(
        model,
        learning_rate=settings.learning_rate,
        steps=steps,
        warmup=min(settings.warmup, steps // 4),
        weight_decay=settings.weight_decay,
    )
    _run(recipe, model, batches, update, update.optimiser, settings.average, steps, checkpoint, tell, losses)


def _dropped(seen: Tensor, settings: object, step: int) -> Tensor:
    """Features with channels dropped for all cells of a photo alike; pixels stay as they are."""
    share = float(getattr(settings, "feature_dropout", 0.0))
    if seen.dtype == torch.uint8 or not share:
        return seen
    generator = torch.Generator().manual_seed(step)
    kept = torch.rand(len(seen), 1, seen.shape[-1], generator=generator) >= share
    return seen.float() * kept / (1 - share)


def train_privately(
    recipe: PhotoRecipe,
    model: MMSLMForConditionalGeneration,
    seen: Tensor,
    captions: Captions,
    folder: Path,
    tell: Tell,
) -> PhotoAccount:
    """DP-SGD on seen [photos, views, ...]: one loss per photo, the mean over some of its captions and views.

    Returns the account, whose ledger lists every step. Losses are not told to anybody.
    """
    settings = recipe.privacy
    for name, parameter in model.named_parameters():
        frozen = name.startswith("model.vision_tower.") and recipe.tower.weights is not None
        parameter.requires_grad_(not frozen and name.startswith(settings.train))
    account = PhotoAccount(recipe, model, len(captions), folder)
    private = account.optimizer

    def batches(first: int) -> Iterator[Batch]:
        for step in range(first, settings.steps):
            dice = np.random.default_rng([recipe.seed, 4, step])
            rows = private.draw()
            chosen = [one for row in rows for one in captions.draw(int(row), dice, sharp=True, count=settings.captions)]
            places = torch.from_numpy(np.repeat(rows, settings.captions))
            views = torch.from_numpy(dice.integers(seen.shape[1], size=len(places)))
            if len(rows):
                yield {**captions.rows(chosen), "seen": seen[places, views]}
            else:
                yield {"input_ids": torch.zeros(0, 1, dtype=torch.long)}

    def losses(module: nn.Module, batch: Batch) -> Tensor:
        """Clips chunk by chunk, so that few gradients are in memory; nothing of the losses goes further."""
        size = max(1, MICRO_BATCH // settings.captions) * settings.captions
        for start in range(0, len(batch["input_ids"]), size):
            part = {name: value[start : start + size] for name, value in batch.items()}
            rows = caption_losses(module, part)
            private.backward(rows.view(-1, settings.captions).mean(dim=1))
        return torch.zeros(1)

    def update(losses: Tensor, step: int) -> None:
        private.step()

    def resume(step: int) -> None:
        private.next_step = step

    try:
        _run(
            recipe,
            model,
            batches,
            update,
            private.optimizer,
            settings.average,
            settings.steps,
            folder / "private.safetensors",
            lambda done, steps, _: tell(done, steps, None),
            losses,
            every=1 if settings.noise == "secure" else max(1, recipe.checkpoint_every // 10),
            resumed=resume,
        )
    except BudgetExceeded:
        # Steps that were paid for and lost in a crash have used up the budget: what is released so far stands.
        account.stopped_early = True
    finally:
        account.engine.close()
    return account


def _run(
    recipe: PhotoRecipe,
    model: MMSLMForConditionalGeneration,
    batches: Callable[[int], Iterator[Batch]],
    update: Update,
    optimiser: torch.optim.Optimizer,
    decay: float,
    steps: int,
    checkpoint: Path,
    tell: Tell,
    losses_of: Callable[[nn.Module, Batch], Tensor],
    every: int | None = None,
    resumed: Callable[[int], None] = lambda _: None,
) -> None:
    """The loop with its checkpoint; the model ends as the average."""
    average = Average(model, decay)
    first = load_state(checkpoint, model, optimiser, average) if checkpoint.exists() else 0
    resumed(first)
    tell(first, steps, None)
    model.train()

    def on_step(progress: Progress) -> None:
        average.update(progress.step - 1)
        if progress.step % (every or recipe.checkpoint_every) == 0 or progress.step == steps:
            save_state(checkpoint, progress.step, model, optimiser, average)
        tell(progress.step, steps, progress.loss)

    try:
        fit(model, batches(first), update, steps=steps, first_step=first, on_step=on_step, losses_of=losses_of)
    finally:
        average.apply()
        model.eval()


__all__ = ["caption_losses", "read_publicly", "train_openly", "train_privately"]
