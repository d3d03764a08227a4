"""Sessions are bounded, separate and forgettable; nothing that is no photo reaches a decoder."""

from __future__ import annotations

import gc
import io
import struct
import weakref
import zlib

import pytest
from apps_support import data_url, encoded, picture
from PIL import Image

from apps.sessions import MAX_BYTES, Held, Sessions, Trouble, decode, field_of, receive


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
def test_every_form_that_the_page_promises_is_read(form: str) -> None:
    image = receive(data_url(encoded(picture(1), form)))
    assert image.mode == "RGB" and image.size == (240, 180)


@pytest.mark.parametrize(
    ("blob", "key"),
    [
        (b"", "error.empty"),
        (b"hello, I am a text", "error.not_an_image"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>', "error.not_an_image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "error.not_an_image"),
        (b"%PDF-1.7\n", "error.not_an_image"),
        (b"MZ\x90\x00" + bytes(200), "error.not_an_image"),
        (b"GIF89a" + b"\xff" * 40, "error.not_an_image"),
        (encoded(picture(1))[:600], "error.damaged"),
        (png_header(60000, 60000), "error.too_many_pixels"),
        (png_header(0, 5), None),
        (b"\xff\xd8\xff" + bytes(MAX_BYTES), "error.too_large"),
    ],
    ids=["empty", "text", "svg", "eps", "pdf", "program", "broken-gif", "cut", "bomb", "no-pixels", "large"],
)
def test_hostile_files_get_one_sentence(blob: bytes, key: str | None) -> None:
    with pytest.raises(Trouble) as trouble:
        decode(blob)
    if key is not None:
        assert trouble.value.key == key
    sentence = str(trouble.value)
    assert sentence.count(". ") == 0 and sentence.endswith(".") and 20 < len(sentence) < 160


def test_a_polyglot_is_only_its_pixels() -> None:
    buffer = io.BytesIO()
    picture(2).save(buffer, "PNG")
    image = decode(buffer.getvalue() + b"<script>alert(1)</script>PK\x03\x04")
    assert image.size == (240, 180) and not image.info.get("exif")


@pytest.mark.parametrize("data", [None, 7, "", ["x"], {"a": 1}])
def test_something_else_than_a_photo_is_no_photo(data: object) -> None:
    with pytest.raises(Trouble, match="no photo"):
        receive(data)


def test_what_is_not_base64_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(Trouble) as trouble:
        receive("data:image/png;base64,!!!!")
    assert trouble.value.key == "error.not_an_image"
    with pytest.raises(Trouble) as trouble:
        receive("A" * (MAX_BYTES * 2))
    assert trouble.value.key == "error.too_large"


def test_pages_do_not_see_each_other() -> None:
    sessions = Sessions()
    sessions.of("a").photos.append(Held(picture(1), "prefix"))
    assert sessions.of("b").photos == []
    assert len(sessions.of("a").photos) == 1


def test_forgetting_frees_the_photo_and_ends_what_waits() -> None:
    sessions = Sessions()
    image = picture(1)
    watcher = weakref.ref(image)
    session = sessions.of("a")
    session.photos.append(Held(image, "prefix", text="secret words"))
    session.turns.append({"question": "secret"})
    sessions.forget("a", "request-1")
    assert session.photos == [] and session.turns == [] and session.stopping("anything")
    assert sessions.of("a").stopping("request-1") and not sessions.of("a").stopping("request-2")
    del image
    gc.collect()
    assert watcher() is None
    sessions.forget("nobody")


def test_the_number_and_the_age_of_sessions_are_bounded() -> None:
    sessions = Sessions(limit=3)
    first = sessions.of("0")
    for name in "123456":
        sessions.of(name)
    assert len(sessions) == 3 and first.gone
    brief = Sessions(idle_seconds=-1.0)
    old = brief.of("a")
    brief.of("b")
    assert old.gone and len(brief) == 1
    with pytest.raises(ValueError, match="at least 1"):
        Sessions(limit=0)


def test_the_list_of_stopped_requests_is_bounded() -> None:
    session = Sessions().of("a")
    for number in range(500):
        session.halt(f"r{number}")
    assert len(session.halted) == 32 and session.stopping("r499")


def test_long_or_odd_fields_are_refused() -> None:
    assert field_of({"q": " why? "}, "q", 10) == "why?"
    assert field_of({}, "q", 10) == ""
    for bad in ({"q": "x" * 11}, {"q": 3}):
        with pytest.raises(Trouble, match="too long"):
            field_of(bad, "q", 10)


def test_transparent_cmyk_and_sixteen_bit_photos_are_converted() -> None:
    for mode in ("RGBA", "CMYK", "I;16", "L", "1", "P"):
        image = Image.new(mode, (40, 30))
        form = "TIFF" if mode in ("CMYK", "I;16") else "PNG"
        assert decode(encoded(image, form)).mode == "RGB"
