"""A program that dies, hangs or comes back while a page waits for it: the page says so once, and works on as it is."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from apps_support import Speaker, encoded, listen, picture, said

from apps import shell
from apps.i18n import words

pytestmark = pytest.mark.browser

HEAR = "() => { window.found = false; window.mmslm.onBack(() => { window.found = true; }); }"
GONE = words()["en"]["error.gone"]


# A process with everything imported, from which each server is a copy: a start takes a moment, not a quarter of a minute.
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["gradio", "apps.assistant", "apps.captioner", "apps.history", "apps.shell"])


def run(which: str, port: int, pause: float, home: str) -> None:
    """One page, served until this process is killed."""
    from apps.assistant import Assistant
    from apps.captioner import Captioner

    narrator = Speaker({}, confidence=0.9, pause=pause)
    made = {"assistant": Assistant, "captioner": Captioner}[which](narrator)
    os.environ["HOME"] = home
    with shell.serve({which: made}, port=port):
        threading.Event().wait()


class Restarting:
    """A server that can be killed, and started again at the same port."""

    def __init__(self, home: Path, which: str) -> None:
        self.home, self.which = str(home), which
        self.port = shell._free_port("127.0.0.1")

    def start(self, pause: float = 0.0) -> str:
        self.process = _FORKS.Process(target=run, args=(self.which, self.port, pause, self.home))
        self.process.start()
        address = f"http://127.0.0.1:{self.port}"
        for _ in range(600):
            try:
                urllib.request.urlopen(address, timeout=5).read()
                return address
            except OSError:
                time.sleep(0.1)
        raise RuntimeError("the server did not start within a minute")

    def send(self, how: signal.Signals) -> None:
        os.kill(self.process.pid, how)

    def kill(self) -> None:
        self.process.kill()
        self.process.join(20)


@pytest.fixture()
def server(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Restarting]:
    running = Restarting(tmp_path, request.param)
    yield running
    running.kill()


def opened(chromium: Any, address: str, **settings: Any) -> Any:
    page = chromium.new_context(reduced_motion="reduce", **settings).new_page()
    page.goto(address)
    page.wait_for_selector("[data-ready=yes]")
    page.wait_for_timeout(400)
    return page


def give(page: Any, seed: int) -> None:
    page.set_input_files("[data-file]", {"name": "p.png", "mimeType": "image/png", "buffer": encoded(picture(seed))})


def restart(page: Any, server: Restarting) -> None:
    """Starts the server again, and waits until the page has found it."""
    page.evaluate(HEAR)
    server.start()
    page.wait_for_function("window.found")


@pytest.mark.parametrize("server", ["captioner"], indirect=True)
def test_a_captioner_killed_in_mid_stream_is_said_once_and_the_page_goes_on_when_it_is_back(
    chromium: Any, server: Restarting
) -> None:
    page = opened(chromium, server.start(pause=0.3))
    page.evaluate("window.sameDocument = true")
    page.fill("[data-purpose]", "reading a label")
    listen(page)
    give(page, 1)
    page.wait_for_function("document.querySelector('[data-caption]').textContent.length > 4")
    server.kill()
    page.wait_for_selector("[data-phase=error]", timeout=5000)
    page.wait_for_timeout(1200)
    assert said(page) == [["status", "Looking at the photo."], ["alert", GONE]]
    assert page.is_hidden("[data-halt]") and page.get_attribute("[data-describe]", "aria-disabled") == "false"
    # Gradio's own words (in English, over the page) are not heard of.
    assert "Connection" not in page.inner_text("body")
    listen(page)
    page.click("[data-describe]")
    page.wait_for_timeout(600)
    assert said(page) == [["status", "Looking at the photo."], ["alert", GONE]]
    restart(page, server)
    page.click("[data-describe]")
    page.wait_for_selector("[data-phase=done]")
    assert page.input_value("[data-purpose]") == "reading a label" and page.evaluate("window.sameDocument")
    # A new program that came while nobody asked has no photo: a question brings it along.
    server.kill()
    server.start()
    page.fill("[data-question]", "What colour is the cup?")
    page.click("[data-ask]")
    page.wait_for_function("document.querySelector('.answers dd')?.textContent.includes('kettle')")
    page.context.close()


@pytest.mark.parametrize("server", ["assistant"], indirect=True)
def test_an_assistant_that_died_keeps_photos_and_the_typed_question_and_sends_the_photos_again(
    chromium: Any, server: Restarting
) -> None:
    page = opened(chromium, server.start(pause=0.3), locale="es-ES")
    for seed in (2, 3):
        give(page, seed)
        page.wait_for_selector("[data-phase=done]")
        page.wait_for_timeout(150)
    page.fill("[data-question]", "Where is the kettle?")
    listen(page)
    page.click("[data-ask]")
    page.wait_for_function("document.querySelector('.reply .words')?.textContent.length > 4")
    server.kill()
    page.wait_for_selector("[data-phase=error]", timeout=5000)
    page.wait_for_timeout(300)
    assert [text for role, text in said(page) if role == "alert"] == [words()["es"]["error.gone"]]
    assert page.input_value("[data-question]") == "Where is the kettle?"
    assert page.locator(".shelf li").count() == 2
    restart(page, server)
    page.click("[data-ask]")
    page.wait_for_selector("[data-phase=done]")
    assert page.locator(".reply .words").count() == 2
    page.context.close()


@pytest.mark.parametrize("server", ["captioner"], indirect=True)
def test_a_program_that_falls_silent_is_noticed_and_one_that_wakes_is_used_again(
    chromium: Any, server: Restarting
) -> None:
    page = opened(chromium, server.start(pause=0.3))
    give(page, 4)
    page.wait_for_function("document.querySelector('[data-caption]').textContent.length > 4")
    listen(page)
    # As when the network stops: nothing is refused, nothing comes.
    server.send(signal.SIGSTOP)
    page.wait_for_selector("[data-phase=error]", timeout=15000)
    page.wait_for_timeout(200)
    assert said(page) == [["alert", GONE]]
    page.evaluate(HEAR)
    server.send(signal.SIGCONT)
    page.wait_for_function("window.found")
    page.click("[data-describe]")
    page.wait_for_selector("[data-phase=done]")
    page.context.close()


@pytest.mark.parametrize("server", ["captioner"], indirect=True)
def test_a_new_program_learns_when_the_page_is_closed_and_forgets_as_the_first_did(
    chromium: Any, server: Restarting
) -> None:
    page = opened(chromium, server.start())
    beats: list[str] = []
    page.on("request", lambda request: beats.append(request.url) if "heartbeat" in request.url else None)
    give(page, 5)
    page.wait_for_selector("[data-phase=done]")
    assert beats == []
    server.kill()
    server.start()
    page.click("[data-describe]")
    page.wait_for_selector("[data-phase=done]")
    page.wait_for_function("!document.querySelector('[data-describe]').matches('[aria-disabled=true]')")
    page.wait_for_timeout(300)
    assert len(beats) == 1
    page.context.close()
