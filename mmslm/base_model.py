"""The base model: its recipe run from nothing, on public scenes and public sentences only.

Three steps, each kept on disk so that a stopped run goes on: draw the pictures and their turns, train the tokenizer,
train the model. Three kinds of batch are mixed:

- *pictures*: a public picture and a few question-answer turns about it, in random order;
- *text*: turns without a picture. Words are public even where pictures are not: this is where the model learns that
  "kettle" is a word;
- *word pictures*: the picture's tokens are replaced by the embeddings of a sentence's own words, scattered among the
  projected tokens of an unrelated public picture. It teaches the decoder to say what its image tokens spell, so that
  image experts trained later, under privacy, only have to spell (compare text-only captioning: DeCap, 2303.03032).

It refuses scenes of the private split: those exist for the devices alone.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mmslm.config import BaseRecipe, ConfigError, config_hash

if TYPE_CHECKING:
    from torch import Tensor

    from mmslm.processing import MMSLMProcessor

logger = logging.getLogger(__name__)

CHUNK = 500
STYLES = ("short", "detailed", "detailed", "hazard", "text")
Turns = list[tuple[str, str]]


@dataclass(frozen=True)
class PublicPhotos:
    """The drawn public split: ``pictures`` [n, size, size, 3] uint8 (a memory map) and each one's possible turns."""

    pictures: npt.NDArray[np.uint8]
    captions: list[Turns]
    questions: list[Turns]


def _draw_chunk(first: int, count: int, size: int, seed: int, folder: str) -> str:
    """Draw pictures ``first .. first+count`` into one file; a finished file is not drawn again."""
    from mmslm.data.scenes import public_photo
    from mmslm.prompts import CAPTION_PROMPTS

    path = Path(folder) / f"{first:07d}.npz"
    if path.exists():
        return str(path)
    pictures = np.empty((count, size, size, 3), dtype=np.uint8)
    turns: list[dict[str, Turns]] = []
    for offset in range(count):
        photo = public_photo(first + offset, seed=seed)
        pictures[offset] = np.asarray(photo.image(size))
        captions = [(CAPTION_PROMPTS[style], photo.caption(style, variant)) for variant, style in enumerate(STYLES)]
        turns.append({"captions": captions, "questions": [(q.question, q.answer) for q in photo.questions]})
    part = path.with_suffix(".part")
    with part.open("wb") as handle:
        np.savez(handle, pictures=pictures, turns=np.frombuffer(json.dumps(turns).encode(), dtype=np.uint8))
        handle.flush()
        os.fsync(handle.fileno())
    part.replace(path)
    return str(path)


def draw_public_photos(
    folder: Path, *, photos: int, size: int, seed: int, workers: int, progress: Callable[[int, int], None] | None = None
) -> PublicPhotos:
    """Draw the public split once and keep it in ``folder``; chunks that are there already are reused."""
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(0, photos, CHUNK)
    pictures = np.empty((photos, size, size, 3), dtype=np.uint8)
    captions: list[Turns] = []
    questions: list[Turns] = []
    with ProcessPoolExecutor(max_workers=workers) as pool:
        jobs = [pool.submit(_draw_chunk, s, min(CHUNK, photos - s), size, seed, str(folder)) for s in starts]
        for start, job in zip(starts, jobs, strict=True):
            with np.load(job.result(), allow_pickle=False) as chunk:
                block = chunk["pictures"]
                pictures[start : start + len(block)] = block
                for row in json.loads(chunk["turns"].tobytes()):
                    captions.append([(p, r) for p, r in row["captions"]])
                    questions.append([(p, r) for p, r in row["questions"]])
            if progress:
                progress(min(start + CHUNK, photos), photos)
    return PublicPhotos(pictures, captions, questions)


def public_lines(recipe: BaseRecipe, count: int) -> list[str]:
    """Public sentences about all kinds and places: the words, never the pictures."""
    from mmslm.data.scenes import sentences

    lines: list[str] = []
    index = 0
    while len(lines) < count:
        lines.extend(sentences(index, seed=recipe.scenes.seed))
        index += 1
    return lines[:count]
