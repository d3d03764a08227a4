"""CocoPhotos: folders and archives of real photos, and what is refused."""

from __future__ import annotations

import io
import json
import logging
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmslm.data.coco import CocoPhotos
from mmslm.data.photo import Photo

SHARED = Path(os.environ.get("MMSLM_SHARED_DATA", Path(__file__).resolve().parents[3] / "../shared/data"))


def jpeg(colour: tuple[int, int, int], size: tuple[int, int] = (40, 30)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, "JPEG", quality=95)
    return stream.getvalue()


CONTENT: dict[str, Any] = {
    "images": [
        {"id": 1, "file_name": "a.jpg", "photographer": "Ann", "year": "1940"},
        {"id": 2, "file_name": "b.jpg", "photographer": "Bob"},
        {"id": 7, "file_name": "c.jpg"},
    ],
    "annotations": [
        {"id": 1, "image_id": 1, "caption": "A red\n field. "},
        {"id": 2, "image_id": 2, "caption": "green"},
        {"id": 3, "image_id": 1, "caption": "red"},
        {"id": 4, "image_id": 7, "caption": "blue"},
    ],
}
COLOURS = {"a.jpg": (255, 0, 0), "b.jpg": (0, 255, 0), "c.jpg": (0, 0, 255)}


def folder(tmp_path: Path, content: Any = None, archive: bool = True, inner: str = "", name: str = "photos") -> Path:
    where = tmp_path / name
    where.mkdir()
    (where / "captions.json").write_text(json.dumps(CONTENT if content is None else content), encoding="utf-8")
    if archive:
        with zipfile.ZipFile(where / "images.zip", "w") as pack:
            for file, colour in COLOURS.items():
                pack.writestr(inner + file, jpeg(colour))
    else:
        (where / "images").mkdir()
        for file, colour in COLOURS.items():
            (where / "images" / file).write_bytes(jpeg(colour))
    return where


def changed(**parts: Any) -> dict[str, Any]:
    return {**json.loads(json.dumps(CONTENT)), **parts}


@pytest.mark.parametrize(("archive", "inner"), [(True, ""), (True, "images/"), (False, "")])
def test_folder_and_archive_read_alike(tmp_path: Path, archive: bool, inner: str) -> None:
    photos = CocoPhotos(folder(tmp_path, archive=archive, inner=inner))
    assert len(photos) == 3
    assert [photo.captions for photo in photos] == [("A red field.", "red"), ("green",), ("blue",)]
    assert [photo.id for photo in photos] == ["photos/1", "photos/2", "photos/7"]
    assert photos[0].details["year"] == "1940"
    for photo, colour in zip(photos, COLOURS.values(), strict=True):
        image = photo.image()
        assert (image.mode, image.size) == ("RGB", (40, 30))
        assert image.getpixel((20, 15)) == pytest.approx(colour, abs=3)
        assert photo.image(24).size == (24, 24)
        assert isinstance(photo, Photo)
        assert photo.truth is None
        assert photo.questions == ()
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and archive and path.suffix == ".jpg"]


def test_owners(tmp_path: Path) -> None:
    where = folder(tmp_path)
    assert CocoPhotos(where).owners == ("photos/1", "photos/2", "photos/7")
    assert CocoPhotos(where, owner="photographer").owners == ("Ann", "Bob", "unknown")
    with pytest.raises(ValueError, match=r"owner key 'city': choose one of .*photographer"):
        CocoPhotos(where, owner="city")


def test_photos_can_be_sliced_and_sent_to_another_process(tmp_path: Path) -> None:
    photos = CocoPhotos(folder(tmp_path))
    assert [photo.id for photo in photos[1:]] == ["photos/2", "photos/7"]
    copied = pickle.loads(pickle.dumps(photos[-1]))  # noqa: S301 - what worker processes do with it
    assert copied == photos[-1]
    assert copied.image(8).getpixel((4, 4)) == photos[-1].image(8).getpixel((4, 4))


def test_a_square_is_cut_from_the_middle(tmp_path: Path) -> None:
    where = folder(tmp_path, archive=False)
    wide = Image.new("RGB", (90, 30), (255, 255, 255))
    wide.paste((0, 0, 0), (30, 0, 60, 30))
    wide.save(where / "images" / "a.jpg", quality=95)
    image = CocoPhotos(where)[0].image(10)
    assert max(image.getpixel((5, 5))) < 20


