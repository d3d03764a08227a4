"""open_image: every kind of file becomes plain RGB or one clear sentence."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmslm.data.photo import MAX_PIXELS, Photo, open_image
from mmslm.data.scenes import public_photo


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises many pixels and holds hardly any: nothing of it may be decoded."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    )


def test_plain_png_keeps_every_pixel(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, size=(9, 7, 3), dtype=np.uint8)
    path = tmp_path / "plain.png"
    Image.fromarray(pixels).save(path)
    for source in (path, str(path), path.read_bytes()):
        image = open_image(source)
        assert image.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(image), pixels)


@pytest.mark.parametrize(
    ("mode", "form", "fill", "expected"),
    [
        ("CMYK", "JPEG", (0, 255, 255, 0), (254, 0, 0)),
        ("L", "PNG", 77, (77, 77, 77)),
        ("1", "PNG", 1, (255, 255, 255)),
        ("P", "GIF", 0, (0, 0, 0)),
        ("LA", "PNG", (100, 255), (100, 100, 100)),
        ("RGBA", "PNG", (10, 20, 30, 255), (10, 20, 30)),
    ],
)
def test_other_modes_become_rgb(mode: str, form: str, fill: object, expected: tuple[int, int, int]) -> None:
    image = open_image(encoded(Image.new(mode, (8, 8), fill), form))
    assert image.mode == "RGB"
    assert np.abs(np.asarray(image.getpixel((4, 4))).astype(int) - expected).max() <= 3


def test_transparency_is_laid_on_white() -> None:
    clear = encoded(Image.new("RGBA", (4, 4), (255, 0, 0, 0)), "PNG")
    assert open_image(clear).getpixel((1, 1)) == (255, 255, 255)
    half = encoded(Image.new("RGBA", (4, 4), (0, 0, 0, 128)), "PNG")
    assert open_image(half).getpixel((1, 1)) == pytest.approx((127, 127, 127), abs=1)
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([200, 0, 0] * 256)
    assert open_image(encoded(palette, "PNG", transparency=0)).getpixel((1, 1)) == (255, 255, 255)
    colour_key = encoded(Image.new("RGB", (4, 4), (1, 2, 3)), "PNG", transparency=(1, 2, 3))
    assert open_image(colour_key).getpixel((1, 1)) == (255, 255, 255)


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    levels = np.array([[0, 257 * 10, 257 * 128, 65535]], dtype=np.uint16)
    for form in ("PNG", "TIFF"):
        image = open_image(encoded(Image.fromarray(levels), form))
        assert image.mode == "RGB"
        assert [image.getpixel((x, 0))[0] for x in range(4)] == [0, 10, 128, 255]


def test_sixteen_bit_dark_picture_stays_dark() -> None:
    """A 16-bit file whose brightest level is 200 of 65535 is nearly black, not an 8-bit picture."""
    levels = np.full((4, 4), 200, dtype=np.uint16)
    assert open_image(encoded(Image.fromarray(levels), "PNG")).getpixel((0, 0)) == (1, 1, 1)


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (6, 6), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    for form in ("GIF", "WEBP", "PNG"):
        data = encoded(frames[0], form, save_all=True, append_images=frames[1:], duration=50, **(
            {"lossless": True} if form == "WEBP" else {}
        ))  # fmt: skip
        assert open_image(data).getpixel((3, 3)) == pytest.approx((255, 0, 0), abs=2)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    """Whatever way the camera was held, the marked corner ends where a viewer would see it."""
    corner_of = {1: (0, 0), 2: (1, 0), 3: (1, 1), 4: (0, 1), 5: (0, 0), 6: (1, 0), 7: (1, 1), 8: (0, 1)}
    pixels = np.zeros((16, 32, 3), dtype=np.uint8)
    pixels[:8, :8] = (255, 255, 255)  # the stored top left corner
    image = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = orientation
    opened = open_image(encoded(image, "JPEG", exif=exif.tobytes(), quality=95))
    assert opened.size == ((16, 32) if orientation >= 5 else (32, 16))
    right, low = corner_of[orientation]
    x, y = (opened.width - 3 if right else 2), (opened.height - 3 if low else 2)
    assert min(opened.getpixel((x, y))) > 200


@pytest.mark.parametrize("data", [b"no image at all", b"%PDF-1.7 something", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_image_is_refused(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "holiday.jpg"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"^holiday\.jpg .*(not an image|truncated)"):
        open_image(path)


def test_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.png").write_bytes(b"")
    with pytest.raises(ValueError, match="is empty"):
        open_image(tmp_path / "empty.png")


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
def test_truncated_files_are_refused(form: str) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, size=(64, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(pixels), form)
    with pytest.raises(ValueError, match=r"truncated or damaged|not an image"):
        open_image(data[: len(data) // 2])


def test_no_pixels_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no pixels|not an image"):
        open_image(png_header(0, 10))
    # A PPM may say so in its header and reach Pillow.
    with pytest.raises(ValueError, match=r"no pixels|not an image"):
        open_image(b"P6 0 4 255\n")


@pytest.mark.parametrize(("width", "height"), [(9000, 9000), (40_000, 40_000), (1_000_000, 1000)])
def test_billions_of_pixels_are_refused_before_decoding(width: int, height: int) -> None:
    assert width * height > MAX_PIXELS
    with pytest.raises(ValueError, match=r"64 megapixels"):
        open_image(png_header(width, height))


def test_just_allowed_size_is_not_called_too_large() -> None:
    with pytest.raises(ValueError, match=r"truncated or damaged"):  # allowed, but the file holds no such pixels
        open_image(png_header(8000, 8000))


def test_missing_file_folder_and_wrong_type(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no image file at .*nowhere\.jpg"):
        open_image(tmp_path / "nowhere.jpg")
    with pytest.raises(ValueError, match="is a folder"):
        open_image(tmp_path)
    with pytest.raises(TypeError, match="give a path or the bytes"):
        open_image(3)  # type: ignore[arg-type]


def test_errors_are_one_sentence_without_a_path_of_the_machine(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"junk")
    with pytest.raises(ValueError) as caught:
        open_image(tmp_path / "x.png")
    assert str(tmp_path) not in str(caught.value)
    assert str(caught.value).count("\n") == 0


def test_scene_photos_are_photos() -> None:
    assert isinstance(public_photo(0), Photo)


def test_floating_point_pictures_keep_their_tones() -> None:
    ramp = np.array([[0.0, 0.5, 1.0]], dtype=np.float32)
    for scale in (1.0, 255.0, 4000.0):
        image = open_image(encoded(Image.fromarray(ramp * scale), "TIFF"))
        assert [image.getpixel((x, 0))[0] for x in range(3)] == pytest.approx([0, 127.5, 255], abs=1)
