"""What a photo is to the rest of the house, and the one place where an image file is opened.

``Photo`` is the interface that the embedded scenes and real photographs share. ``open_image`` refuses, with one
sentence each, what is no image, is truncated, has no pixels, or has more than ``MAX_PIXELS`` pixels; the size is read
from the header, before anything is decoded, so a decompression bomb costs nothing. Everything else becomes plain RGB.
"""

from __future__ import annotations

import io
import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

if TYPE_CHECKING:
    from mmslm.data.scenes.truth import Scene

log = logging.getLogger(__name__)

MAX_PIXELS = 64_000_000


@dataclass(frozen=True)
class Question:
    """One question about a photo. ``kind``: presence, count, colour, position, reading, place or danger."""

    kind: str
    question: str
    answer: str


@runtime_checkable
class Photo(Protocol):
    """A photo of an owner with its captions and questions; ``truth`` is None for real photographs."""

    @property
    def id(self) -> str: ...

    @property
    def owner(self) -> str: ...

    @property
    def captions(self) -> tuple[str, ...]: ...

    @property
    def questions(self) -> tuple[Question, ...]: ...

    @property
    def truth(self) -> Scene | None: ...

    def image(self, size: int | None = None) -> Image.Image:
        """The RGB picture; with ``size``, a square of that many pixels."""
        ...


def open_image(source: str | Path | bytes) -> Image.Image:
    """Opens a file, or the bytes of one, as an upright RGB image.

    CMYK, 16-bit, grey and palette images are converted; transparency is laid on white; of an animation the first
    frame is taken; the EXIF orientation is applied. Raises FileNotFoundError for a missing file and ValueError for
    what is no image, is truncated, has no pixels or more than 64 megapixels.
    """
    name, stream = _stream(source)
    if not stream.getbuffer().nbytes:
        raise ValueError(f"{name} is empty: expected an image file such as JPEG or PNG.")
    try:
        with warnings.catch_warnings():
            # Our own limit below is stricter than Pillow's warning.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image: Image.Image = Image.open(stream)
    except Image.DecompressionBombError as error:
        raise ValueError(_too_large(name, "far more than")) from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{name} is not an image that can be read: give a JPEG, PNG, WebP or similar file.") from error
    width, height = image.size
    if width < 1 or height < 1:
        raise ValueError(f"{name} has no pixels ({width} x {height}): give an image of at least 1 x 1 pixel.")
    if width * height > MAX_PIXELS:
        raise ValueError(_too_large(name, f"{width} x {height}, more than"))
    try:
        if getattr(image, "is_animated", False):
            image.seek(0)
        image.load()
        image = ImageOps.exif_transpose(image)
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, Image.DecompressionBombError) as error:
        raise ValueError(f"{name} is truncated or damaged: save or copy the picture again.") from error
    return _to_rgb(image)


def _stream(source: str | Path | bytes) -> tuple[str, io.BytesIO]:
    if isinstance(source, bytes | bytearray | memoryview):
        return "The picture", io.BytesIO(bytes(source))
    if not isinstance(source, str | Path):
        raise TypeError(f"Got {type(source).__name__} for an image: give a path or the bytes of an image file.")
    path = Path(source)
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give the path of one image file.")
    try:
        return path.name, io.BytesIO(path.read_bytes())
    except FileNotFoundError as error:
        raise FileNotFoundError(f"There is no image file at {path}: check the path.") from error


def _too_large(name: str, amount: str) -> str:
    return f"{name} has {amount} the {MAX_PIXELS // 1_000_000} megapixels allowed: make the picture smaller first."


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image.copy()
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        # Pillow would clip 16-bit values to 255 (a white picture); scale them instead.
        values = np.nan_to_num(np.asarray(image).astype(np.float64))
        top = float(values.max())
        if image.mode.startswith("I;16") or (image.mode == "I" and 255 < top <= 65535):
            values = values / 257.0
        elif top > 255:
            values = values * (255.0 / top)
        elif image.mode == "F" and 0 < top <= 1:
            values = values * 255.0
        return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        canvas = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(canvas, layer).convert("RGB")
    return image.convert("RGB")
