"""A model that loads behind the page: whoever asks early waits, and an error reaches everybody who does."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from apps_support import Speaker
from PIL import Image

from apps import shell
from apps.captioner import Captioner
from apps.loading import Loading


def test_whoever_asks_before_the_model_is_there_waits_and_is_answered() -> None:
    go, asked, speaker = threading.Event(), threading.Event(), Speaker({}, confidence=0.9)

    def load() -> Speaker:
        go.wait(30)
        return speaker

    model = Loading(load)
    answers: list[object] = []

    def ask() -> None:
        asked.set()
        answers.append(model.look(Image.new("RGB", (8, 8))))

    early = threading.Thread(target=ask)
    early.start()
    assert asked.wait(10)
    assert not model.wait(0.05), "nobody started it"
    model.start()
    assert not model.wait(0.05)
    assert not answers
    go.set()
    assert model.wait(30)
    early.join(30)
    assert answers
    assert model.confidence_of([0.9]) == speaker.confidence_of([0.9])
    assert model.calibration is getattr(speaker, "calibration", None)


def test_what_goes_wrong_in_loading_reaches_everybody_who_waits() -> None:
    def load() -> Speaker:
        raise ValueError("the weights are damaged")

    model = Loading(load)
    model.start()
    for attempt in (model.wait, lambda: model.look(Image.new("RGB", (8, 8)))):
        with pytest.raises(ValueError, match="damaged"):
            attempt()


def test_the_page_answers_before_the_model_is_loaded_and_a_damaged_model_ends_the_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import urllib.request

    pages: list[int] = []
    lines: list[str] = []

    def load() -> Speaker:
        address = next(line for line in lines if " at http" in line).split(" at ")[1].split(" ")[0]
        pages.append(urllib.request.urlopen(address, timeout=30).status)
        raise ValueError("the weights are damaged")

    monkeypatch.setattr(shell, "make_pages", lambda *_, **__: {"captioner": Captioner(Loading(load))})
    with pytest.raises(ValueError, match="damaged"):
        shell.launch(port=shell._free_port("127.0.0.1"), tell=lines.append)
    assert pages == [200]
    assert not any("is loaded" in line for line in lines)
