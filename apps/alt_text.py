"""Alternative texts for many pictures at once: one CSV, HTML or JSON file, with progress, and resumable.

Each picture gets a short text (at most 125 characters, no "image of", what matters first) and a longer description;
a picture about which the model is not sure is marked for review and gets no text when the model cannot tell.
Personal data that the model reads in a picture are blacked out, since this is written to disk. While it works, a
journal beside the output holds what is finished: the same command goes on after a stop, as long as picture, model
and level are the same. It refuses an unknown output format and an empty list before the model is loaded.
"""

from __future__ import annotations

import csv
import hashlib
import html
import io
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from apps import quality, safety
from apps.captioner import LEVELS, MAX_TOKENS, Narrating
from apps.i18n import say
from mmslm.data.photo import open_image
from mmslm.prompts import CAPTION_PROMPTS

FORMATS = (".csv", ".html", ".json")


@dataclass(frozen=True)
class Entry:
    """What is written for one picture; ``error`` is one sentence, or empty. ``digest`` is the SHA-256 of the file."""

    file: str
    digest: str
    alt: str = ""
    description: str = ""
    certainty: str = "unknown"
    review: bool = True
    notices: tuple[str, ...] = field(default_factory=tuple)
    advice: tuple[str, ...] = field(default_factory=tuple)
    error: str = ""


def describe(narrator: Narrating, path: Path, name: str, digest: str, level: str) -> Entry:
    """The entry of one picture; what goes wrong with the file becomes its ``error``."""
    try:
        image = open_image(path)
    except (OSError, ValueError) as error:
        return Entry(file=name, digest=digest, error=str(error))
    flaws = quality.flaws(image)
    encoded = narrator.look(image)

    def reply(style: str) -> tuple[str, float]:
        pieces = list(narrator.stream(encoded, CAPTION_PROMPTS[style], max_new_tokens=MAX_TOKENS[style]))
        text = safety.redact(safety.people(safety.plain("".join(piece.text for piece in pieces))))
        text = safety.sentence(safety.quoted(text) if style == "text" else text)
        return text, narrator.confidence_of([piece.confidence for piece in pieces])

    short, certainty = reply("short")
    long = short if level == "short" else reply(level)[0]
    tier = quality.tier(certainty, flaws, proven=quality.is_proven(narrator)) if short else "unknown"
    return Entry(
        file=name,
        digest=digest,
        alt="" if tier == "unknown" else safety.shorten(short),
        description=long,
        certainty=tier,
        review=tier != "sure",
        notices=safety.notices(long),
        advice=flaws,
    )


def run(
    files: Sequence[Path], out: Path, *, model_dir: Path, level: str = "detailed", narrator: Narrating | None = None
) -> int:
    """Writes ``out`` (.csv, .html or .json) for ``files``; 0 when every picture could be read, else 2.

    Raises ValueError for another ending, an unknown level or no files, and OSError when ``out`` cannot be written.
    """
    if out.suffix.lower() not in FORMATS:
        raise ValueError(
            f"{out.name} ends in {out.suffix or 'nothing'}: name a file that ends in {', '.join(FORMATS)}."
        )
    if level not in LEVELS:
        raise ValueError(f"There is no level {level!r}: choose one of {', '.join(LEVELS)}.")
    if not files:
        raise ValueError("There is no picture to describe: give at least one file.")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {out.parent}: make it, or choose another place for {out.name}.")
    if narrator is None:
        from mmslm.generation import Narrator

        narrator = Narrator.load(model_dir)
    common, names = _names(files)
    key = _model_key(model_dir, level)
    journal = out.with_name(f".{out.name}.progress")
    known = _read_journal(journal, key)
    entries: list[Entry] = []
    from tqdm import tqdm

    with journal.open("a", encoding="utf-8") as log:
        if not known and journal.stat().st_size == 0:
            _append(log, {"key": key})
        for path, name in tqdm(list(zip(files, names, strict=True)), desc="describing", unit="picture", disable=None):
            digest = _digest(path)
            entry = known.get((name, digest))
            if entry is None:
                entry = describe(narrator, path, name, digest, level)
                _append(log, {"entry": asdict(entry)})
            entries.append(entry)
    _write(out, render(entries, out.suffix.lower(), os.path.relpath(common, out.resolve().parent)))
    journal.unlink()
    failed = [entry for entry in entries if entry.error]
    for entry in failed:
        sys.stderr.write(f"mmslm caption: {entry.error}\n")
    unknown = sum(entry.certainty == "unknown" and not entry.error for entry in entries)
    review = sum(entry.review and not entry.error for entry in entries) - unknown
    sys.stderr.write(
        f"{len(entries) - len(failed)} of {len(entries)} pictures are in {out}: {review} should be checked by a person, "
        f"{unknown} got no text because the model cannot tell.\n"
    )
    return 2 if failed else 0


