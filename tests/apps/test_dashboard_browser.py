"""The privacy dashboard in a real browser: accessible in every state, dropped files included, and saved as a page."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from apps_reports import begin, make_run
from apps_support import keep, listen, said, violations

from apps.dashboard import Dashboard
from apps.shell import serve
from privacy.report import Pricer

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Runs in a folder that is named as a person's is, from where the program was started."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("home"))
        yield made(Path("runs"))


def made(folder: Path) -> Path:
    forged = make_run(folder / "quickstart", Pricer())
    shutil.copytree(folder / "quickstart", folder / "forged")
    forged["claim"]["epsilon"] = 0.5
    (folder / "forged" / "report.json").write_text(json.dumps(forged))
    begin(folder / "going", rounds=4)
    return folder


@pytest.fixture(scope="module")
def address(runs: Path) -> Iterator[str]:
    with serve({"privacy": Dashboard([runs])}, port=0) as found:
        yield found


def opened(chromium: Any, address: str, **settings: Any) -> Any:
    context = chromium.new_context(
        **{"viewport": {"width": 1280, "height": 860}, "reduced_motion": "reduce", "accept_downloads": True, **settings}
    )
    page = context.new_page()
    page.goto(address)
    page.wait_for_selector("[data-ready=yes]", timeout=120000)
    page.wait_for_selector(".found-list li")
    return page


def choose(page: Any, path: Path) -> None:
    page.locator(".found-list button").get_by_text(str(path), exact=True).click()
    page.wait_for_selector("[data-phase=done]", timeout=120000)
    page.wait_for_selector(".report-page")
    page.wait_for_timeout(200)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_state_has_no_axe_violation(
    chromium: Any, address: str, runs: Path, axe_source: str, scheme: str
) -> None:
    page = opened(chromium, address, color_scheme=scheme)
    assert violations(page, axe_source) == []
    listen(page)
    choose(page, runs / "quickstart")
    assert [role for role, _ in said(page)] == ["status", "status"]
    assert said(page)[1][1].startswith("The promise follows from its evidence.")
    assert violations(page, axe_source) == []
    keep(page, f"privacy-report-{scheme}")
    choose(page, runs / "forged")
    page.wait_for_selector(".verdict.fail")
    assert violations(page, axe_source) == []
    choose(page, runs / "going")
    page.wait_for_function("document.querySelector('.report-page').textContent.includes('4 of 10 releases')")
    assert violations(page, axe_source) == []
    page.fill("[data-path]", "/nothing/here")
    page.press("[data-path]", "Enter")
    page.wait_for_selector("[data-phase=error]")
    page.wait_for_timeout(100)
    assert "nothing at" in page.inner_text("[role=alert]")
    assert violations(page, axe_source) == []
    page.context.close()


def test_a_folder_is_compared_and_reflows(chromium: Any, address: str, runs: Path, axe_source: str) -> None:
    page = opened(chromium, address, viewport={"width": 320, "height": 700})
    page.fill("[data-path]", str(runs))
    page.press("[data-path]", "Enter")
    page.wait_for_function(
        "document.querySelector('.report-page')?.textContent.includes('2 reports were checked')", timeout=120000
    )
    page.wait_for_selector("[data-phase=done]")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth + 1")
    assert violations(page, axe_source) == []
    keep(page, "privacy-compare-320-pixels")
    for scheme in ("light", "dark"):
        page.set_viewport_size({"width": 1280, "height": 860})
        page.emulate_media(color_scheme=scheme)
        page.wait_for_timeout(200)
        assert violations(page, axe_source) == []
        keep(page, f"privacy-compare-{scheme}")
    page.context.close()


def test_a_dropped_report_is_opened_and_saved_as_a_page(chromium: Any, address: str, runs: Path) -> None:
    page = opened(chromium, address)
    page.set_input_files("[data-file]", str(runs / "quickstart" / "report.json"))
    page.wait_for_selector(".verdict", timeout=120000)
    page.wait_for_selector("[data-phase=done]")
    with page.expect_download() as download:
        page.click("[data-export]")
    text = Path(download.value.path()).read_text(encoding="utf-8")
    assert download.value.suggested_filename.endswith(".html") and "Privacy report" in text
    page.context.close()


def test_a_folder_is_chosen_and_several_files_are_dropped(chromium: Any, address: str, runs: Path) -> None:
    page = opened(chromium, address)
    page.set_input_files("[data-folder]", str(runs / "quickstart"))
    page.wait_for_selector(".verdict", timeout=120000)
    page.wait_for_selector("[data-phase=done]")
    assert "What it bought" in page.inner_text(".report-page")
    page.set_input_files("[data-folder]", str(runs))
    page.wait_for_function("document.querySelector('.report-page').textContent.includes('2 reports were checked')")
    texts = [(runs / "quickstart" / name).read_text() for name in ("report.json", "ledger.jsonl")]
    page.evaluate(
        """(texts) => {
             const files = new DataTransfer();
             ["report.json", "ledger.jsonl"].forEach((name, i) => files.items.add(new File([texts[i]], name)));
             document.querySelector("[data-drop]").dispatchEvent(
               new DragEvent("drop", {dataTransfer: files, bubbles: true, cancelable: true}));
           }""",
        texts,
    )
    page.wait_for_selector(".verdict")
    page.context.close()


def test_the_printed_page_holds_the_report_and_none_of_the_controls(
    chromium: Any, address: str, runs: Path, tmp_path: Path
) -> None:
    page = opened(chromium, address)
    choose(page, runs / "quickstart")
    page.emulate_media(media="print")
    assert page.is_hidden(".top") and page.is_hidden(".open-card") and page.is_visible(".report-page table >> nth=0")
    # What is folded on the screen is open on paper.
    assert page.is_visible(".report-page details table")
    pdf = page.pdf(prefer_css_page_size=True, tagged=True)
    assert pdf.startswith(b"%PDF") and b"/StructTreeRoot" in pdf
    page.context.close()
