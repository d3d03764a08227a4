"""Alternative texts are short, safe to publish after review, and a stopped run goes on where it was."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from apps_support import Said, Speaker, picture
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from apps import alt_text, safety
from mmslm.prompts import CAPTION_PROMPTS

SHORT, LONG = "A picture of a red kettle.", "A red kettle stands on a stove. Write to anna@example.org."


@pytest.fixture()
def folder(tmp_path: Path) -> Path:
    photos = tmp_path / "photos"
    (photos / "sub").mkdir(parents=True)
    for number in range(3):
        picture(number).save(photos / f"{number}.png")
    picture(9).save(photos / "sub" / 'x"><b>.png')
    Image.new("RGB", (50, 50), "grey").save(photos / "blank.png")
    (photos / "notes.jpg").write_text("no picture")
    return photos


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def speaker() -> Speaker:
    return Speaker({CAPTION_PROMPTS["short"]: SHORT, CAPTION_PROMPTS["detailed"]: LONG})


def test_json_holds_an_entry_for_every_file(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "alt.json"
    assert alt_text.run(files(folder), out, model_dir=tmp_path, narrator=speaker()) == 2
    rows = {row["file"]: row for row in json.loads(out.read_text())}
    assert len(rows) == 6
    assert rows["0.png"]["alt"] == "A red kettle." and rows["0.png"]["review"] is False
    assert rows["0.png"]["description"].endswith("Write to [e-mail].") and rows["0.png"]["notices"] == ["heat"]
    assert (
        rows["blank.png"]["alt"] == "" and rows["blank.png"]["certainty"] == "unknown" and rows["blank.png"]["review"]
    )
    assert "not an image" in rows["notes.jpg"]["error"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alt.json", "photos"]


def test_csv_is_read_back_and_runs_no_formula(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "alt.csv"
    narrator = Speaker({CAPTION_PROMPTS["short"]: "=HYPERLINK(1)", CAPTION_PROMPTS["detailed"]: "+1"})
    alt_text.run(files(folder)[:2], out, model_dir=tmp_path, narrator=narrator)
    rows = list(csv.DictReader(io.StringIO(out.read_text())))
    assert [row["file"] for row in rows] == ["0.png", "1.png"]
    assert all(row["alt"] == "'=HYPERLINK(1)." and row["description"] == "'+1." for row in rows)


def test_html_shows_each_picture_with_its_text_and_escapes_names(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "alt.html"
    alt_text.run(files(folder), out, model_dir=tmp_path, narrator=speaker())

    class Reader(HTMLParser):
        images: list[dict[str, Any]]
        tags: set[str]

        def handle_starttag(self, tag: str, attrs: Any) -> None:
            self.tags.add(tag)
            if tag == "img":
                self.images.append(dict(attrs))

    reader = Reader()
    reader.images, reader.tags = [], set()
    reader.feed(out.read_text())
    assert "b" not in reader.tags and "script" not in reader.tags
    assert {image["alt"] for image in reader.images} == {"A red kettle.", ""}
    assert all((tmp_path / unquote(image["src"])).is_file() for image in reader.images) and len(reader.images) == 5


class Stopped(Speaker):
    """Is interrupted at its third picture."""

    def stream(self, encoded: Any, prompt: str, max_new_tokens: int = 48) -> Iterator[Said]:
        if self.looked == 3:
            raise KeyboardInterrupt
        return super().stream(encoded, prompt, max_new_tokens)


def test_a_stopped_run_goes_on_where_it_was(folder: Path, tmp_path: Path) -> None:
    out, wanted = tmp_path / "alt.json", [folder / f"{number}.png" for number in range(3)]
    first = Stopped(speaker().replies)
    with pytest.raises(KeyboardInterrupt):
        alt_text.run(wanted, out, model_dir=tmp_path, narrator=first)
    assert not out.exists()
    second = speaker()
    assert alt_text.run(wanted, out, model_dir=tmp_path, narrator=second) == 0
    assert second.looked == 1 and len(json.loads(out.read_text())) == 3
    whole = tmp_path / "whole.json"
    alt_text.run(wanted, whole, model_dir=tmp_path, narrator=speaker())
    assert whole.read_text() == out.read_text()


def test_another_level_a_changed_picture_and_a_cut_journal_are_done_again(folder: Path, tmp_path: Path) -> None:
    out, wanted = tmp_path / "alt.json", [folder / f"{number}.png" for number in range(3)]
    with pytest.raises(KeyboardInterrupt):
        alt_text.run(wanted, out, model_dir=tmp_path, narrator=Stopped(speaker().replies))
    journal = tmp_path / ".alt.json.progress"
    journal.write_text(journal.read_text()[:-9])
    picture(77).save(wanted[0])
    again = speaker()
    alt_text.run(wanted, out, model_dir=tmp_path, narrator=again)
    assert again.looked == 3
    with pytest.raises(KeyboardInterrupt):
        alt_text.run(wanted, out, model_dir=tmp_path, narrator=Stopped(speaker().replies))
    other = speaker()
    alt_text.run(wanted, out, model_dir=tmp_path, level="short", narrator=other)
    assert other.looked == 3


@pytest.mark.parametrize(
    ("out", "level", "count", "message"),
    [
        ("x.txt", "detailed", 1, "ends in .csv"),
        ("x", "detailed", 1, "ends in .csv"),
        ("x.csv", "epic", 1, "choose one of"),
        ("x.csv", "short", 0, "at least one"),
        ("no/x.csv", "short", 1, "no folder"),
    ],
)
def test_what_cannot_be_done_is_refused_before_the_model_is_loaded(
    out: str, level: str, count: int, message: str, tmp_path: Path
) -> None:
    with pytest.raises((ValueError, OSError), match=message):
        alt_text.run([tmp_path / "a.png"] * count, tmp_path / out, model_dir=tmp_path / "none", level=level)


@given(st.text(max_size=400))
def test_the_short_text_never_exceeds_its_limit(text: str) -> None:
    assert len(safety.shorten(text)) <= safety.MAX_ALT


def test_the_short_text_ends_at_a_sentence_or_a_word() -> None:
    assert safety.shorten("An image of a dog") == "A dog"
    assert safety.shorten("This is a photo showing a dog") == "A dog"
    first = "A dog lies on a rug in front of a fire. "
    assert safety.shorten(first + "It sleeps, and " * 12) == first.strip()
    long = safety.shorten("word " * 60)
    assert long.endswith("word…") and len(long) <= 125
