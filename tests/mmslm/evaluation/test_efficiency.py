"""Costs are measured where they arise: a narrator that sleeps and allocates known amounts is measured right."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from standins import Constant

from mmslm.evaluation import efficiency
from mmslm.evaluation.efficiency import measure_efficiency

IMAGES = [Image.new("RGB", (8, 8))] * 4
PROMPTS = ("Describe the picture.", "is there a cup?")


class Slow:
    """Looks for 40 ms, then says five tokens, 10 ms each; time passes on its own clock. Holds `memory` bytes while it
    looks, for as long as `hold` real seconds."""

    def __init__(self, memory: int = 0, tokens: int = 5, hold: float = 0.0) -> None:
        self.memory, self.tokens, self.hold = memory, tokens, hold
        self.looked = 0
        self.now = 0.0

    def look(self, image: Image.Image) -> int:
        self.looked += 1
        held = bytearray(self.memory)
        held[::4096] = b"x" * len(held[::4096])  # touched, so that it is really there
        time.sleep(self.hold)
        self.now += 0.04
        return len(held)

    def stream(self, encoded: int, prompt: str, max_new_tokens: int = 48) -> Iterator[str]:
        for _ in range(min(self.tokens, max_new_tokens)):
            self.now += 0.01
            yield "cup"


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Slow:
    """A narrator whose clock is the one that efficiency reads, so that a busy machine changes nothing."""
    narrator = Slow()
    monkeypatch.setattr(efficiency, "_clock", lambda: narrator.now)
    return narrator


def test_times_are_those_of_the_narrator(slow: Slow) -> None:
    cost = measure_efficiency(slow, IMAGES, PROMPTS)
    assert cost.first_token_seconds == pytest.approx(0.05)
    assert cost.second_question_seconds == pytest.approx(0.01)  # the picture was not looked at again
    assert cost.caption_seconds == pytest.approx(0.09)
    assert cost.tokens_per_second == pytest.approx(100)
    assert cost.tokens == 5
    assert cost.photos == 3
    assert slow.looked == 4  # one warm-up


def test_sleeping_costs_little_processor_time_and_the_energy_says_how_it_was_had() -> None:
    cost = measure_efficiency(Slow(hold=0.1), IMAGES, PROMPTS, watts=10)
    assert cost.cpu_seconds < 0.1
    if cost.energy_source.startswith("estimated"):
        assert cost.joules == pytest.approx(10 * cost.cpu_seconds)
        assert "not measured" in cost.energy_source
    else:
        assert "RAPL" in cost.energy_source
    assert cost.energy_source in cost.to_text()


def test_memory_is_what_was_held_at_most() -> None:
    cost = measure_efficiency(Slow(memory=200 * 2**20, hold=0.2), IMAGES, PROMPTS)
    assert 150 * 2**20 < cost.peak_above < 300 * 2**20
    assert cost.resident_before > 0


def test_a_counter_of_the_processor_is_believed_and_its_overflow_understood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package, child = tmp_path / "intel-rapl:0", tmp_path / "intel-rapl:0:0"
    for folder in (package, child):
        folder.mkdir()
        (folder / "energy_uj").write_text("9000000\n")
        (folder / "max_energy_range_uj").write_text("10000000\n")
    monkeypatch.setattr(efficiency, "_RAPL", tmp_path)
    with efficiency._Energy(5.0) as energy:
        (package / "energy_uj").write_text("2000000\n")
    assert energy.joules == pytest.approx(3.0)
    assert energy.source.startswith("measured")


def test_silence_is_measured_too(slow: Slow) -> None:
    slow.tokens = 0
    cost = measure_efficiency(slow, IMAGES, PROMPTS)
    assert cost.tokens == cost.tokens_per_second == 0
    assert cost.first_token_seconds == cost.caption_seconds == pytest.approx(0.04)


def test_what_cannot_stream_is_refused() -> None:
    with pytest.raises(TypeError, match="Constant has no look"):
        measure_efficiency(Constant("a"), IMAGES, PROMPTS)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least two"):
        measure_efficiency(Slow(), IMAGES[:1], PROMPTS)