def render(entries: Sequence[Entry], form: str, folder: str = ".") -> str:
    """The entries as CSV, JSON or a page with the pictures (``form``: ".csv", ".json", ".html").

    ``folder``: where the pictures are, seen from the page.
    """
    if form == ".json":
        rows = [{k: v for k, v in asdict(entry).items() if k != "digest"} for entry in entries]
        return json.dumps(rows, ensure_ascii=False, indent=2) + "\n"
    if form == ".csv":
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\r\n")
        writer.writerow(["file", "alt", "description", "certainty", "review", "warnings", "photo", "error"])
        for entry in entries:
            warnings = " ".join(say(f"notice.{name}") for name in entry.notices)
            photo = " ".join(say(f"advice.{name}") for name in entry.advice)
            row = [
                entry.file,
                entry.alt,
                entry.description,
                entry.certainty,
                "yes" if entry.review else "no",
                warnings,
                photo,
                entry.error,
            ]
            writer.writerow([_cell(value) for value in row])
        return buffer.getvalue()
    return _page(entries, folder)


def _cell(value: str) -> str:
    """A spreadsheet runs cells that begin with these signs: they are written as text."""
    return "'" + value if value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


def _page(entries: Sequence[Entry], folder: str) -> str:
    certainty = {
        "sure": "Fairly sure",
        "unsure": "May be wrong: check it",
        "unknown": "Cannot tell: write the text yourself",
    }
    blocks = []
    for entry in entries:
        source = html.escape(quote((Path(folder) / entry.file).as_posix()), quote=True)
        if entry.error:
            body = f"<p><strong>Not described.</strong> {html.escape(entry.error)}</p>"
        else:
            notes = [say(f"notice.{n}") for n in entry.notices] + [say(f"advice.{n}") for n in entry.advice]
            body = (
                f'<img src="{source}" alt="{html.escape(entry.alt, quote=True)}" loading="lazy">'
                f"<p><code>alt=&quot;{html.escape(entry.alt)}&quot;</code></p><p>{html.escape(entry.description)}</p>"
                f'<p class="{entry.certainty}">{certainty[entry.certainty]}</p>'
                + "".join(f"<p>{html.escape(n)}</p>" for n in notes)
            )
        blocks.append(f"<section><h2>{html.escape(entry.file)}</h2>{body}</section>")
    style = (
        "body{font:1rem/1.55 system-ui,sans-serif;max-width:50rem;margin:2rem auto;padding:0 1rem;color:#14202e;background:#fff}"
        "img{max-width:100%;max-height:20rem;border-radius:.5rem}section{border-top:1px solid #c5ced8;padding:1rem 0}"
        "h2{font-size:1rem;overflow-wrap:anywhere}code{background:#eef2f5;padding:.15rem .3rem;overflow-wrap:anywhere}"
        ".sure{color:#14532d}.unsure,.unknown{color:#6b4300;font-weight:700}"
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>Alternative texts</title><style>{style}</style></head><body><main><h1>Alternative texts</h1>"
        "<p>Written by a small model on one machine. Read each one before you publish it.</p>"
        + "".join(blocks)
        + "</main></body></html>\n"
    )


def _names(files: Sequence[Path]) -> tuple[Path, list[str]]:
    """The folder that all files share, and their names in it: the same run elsewhere names them alike."""
    resolved = [path.resolve() for path in files]
    common = Path(os.path.commonpath([path.parent for path in resolved]))
    return common, [path.relative_to(common).as_posix() for path in resolved]


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""


def _model_key(model_dir: Path, level: str) -> str:
    """What must be the same for a journal to be gone on with: weights and level."""
    return hashlib.sha256(f"{_digest(Path(model_dir) / 'model.safetensors')} {level}".encode()).hexdigest()


def _append(log: Any, line: dict[str, Any]) -> None:
    log.write(json.dumps(line, ensure_ascii=False) + "\n")
    log.flush()


def _read_journal(journal: Path, key: str) -> dict[tuple[str, str], Entry]:
    """What an earlier, stopped run finished; a journal of another model or level is begun anew, a cut last line dropped."""
    try:
        lines = journal.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return {}
    found: dict[tuple[str, str], Entry] = {}
    try:
        if not lines or json.loads(lines[0]) != {"key": key}:
            raise ValueError("another journal")
        for line in lines[1:]:
            try:
                raw = json.loads(line)["entry"]
                entry = Entry(**{**raw, "notices": tuple(raw["notices"]), "advice": tuple(raw["advice"])})
            except (ValueError, KeyError, TypeError):
                continue
            if not entry.error:
                found[entry.file, entry.digest] = entry
    except ValueError:
        journal.unlink()
        return {}
    # A cut last line would glue to the next one.
    journal.write_text(
        "".join(
            [lines[0] + "\n", *(json.dumps({"entry": asdict(e)}, ensure_ascii=False) + "\n" for e in found.values())]
        ),
        encoding="utf-8",
    )
    return found


def _write(out: Path, text: str) -> None:
    """All or nothing: a reader never sees half a file."""
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)
