"""Generation for people: look at a picture once, then ask about it as often as one likes.

A picture is encoded once, image tokens through the whole language model included; what is kept (`EncodedImage`) is the
keys and values of that prefix, so a second question pays neither the image encoder nor the prefill. The loop is our own:
for a model of four million parameters, preparing each step in transformers' `generate` costs several times the step.
Every token comes with the probability that the model gave it.

It refuses prompts that leave no room for a reply, and writes no picture anywhere.
"""

import codecs
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmslm.generation.cache import SlotCache, SumCache
from mmslm.generation.confidence import Calibration
from mmslm.generation.lean import LeanStep
from mmslm.model.experts import ImageTokens
from mmslm.model.masks import attention_pattern
from mmslm.model.modeling import MMSLMForConditionalGeneration
from mmslm.processing import MMSLMProcessor, Picture

Turns = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Piece:
    """A streamed piece: `text` to append (may be empty while a character is incomplete), its token and probability."""

    text: str
    token_id: int
    confidence: float


@dataclass(frozen=True)
class Reply:
    """A whole reply. `confidence`: 0 to 1, calibrated where the model has a calibration; `tokens`: of the text, without
    the end token; `complete`: whether the model ended by itself."""

    text: str
    confidence: float
    tokens: tuple[int, ...]
    token_confidences: tuple[float, ...] = ()
    complete: bool = True


@dataclass(frozen=True)
class EncodedImage:
    """A picture (or several, or none) as the language model keeps it: keys and values of <bos> and the image tokens."""

    prefix: SlotCache
    images: int

    @property
    def bytes(self) -> int:
        """Memory that this picture holds, in bytes."""
        return self.prefix.bytes


