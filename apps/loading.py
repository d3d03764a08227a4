"""A model that loads while the page is there already: what asks it something waits until it can answer.

Importing torch and transformers takes longer than starting the server, and a person needs some seconds to choose a photo.
So the page is served first, and the model is loaded in a thread of its own from `start` on. It refuses nothing: what
goes wrong in loading is raised to everybody who waits, and to `wait`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING, Any

from PIL import Image

if TYPE_CHECKING:
    from apps.captioner import Narrating, Piece


class Loading:
    """Is a narrator from the beginning, and has one from when `load` returns it. `start` begins to load, once."""

    def __init__(self, load: Callable[[], Narrating]) -> None:
        self._load = load
        self._found: Future[Narrating] = Future()
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)

    def start(self) -> None:
        """Begin to load, in the background."""
        self._thread.start()

    def _run(self) -> None:
        try:
            self._found.set_result(self._load())
        except BaseException as error:  # noqa: BLE001 - whoever waits must hear of it, whatever it is
            self._found.set_exception(error)

    def wait(self, seconds: float | None = None) -> bool:
        """Whether the model is there within so many seconds (None: however long it takes). Raises what loading raised."""
        finished, _ = wait([self._found], seconds)
        if finished:
            self._found.result()
        return bool(finished)

    def look(self, image: Image.Image) -> Any:
        return self._found.result().look(image)

    def stream(self, encoded: Any, prompt: str, max_new_tokens: int = 48) -> Iterator[Piece]:
        return self._found.result().stream(encoded, prompt, max_new_tokens=max_new_tokens)

    def confidence_of(self, confidences: Sequence[float]) -> float:
        return self._found.result().confidence_of(confidences)

    @property
    def calibration(self) -> Any:
        """How the model's confidence was calibrated, or None."""
        return getattr(self._found.result(), "calibration", None)


__all__ = ["Loading"]
