"""The ledger survives a crash between any two bytes, loses nothing when the disk is full, and shows every edit."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from privacy.canonical import UnreadableError, canonical_bytes
from privacy.events import GaussianRelease, Sampling
from privacy.ledger import (
    Ledger,
    LedgerError,
    LedgerTamperedError,
    LedgerTruncatedError,
    LedgerWriteError,
    entry_hash,
    read_entries,
)

HEADER = {"run": "test", "config_hash": "ab" * 32, "seed": 7}


def release(sigma: float = 1.1, label: str = "round") -> GaussianRelease:
    return GaussianRelease(sigma, Sampling("poisson", rate=0.05, population=400), unit="user", label=label)


def small_ledger(path: Path, steps: int = 3) -> Ledger:
    ledger = Ledger.create(path, HEADER)
    for step in range(steps):
        ledger.append(release(1.0 + step), step=step)
    return ledger


def test_what_was_recorded_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = small_ledger(path)
    ledger.remark("checkpoint", sha256="00" * 32)
    again = Ledger.open(path)
    assert again.header == HEADER
    assert again.events() == [release(1.0), release(2.0), release(3.0)] == ledger.events()
    assert again.steps() == [0, 1, 2]
    assert again.remarks("checkpoint") == [{"sha256": "00" * 32}]
    assert again.entries == ledger.entries
    assert again.head == ledger.head
    again.verify()
    assert [entry.to_json() for entry in read_entries(json.loads(json.dumps(again.to_json())))] == again.to_json()


def test_hashes_are_what_the_format_says(tmp_path: Path) -> None:
    # An independent recomputation of the chain from the bytes of the file.
    ledger = small_ledger(tmp_path / "ledger.jsonl")
    previous = "0" * 64
    for line in (tmp_path / "ledger.jsonl").read_bytes().splitlines():
        item = json.loads(line)
        said = item.pop("hash")
        body = json.dumps(item, sort_keys=True, separators=(",", ":"), ensure_ascii=False).replace(":1.0,", ":1,")
        body = body.replace(":2.0,", ":2,").replace(":3.0,", ":3,")
        previous = hashlib.sha256(f"mmslm.ledger/1\n{previous}\n{body}".encode()).hexdigest()
        assert said == previous
    assert ledger.head == previous


def test_one_step_order_of_keys_or_number_spelling_does_not_matter_but_content_does() -> None:
    body = {"kind": "header", "index": 0, "header": {"a": 1, "b": 2.0}}
    same = {"header": {"b": 2, "a": 1.0}, "index": 0, "kind": "header"}
    assert entry_hash("0" * 64, body) == entry_hash("0" * 64, same)
    assert entry_hash("0" * 64, body) != entry_hash("1" * 64, body)
    assert entry_hash("0" * 64, body) != entry_hash("0" * 64, {**body, "index": 1})


def test_a_cut_at_every_byte_is_detected_and_the_good_prefix_is_kept(tmp_path: Path) -> None:
    whole = tmp_path / "whole" / "ledger.jsonl"
    whole.parent.mkdir()
    small_ledger(whole)
    data = whole.read_bytes()
    ends = [index + 1 for index, byte in enumerate(data) if byte == 0x0A]
    head = (whole.parent / "ledger.jsonl.head").read_bytes()
    folder = tmp_path / "cut"
    for cut in range(len(data)):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        path = folder / "ledger.jsonl"
        path.write_bytes(data[:cut])
        (folder / "ledger.jsonl.head").write_bytes(head)
        with pytest.raises(LedgerTruncatedError):
            Ledger.open(path)
        kept = sum(end <= cut for end in ends)
        kept_with_unended_line = kept + (cut + 1 in ends)
        if kept_with_unended_line == 0:
            with pytest.raises(LedgerTamperedError, match="no whole header"):
                Ledger.repair(path)
            assert path.read_bytes() == data[:cut]
            continue
        repaired = Ledger.repair(path)
        assert repaired.to_json()[:-1] == [json.loads(line) for line in data.splitlines()[:kept_with_unended_line]]
        record = repaired.to_json()[-1]
        assert record["kind"] == "repair"
        assert record["lost_entries"] == len(ends) - kept_with_unended_line
        assert record["lost_bytes"] == (0 if cut + 1 in ends else cut - ([0, *ends])[kept])
        # The chain goes on, and the repair stays in it.
        repaired.append(release(9.0), step=9)
        reopened = Ledger.open(path)
        assert [entry.kind for entry in reopened.entries[-2:]] == ["repair", "event"]
        reopened.verify()


def test_a_cut_at_every_byte_without_the_head_keeps_a_valid_prefix(tmp_path: Path) -> None:
    whole = tmp_path / "ledger.jsonl"
    small_ledger(whole)
    data = whole.read_bytes()
    lines = data.splitlines(keepends=True)
    boundaries = set(itertools.accumulate(map(len, lines)))
    (tmp_path / "ledger.jsonl.head").unlink()
    for cut in range(len(data)):
        whole.write_bytes(data[:cut])
        if cut in boundaries:
            ledger = Ledger.open(whole)  # indistinguishable from a run that ended here: said, and not hidden
            assert "cannot be seen" in ledger.notes[0]
        else:
            with pytest.raises(LedgerTruncatedError):
                Ledger.open(whole)


def test_a_crash_after_the_line_and_before_the_head_is_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = small_ledger(path)
    older = (tmp_path / "ledger.jsonl.head").read_bytes()
    ledger.append(release(5.0), step=3)
    (tmp_path / "ledger.jsonl.head").write_bytes(older)
    assert len(Ledger.open(path)) == 5
    for torn in range(len(older)):
        (tmp_path / "ledger.jsonl.head").write_bytes(older[:torn])
        assert len(Ledger.open(path)) == 5


def test_a_whole_ledger_is_repaired_into_itself(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    small_ledger(path)
    before = path.read_bytes()
    assert len(Ledger.repair(path)) == 4
    assert path.read_bytes() == before


def edit_first(lines: list[bytes]) -> list[bytes]:
    return [lines[0], lines[1].replace(b'"noise_multiplier":1,', b'"noise_multiplier":2,'), *lines[2:]]


EDITS = {
    "a changed number": edit_first,
    "reordered": lambda lines: [lines[0], lines[2], lines[1], lines[3]],
    "one dropped": lambda lines: [lines[0], lines[1], lines[3]],
    "one doubled": lambda lines: [*lines[:2], lines[1], *lines[2:]],
    "the header dropped": lambda lines: lines[1:],
    "the header twice": lambda lines: [lines[0], *lines],
    "a foreign line": lambda lines: [*lines, b"{}\n"],
    "an added key": lambda lines: [*lines[:3], lines[3].replace(b'"index"', b'"aside":1,"index"')],
    "white space": lambda lines: [*lines[:3], lines[3].replace(b'"index":3', b'"index": 3')],
    "another number spelling": lambda lines: [*lines[:3], lines[3].replace(b'"index":3', b'"index":3.0')],
    "a blank line": lambda lines: [*lines[:2], b"\n", *lines[2:]],
    "NaN": lambda lines: [*lines[:3], lines[3].replace(b'"step":2', b'"step":NaN')],
}


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("with_head", [True, False])
def test_every_edit_is_seen_and_not_repaired(tmp_path: Path, edit: str, with_head: bool) -> None:
    path = tmp_path / "ledger.jsonl"
    small_ledger(path)
    lines = path.read_bytes().splitlines(keepends=True)
    changed = b"".join(EDITS[edit](lines))
    assert changed != path.read_bytes()
    path.write_bytes(changed)
    if not with_head:
        (tmp_path / "ledger.jsonl.head").unlink()
    with pytest.raises(LedgerTamperedError):
        Ledger.open(path)
    with pytest.raises(LedgerTamperedError):
        Ledger.repair(path)
    assert path.read_bytes() == changed


def test_a_ledger_that_replaced_another_is_seen_by_the_head(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    small_ledger(path)
    other = tmp_path / "other.jsonl"
    longer = Ledger.create(other, HEADER)
    for step in range(5):
        longer.append(release(9.0), step=step)
    path.write_bytes(other.read_bytes())
    with pytest.raises(LedgerTamperedError, match="is not the ledger"):
        Ledger.open(path)


def test_create_never_overwrites(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    small_ledger(path)
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match=r"Ledger\.open"):
        Ledger.create(path, HEADER)
    assert path.read_bytes() == before


def test_two_writers_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    first = small_ledger(path)
    second = Ledger.open(path)
    first.append(release(), step=3)
    with pytest.raises(LedgerError, match="another process"):
        second.append(release(), step=3)
    assert len(Ledger.open(path)) == 5


@pytest.mark.parametrize("allowed", [0, 1, 100])
def test_a_full_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: int) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = small_ledger(path)
    before = path.read_bytes()
    room = [allowed]
    real = os.write

    def full(descriptor: int, data: bytes) -> int:
        if room[0] <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken = real(descriptor, bytes(data)[: room[0]])
        room[0] -= taken
        return taken

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(LedgerWriteError, match="step was not taken") as caught:
        ledger.append(release(), step=3)
    assert caught.value.errno == errno.ENOSPC
    assert "no space left" in str(caught.value)
    assert path.read_bytes() == before
    monkeypatch.undo()
    ledger.append(release(4.0), step=3)
    assert len(Ledger.open(path)) == 5


def test_the_system_running_out_of_file_size_loses_nothing(tmp_path: Path) -> None:
    # A real refusal by the kernel, in the middle of a line.
    path = tmp_path / "ledger.jsonl"
    small_ledger(path)
    before = path.read_bytes()
    code = (
        "import resource, signal, sys; from pathlib import Path; from privacy.ledger import Ledger\n"
        "from privacy.events import GaussianRelease\n"
        "ledger = Ledger.open(sys.argv[1]); size = Path(sys.argv[1]).stat().st_size + 50\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))\n"
        "try: ledger.append(GaussianRelease(1.0), step=3)\n"
        "except OSError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert "intact" in done.stdout
    assert path.read_bytes() == before
    assert len(Ledger.open(path)) == 4


def test_an_entry_is_on_the_disk_before_append_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = small_ledger(path)
    synced: list[int] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_size)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    ledger.append(release(), step=3)
    assert path.stat().st_size in synced


@pytest.mark.parametrize("step", [-1, 1.5, True, "0"])
def test_impossible_steps_are_refused(tmp_path: Path, step: object) -> None:
    ledger = small_ledger(tmp_path / "ledger.jsonl")
    with pytest.raises(ValueError, match="step"):
        ledger.append(release(), step=step)  # type: ignore[arg-type]
    assert len(Ledger.open(ledger.path)) == 4


@pytest.mark.parametrize("name", ["loss", "batch_size", "clipped_fraction", "participants"])
def test_what_depends_on_the_data_is_refused(tmp_path: Path, name: str) -> None:
    ledger = small_ledger(tmp_path / "ledger.jsonl")
    with pytest.raises(ValueError, match="private"):
        ledger.append(release(), step=3, **{name: 12})
    with pytest.raises(ValueError, match="private"):
        ledger.remark("evaluation", **{name: 12})


def test_absent_and_special_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnreadableError, match="No such file"):
        Ledger.open(tmp_path / "absent.jsonl")
    with pytest.raises(UnreadableError, match="directory"):
        Ledger.open(tmp_path)


def test_an_impossible_event_with_a_good_hash_is_refused(tmp_path: Path) -> None:
    ledger = small_ledger(tmp_path / "ledger.jsonl", steps=1)
    objects = ledger.to_json()
    body = {key: value for key, value in objects[1].items() if key != "hash"}
    body["event"] = {**body["event"], "noise_multiplier": -1}
    objects[1] = {**body, "hash": entry_hash(objects[0]["hash"], body)}
    with pytest.raises(LedgerTamperedError, match="impossible event"):
        read_entries(objects)
    assert canonical_bytes(objects)  # the forgery was well formed


def test_a_thousand_entries_are_appended_and_read_in_a_second_or_two(tmp_path: Path) -> None:
    ledger = small_ledger(tmp_path / "ledger.jsonl", steps=1000)
    assert len(Ledger.open(ledger.path).events()) == 1000
