"""Photos and conversations into batches of tensors: the same items give the same batch, always.

Lengths are padded to a multiple of 16: on CPUs with 16-bit types, odd lengths cost twice the time in attention. It
refuses a batch without items, and samples whose pictures alone are longer than `max_length`; text beyond `max_length`
is cut at the end, and its labels with it.
"""

import hashlib
import random
from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor

from mmslm.data.photo import Photo
from mmslm.model.losses import IGNORED
from mmslm.processing import EncodedTurns, MMSLMProcessor, Picture
from mmslm.prompts import CAPTION_PROMPTS

Turns = Sequence[tuple[str, str]]
Item = tuple[Any, Turns]


def draw_turns(photo: Photo, count: int, *, seed: int = 0, epoch: int = 0, captions: int = 1) -> list[tuple[str, str]]:
    """`count` turns about a photo, `captions` of them descriptions, in a random order fixed by (seed, epoch, photo.id).

    Scenes give the caption in the style that the prompt asks for; photos without styles are asked for detail. Fewer
    turns come back where the photo has fewer questions.
    """
    digest = hashlib.sha256(f"{seed}/{epoch}/{photo.id}".encode()).digest()
    rng = random.Random(int.from_bytes(digest[:8], "big"))
    turns: list[tuple[str, str]] = []
    styled = getattr(photo, "caption", None)
    for _ in range(min(captions, count)):
        if styled is not None:
            style = rng.choice([name for name in CAPTION_PROMPTS if name != "text"])
            turns.append((CAPTION_PROMPTS[style], str(styled(style))))
        elif photo.captions:
            turns.append((CAPTION_PROMPTS["detailed"], rng.choice(photo.captions)))
    asked = rng.sample(list(photo.questions), min(count - len(turns), len(photo.questions)))
    turns += [(question.question, question.answer) for question in asked]
    rng.shuffle(turns)
    return turns


