"""The captioner in a real browser: accessible in every state, announced twice, private, and usable by keyboard
alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from apps_support import Client, Speaker, data_url, encoded, keep, listen, picture, said, violations
from PIL import Image

from apps import shell
from apps.captioner import Captioner
from apps.shell import serve
from mmslm.prompts import CAPTION_PROMPTS

pytestmark = pytest.mark.browser

SHORT = "A red kettle stands on a stove beside a blue cup."
LONG = (
    "A red kettle stands on the left of a gas stove, its spout turned towards the window. Beside it are a blue cup and a "
    "yellow bowl, and a striped towel hangs from the oven door."
)


class Changing(Speaker):
    """Sees another cup whenever the picture is not exactly the first one."""

    def reply(self, encoded_photo: Any, prompt: str) -> str:
        text = super().reply(encoded_photo, prompt)
        return text.replace("blue cup", "green mug") if encoded_photo != self.seen[0] else text


@pytest.fixture(scope="module")
def speaker() -> Speaker:
    replies = {CAPTION_PROMPTS["short"]: SHORT, CAPTION_PROMPTS["detailed"]: LONG, CAPTION_PROMPTS["text"]: "GATE 4"}
    return Speaker({**replies, "What colour is the cup?": "It is blue."})


@pytest.fixture(scope="module")
def address(speaker: Speaker) -> Iterator[str]:
    with serve({"captioner": Captioner(speaker)}, port=0) as found:
        yield found


@pytest.fixture()
def open_page(chromium: Any, address: str) -> Iterator[Any]:
    contexts = []

    def opened(**settings: Any) -> Any:
        context = chromium.new_context(
            **{"viewport": {"width": 1280, "height": 860}, "reduced_motion": "reduce", **settings}
        )
        contexts.append(context)
        page = context.new_page()
        page.goto(address)
        page.wait_for_selector("[data-ready=yes]")
        page.wait_for_timeout(350)
        return page

    yield opened
    for context in contexts:
        context.close()


def give(page: Any, image: Image.Image | bytes, name: str = "photo.png") -> None:
    data = image if isinstance(image, bytes) else encoded(image)
    page.set_input_files("[data-file]", {"name": name, "mimeType": "image/png", "buffer": data})


def done(page: Any) -> None:
    page.wait_for_selector("[data-phase=done]")
    page.wait_for_timeout(120)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_state_has_no_axe_violation(open_page: Any, axe_source: str, speaker: Speaker, scheme: str) -> None:
    page = open_page(color_scheme=scheme)
    assert violations(page, axe_source) == []
    keep(page, f"captioner-empty-{scheme}")
    speaker.pause = 0.15
    give(page, picture(1))
    page.wait_for_function("document.querySelector('[data-caption]').textContent.length > 8")
    assert page.is_visible("[data-halt]")
    assert violations(page, axe_source) == []
    keep(page, f"captioner-busy-{scheme}")
    speaker.pause = 0.0
    done(page)
    page.fill("[data-question]", "What colour is the cup?")
    page.press("[data-question]", "Enter")
    page.wait_for_function("document.querySelector('.answers dd').textContent.includes('blue.')")
    page.wait_for_timeout(150)
    assert violations(page, axe_source) == []
    keep(page, f"captioner-result-{scheme}")
    give(page, b"this is no picture at all", "notes.png")
    page.wait_for_selector("[data-phase=error]")
    page.wait_for_timeout(100)
    assert "not a photo" in page.inner_text("[role=alert]")
    assert violations(page, axe_source) == []
    keep(page, f"captioner-error-{scheme}")
    page.context.close()


def test_each_request_is_announced_exactly_twice_and_errors_once_as_an_alert(open_page: Any, speaker: Speaker) -> None:
    page = open_page()
    listen(page)
    speaker.pause = 0.02
    give(page, picture(2))
    done(page)
    speaker.pause = 0.0
    heat = "Heat or fire: do not rely on this description, check with care."
    assert said(page) == [["status", "Looking at the photo."], ["status", f"{heat} {SHORT}"]]
    listen(page)
    page.fill("[data-question]", "What colour is the cup?")
    page.click("[data-ask]")
    page.wait_for_function("window.said.length >= 2")
    page.wait_for_timeout(200)
    assert [text for _, text in said(page)[:2]] == ["Looking for the answer.", "It is blue."]
    page.reload()
    page.wait_for_selector("[data-ready=yes]")
    listen(page)
    give(page, encoded(picture(3))[:900], "cut.png")
    page.wait_for_selector("[data-phase=error]")
    page.wait_for_timeout(150)
    assert said(page) == [
        ["status", "Looking at the photo."],
        ["alert", "The photo is damaged or cut off: save or copy it again."],
    ]


def test_the_whole_journey_works_by_keyboard_alone_with_the_focus_always_visible(open_page: Any) -> None:
    page = open_page()

    def tab_to(selector: str) -> None:
        for _ in range(40):
            page.keyboard.press("Tab")
            if page.evaluate("(s) => document.activeElement.matches(s)", selector):
                break
        else:
            raise AssertionError(f"Tab never reached {selector}")
        ring = page.evaluate(
            """() => { const node = document.activeElement, own = getComputedStyle(node), next = node.nextElementSibling;
                 const seen = own.opacity === '0' && next ? getComputedStyle(next) : own;
                 return [seen.outlineStyle, parseFloat(seen.outlineWidth)]; }"""
        )
        assert ring[0] == "solid" and ring[1] >= 3, f"no visible focus on {selector}: {ring}"

    # Chromium is told to hand the dialog over by another road than the one keys come by, and either may be the faster:
    # the answers to the questions that tab_to asks prove that it has been told before Enter comes.
    with page.expect_file_chooser() as dialog:
        tab_to("[data-choose]")
        page.keyboard.press("Enter")
    dialog.value.set_files({"name": "p.png", "mimeType": "image/png", "buffer": encoded(picture(4))})
    done(page)
    assert page.inner_text("[data-caption]") == SHORT
    tab_to("input[type=radio]")
    page.keyboard.press("ArrowRight")
    tab_to("[data-describe]")
    page.keyboard.press("Enter")
    page.wait_for_function("(text) => document.querySelector('[data-caption]').textContent === text", arg=LONG)
    done(page)
    tab_to("[data-question]")
    page.keyboard.type("What colour is the cup?")
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelector('.answers dd')?.textContent.includes('blue.')")
    tab_to("[data-language]")
    tab_to("[data-forget]")
    page.keyboard.press("Space")
    page.wait_for_selector("[data-phase=empty]")
    assert page.evaluate("document.activeElement.matches('[data-choose]')")
    assert page.inner_text("[data-caption]") == "" and page.get_attribute("[data-preview]", "src") is None


def test_who_comes_when_too_many_wait_hears_one_sentence_and_can_try_again(
    chromium: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shell, "MAX_WAITING", 1)
    slow = Speaker({}, pause=0.2)
    with serve({"captioner": Captioner(slow)}, port=0) as where:
        page = chromium.new_page(reduced_motion="reduce")
        page.goto(where)
        page.wait_for_selector("[data-ready=yes]")
        image = data_url(encoded(picture(5)))
        crowd = [Client(where, f"crowd-{number}") for number in range(2)]
        for number, client in enumerate(crowd):
            client.join("describe", {"id": f"id-{number}", "level": "short", "image": image})
            for _ in range(100):
                if slow.looked:
                    break
                page.wait_for_timeout(20)
        listen(page)
        give(page, picture(6))
        page.wait_for_selector("[data-phase=error]")
        page.wait_for_timeout(150)
        sentence = "Too many requests are waiting here already: try again in a minute."
        assert said(page) == [["status", "Looking at the photo."], ["alert", sentence]]
        assert page.is_hidden("[data-halt]") and page.is_visible("[data-preview]")
        slow.pause = 0.0
        assert [client.finish()["phase"] for client in crowd] == ["done", "done"]
        page.click("[data-describe]")
        done(page)
        assert page.inner_text("[data-caption]").startswith("A red kettle")
    # The program is gone, its page is not.
    page.click("[data-describe]")
    page.wait_for_selector("[data-phase=error]")
    page.wait_for_timeout(150)
    assert "has been stopped, or cannot be reached: start it again" in page.inner_text("[role=alert]")
    page.close()


def test_stop_ends_a_description_and_keeps_what_was_said(open_page: Any, speaker: Speaker) -> None:
    page = open_page()
    speaker.pause = 0.25
    give(page, picture(5))
    page.wait_for_function("document.querySelector('[data-caption]').textContent.length > 4")
    page.click("[data-halt]")
    page.wait_for_selector("[data-phase=stopped]", timeout=3000)
    speaker.pause = 0.0
    text = page.inner_text("[data-caption]")
    assert SHORT.startswith(text) and 0 < len(text) < len(SHORT)


def test_an_encoded_photo_is_used_again_for_another_level_and_for_questions(open_page: Any, speaker: Speaker) -> None:
    page = open_page()
    before = speaker.looked
    give(page, picture(6))
    done(page)
    page.check("input[value=text]", force=True)
    page.click("[data-describe]")
    page.wait_for_function("document.querySelector('[data-caption]').textContent === '“GATE 4”'")
    done(page)
    page.fill("[data-question]", "What colour is the cup?")
    page.click("[data-ask]")
    page.wait_for_function("document.querySelector('.answers dd')?.textContent.includes('blue.')")
    assert speaker.looked == before + 1


def test_a_photo_can_be_pasted_dropped_and_taken_with_the_camera(open_page: Any) -> None:
    page = open_page(permissions=["camera"])
    data = list(encoded(picture(7)))
    for name in ("paste", "drop"):
        page.evaluate(
            """([name, data]) => {
                 const files = new DataTransfer();
                 files.items.add(new File([new Uint8Array(data)], 'p.png', {type: 'image/png'}));
                 const event = name === 'paste'
                   ? new ClipboardEvent('paste', {clipboardData: files, bubbles: true})
                   : new DragEvent('drop', {dataTransfer: files, bubbles: true, cancelable: true});
                 document.querySelector('[data-drop]').dispatchEvent(event);
               }""",
            [name, data],
        )
        done(page)
        assert page.inner_text("[data-caption]") == SHORT
        page.click("[data-forget]")
        page.wait_for_selector("[data-phase=empty]")
    page.click("[data-open-camera]")
    page.wait_for_function("document.querySelector('video').videoWidth > 0")
    page.click("[data-shoot]")
    done(page)
    assert page.is_hidden("[data-camera]")


def test_speech_uses_local_voices_only_and_says_so_where_there_is_none(open_page: Any) -> None:
    page = open_page()
    page.evaluate(
        """() => {
          window.spoken = [];
          window.voices = [{name: 'Cloud', lang: 'en-US', localService: false}];
          speechSynthesis.getVoices = () => window.voices;
          speechSynthesis.speak = (u) => window.spoken.push([u.text, u.__voice && u.__voice.name, u.rate]);
          Object.defineProperty(SpeechSynthesisUtterance.prototype, 'voice', {
            set(value) { this.__voice = value; }, get() { return this.__voice; }});
        }"""
    )
    give(page, picture(8))
    done(page)
    page.click("[data-read]")
    assert "No voice is installed" in page.inner_text("[data-voice-note]")
    assert page.evaluate("window.spoken") == []
    page.evaluate("window.voices.push({name: 'Here', lang: 'en-GB', localService: true})")
    page.click("[data-read]")
    spoken = page.evaluate("window.spoken")
    assert [part[0] for part in spoken][-1] == SHORT
    assert {part[1] for part in spoken} == {"Here"}
    assert page.inner_text("[data-read]") == "Stop reading"


def test_nothing_leaves_this_machine_and_nothing_stays_in_the_browser(open_page: Any) -> None:
    page = open_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.reload()
    page.wait_for_selector("[data-ready=yes]")
    give(page, picture(9))
    done(page)
    foreign = [url for url in asked if not url.startswith(("http://127.0.0.1:", "blob:", "data:"))]
    assert asked and foreign == []
    assert page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 0, ""]
    blocked = page.evaluate("fetch('http://192.0.2.1/x').then(() => 'sent', () => 'blocked')")
    assert blocked == "blocked"


@pytest.mark.parametrize(
    "settings",
    [
        {"viewport": {"width": 320, "height": 640}},
        {"viewport": {"width": 640, "height": 430}, "device_scale_factor": 2},
        {"forced_colors": "active"},
    ],
    ids=["320-pixels", "200-percent", "forced-colours"],
)
def test_the_page_reflows_and_its_targets_stay_large(
    open_page: Any, axe_source: str, settings: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    page = open_page(**settings)
    give(page, picture(10))
    done(page)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth + 1")
    sizes = page.evaluate(
        """() => [...document.querySelectorAll('button, select, a, input:not([hidden]), label:has(input[type=radio])')]
             .filter((node) => node.offsetParent && !node.matches('input[type=radio]'))
             .map((node) => [node.textContent.trim() || node.id, node.getBoundingClientRect().height])"""
    )
    assert [entry for entry in sizes if entry[1] < 28] == []
    assert violations(page, axe_source) == []
    keep(page, f"captioner-{request.node.callspec.id}")


def test_check_again_marks_the_words_that_change_from_look_to_look(chromium: Any, axe_source: str) -> None:
    narrator = Changing({CAPTION_PROMPTS["short"]: SHORT})
    with serve({"captioner": Captioner(narrator)}, port=0) as address:
        page = chromium.new_page(viewport={"width": 1280, "height": 860}, reduced_motion="reduce")
        page.goto(address)
        page.wait_for_selector("[data-ready=yes]")
        narrator.seen.clear()
        give(page, picture(11))
        done(page)
        page.click("[data-again]")
        page.wait_for_selector("[data-agreement]:not(:empty)")
        page.wait_for_timeout(150)
        assert "Looked 5 times: do not rely on the marked words" in page.inner_text("[data-agreement]")
        assert page.locator("[data-caption] mark").all_inner_texts() == ["blue", "cup"]
        assert page.inner_text("[data-tier]") == "I may be wrong:"
        assert violations(page, axe_source) == []
        keep(page, "captioner-again")
        page.close()
