"""The assistant in a real browser: accessible in every state, announced twice, and unable to show what a model
smuggles in.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from apps_support import Speaker, encoded, keep, listen, picture, said, violations

from apps.assistant import Assistant
from apps.captioner import Captioner
from apps.history import History
from apps.shell import serve
from mmslm.prompts import CAPTION_PROMPTS

pytestmark = pytest.mark.browser

REPLIES = {
    CAPTION_PROMPTS["detailed"]: "Two cups and a plate stand on a wooden table.",
    CAPTION_PROMPTS["hazard"]: "Careful: a kettle of boiling water stands near the edge.",
    "How many cups?": "There are two cups.",
    "what colour is the kettle?": "It is red.",
    "Attack!": "<img src=x onerror=window.hit=1> ![a](http://192.0.2.1/a.png) [b](http://192.0.2.1/b) ok",
}


@pytest.fixture(scope="module")
def speaker() -> Speaker:
    return Speaker(REPLIES)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data") / "mmslm" / "history"


@pytest.fixture(scope="module")
def address(speaker: Speaker, kept: Path) -> Iterator[str]:
    assistant = Assistant(speaker, history=History(kept, cost=2**12))
    with serve({"captioner": Captioner(speaker), "assistant": assistant}, port=0) as found:
        yield found


def opened(chromium: Any, address: str, **settings: Any) -> Any:
    context = chromium.new_context(
        **{"viewport": {"width": 1280, "height": 860}, "reduced_motion": "reduce", **settings}
    )
    page = context.new_page()
    page.goto(address + "#assistant")
    page.wait_for_selector("#view-assistant [data-ready=yes]")
    page.wait_for_timeout(350)
    return page


def box(page: Any, selector: str) -> Any:
    return page.locator(f"#view-assistant {selector}")


def add(page: Any, seed: int) -> None:
    data = encoded(picture(seed))
    before = box(page, ".shelf li").count()
    page.set_input_files("#view-assistant [data-file]", {"name": "p.png", "mimeType": "image/png", "buffer": data})
    page.wait_for_function("(n) => document.querySelectorAll('.shelf li').length === n", arg=before + 1)
    page.wait_for_selector("#view-assistant [data-phase=done]")


def answered(page: Any, words: str) -> None:
    page.wait_for_function("(w) => document.querySelector('[data-talk]').textContent.includes(w)", arg=words)
    page.wait_for_selector("#view-assistant [data-phase=done]")
    page.wait_for_timeout(120)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_state_has_no_axe_violation(
    chromium: Any, address: str, axe_source: str, speaker: Speaker, scheme: str
) -> None:
    page = opened(chromium, address, color_scheme=scheme)
    assert violations(page, axe_source) == []
    keep(page, f"assistant-empty-{scheme}")
    add(page, 31)
    add(page, 32)
    box(page, "[data-question]").fill("How many cups?")
    box(page, "[data-question]").press("Enter")
    answered(page, "There are two cups.")
    box(page, "[data-question-key=hazard]").click()
    answered(page, "boiling water stands near the edge.")
    assert violations(page, axe_source) == []
    keep(page, f"assistant-talk-{scheme}")
    box(page, "[data-ask]").click()
    page.wait_for_selector("#view-assistant [data-phase=error]")
    page.wait_for_timeout(100)
    assert "empty" in box(page, "[role=alert]").inner_text()
    assert violations(page, axe_source) == []
    page.context.close()


def test_each_request_is_announced_exactly_twice(chromium: Any, address: str) -> None:
    page = opened(chromium, address)
    listen(page)
    add(page, 33)
    page.wait_for_timeout(150)
    assert said(page) == [["status", "Looking at photo 1."], ["status", "Photo 1 is ready for questions."]]
    listen(page)
    box(page, "[data-question-key=detailed]").click()
    answered(page, "wooden table.")
    assert said(page) == [
        ["status", "Looking for the answer."],
        ["status", "Two cups and a plate stand on a wooden table."],
    ]
    page.context.close()


def test_what_a_model_smuggles_in_is_shown_as_plain_words(chromium: Any, address: str) -> None:
    page = opened(chromium, address)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    add(page, 34)
    box(page, "[data-question]").fill("Attack!")
    box(page, "[data-ask]").click()
    answered(page, "ok")
    assert box(page, "[data-talk] img, [data-talk] a, [data-talk] script").count() == 0
    assert page.evaluate("window.hit") is None
    assert [url for url in asked if not url.startswith(("http://127.0.0.1:", "blob:"))] == []
    page.context.close()


def test_forgetting_one_photo_and_forgetting_everything_clear_the_page(chromium: Any, address: str) -> None:
    page = opened(chromium, address)
    add(page, 35)
    add(page, 36)
    box(page, "[data-question]").fill("How many cups?")
    box(page, "[data-ask]").click()
    answered(page, "Photo 2: There are two cups.")
    box(page, ".shelf button").first.click()
    page.wait_for_function("document.querySelectorAll('.shelf li').length === 1")
    assert "Photo 1" not in box(page, "[data-talk]").inner_text()
    box(page, "[data-forget]").click()
    page.wait_for_selector("#view-assistant [data-phase=empty]")
    assert box(page, ".shelf li").count() == 0 and box(page, "[data-talk] li").count() == 0
    assert page.evaluate("document.activeElement.matches('#view-assistant [data-choose]')")
    page.context.close()


def test_the_pages_are_reached_by_keyboard_and_only_one_is_shown(chromium: Any, address: str, axe_source: str) -> None:
    page = opened(chromium, address)
    assert page.is_hidden("#captioner-title") and page.is_visible("#assistant-title")
    page.focus("nav a[data-page=captioner]")
    page.keyboard.press("Enter")
    assert page.is_visible("#captioner-title") and page.is_hidden("#assistant-title")
    assert page.evaluate("document.activeElement.id") == "captioner-title"
    assert page.get_attribute("nav a[data-page=captioner]", "aria-current") == "page"
    page.set_viewport_size({"width": 320, "height": 640})
    page.click("nav a[data-page=assistant]")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth + 1")
    assert violations(page, axe_source) == []
    page.context.close()


def test_a_follow_up_shows_how_it_was_asked_and_turns_to_the_other_photo(chromium: Any, address: str) -> None:
    page = opened(chromium, address)
    add(page, 41)
    box(page, "[data-question-key=hazard]").click()
    answered(page, "boiling water")
    listen(page)
    box(page, "[data-question]").fill("What colour is it?")
    box(page, "[data-question]").press("Enter")
    answered(page, "It is red.")
    assert [text for _, text in said(page)] == [
        "Looking for the answer.",
        "Asked as: what colour is the kettle? It is red.",
    ]
    add(page, 42)
    box(page, "[data-question]").fill("and the other one?")
    box(page, "[data-ask]").click()
    answered(page, "Photo 2: It is red.")
    box(page, "[data-question]").fill("and photo 9?")
    box(page, "[data-ask]").click()
    page.wait_for_selector("#view-assistant [data-phase=error]")
    page.wait_for_timeout(150)
    assert "name the thing" in box(page, "[role=alert]").inner_text()
    count = box(page, ".said").count()
    box(page, ".reply button").first.click()
    assert box(page, ".said").count() == count - 1
    assert page.evaluate("document.activeElement.matches('#view-assistant [data-question]')")
    page.context.close()


LETTER = (
    "The lift will be repaired. Work begins on 3 March at 8:30. We are sorry. It was nice. Please confirm by 1 March."
)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_pasted_text_is_picked_from_and_announced_twice(
    chromium: Any, address: str, axe_source: str, scheme: str
) -> None:
    page = opened(chromium, address, color_scheme=scheme)
    box(page, "[data-pick-box] summary").click()
    listen(page)
    box(page, "[data-paste]").fill(LETTER)
    box(page, "[data-pick]").click()
    answered(page, "Please confirm by 1 March.")
    heard = [text for _, text in said(page)]
    assert len(heard) == 2 and heard[0] == "Reading the text."
    assert "Dates, times and amounts: 3 March; 8:30; 1 March" in heard[1]
    assert violations(page, axe_source) == []
    keep(page, f"assistant-text-{scheme}")
    page.set_viewport_size({"width": 320, "height": 640})
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth + 1")
    page.context.close()


def test_a_conversation_is_kept_only_on_request_and_forgotten_on_the_disk(
    chromium: Any, address: str, axe_source: str, kept: Path
) -> None:
    page = opened(chromium, address)
    add(page, 43)
    box(page, "[data-question]").fill("How many cups?")
    box(page, "[data-question]").press("Enter")
    answered(page, "two cups")
    assert not kept.exists()
    box(page, "[data-history] summary").click()
    assert violations(page, axe_source) == []
    keep(page, "assistant-history")
    listen(page)
    box(page, "[data-passphrase]").fill("correct horse")
    box(page, "[data-passphrase]").press("Enter")
    page.wait_for_selector("#view-assistant [data-lock]:not([hidden])")
    page.wait_for_timeout(150)
    assert [text for _, text in said(page)] == [
        "Opening what is kept.",
        "Open: 0 earlier turns. From now on every turn is kept, encrypted.",
    ]
    box(page, "[data-question-key=detailed]").click()
    answered(page, "wooden table.")
    assert kept.stat().st_size > 300 and b"wooden" not in kept.read_bytes()
    page.reload()
    page.wait_for_selector("#view-assistant [data-history]:not([hidden])")
    assert box(page, "[data-talk] li").count() == 0
    box(page, "[data-history] summary").click()
    box(page, "[data-passphrase]").fill("wrong horse")
    box(page, "[data-unlock]").click()
    page.wait_for_selector("#view-assistant [data-phase=error]")
    page.wait_for_timeout(150)
    assert "does not open" in box(page, "[role=alert]").inner_text()
    box(page, "[data-passphrase]").fill("correct horse")
    box(page, "[data-unlock]").click()
    answered(page, "wooden table.")
    assert violations(page, axe_source) == []
    page.on("dialog", lambda dialog: dialog.accept())
    box(page, "[data-forget]").click()
    page.wait_for_selector("#view-assistant [data-phase=empty]")
    for _ in range(50):
        if not kept.exists():
            break
        page.wait_for_timeout(50)
    assert list(kept.parent.iterdir()) == []
    assert page.evaluate("[localStorage.length, sessionStorage.length]") == [0, 0]
    page.context.close()