class Narrator:
    """A model and its processor, ready to talk about pictures. Not thread-safe; encoded pictures may be shared.

    `calibration` maps raw confidence to how often such replies were right; None leaves it raw.
    """

    def __init__(
        self,
        model: MMSLMForConditionalGeneration,
        processor: MMSLMProcessor,
        calibration: Calibration | None = None,
    ) -> None:
        self.model = model.eval()
        self.processor = processor
        self.calibration = calibration
        tokenizer = processor.tokenizer
        config = model.config.text
        self._eos = int(tokenizer.eos_token_id)
        # Roles, padding and pictures never belong into a reply, nor do rows of the vocabulary that no token has.
        silent = {i for i in tokenizer.all_special_ids if i != self._eos} | set(
            range(len(tokenizer), config.vocab_size)
        )
        self._silent = torch.tensor(sorted(silent), dtype=torch.long)
        self._limit = int(config.max_position_embeddings)
        self._linear = config.linear_attention
        self._patterned = config.prefix_lm or config.text_window is not None
        self._kind = SumCache if config.linear_attention else SlotCache
        self._lean = LeanStep(model) if LeanStep.serves(model) else None

    @classmethod
    def load(
        cls,
        source: str | Path = "base",
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        int8: bool = False,
    ) -> "Narrator":
        """From a model directory, or "base" for the model that ships with the package. No network is used.

        int8: the language model's matrices in eight bits, for CPUs (see `mmslm.generation.int8`).

        Raises FileNotFoundError where the directory or a part of it is missing, ValueError where it is damaged.
        """
        from mmslm.pretrained import load_model

        folder = Path(str(resources.files("mmslm"))) / "assets" / "base" if str(source) == "base" else Path(source)
        model, processor = load_model(folder, dtype=dtype)
        model = model.to(device)  # type: ignore[arg-type]
        if int8:
            from mmslm.generation.int8 import to_int8

            to_int8(model)
        return cls(model, processor, Calibration.load(folder))

    # Looking ----------------------------------------------------------------------------------------------------------

    def look(self, image: Picture | Sequence[Picture] | None) -> EncodedImage:
        """Encode a picture, several that belong together, or None (a conversation about nothing)."""
        pictures = list(image) if isinstance(image, list | tuple) else [] if image is None else [image]
        return self._look([pictures])[0]

    def look_batch(self, images: Sequence[Picture], batch_size: int = 32) -> list[EncodedImage]:
        """Encode pictures, each for itself, `batch_size` at a time."""
        encoded: list[EncodedImage] = []
        for start in range(0, len(images), batch_size):
            encoded += self._look([[image] for image in images[start : start + batch_size]])
        return encoded

    @torch.inference_mode()
    def _look(self, samples: Sequence[Sequence[Any]]) -> list[EncodedImage]:
        """Samples with the same number of pictures -> their prefixes."""
        model, count = self.model, len(samples[0])
        prefix = self.processor.encode_images_prefix(count)
        if len(prefix) >= self._limit:
            raise ValueError(
                f"{count} pictures take {len(prefix)} tokens, but the model holds {self._limit}; give fewer pictures."
            )
        ids = torch.tensor([prefix], device=self._device).expand(len(samples), -1)
        hidden = model.get_input_embeddings()(ids)
        images: ImageTokens | None = None
        if count:
            flat = self.processor.pixels([picture for sample in samples for picture in sample])
            pixels = flat.view(len(samples), count, *flat.shape[1:]).to(self._device)
            hidden, images = model.model.merge(ids, hidden, model.encode_images(pixels))
        cache = self._cache(len(samples), len(prefix), hidden)
        language = model.model.language_model
        cos, sin = language.rotary.span(0, len(prefix), self._device)
        mask = self._pattern(0, len(prefix), len(prefix), None) if self._patterned else None
        language.run(hidden, cos, sin, mask, mask is None and len(prefix) > 1, cache, images)
        cache.advance(len(prefix))
        return [EncodedImage(row, count) for row in cache.rows()]

    # Talking ----------------------------------------------------------------------------------------------------------

    def stream(
        self, encoded: EncodedImage, prompt: str, max_new_tokens: int = 48, history: Turns = ()
    ) -> Iterator[Piece]:
        """The most likely reply, piece by piece, as it forms. `history`: earlier (prompt, reply) turns.

        Raises ValueError where history and prompt leave no room for a reply.
        """
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {max_new_tokens}; give at least 1.")
        ids = self._history(history) + self.processor.encode_prompt(prompt)
        room = self._room(encoded.prefix.length + len(ids), max_new_tokens)
        cache = self._kind.from_prefixes([encoded.prefix], encoded.prefix.length + len(ids) + room)
        step = torch.tensor([ids], device=self._device)
        # A character of several bytes shows once it is whole; one that never becomes whole is left out.
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        first = True
        for _ in range(room):
            token, confidence = self._next(step, cache)
            if token == self._eos:
                break
            text = decoder.decode(self.processor.tokenizer.token_bytes[token])
            yield Piece(text.removeprefix(" ") if first else text, token, confidence)
            first = False
            step = torch.tensor([[token]], device=self._device)

    def say(self, encoded: EncodedImage | Picture, prompt: str, max_new_tokens: int = 48, history: Turns = ()) -> Reply:
        """The whole reply of `stream`."""
        seen = encoded if isinstance(encoded, EncodedImage) else self.look(encoded)
        return self._say_group([(seen, self._history(history) + self.processor.encode_prompt(prompt))], max_new_tokens)[
            0
        ]

    def say_batch(
        self,
        images: Sequence[Picture | EncodedImage],
        prompts: Sequence[str],
        max_new_tokens: int = 48,
        batch_size: int = 64,
    ) -> list[Reply]:
        """One reply per (image, prompt), in order; what `say` gives, many at a time.

        The same image object given for several prompts is encoded once. Raises ValueError where the counts differ.
        """
        if len(images) != len(prompts):
            raise ValueError(f"Got {len(images)} images and {len(prompts)} prompts; give one prompt per image.")
        asked = [self.processor.encode_prompt(prompt) for prompt in prompts]
        replies: dict[int, Reply] = {}
        # Neighbours in length share a batch, so that little is padding; the same picture's prompts stay together.
        order = sorted(range(len(asked)), key=lambda i: (len(asked[i]), i))
        wanted = {id(images[i]): i for i in range(len(images)) if not isinstance(images[i], EncodedImage)}
        fresh = list(wanted.items())
        seen: dict[int, EncodedImage] = {}
        for start in range(0, len(fresh), batch_size):
            part = fresh[start : start + batch_size]
            found = self.look_batch([images[i] for _, i in part], batch_size)  # type: ignore[misc]
            seen.update({key: encoded for (key, _), encoded in zip(part, found, strict=True)})
        groups: dict[int, list[tuple[int, EncodedImage]]] = {}
        for i in order:
            given = images[i]
            encoded = given if isinstance(given, EncodedImage) else seen[id(given)]
            groups.setdefault(encoded.prefix.length, []).append((i, encoded))
        for group in groups.values():
            for start in range(0, len(group), batch_size):
                part_rows = group[start : start + batch_size]
                said = self._say_group([(encoded, asked[i]) for i, encoded in part_rows], max_new_tokens)
                replies.update({i: reply for (i, _), reply in zip(part_rows, said, strict=True)})
        return [replies[i] for i in range(len(asked))]

    @torch.inference_mode()
    def _say_group(self, rows: Sequence[tuple[EncodedImage, list[int]]], max_new_tokens: int) -> list[Reply]:
        """Greedy replies for rows with prefixes of one length; rows that ended leave the batch."""
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {max_new_tokens}; give at least 1.")
        start = rows[0][0].prefix.length
        longest = max(len(ids) for _, ids in rows)
        room = self._room(start + longest, max_new_tokens)
        cache = self._kind.from_prefixes([encoded.prefix for encoded, _ in rows], start + longest + room)
        padding = torch.tensor([longest - len(ids) for _, ids in rows], device=self._device)
        pad_id = int(self.processor.tokenizer.pad_token_id)
        step = torch.tensor([[pad_id] * (longest - len(ids)) + ids for _, ids in rows], device=self._device)
        alive = torch.arange(len(rows), device=self._device)
        said: list[list[int]] = [[] for _ in rows]
        sure: list[list[float]] = [[] for _ in rows]
        ended = [False] * len(rows)
        for _ in range(room):
            logits = self._forward(step, cache, padding, start)
            tokens, confidences = _choose(logits)
            chosen, sures = tokens.tolist(), confidences.tolist()
            going = [row for row, token in enumerate(chosen) if token != self._eos]
            names = alive.tolist()
            for row, (token, confidence) in enumerate(zip(chosen, sures, strict=True)):
                if token == self._eos:
                    ended[names[row]] = True
                else:
                    said[names[row]].append(token)
                    sure[names[row]].append(confidence)
            if not going:
                break
            if len(going) < len(chosen):
                kept = torch.tensor(going, device=self._device)
                alive, padding, tokens = alive[kept], padding[kept], tokens[kept]
                cache.keep(kept)
            step = tokens[:, None]
        return [self._reply(*parts) for parts in zip(said, sure, ended, strict=True)]

    def _reply(self, tokens: list[int], confidences: list[float], complete: bool) -> Reply:
        text = self.processor.tokenizer.decode_text(tokens).removeprefix(" ")
        return Reply(text, self.confidence_of(confidences), tuple(tokens), tuple(confidences), complete)

    def confidence_of(self, confidences: Sequence[float]) -> float:
        """A reply's confidence from its tokens': the geometric mean, calibrated where there is a calibration."""
        if not confidences:
            return 0.0
        raw = math.exp(sum(math.log(max(value, 1e-12)) for value in confidences) / len(confidences))
        return self.calibration(raw) if self.calibration is not None else raw

    # One step ---------------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def _next(self, step: Tensor, cache: SlotCache) -> tuple[int, float]:
        none = torch.zeros(1, dtype=torch.long, device=self._device)
        tokens, confidences = _choose(self._forward(step, cache, none, cache.length))
        return int(tokens[0]), float(confidences[0])

    def _forward(self, step: Tensor, cache: SlotCache, padding: Tensor, prefix: int) -> Tensor:
        """step [B, T] behind the cache -> logits [B, V] of the last token, fp32, roles and pictures silenced.

        padding [B]: positions `prefix`..`prefix + padding` of a row are padding that nobody may see.
        """
        if self._lean is not None and step.numel() == 1 and cache.length > 0:
            return self._silence(self._lean(int(step), cache).float())
        language = self.model.model.language_model
        length, past = step.shape[1], cache.length
        padded = bool(padding.any())
        if padded:
            positions = torch.arange(past, past + length, device=self._device)[None] - padding[:, None]
            cos, sin = language.rotary(positions.clamp(min=0))
        else:
            cos, sin = language.rotary.span(past, past + length, self._device)
        mask: Tensor | None = None
        if self._linear:
            if padded and length > 1:  # among these tokens; earlier ones are summed already, without their padding
                keys = torch.arange(past, past + length, device=self._device)
                mask = (keys[None] >= prefix + padding[:, None])[:, None, None]
        elif padded or self._patterned or (length > 1 and past > 0):
            visible = None
            if padded:
                keys = torch.arange(past + length, device=self._device)
                visible = (keys[None] < prefix) | (keys[None] >= prefix + padding[:, None])
            mask = self._pattern(past, past + length, prefix, visible)
        out = language.run(language.embed_tokens(step), cos, sin, mask, mask is None and length > 1, cache, None)
        cache.advance(length)
        return self._silence(self.model.lm_head(out[:, -1]).float())

    def _silence(self, logits: Tensor) -> Tensor:
        return logits.index_fill_(1, self._silent.to(logits.device), float("-inf"))

    def _pattern(self, past: int, stop: int, prefix: int, visible: Tensor | None) -> Tensor:
        """The mask for queries past..stop-1; positions 1..prefix-1 hold the pictures."""
        config = self.model.config.text
        keys = torch.arange(stop, device=self._device)
        if config.text_window is not None and visible is not None:
            raise ValueError("say_batch with prompts of different lengths needs a model without text_window; use say.")
        return attention_pattern(
            keys[past:],
            stop,
            visible=visible,
            image=((keys > 0) & (keys < prefix))[None],
            prefix_lm=config.prefix_lm,
            window=config.text_window,
        )

    def _cache(self, batch: int, capacity: int, like: Tensor) -> SlotCache:
        config = self.model.config.text
        return self._kind.empty(
            config.num_hidden_layers, batch, config.num_key_value_heads, capacity, int(config.head_dim or 0), like
        )

    def _history(self, turns: Turns) -> list[int]:
        ids: list[int] = []
        for prompt, reply in turns:
            ids += self.processor.encode_prompt(prompt)
            ids += [*self.processor.tokenizer.encode_text(" " + reply.strip()), self._eos]
        return ids

    def _room(self, used: int, wanted: int) -> int:
        left = self._limit - used
        if left < 1:
            raise ValueError(
                f"The pictures, the conversation and the question take {used} tokens, but the model holds "
                f"{self._limit}; ask a shorter question or start the conversation anew."
            )
        return min(left, wanted)

    @property
    def _device(self) -> torch.device:
        return self.model.get_input_embeddings().weight.device  # type: ignore[return-value]


def _choose(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The most likely token of logits [B, V] and its probability, each [B]."""
    best, tokens = logits.max(dim=-1)
    return tokens, torch.exp(best - torch.logsumexp(logits, dim=-1))


__all__ = ["EncodedImage", "Narrator", "Piece", "Reply"]
