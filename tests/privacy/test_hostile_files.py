"""Files written to hurt the auditor: each is refused with exit code 2 and one sentence, in bounded time and memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from report_samples import change, events_of, make_run

from privacy.audit import audit_paths
from privacy.canonical import canonical_bytes
from privacy.report import Pricer


@pytest.fixture(scope="module")
def pricer() -> Pricer:
    return Pricer()


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory, pricer: Pricer) -> bytes:
    folder = tmp_path_factory.mktemp("good") / "run"
    make_run(folder, pricer)
    return (folder / "report.json").read_bytes()


def must_be_unreadable(path: Path, pricer: Pricer, seconds: float = 10.0) -> str:
    started = time.process_time()
    result = audit_paths([path], pricer=pricer)
    assert time.process_time() - started < seconds
    assert result.exit_code == 2, result.to_text()
    (item,) = result.unreadable
    assert item.reason.endswith(".")
    assert "\n" not in item.reason
    assert "Traceback" not in item.reason
    json.loads(result.to_json())
    return item.reason


def text_edits(good: bytes) -> dict[str, bytes]:
    return {
        "empty": b"",
        "not JSON": b"epsilon: 8\n",
        "a list": b"[]",
        "a number": b"8",
        "another document": b'{"epsilon": 8}',
        "nesting of lists": b"[" * 5_000_000,
        "nesting of objects": b'{"a":' * 1_000_000,
        "nesting inside a report": good.replace(b'"annex":null', b'"annex":' + b'{"a":' * 5000 + b"1" + b"}" * 5000),
        "NaN": good.replace(b'"delta":0.001', b'"delta":NaN', 1),
        "Infinity": good.replace(b'"delta":0.001', b'"delta":Infinity', 1),
        "an overflow": good.replace(b'"delta":0.001', b'"delta":1e400', 1),
        "a negative delta": good.replace(b'"delta":0.001', b'"delta":-0.001', 1),
        "a delta as text": good.replace(b'"delta":0.001', b'"delta":"0.001"', 1),
        "a huge integer": good.replace(b'"population":400', b'"population":' + b"9" * 100_000, 1),
        "a duplicate key": good.replace(b'"delta":0.001', b'"delta":0.001,"delta":0.0001', 1),
        "an unknown key": good.replace(b'"claim":{', b'"claim":{"approved":true,', 1),
        "a byte-order mark": b"\xef\xbb\xbf" + good,
        "UTF-16": good.decode().encode("utf-16"),
        "Latin-1": good.replace(b'"name":"run"', b'"name":"r\xfcn"', 1),
        "a lone surrogate": good.replace(b'"name":"run"', b'"name":"\\ud83d"', 1),
        "a missing part": canonical_bytes({k: v for k, v in json.loads(good).items() if k != "ledger"}),
        "an empty ledger": canonical_bytes({**json.loads(good), "ledger": {"entries": [], "head": "0" * 64}}),
        "ten million events": good.replace(b'"entries":[', b'"entries":[' + b"{}," * 10_000_000, 1),
        "another version": good.replace(b"privacy-report/1", b"privacy-report/2"),
    }


NAMES = [
    "empty", "not JSON", "a list", "a number", "another document", "nesting of lists", "nesting of objects",
    "nesting inside a report", "NaN", "Infinity", "an overflow", "a negative delta", "a delta as text",
    "a huge integer", "a duplicate key", "an unknown key", "a byte-order mark", "UTF-16", "Latin-1",
    "a lone surrogate", "a missing part", "an empty ledger", "ten million events", "another version",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_hostile_reports_are_unreadable(tmp_path: Path, pricer: Pricer, good: bytes, name: str) -> None:
    edits = text_edits(good)
    assert list(edits) == NAMES
    data = edits[name]
    assert data != good
    path = tmp_path / "report.json"
    path.write_bytes(data)
    must_be_unreadable(path, pricer)


def test_special_files_are_unreadable(tmp_path: Path, pricer: Pricer, good: bytes) -> None:
    (tmp_path / "real").mkdir()
    real = tmp_path / "real" / "x.json"
    real.write_bytes(good)
    link = tmp_path / "link.json"
    link.symlink_to(real)
    assert "symbolic link" in must_be_unreadable(link, pricer)
    pipe = tmp_path / "pipe.json"
    os.mkfifo(pipe)
    assert "pipe" in must_be_unreadable(pipe, pricer)
    assert "device" in must_be_unreadable(Path("/dev/zero"), pricer)
    assert "No such file" in must_be_unreadable(tmp_path / "absent.json", pricer)
    must_be_unreadable(Path("a\0b"), pricer)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "no report" in must_be_unreadable(empty, pricer)
    for number, make in enumerate(
        [lambda p: p.symlink_to(real), os.mkfifo, lambda p: p.mkdir(), lambda p: p.symlink_to(p)]
    ):
        folder = tmp_path / f"run{number}"
        folder.mkdir()
        make(folder / "report.json")
        must_be_unreadable(folder, pricer)


def test_links_that_go_round_are_not_followed(tmp_path: Path, pricer: Pricer) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "up").symlink_to(tmp_path, target_is_directory=True)
    must_be_unreadable(tmp_path, pricer)


def test_a_gigabyte_of_nesting_is_refused_within_little_memory(tmp_path: Path) -> None:
    bomb = tmp_path / "report.json"
    with bomb.open("wb") as file:
        file.write(b"[" * (1 << 20))
        file.truncate(1 << 30)
    smaller = tmp_path / "smaller.json"
    smaller.write_bytes(b"[" * (60 << 20))
    code = (
        "import resource, sys; from pathlib import Path; from privacy.audit import audit_paths\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "result = audit_paths([Path(p) for p in sys.argv[1:]])\n"
        "print(result.exit_code, len(result.unreadable), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    started = time.process_time()
    done = subprocess.run(
        [sys.executable, "-c", code, str(bomb), str(smaller)], capture_output=True, text=True, check=True
    )
    code_, unreadable, grown = done.stdout.split()
    assert (code_, unreadable) == ("2", "2")
    assert int(grown) < 300_000  # KiB; the smaller bomb itself is read, once as bytes and once as text
    assert time.process_time() - started < 60


def test_ten_million_real_looking_events_are_refused(tmp_path: Path, pricer: Pricer, good: bytes) -> None:
    entry = canonical_bytes(events_of(json.loads(good))[0]) + b","
    path = tmp_path / "report.json"
    with path.open("wb") as file:  # the first megabytes are real, the rest is a hole: nothing of it may be read
        file.write(good.replace(b'"entries":[', b'"entries":[' + entry * 10_000, 1)[:-10])
        file.truncate(10_000_000 * len(entry))
    assert "bytes" in must_be_unreadable(path, pricer, seconds=2.0)


def test_thirty_thousand_events_are_read_and_judged_in_time(tmp_path: Path, pricer: Pricer, good: bytes) -> None:
    report = json.loads(good)
    report["ledger"]["entries"] += [report["ledger"]["entries"][1]] * 30_000
    path = tmp_path / "report.json"
    path.write_bytes(canonical_bytes(report))
    started = time.process_time()
    result = audit_paths([path], pricer=pricer)
    assert result.exit_code == 1
    assert time.process_time() - started < 60


def many_mechanisms(report: dict[str, Any]) -> None:
    entries = report["ledger"]["entries"]
    for number in range(3000):
        entry = json.loads(json.dumps(entries[1]))
        entry["event"]["noise_multiplier"] = 1.0 + number / 1000
        entries.append(entry)


def tiny_noise(report: dict[str, Any]) -> None:
    for entry in events_of(report):
        entry["event"]["noise_multiplier"] = 1e-9


def huge_counts(report: dict[str, Any]) -> None:
    for entry in events_of(report):
        entry["event"]["count"] = 10**12


def subnormal_rate(report: dict[str, Any]) -> None:
    for entry in events_of(report):
        entry["event"]["sampling"]["rate"] = 5e-324


def subnormal_delta(report: dict[str, Any]) -> None:
    report["claim"]["delta"] = 5e-324


def endless_profile(report: dict[str, Any]) -> None:
    for point in report["claim"]["profile"]:
        point["epsilon"] *= 1e300


@pytest.mark.parametrize(
    "edit", [many_mechanisms, tiny_noise, huge_counts, subnormal_rate, subnormal_delta, endless_profile]
)
def test_numbers_chosen_to_exhaust_the_accountants_cost_little(tmp_path: Path, pricer: Pricer, edit: Any) -> None:
    folder = tmp_path / "run"
    make_run(folder, pricer)
    change(folder, edit, rechain=True)
    started = time.process_time()
    result = audit_paths([folder], pricer=pricer)
    assert result.exit_code == 1, result.to_text()
    assert time.process_time() - started < 60


def test_a_report_cannot_paint_the_terminal(tmp_path: Path, pricer: Pricer) -> None:
    folder = tmp_path / "run"
    make_run(folder, pricer)
    paint = "\x1b[2J\x1b[32mall is well\x1b]0;title\x07\r\n\u202egood"
    change(folder, lambda report: report["claim"].update(unit_definition=paint))
    change(folder, lambda report: report["outside"][3].update(statement=paint))
    text = audit_paths([folder], pricer=pricer).to_text()
    assert not set(text) & set("\x1b\x07\r\u202e")
    assert "\\x1b" in text


def test_one_hostile_file_does_not_keep_the_others_from_being_audited(tmp_path: Path, pricer: Pricer) -> None:
    make_run(tmp_path / "run", pricer)
    (tmp_path / "bomb.json").write_bytes(b"[" * 100)
    result = audit_paths([tmp_path], pricer=pricer)
    assert (result.exit_code, len(result.reports), len(result.unreadable)) == (2, 1, 1)
    change(tmp_path / "run", lambda report: report["claim"].update(epsilon=0.01))
    assert audit_paths([tmp_path], pricer=pricer).exit_code == 1  # a false claim is the graver news
