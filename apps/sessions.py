"""What the apps remember of a person, in memory only: one photo shelf per open browser page, forgotten on request.

A session is dropped when its page closes, when it was idle for ``IDLE_SECONDS``, when a newer one needs its place, and
when the server ends. Nothing here writes a file or a log line about a photo or a word. ``receive`` refuses, with one
sentence each, what is no photo; the file's first bytes decide what may reach a decoder at all.
"""

from __future__ import annotations

import base64
import binascii
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from apps.i18n import say
from mmslm.data.photo import open_image

MAX_BYTES = 10 * 1024 * 1024
MAX_SESSIONS = 64
IDLE_SECONDS = 30 * 60.0
# Decoders that parse programs or start other programs (EPS, PDF, SVG ...) never see an upload: these few only.
_SIGNATURES: tuple[tuple[int, bytes], ...] = (
    (0, b"\xff\xd8\xff"),
    (0, b"\x89PNG\r\n\x1a\n"),
    (0, b"GIF87a"),
    (0, b"GIF89a"),
    (0, b"BM"),
    (0, b"II*\x00"),
    (0, b"MM\x00*"),
    (8, b"WEBP"),
    (4, b"ftypavif"),
    (4, b"ftypavis"),
)


class Trouble(ValueError):
    """Something the person can mend: ``key`` names the translated sentence, ``str()`` is the English one."""

    def __init__(self, key: str, sentence: str | None = None) -> None:
        super().__init__(sentence or say(key))
        self.key = key


def receive(data: object) -> Image.Image:
    """A photo sent by the page as a data URL (base64), as an upright RGB image. Raises Trouble."""
    if not isinstance(data, str) or not data:
        raise Trouble("error.no_photo")
    if len(data) > MAX_BYTES * 4 // 3 + 256:
        raise Trouble("error.too_large")
    encoded = data.partition(",")[2] if data.startswith("data:") else data
    try:
        blob = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise Trouble("error.not_an_image") from None
    return decode(blob)


def decode(blob: bytes) -> Image.Image:
    """The bytes of a photo file as an upright RGB image. Raises Trouble with the reason as its key."""
    if not blob:
        raise Trouble("error.empty")
    if len(blob) > MAX_BYTES:
        raise Trouble("error.too_large")
    if not any(blob[at : at + len(mark)] == mark for at, mark in _SIGNATURES):
        raise Trouble("error.not_an_image")
    try:
        return open_image(blob)
    except (ValueError, OSError, MemoryError) as error:
        raise Trouble(_reason(str(error))) from None


def _reason(sentence: str) -> str:
    """Which of our translated sentences says the same as the decoder's English one."""
    for part, key in (
        ("megapixels", "error.too_many_pixels"),
        ("no pixels", "error.no_pixels"),
        ("is empty", "error.empty"),
        ("truncated or damaged", "error.damaged"),
    ):
        if part in sentence:
            return key
    return "error.not_an_image"


@dataclass
class Held:
    """One photo in memory: the picture, what the model made of it (its encoded prefix), and its flaws."""

    picture: Image.Image
    encoded: Any
    flaws: tuple[str, ...] = ()
    text: str = ""
    name: str = ""

    def clear(self) -> None:
        """Lets go of the picture and of what was made of it."""
        self.picture.close()
        self.encoded = None
        self.text = ""


@dataclass
class Session:
    """What one open page has given us. ``halted`` holds the requests that Stop (or Forget) has ended;
    ``key`` opens the kept history, where the person asked for one.
    """

    photos: list[Held] = field(default_factory=list)
    turns: list[dict[str, Any]] = field(default_factory=list)
    halted: OrderedDict[str, None] = field(default_factory=OrderedDict)
    gone: bool = False
    key: Any = None
    touched: float = field(default_factory=time.monotonic)

    def halt(self, request: str) -> None:
        """Ends a request, running or still queued."""
        self.halted[request] = None
        while len(self.halted) > 32:
            self.halted.popitem(last=False)

    def stopping(self, request: str) -> bool:
        """Whether a request has to end now."""
        return self.gone or request in self.halted

    def forget(self) -> None:
        """Stops what runs and drops everything this page gave."""
        self.gone = True
        self.key = None
        for held in self.photos:
            held.clear()
        self.photos.clear()
        self.turns.clear()


class Sessions:
    """All open pages' sessions, bounded in number and age; safe to use from several threads."""

    def __init__(self, limit: int = MAX_SESSIONS, idle_seconds: float = IDLE_SECONDS) -> None:
        if limit < 1:
            raise ValueError(f"A limit of {limit} sessions was given: give at least 1.")
        self._limit, self._idle = limit, idle_seconds
        self._lock = threading.Lock()
        self._sessions: OrderedDict[str, Session] = OrderedDict()

    def __len__(self) -> int:
        return len(self._sessions)

    def of(self, key: str | None) -> Session:
        """The session of a page, made when new; the least recently used one gives way when there are too many."""
        now = time.monotonic()
        with self._lock:
            for old in [k for k, s in self._sessions.items() if now - s.touched > self._idle]:
                self._sessions.pop(old).forget()
            session = self._sessions.pop(key or "", None) or Session()
            session.touched = now
            self._sessions[key or ""] = session
            while len(self._sessions) > self._limit:
                self._sessions.popitem(last=False)[1].forget()
            return session

    def forget(self, key: str | None, request: str = "") -> None:
        """Drops one page's session. A ``request`` that still waits in the queue finds itself halted when its turn comes."""
        with self._lock:
            session = self._sessions.pop(key or "", None)
        if session is not None:
            session.forget()
        if request:
            self.of(key).halt(request)

    def forget_all(self) -> None:
        """Drops every session: the server ends."""
        with self._lock:
            sessions, self._sessions = list(self._sessions.values()), OrderedDict()
        for session in sessions:
            session.forget()


def field_of(data: Mapping[str, Any] | Any, name: str, limit: int) -> str:
    """A text field of an event, stripped; Trouble when it is longer than ``limit`` characters or no text."""
    value = data.get(name, "") if isinstance(data, Mapping) else ""
    if not isinstance(value, str) or len(value) > limit:
        raise Trouble("error.too_long")
    return value.strip()
