"""What a caption costs: time to the first token, tokens per second, memory, processor time and energy.

Times are wall-clock medians over photos after one unmeasured warm-up, on the threads that the process has; the report
says how many. Memory is what the process held at most during the measurement, above what it held before (the libraries
and the model stay out of it; `resident_before` has them). Energy is read from the processor's own counter (RAPL) where
the system lets us and is then the whole package's, other programs included; elsewhere it is processor seconds times an
assumed power, and says so. A measured and an estimated figure must not be compared.

It refuses a narrator that cannot stream, because time to the first token is then no measurement.
"""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import psutil
from PIL import Image

ASSUMED_WATTS = 5.0  # one busy core of a laptop processor, with its share of memory; only for the estimate
_SAMPLE_SECONDS = 0.005
_RAPL = Path("/sys/class/powercap")
_clock = time.perf_counter


class Streaming(Protocol):
    """A narrator that reads a picture once and then gives its reply piece by piece."""

    def look(self, image: Image.Image) -> Any: ...

    def stream(self, encoded: Any, prompt: str, max_new_tokens: int = ...) -> Iterable[Any]: ...


@dataclass(frozen=True)
class Efficiency:
    """Medians over `photos` captions: seconds, tokens per second; memory in bytes; joules per caption.

    `second_question_seconds` is the first token of another prompt on the same picture, already looked at.
    `energy_source` says how `joules` was had.
    """

    photos: int
    threads: int
    first_token_seconds: float
    second_question_seconds: float
    caption_seconds: float
    tokens_per_second: float
    tokens: float
    cpu_seconds: float
    resident_before: int
    peak_above: int
    joules: float
    energy_source: str

    def to_json(self) -> dict[str, Any]:
        return dict(self.__dict__)

    def to_text(self) -> str:
        """One line per figure."""
        return "\n".join(
            [
                f"first token after     {1000 * self.first_token_seconds:8.0f} ms",
                f"second question after {1000 * self.second_question_seconds:8.0f} ms",
                f"whole caption         {1000 * self.caption_seconds:8.0f} ms  ({self.tokens:.0f} tokens)",
                f"speed                 {self.tokens_per_second:8.0f} tokens/s after the first",
                f"processor time        {1000 * self.cpu_seconds:8.0f} ms a caption",
                f"memory                {self.peak_above / 2**20:8.0f} MiB above {self.resident_before / 2**20:.0f}",
                f"energy                {self.joules:8.2f} J a caption, {self.energy_source}",
                f"{self.photos} photos, {self.threads} threads",
            ]
        )


def measure_efficiency(
    narrator: Streaming,
    images: Sequence[Image.Image],
    prompts: tuple[str, str],
    *,
    max_new_tokens: int = 24,
    threads: int | None = None,
    watts: float = ASSUMED_WATTS,
) -> Efficiency:
    """Captions every image with the first prompt, then asks the second of the same encoded picture.

    `threads` is only noted in the result (the number of usable cores by default); set it where the model runs.
    """
    if not (callable(getattr(narrator, "look", None)) and callable(getattr(narrator, "stream", None))):
        raise TypeError(f"{type(narrator).__name__} has no look() and stream(); measure a narrator that streams")
    if len(images) < 2:
        raise ValueError(f"{len(images)} images were given; one warms up, so give at least two")
    _one_caption(narrator, images[0], prompts, max_new_tokens)
    runs = []
    with _Memory() as memory, _Energy(watts) as energy:
        for image in images[1:]:
            runs.append(_one_caption(narrator, image, prompts, max_new_tokens))
    firsts, seconds, wholes, counts = (list(column) for column in zip(*runs, strict=True))
    speeds = [
        (count - 1) / (whole - first)
        for first, whole, count in zip(firsts, wholes, counts, strict=True)
        if count > 1 and whole > first
    ]
    return Efficiency(
        photos=len(runs),
        threads=len(os.sched_getaffinity(0)) if threads is None and hasattr(os, "sched_getaffinity") else threads or 0,
        first_token_seconds=statistics.median(firsts),
        second_question_seconds=statistics.median(seconds),
        caption_seconds=statistics.median(wholes),
        tokens_per_second=statistics.median(speeds) if speeds else 0.0,
        tokens=statistics.mean(counts),
        cpu_seconds=energy.cpu_seconds / len(runs),
        resident_before=memory.before,
        peak_above=memory.above,
        joules=energy.joules / len(runs),
        energy_source=energy.source,
    )


def _one_caption(
    narrator: Streaming, image: Image.Image, prompts: tuple[str, str], tokens: int
) -> tuple[float, float, float, int]:
    """(first token, first token of the second question, whole caption) in seconds, and the tokens of the caption."""
    start = _clock()
    encoded = narrator.look(image)
    first = 0.0
    count = 0
    for _ in narrator.stream(encoded, prompts[0], max_new_tokens=tokens):
        if count == 0:
            first = _clock() - start
        count += 1
    whole = _clock() - start
    if count == 0:
        # A narrator with nothing to say still took this long to say so.
        first = whole
    again = _clock()
    next(iter(narrator.stream(encoded, prompts[1], max_new_tokens=1)), None)
    return first, _clock() - again, whole, count


class _Memory:
    """The most resident memory while the block runs, sampled; a peak shorter than the sampling interval is missed."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.before = self._most = 0

    @property
    def above(self) -> int:
        return self._most - self.before

    def __enter__(self) -> _Memory:
        self.before = self._most = self._process.memory_info().rss
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._most = max(self._most, self._process.memory_info().rss)

    def _watch(self) -> None:
        while not self._stop.wait(_SAMPLE_SECONDS):
            self._most = max(self._most, self._process.memory_info().rss)


class _Energy:
    """Joules and processor seconds of the block, and how the joules were had."""

    def __init__(self, watts: float) -> None:
        self._watts = watts
        self._counters = _rapl_counters()
        self.joules = self.cpu_seconds = 0.0
        self.source = f"estimated: processor seconds x {watts:g} W (assumed, not measured)"

    def __enter__(self) -> _Energy:
        self._cpu = time.process_time()
        self._start = [_microjoules(path) for path in self._counters]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cpu_seconds = time.process_time() - self._cpu
        self.joules = self._watts * self.cpu_seconds
        used = []
        for path, start in zip(self._counters, self._start, strict=True):
            end = _microjoules(path)
            if start is None or end is None:
                return
            # The counter starts again at zero when it is full.
            used.append(end - start if end >= start else end - start + (_microjoules(path, "max_energy_range_uj") or 0))
        if used:
            self.joules = sum(used) / 1e6
            self.source = "measured: RAPL counter of the whole processor, other programs included"


def _rapl_counters() -> list[Path]:
    """Top-level package counters (their children would count the same joules again) that can be read."""
    packages = [path for path in sorted(_RAPL.glob("intel-rapl:*")) if path.name.count(":") == 1]
    return [path for path in packages if _microjoules(path) is not None]


def _microjoules(path: Path, name: str = "energy_uj") -> int | None:
    try:
        return int((path / name).read_text())
    except (OSError, ValueError):
        return None
