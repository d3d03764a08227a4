"""Captions from encoded photos: many drawn, the one said that agrees most with the others.

Minimum Bayes risk decoding (Kumar and Byrne, NAACL 2004) with CIDEr as the gain: the candidates are the model's own
draws, over several views of the photo, and no reference is looked at. Document frequencies must be public in a private
run. The greedy caption is among the candidates and breaks ties.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mmslm.evaluation.captions import DocumentFrequency, cider
from mmslm.evaluation.tokens import tokenise
from mmslm.generation.cache import SlotCache
from mmslm.model.experts import ImageTokens
from mmslm.model.modeling import MMSLMForConditionalGeneration
from mmslm.photo_recipe.batches import PROMPT
from mmslm.photo_recipe.views import encode
from mmslm.processing import MMSLMProcessor

PHOTOS_AT_ONCE = 16


class Talker:
    """Draws captions. `tokens`: the longest caption. Not for models with masks of their own (prefix_lm, windows)."""

    def __init__(self, model: MMSLMForConditionalGeneration, processor: MMSLMProcessor, tokens: int) -> None:
        config, tokenizer = model.config.text, processor.tokenizer
        if config.prefix_lm or config.text_window is not None:
            raise ValueError("the recipe's decoder has prefix_lm or text_window on; leave both off.")
        self.model, self.processor, self.tokens = model.eval(), processor, tokens
        self.eos = int(tokenizer.eos_token_id)
        silent = {i for i in tokenizer.all_special_ids if i != self.eos} | set(range(len(tokenizer), config.vocab_size))
        self.silent = torch.tensor(sorted(silent))
        self.prefix = torch.tensor(processor.encode_images_prefix(1) + processor.encode_prompt(PROMPT))

    @torch.inference_mode()
    def draw(self, seen: Tensor, count: int, temperature: float, generator: torch.Generator) -> list[list[str]]:
        """seen [n, views, cells, d] -> for each photo its greedy caption (of view 0) and `count` draws over the views."""
        said: list[list[str]] = []
        for start in range(0, len(seen), PHOTOS_AT_ONCE):
            said += self._draw(seen[start : start + PHOTOS_AT_ONCE], count, temperature, generator)
        return said

    def _draw(self, seen: Tensor, count: int, temperature: float, generator: torch.Generator) -> list[list[str]]:
        photos, views = seen.shape[:2]
        model = self.model
        features = encode(model, seen.flatten(0, 1))
        ids = self.prefix[None].expand(photos * views, -1)
        hidden, images = model.model.merge(ids, model.get_input_embeddings()(ids), features)
        cache = self._cache(photos * views, hidden)
        logits = self._step(hidden, cache, images)
        # Row 0 of a photo is greedy on the photo as it is; the others take the views in turn.
        per_photo = torch.tensor([0, *(place % views for place in range(count))])
        rows = (torch.arange(photos)[:, None] * views + per_photo).flatten()
        greedy = torch.zeros(photos, count + 1, dtype=torch.bool)
        greedy[:, 0] = True
        greedy = greedy.flatten()
        cache.keep(rows)
        logits, alive = logits[rows], torch.arange(len(rows))
        texts: list[list[int]] = [[] for _ in range(len(rows))]
        for _ in range(self.tokens):
            chance = torch.softmax(logits / temperature, dim=-1)
            drawn = torch.multinomial(chance, 1, generator=generator)[:, 0]
            tokens = torch.where(greedy[alive], logits.argmax(dim=-1), drawn)
            for row, token in zip(alive.tolist(), tokens.tolist(), strict=True):
                if token != self.eos:
                    texts[row].append(token)
            going = tokens != self.eos
            if not bool(going.any()):
                break
            if not bool(going.all()):
                kept = going.nonzero()[:, 0]
                cache.keep(kept)
                alive, tokens = alive[kept], tokens[kept]
            logits = self._step(model.get_input_embeddings()(tokens[:, None]), cache, None)
        tokenizer = self.processor.tokenizer
        words = [tokenizer.decode_text(ids).removeprefix(" ") for ids in texts]
        return [words[start : start + count + 1] for start in range(0, len(words), count + 1)]

    def _step(self, hidden: Tensor, cache: SlotCache, images: ImageTokens | None) -> Tensor:
        language = self.model.model.language_model
        past, length = cache.length, hidden.shape[1]
        cos, sin = language.rotary.span(past, past + length, hidden.device)
        out = language.run(hidden, cos, sin, None, length > 1, cache, images)
        cache.advance(length)
        logits: Tensor = self.model.lm_head(out[:, -1]).float()
        return logits.index_fill(1, self.silent, float("-inf"))

    def _cache(self, rows: int, like: Tensor) -> SlotCache:
        config = self.model.config.text
        room = len(self.prefix) + self.tokens
        return SlotCache.empty(
            config.num_hidden_layers, rows, config.num_key_value_heads, room, int(config.head_dim or 0), like
        )


def consensus(candidates: Sequence[str], frequency: DocumentFrequency) -> str:
    """The candidate with the highest mean CIDEr against all candidates; repeated ones count as often as they came.

    Ties go to the first. Raises ValueError for no candidates.
    """
    if not candidates:
        raise ValueError("there is no caption to choose from; draw at least one.")
    unique = list(dict.fromkeys(candidates))
    everything = [tokenise(text) for text in candidates]
    gains = cider([tokenise(text) for text in unique], [everything] * len(unique), frequency)
    return unique[int(gains.argmax())]


def say_all(
    talker: Talker,
    seen: Tensor,
    *,
    samples: int,
    temperature: float,
    frequency: DocumentFrequency,
    seed: int,
    progress: Callable[[int], None] = lambda _: None,
) -> tuple[list[str], list[str]]:
    """Greedy captions and consensus captions of seen [n, views, cells, d]."""
    generator = torch.Generator().manual_seed(seed)
    greedy, chosen = [], []
    for start in range(0, len(seen), PHOTOS_AT_ONCE):
        drawn = talker.draw(seen[start : start + PHOTOS_AT_ONCE], samples, temperature, generator)
        greedy += [texts[0] for texts in drawn]
        chosen += [consensus(texts, frequency) for texts in drawn]
        progress(len(drawn))
    return greedy, chosen


__all__ = ["Talker", "consensus", "say_all"]