class Collator:
    """Items -> {"input_ids", "attention_mask", "mm_token_type_ids", "labels": [B, T], "pixel_values": [B, N, 3, H, W]}.

    An item is (pictures, turns): pictures is a Photo, a picture, a list of pictures, or None for text alone; turns are
    (prompt, reply) pairs. Labels are -100 outside replies. `size`: pixels at which Photos are drawn (default: the
    model's). `pixel_values` is absent where no item has a picture; samples with fewer pictures are filled with grey.
    """

    def __init__(
        self,
        processor: MMSLMProcessor,
        size: int | None = None,
        seed: int = 0,
        *,
        padding: Literal["right", "left"] = "right",
        max_length: int | None = None,
        multiple: int = 16,
    ) -> None:
        if padding not in ("right", "left"):
            raise ValueError(f"padding is {padding!r}; choose 'right' (training) or 'left' (generation).")
        if multiple < 1:
            raise ValueError(f"Lengths cannot be padded to a multiple of {multiple}; give at least 1.")
        self.processor = processor
        self.size = size if size is not None else processor.image_size
        self.seed = seed
        self.padding = padding
        self.max_length = max_length
        self.multiple = multiple

    def photos(self, photos: Sequence[Photo], turns: int = 3, epoch: int = 0) -> dict[str, Tensor]:
        """A batch of photos with `turns` turns each, drawn by `draw_turns` with this collator's seed."""
        return self([(photo, draw_turns(photo, turns, seed=self.seed, epoch=epoch)) for photo in photos])

    def __call__(self, items: Sequence[Item]) -> dict[str, Tensor]:
        """The batch of these items. Raises ValueError for an empty batch or pictures longer than max_length."""
        if not items:
            raise ValueError("A batch needs at least one item; got none.")
        pictures = [self._pictures(item[0]) for item in items]
        encoded = [
            self._cut(self.processor.encode_turns(turns, len(found)), len(found))
            for found, (_, turns) in zip(pictures, items, strict=True)
        ]
        return collate_encoded(encoded, pictures, self.processor, padding=self.padding, multiple=self.multiple)

    def pack(self, items: Sequence[Item], length: int, *, private: bool = False) -> dict[str, Tensor]:
        """Several items per row of `length` tokens, in order: {"input_ids", "segment_ids", "labels", "pixel_values"}.

        Items of a row do not see each other (`segment_ids` from 1, 0 = padding); `losses.per_segment_loss` gives each
        one's loss. Raises ValueError for an item longer than a row, and for `private` training: per-sample clipping
        takes a row for one sample, so several people's items in a row would be protected as one.
        """
        if private:
            raise ValueError(
                "Packed rows hold several samples, which per-sample clipping would clip as one; "
                "train privately with one item per row (call the collator instead of pack)."
            )
        if not items:
            raise ValueError("A batch needs at least one item; got none.")
        rows: list[list[tuple[EncodedTurns, list[Picture]]]] = []
        used = length
        for given, turns in items:
            found = self._pictures(given)
            encoded = self._cut(self.processor.encode_turns(turns, len(found)), len(found))
            size = len(encoded.input_ids)
            if size > length:
                raise ValueError(f"An item has {size} tokens, but a packed row only {length}; give a greater length.")
            if used + size > length:
                rows.append([])
                used = 0
            rows[-1].append((encoded, found))
            used += size
        return self._packed(rows, length)

    def _packed(self, rows: list[list[tuple[EncodedTurns, list[Picture]]]], length: int) -> dict[str, Tensor]:
        joined = [
            EncodedTurns(
                [token for encoded, _ in row for token in encoded.input_ids],
                # The first token of a sample is no target of the sample before it.
                [label for encoded, _ in row for label in (IGNORED, *encoded.labels[1:])],
            )
            for row in rows
        ]
        pictures = [[picture for _, found in row for picture in found] for row in rows]
        batch = collate_encoded(joined, pictures, self.processor, multiple=length)
        del batch["attention_mask"], batch["mm_token_type_ids"]
        segments = torch.zeros_like(batch["input_ids"])
        for index, row in enumerate(rows):
            start = 0
            for number, (encoded, _) in enumerate(row, start=1):
                segments[index, start : start + len(encoded.input_ids)] = number
                start += len(encoded.input_ids)
        return {**batch, "segment_ids": segments}

    def _pictures(self, given: Any) -> list[Picture]:
        if given is None:
            return []
        if isinstance(given, list | tuple):
            return [picture for item in given for picture in self._pictures(item)]
        if hasattr(given, "image") and callable(given.image):
            return [cast(Photo, given).image(self.size)]
        return [given]

    def _cut(self, encoded: EncodedTurns, images: int) -> EncodedTurns:
        limit = self.max_length
        if limit is None or len(encoded.input_ids) <= limit:
            return encoded
        prefix = 1 + images * self.processor.tokens_per_image
        if prefix >= limit:
            raise ValueError(
                f"{images} pictures take {prefix} tokens, which leaves no room for text in max_length {limit}; "
                "raise max_length or give fewer pictures."
            )
        return EncodedTurns(encoded.input_ids[:limit], encoded.labels[:limit])


def collate_encoded(
    encoded: Sequence[EncodedTurns],
    pictures: Sequence[Sequence[Picture]],
    processor: MMSLMProcessor,
    *,
    padding: str = "right",
    multiple: int = 16,
) -> dict[str, Tensor]:
    """Pad tokenised conversations and stack their pictures; see `Collator` for the shapes."""
    longest = max(len(sample.input_ids) for sample in encoded)
    length = -(-longest // multiple) * multiple
    pad_id = int(processor.tokenizer.pad_token_id)
    input_ids = torch.full((len(encoded), length), pad_id, dtype=torch.long)
    labels = torch.full((len(encoded), length), IGNORED, dtype=torch.long)
    attention_mask = torch.zeros((len(encoded), length), dtype=torch.long)
    for row, sample in enumerate(encoded):
        size = len(sample.input_ids)
        place = slice(0, size) if padding == "right" else slice(length - size, length)
        input_ids[row, place] = torch.tensor(sample.input_ids)
        labels[row, place] = torch.tensor(sample.labels)
        attention_mask[row, place] = 1
    batch = {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "mm_token_type_ids": (input_ids == processor.image_token_id).long(),
        "labels": labels,
    }
    most = max((len(found) for found in pictures), default=0)
    if most:
        flat = processor.pixels([picture for found in pictures for picture in found])
        stacked = flat.new_zeros(len(pictures), most, *flat.shape[1:])
        start = 0
        for row, found in enumerate(pictures):
            stacked[row, : len(found)] = flat[start : start + len(found)]
            start += len(found)
        batch["pixel_values"] = stacked
    return batch


__all__ = ["Collator", "Item", "Turns", "collate_encoded", "draw_turns"]