def test_empty_captions_are_dropped_and_uncaptioned_images_skipped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = changed()
    content["annotations"][1]["caption"] = "  \n"
    del content["annotations"][3]["caption"]
    with caplog.at_level(logging.WARNING):
        photos = CocoPhotos(folder(tmp_path, content))
    assert [photo.id for photo in photos] == ["photos/1"]
    assert photos.skipped == 2
    assert "dropped 2 empty captions" in caplog.text
    assert "skipped 2 images" in caplog.text
    with pytest.raises(ValueError, match=r"image id 2 \(b\.jpg\) has no caption"):
        CocoPhotos(tmp_path / "photos", strict=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "expected an object"),
        ({"images": []}, "no list 'annotations'"),
        (changed(images={}), "no list 'images'"),
        (changed(images=[], annotations=[]), "no photo with a caption"),
        (changed(annotations=[]), "no photo with a caption"),
        (changed(images=[{"file_name": "a.jpg"}]), "image number 0 .* has no id"),
        (changed(images=["a.jpg"]), "image number 0 .* has no id"),
        (changed(images=[{"id": 1, "file_name": "a.jpg"}] * 2, annotations=[]), "image id 1 appears twice"),
        (changed(annotations=[{"caption": "x"}]), "annotation number 0 .* has no image_id"),
        (changed(annotations=[{"image_id": 99, "caption": "x"}]), "image id 99, which captions.json does not list"),
        (changed(annotations=[{"image_id": 1, "caption": 5}]), "caption of image id 1 is int"),
        (changed(annotations=[{"image_id": 1, "caption": "very " * 900}]), "image id 1 has 4499 characters"),
        (changed(images=[{"id": 1}], annotations=[{"image_id": 1, "caption": "x"}]), "image id 1 has no file_name"),
    ],
)
def test_what_is_no_coco_is_refused_by_name(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CocoPhotos(folder(tmp_path, content))


@pytest.mark.parametrize("name", ["../secret.jpg", "/etc/secret.jpg", "a/../../b.jpg", "..\\b.jpg", "C:\\b.jpg"])
def test_file_names_cannot_leave_the_folder(tmp_path: Path, name: str) -> None:
    content = changed(images=[{"id": 1, "file_name": name}], annotations=[{"image_id": 1, "caption": "x"}])
    with pytest.raises(ValueError, match="only names inside the images folder"):
        CocoPhotos(folder(tmp_path, content, archive=False))


def test_missing_parts(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no captions\.json"):
        CocoPhotos(tmp_path)
    where = folder(tmp_path)
    (where / "images.zip").unlink()
    with pytest.raises(FileNotFoundError, match=r"neither a folder images/ nor images\.zip"):
        CocoPhotos(where)
    (where / "images.zip").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(ValueError, match="damaged or no zip archive"):
        CocoPhotos(where)
    (where / "captions.json").write_text('{"images": [')
    with pytest.raises(ValueError, match="not readable JSON"):
        CocoPhotos(where)


def test_a_picture_that_is_not_there_is_named(tmp_path: Path) -> None:
    content = changed()
    content["images"][1]["file_name"] = "lost.jpg"
    for archive in (True, False):
        with pytest.raises(ValueError, match=r"image id 2 names the file lost\.jpg"):
            CocoPhotos(folder(tmp_path, content, archive=archive, name=f"archive-{archive}"))


def test_damaged_pictures_are_named_when_they_are_opened(tmp_path: Path) -> None:
    where = folder(tmp_path)
    with zipfile.ZipFile(where / "images.zip", "w") as pack:
        pack.writestr("a.jpg", b"no picture")
        pack.writestr("b.jpg", jpeg((0, 255, 0), (300, 300))[:700])
        pack.writestr("c.jpg", jpeg((0, 0, 255)))
    photos = CocoPhotos(where)
    with pytest.raises(ValueError, match=r"a\.jpg of image id photos/1.*not an image"):
        photos[0].image()
    with pytest.raises(ValueError, match=r"b\.jpg of image id photos/2.*(truncated|not an image)"):
        photos[1].image()
    assert photos[2].image(8).size == (8, 8)
    with pytest.raises(ValueError, match="at least 1 pixel"):
        photos[2].image(0)
    data = bytearray((where / "images.zip").read_bytes())
    data[40:60] = bytes(20)  # spoils the first member, not the directory at the end
    (where / "images.zip").write_bytes(bytes(data))
    with pytest.raises(ValueError, match=r"a\.jpg of image id photos/1"):
        photos[0].image()
    (where / "images.zip").unlink()
    with pytest.raises(FileNotFoundError, match="is gone"):
        photos[2].image()


@pytest.mark.parametrize(
    ("name", "owner", "photos", "captions"),
    [("coco_open", None, 65, 325), ("ucm_train", "class", 1680, 8400), ("fsa_color", "photographer", 1367, 1367)],
)
def test_real_folders(name: str, owner: str | None, photos: int, captions: int) -> None:
    """Counts as their authors state them; the first, a middle and the last picture open."""
    if not (SHARED / name / "captions.json").is_file():
        pytest.skip(f"the real photos of {name} are not on this machine; set MMSLM_SHARED_DATA to their folder")
    found = CocoPhotos(SHARED / name, owner=owner)
    assert len(found) + found.skipped == photos
    assert found.skipped == 0
    assert sum(len(photo.captions) for photo in found) == captions
    for index in (0, len(found) // 2, -1):
        assert found[index].image(96).size == (96, 96)
    if owner == "photographer":
        assert 5 < len(found.owners) < 200
