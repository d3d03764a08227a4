"""In six languages the page's language, direction and words follow, nothing overflows, and Arabic is accessible as
well.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from apps_support import Speaker, encoded, keep, listen, picture, said, violations

from apps.assistant import Assistant
from apps.captioner import Captioner
from apps.i18n import LANGUAGES, RIGHT_TO_LEFT, words
from apps.shell import serve

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    speaker = Speaker(confidence=0.6)
    with serve({"captioner": Captioner(speaker), "assistant": Assistant(speaker)}, port=0) as found:
        yield found


@pytest.mark.parametrize("code", LANGUAGES)
def test_the_page_speaks_the_browsers_language(chromium: Any, address: str, axe_source: str, code: str) -> None:
    context = chromium.new_context(
        locale=f"{code}-{'CN' if code == 'zh' else code.upper()}",
        viewport={"width": 320, "height": 700},
        reduced_motion="reduce",
    )
    page = context.new_page()
    page.goto(address)
    page.wait_for_selector("#view-captioner [data-ready=yes]", timeout=60000)
    own = words()[code]
    assert page.evaluate("[document.documentElement.lang, document.documentElement.dir]") == [
        code,
        "rtl" if code in RIGHT_TO_LEFT else "ltr",
    ]
    for part in ("nav a", "[data-describe]", "[data-ask]"):
        found = page.evaluate("(s) => getComputedStyle(document.querySelector(s)).direction", part)
        assert found == ("rtl" if code in RIGHT_TO_LEFT else "ltr"), part
    assert page.inner_text("#captioner-title") == own["captioner.title"]
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth + 1")
    listen(page)
    page.set_input_files(
        "#view-captioner [data-file]", {"name": "p.png", "mimeType": "image/png", "buffer": encoded(picture(41))}
    )
    page.wait_for_selector("#view-captioner [data-phase=done]", timeout=60000)
    page.wait_for_timeout(150)
    assert said(page) == [
        ["status", own["say.looking"]],
        ["status", f"{own['notice.heat']} {own['tier.unsure']} A red kettle stands on a table beside a blue cup."],
    ]
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth + 1")
    # What the model says stays in its own language and direction.
    assert page.evaluate(
        "(() => { const c = document.querySelector('[data-caption]'); return [c.lang, c.dir]; })()"
    ) == ["en", "ltr"]
    if code in RIGHT_TO_LEFT:
        page.set_viewport_size({"width": 1280, "height": 860})
        assert violations(page, axe_source) == []
        keep(page, f"captioner-{code}")
        page.select_option("[data-language]", "en")
        assert page.evaluate("document.documentElement.dir") == "ltr"
        assert page.inner_text("[data-tier]") == words()["en"]["tier.unsure"]
    context.close()
