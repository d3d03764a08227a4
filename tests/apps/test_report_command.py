"""A report is saved as a page that loads nothing, and as a tagged PDF where a browser can print one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from apps_reports import make_run
from apps_support import CHROMIUM

from apps.cli import main
from apps.commands import report
from privacy.report import Pricer


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "one"
    make_run(folder, Pricer())
    return folder


def test_a_report_becomes_a_page_of_its_own(run: Path, tmp_path: Path) -> None:
    assert main(["report", "save", str(run), "--out", str(tmp_path / "r.html")]) == 0
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert page == (run / "report.html").read_text(encoding="utf-8") and "<script" not in page


@pytest.mark.browser
def test_a_report_becomes_a_tagged_pdf(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine: install it, or name it in MMSLM_CHROMIUM")
    monkeypatch.setenv("MMSLM_CHROMIUM", CHROMIUM)
    assert main(["report", "save", str(run / "report.json"), "--out", str(tmp_path / "r.pdf")]) == 0
    printed = (tmp_path / "r.pdf").read_bytes()
    assert printed.startswith(b"%PDF") and b"/StructTreeRoot" in printed
    assert len(re.findall(rb"/Type\s*/Page\b", printed)) >= 2
    assert [path.name for path in tmp_path.iterdir()] == ["r.pdf"]


@pytest.mark.parametrize(
    ("path", "out", "words"),
    [
        ("", "r.doc", "ends in .html or .pdf"),
        ("", "missing/r.html", "There is no folder"),
        ("nothing", "r.html", "nothing"),
    ],
)
def test_what_cannot_be_saved_is_one_sentence(
    run: Path, tmp_path: Path, path: str, out: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", "save", str(run / path) if path else str(run), "--out", str(tmp_path / out)]) == 2
    said = capsys.readouterr().err.strip()
    assert words in said and "\n" not in said and list(tmp_path.iterdir()) == []


def test_without_a_browser_the_person_is_told_what_to_do(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MMSLM_CHROMIUM", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(report, "APPLICATIONS", ())
    with pytest.raises(FileNotFoundError, match=r"save the report as \.html"):
        report.save(run, tmp_path / "r.pdf")
    monkeypatch.setenv("MMSLM_CHROMIUM", "/bin/false")
    with pytest.raises(OSError, match="print"):
        report.save(run, tmp_path / "r.pdf")
    assert list(tmp_path.iterdir()) == []
