"""Real photographs in COCO-captions form, through the same interface as the embedded scenes.

A folder holds ``captions.json`` (COCO: ``images`` and ``annotations``) beside either a folder ``images/`` or an archive
``images.zip``, which is read without unpacking. Nothing is decoded before ``Photo.image`` is called. What is refused,
with a ValueError that names the image: a caption for an unknown image, two images with one id, a file name that leaves
the folder, an image whose file is not there. Captions that are empty are dropped and counted in the log; an image left
without any caption is skipped and counted too (``CocoPhotos.skipped``), unless ``strict=True``, which refuses it.
"""

from __future__ import annotations

import json
import logging
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, overload

from PIL import Image

from mmslm.data.photo import Question, open_image

if TYPE_CHECKING:
    from mmslm.data.scenes.truth import Scene

log = logging.getLogger(__name__)

LONGEST_CAPTION = 2000
LARGEST_FILE = 100_000_000  # bytes of one compressed picture inside an archive


@dataclass(frozen=True)
class CocoPhoto:
    """One photograph. ``details`` holds the further fields of its COCO entry (licence, class, object counts ...)."""

    id: str
    owner: str
    captions: tuple[str, ...]
    file_name: str
    details: dict[str, Any] = field(default_factory=dict, compare=False)
    questions: tuple[Question, ...] = ()
    truth: Scene | None = None
    _source: _Files | None = field(default=None, repr=False, compare=False)

    def image(self, size: int | None = None) -> Image.Image:
        """The RGB photo; with ``size``, its middle square scaled to size x size pixels.

        Raises FileNotFoundError or ValueError with one sentence where the file is gone or no image.
        """
        if self._source is None:
            raise ValueError(f"photo {self.id} has no folder to be read from: make it with CocoPhotos.")
        image = self._source.open(self.file_name, self.id)
        if size is None:
            return image
        if size < 1:
            raise ValueError(f"got a picture size of {size}: give at least 1 pixel.")
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        return image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))


