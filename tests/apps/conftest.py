"""One Chromium for each file of tests, and axe-core, where the machine has them; else the tests say what is
missing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from apps_support import AXE, CHROMIUM


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """One browser for a file of tests: while it is open, Playwright keeps an event loop running in this thread, and no
    test of another file could start one.
    """
    if CHROMIUM is None:
        pytest.skip(
            "there is no Chromium on this machine: install it (apt-get install chromium), or name it in MMSLM_CHROMIUM"
        )
    playwright_api = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install playwright"
    )
    flags = [
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
    ]
    flags += ["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
    with playwright_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def axe_source() -> str:
    """The text of axe-core."""
    if not AXE.is_file():
        pytest.skip(
            "no axe-core here: npm install --no-save --no-package-lock axe-core, or name axe.min.js in MMSLM_AXE"
        )
    return AXE.read_text(encoding="utf-8")
