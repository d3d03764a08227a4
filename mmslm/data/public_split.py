"""What the base model is trained on: public pictures with their turns, and imagined scenes that exist in words only.

Pictures are drawn once and kept in chunks on disk. Imagined scenes name all kinds and places, private ones too: words are
public, and only pictures are not. It refuses nothing of its own; ``mmslm.data.scenes`` never draws a private kind for the
public split.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mmslm.data.photo import Question
from mmslm.data.scenes import PUBLIC_KINDS, PUBLIC_PLACES, SYNONYMS, Scene, public_photo
from mmslm.data.scenes.palette import COLOURS
from mmslm.data.scenes.photos import imagine
from mmslm.prompts import CAPTION_PROMPTS

Turns = list[tuple[str, str]]

CHUNK = 500
CELL = 16  # pixels: one image token of the nano tier sees a square of this side
STYLES = ("short", "short", "detailed", "detailed", "detailed", "hazard")
Cells = tuple[tuple[int, str, float], ...]  # (cell in raster order, word, weight)
SPELLED = (*(SYNONYMS[kind][0] for kind in PUBLIC_KINDS), *COLOURS, *PUBLIC_PLACES)  # what public cells may spell
_PLACE_OF = {word: place for place, word in enumerate(SPELLED)}


@dataclass(frozen=True)
class PublicPhotos:
    """pictures: [n, size, size, 3] uint8. spelled: [n, cells, words] boolean, which of ``SPELLED`` is true of each cell.
    captions and questions: what may be asked of each, with the replies.
    """

    pictures: npt.NDArray[np.uint8]
    spelled: npt.NDArray[np.bool_]
    captions: list[Turns]
    questions: list[Turns]


@dataclass(frozen=True)
class ImaginedScene:
    """cells: which word stands where on the grid of image tokens."""

    cells: Cells
    captions: Turns
    questions: Turns


def reading(scene: Scene) -> str:
    """The answer to "Read the text in the picture."."""
    words = [f'"{thing.text}"' for thing in scene.things if thing.text]
    return f"it reads {' and '.join(words)}" if words else "there is no text"


def question_turns(questions: tuple[Question, ...], scene: Scene) -> Turns:
    return [*((q.question, q.answer) for q in questions), (CAPTION_PROMPTS["text"], reading(scene))]


def _draw_chunk(first: int, count: int, size: int, seed: int, folder: str) -> str:
    """Draw pictures ``first .. first+count`` into one file; a finished file is not drawn again."""
    path = Path(folder) / f"{first:07d}.npz"
    if path.exists():
        return str(path)
    side = size // CELL
    pictures = np.empty((count, size, size, 3), dtype=np.uint8)
    spelled = np.zeros((count, side * side, len(SPELLED)), dtype=np.bool_)
    turns: list[dict[str, Turns]] = []
    for offset in range(count):
        photo = public_photo(first + offset, seed=seed)
        for cell, word, _ in layout(photo.scene, side):
            if word in _PLACE_OF:
                spelled[offset, cell, _PLACE_OF[word]] = True
        pictures[offset] = np.asarray(photo.image(size))
        captions = [(CAPTION_PROMPTS[style], photo.caption(style, variant)) for variant, style in enumerate(STYLES)]
        turns.append({"captions": captions, "questions": question_turns(photo.questions, photo.scene)})
    part = path.with_suffix(".part")
    with part.open("wb") as handle:
        np.savez(
            handle,
            pictures=pictures,
            spelled=np.packbits(spelled),
            turns=np.frombuffer(json.dumps(turns).encode(), dtype=np.uint8),
        )
        handle.flush()
        os.fsync(handle.fileno())
    part.replace(path)
    return str(path)


def draw_public_photos(
    folder: Path, *, photos: int, size: int, seed: int, workers: int, progress: Callable[[int], None] | None = None
) -> PublicPhotos:
    """Draw the public split once and keep it in ``folder``; chunks that are there already are reused.

    ``progress`` is told how many more pictures are ready.
    """
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(0, photos, CHUNK)
    cells = (size // CELL) ** 2
    pictures = np.empty((photos, size, size, 3), dtype=np.uint8)
    spelled = np.empty((photos, cells, len(SPELLED)), dtype=np.bool_)
    captions: list[Turns] = []
    questions: list[Turns] = []
    with ProcessPoolExecutor(max_workers=workers) as pool:
        jobs = [
            pool.submit(_draw_chunk, start, min(CHUNK, photos - start), size, seed, str(folder)) for start in starts
        ]
        for start, job in zip(starts, jobs, strict=True):
            with np.load(job.result(), allow_pickle=False) as chunk:
                block = chunk["pictures"]
                pictures[start : start + len(block)] = block
                bits = np.unpackbits(chunk["spelled"], count=len(block) * cells * len(SPELLED))
                spelled[start : start + len(block)] = bits.reshape(len(block), cells, len(SPELLED))
                for row in json.loads(chunk["turns"].tobytes()):
                    captions.append([(prompt, reply) for prompt, reply in row["captions"]])
                    questions.append([(prompt, reply) for prompt, reply in row["questions"]])
            if progress:
                progress(len(block))
    return PublicPhotos(pictures, spelled, captions, questions)


def imagined_scene(index: int, seed: int, side: int) -> ImaginedScene:
    """Imagined scene ``index`` laid out in words on a grid of ``side`` x ``side`` cells."""
    imagined = imagine(index, seed)
    captions = [(CAPTION_PROMPTS[style], caption) for style, caption in imagined.captions]
    return ImaginedScene(layout(imagined.scene, side), captions, question_turns(imagined.questions, imagined.scene))


def layout(scene: Scene, side: int) -> Cells:
    """Which words are true of which cell of a ``side`` x ``side`` grid, by the boxes of the scene's things."""
    cells: list[tuple[int, str, float]] = [(cell, scene.place, 0.4) for cell in range(side * side)]
    for thing in scene.things:
        words = [(SYNONYMS[thing.kind][0], 1.0), (thing.colour, 0.7)]
        words += [("hot", 0.5)] if thing.hot else []
        words += [(thing.text, 0.7)] if thing.text else []
        for item in thing.items:
            cells += [(cell, word, weight) for cell in _covered(item.box, side) for word, weight in words]
    return tuple(cells)


def _covered(box: tuple[float, float, float, float], side: int) -> list[int]:
    """Cells whose centre lies in the box; at least the one that holds the box's centre."""
    left, top, right, bottom = box
    inside = [
        row * side + column
        for row in range(side)
        for column in range(side)
        if left <= (column + 0.5) / side <= right and top <= (row + 0.5) / side <= bottom
    ]
    if inside:
        return inside
    column = min(side - 1, max(0, int((left + right) / 2 * side)))
    row = min(side - 1, max(0, int((top + bottom) / 2 * side)))
    return [row * side + column]