class _Files:
    """Pictures by name, from a folder or an archive."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "images"
        self.archive = folder / "images.zip"
        self.names: dict[str, str] | None = None
        if self.folder.is_dir():
            return
        if not self.archive.is_file():
            raise FileNotFoundError(f"{folder} has neither a folder images/ nor images.zip: put the pictures there.")
        try:
            with zipfile.ZipFile(self.archive) as archive:
                entries = [entry.filename for entry in archive.infolist() if not entry.is_dir()]
        except (zipfile.BadZipFile, OSError) as error:
            raise ValueError(f"{self.archive} is damaged or no zip archive: copy it again.") from error
        # Archives made of a folder hold images/0001.jpg, others just 0001.jpg.
        self.names = {entry.removeprefix("images/"): entry for entry in entries}

    def has(self, name: str) -> bool:
        return name in self.names if self.names is not None else (self.folder / name).is_file()

    def open(self, name: str, photo: str) -> Image.Image:
        if self.names is None:
            return open_image(self.folder / name)
        try:
            # Opened anew each time, so that photos can be read from several processes.
            with zipfile.ZipFile(self.archive) as archive:
                entry = archive.getinfo(self.names[name])
                if entry.file_size > LARGEST_FILE:
                    raise ValueError(
                        f"picture {name} of image id {photo} unpacks to {entry.file_size} bytes, more than the "
                        f"{LARGEST_FILE} allowed: make it smaller."
                    )
                data = archive.read(entry)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"The archive {self.archive} is gone: put it back.") from error
        except (zipfile.BadZipFile, KeyError, NotImplementedError, RuntimeError, OSError) as error:
            raise ValueError(
                f"picture {name} of image id {photo} cannot be read from {self.archive.name}: the archive is damaged."
            ) from error
        try:
            return open_image(data)
        except ValueError as error:
            raise ValueError(f"picture {name} of image id {photo}: {error}") from error


class CocoPhotos(Sequence[CocoPhoto]):
    """The photos of a COCO-captions folder, in the order of the file.

    Args:
        folder: holds captions.json and images/ or images.zip.
        owner: the key of an image entry that names its owner, such as "photographer" (entries without it are owned by
            "unknown"); None makes every photo an owner of its own.
        strict: refuse images without a caption instead of skipping them.

    Raises FileNotFoundError where a file is missing and ValueError where one is not in this form.
    """

    def __init__(self, folder: str | Path, owner: str | None = None, strict: bool = False) -> None:
        self.folder = Path(folder)
        self.skipped = 0
        content = _read(self.folder / "captions.json")
        entries = _by_id(content["images"])
        captions, empty = _captions(content["annotations"], entries)
        if owner is not None and entries and not any(owner in entry for entry in entries.values()):
            known = ", ".join(sorted({key for entry in entries.values() for key in entry}))
            raise ValueError(f"no image of {self.folder} has the owner key {owner!r}: choose one of {known}.")
        files = _Files(self.folder)
        self._photos: list[CocoPhoto] = []
        for key, entry in entries.items():
            name = _file_name(entry, key)
            if not captions[key]:
                if strict:
                    raise ValueError(f"image id {key} ({name}) has no caption: write one or leave out strict=True.")
                self.skipped += 1
                continue
            if not files.has(name):
                raise ValueError(f"image id {key} names the file {name}, which is not among the pictures: add it.")
            self._photos.append(
                CocoPhoto(
                    id=f"{self.folder.name}/{key}",
                    owner=f"{self.folder.name}/{key}" if owner is None else str(entry.get(owner) or "unknown"),
                    captions=tuple(captions[key]),
                    file_name=name,
                    details={k: v for k, v in entry.items() if k not in ("id", "file_name")},
                    _source=files,
                )
            )
        if empty:
            log.warning("%s: dropped %d empty captions", self.folder.name, empty)
        if self.skipped:
            log.warning("%s: skipped %d images without a caption", self.folder.name, self.skipped)
        if not self._photos:
            raise ValueError(f"{self.folder} has no photo with a caption: check the annotations of captions.json.")

    def __len__(self) -> int:
        return len(self._photos)

    @overload
    def __getitem__(self, index: int) -> CocoPhoto: ...
    @overload
    def __getitem__(self, index: slice) -> list[CocoPhoto]: ...
    def __getitem__(self, index: int | slice) -> CocoPhoto | list[CocoPhoto]:
        return self._photos[index]

    def __iter__(self) -> Iterator[CocoPhoto]:
        return iter(self._photos)

    @property
    def owners(self) -> tuple[str, ...]:
        """Owners in the order of their first photo."""
        return tuple(dict.fromkeys(photo.owner for photo in self._photos))


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"There is no {path.name} in {path.parent}: give a folder in COCO form.") from error
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not readable JSON: it may be truncated; copy it again.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds {type(content).__name__}: expected an object with images and annotations.")
    for key in ("images", "annotations"):
        if not isinstance(content.get(key), list):
            raise ValueError(f"{path} has no list {key!r}: expected COCO captions with images and annotations.")
    return content


def _by_id(images: list[Any]) -> dict[int | str, dict[str, Any]]:
    entries: dict[int | str, dict[str, Any]] = {}
    for number, entry in enumerate(images):
        if not isinstance(entry, dict) or not isinstance(entry.get("id"), int | str):
            raise ValueError(f"image number {number} of captions.json has no id: give each a number or a name.")
        if entry["id"] in entries:
            raise ValueError(f"image id {entry['id']} appears twice in captions.json: ids must differ.")
        entries[entry["id"]] = entry
    return entries


def _captions(
    annotations: list[Any], entries: dict[int | str, dict[str, Any]]
) -> tuple[dict[int | str, list[str]], int]:
    """Captions per image id, and how many empty ones were dropped."""
    captions: dict[int | str, list[str]] = {key: [] for key in entries}
    empty = 0
    for number, annotation in enumerate(annotations):
        key = annotation.get("image_id") if isinstance(annotation, dict) else None
        if not isinstance(key, int | str):
            raise ValueError(f"annotation number {number} of captions.json has no image_id: name its image.")
        if key not in captions:
            raise ValueError(f"annotation number {number} is for image id {key}, which captions.json does not list.")
        text = annotation.get("caption")
        if text is not None and not isinstance(text, str):
            raise ValueError(f"a caption of image id {key} is {type(text).__name__}: expected text.")
        text = " ".join((text or "").split())
        if not text:
            empty += 1
            continue
        if len(text) > LONGEST_CAPTION:
            raise ValueError(
                f"a caption of image id {key} has {len(text)} characters, more than {LONGEST_CAPTION}: shorten it."
            )
        captions[key].append(text)
    return captions, empty


def _file_name(entry: dict[str, Any], key: int | str) -> str:
    name = entry.get("file_name")
    if not isinstance(name, str) or not name:
        raise ValueError(f"image id {key} has no file_name: name the file of its picture.")
    parts = PurePosixPath(name)
    if parts.is_absolute() or ".." in parts.parts or "\\" in name or ":" in name:
        raise ValueError(f"image id {key} names the file {name!r}: only names inside the images folder are allowed.")
    return name
