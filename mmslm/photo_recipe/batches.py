"""Batches of photos and captions, each a function of (seed, step) alone, so that a resumed run sees the same.

Captions are encoded once. A caption that says what the photo's other captions say counts as typical (its mean CIDEr
against them); late in training typical captions are drawn more often, so that the model settles on one way of saying
it. Document frequencies come from the text that is handed in: public sentences in a private run, so that a photo's
weights depend on nothing but its own captions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mmslm.evaluation.captions import DocumentFrequency, cider
from mmslm.evaluation.tokens import tokenise
from mmslm.model.losses import IGNORED
from mmslm.processing import MMSLMProcessor
from mmslm.prompts import CAPTION_PROMPTS

PROMPT = CAPTION_PROMPTS["detailed"]  # what `mmslm caption` asks by default
SHARPNESS = 0.25  # how far, in shares of the mean typicality of a photo's captions, a caption loses a factor e


class Captions:
    """The encoded captions of photos and, unless `typical` is off, how typical each is. `texts`: a list per photo."""

    def __init__(
        self,
        texts: Sequence[Sequence[str]],
        processor: MMSLMProcessor,
        frequency: DocumentFrequency,
        longest: int,
        typical: bool = True,
    ) -> None:
        tokenizer = processor.tokenizer
        self.prefix = processor.encode_images_prefix(1) + processor.encode_prompt(PROMPT)
        self.pad, self.unknown = int(tokenizer.pad_token_id), int(tokenizer.unk_token_id)
        known: dict[str, list[int]] = {}
        for text in {caption for captions in texts for caption in captions}:
            # A caption that is too long is cut; it then has no end, rather than a false one.
            known[text] = [*tokenizer.encode_text(" " + text.strip()), tokenizer.eos_token_id][:longest]
        self.ids = [[known[caption] for caption in captions] for captions in texts]
        self.weights = [_typical(captions, frequency) for captions in texts] if typical else []

    def __len__(self) -> int:
        return len(self.ids)

    def draw(self, photo: int, dice: np.random.Generator, sharp: bool, count: int = 1) -> list[list[int]]:
        """`count` captions of a photo, different ones as far as it has them."""
        options = self.ids[photo]
        chance = self.weights[photo] if sharp else np.full(len(options), 1.0 / len(options))
        places = dice.choice(len(options), size=min(count, len(options)), replace=False, p=chance)
        return [options[place] for place in (list(places) * count)[:count]]

    def rows(self, captions: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        """input_ids and labels [B, T] behind the common prefix."""
        length = max(len(ids) for ids in captions)
        start = len(self.prefix)
        ids = torch.full((len(captions), start + length), self.pad)
        labels = torch.full((len(captions), start + length), IGNORED)
        ids[:, :start] = torch.tensor(self.prefix)
        for row, caption in enumerate(captions):
            said = torch.tensor(caption)
            ids[row, start : start + len(caption)] = said
            labels[row, start : start + len(caption)] = said
        return {"input_ids": ids, "labels": labels}


def _typical(captions: Sequence[str], frequency: DocumentFrequency) -> npt.NDArray[np.float64]:
    """Chances that favour the captions which agree with the photo's others; even where there is nothing to compare."""
    if len(captions) < 2:
        return np.ones(len(captions))
    tokens = [tokenise(caption) for caption in captions]
    others = [tokens[:place] + tokens[place + 1 :] for place in range(len(tokens))]
    agreement = cider(tokens, others, frequency)
    scale = max(float(agreement.mean()) * SHARPNESS, 1e-6)
    weights = np.exp((agreement - agreement.max()) / scale)
    return np.asarray(weights / weights.sum(), dtype=np.float64)


def hide_words(batch: dict[str, Tensor], share: float, unknown: int, dice: np.random.Generator) -> dict[str, Tensor]:
    """The batch with a share of the captions' input tokens replaced by <unk>; labels stay."""
    if share <= 0:
        return batch
    drawn = torch.from_numpy(dice.random(tuple(batch["input_ids"].shape)) < share)
    chosen = drawn & (batch["labels"] != IGNORED)
    return {**batch, "input_ids": batch["input_ids"].masked_fill(chosen, unknown)}


__all__ = ["PROMPT", "Captions", "hide_words"]
