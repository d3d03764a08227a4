"""What the tests of the apps share: a deterministic narrator, pictures, and helpers for pages in a real browser."""

from __future__ import annotations

import base64
import io
import json
import math
import os
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

CHROMIUM = (
    os.environ.get("MMSLM_CHROMIUM")
    or shutil.which("chromium")
    or shutil.which("chromium-browser")
    or shutil.which("google-chrome")
)
AXE = Path(os.environ.get("MMSLM_AXE") or Path(__file__).parents[2] / "node_modules" / "axe-core" / "axe.min.js")


@dataclass(frozen=True)
class Said:
    """One streamed piece."""

    text: str
    confidence: float
    token_id: int = 0


class Speaker:
    """A deterministic narrator: says what it was told for a prompt, in pieces that split words, and counts its work."""

    def __init__(self, replies: dict[str, str] | None = None, *, confidence: float = 0.95, pause: float = 0.0) -> None:
        self.replies = replies or {}
        self.confidence, self.pause = confidence, pause
        # As of a model whose confidence was proven; None for one whose was not.
        self.calibration: object | None = "proven"
        self.looked = 0
        self.prompts: list[str] = []
        self.seen: list[float] = []

    def look(self, image: Image.Image) -> float:
        self.looked += 1
        mean = float(np.asarray(image.convert("L")).mean())
        self.seen.append(mean)
        return mean

    def reply(self, encoded: Any, prompt: str) -> str:
        return self.replies.get(prompt, "A red kettle stands on a table beside a blue cup.")

    def confidence_of(self, confidences: Sequence[float]) -> float:
        return math.prod(confidences) ** (1 / len(confidences)) if confidences else 0.0

    def stream(self, encoded: Any, prompt: str, max_new_tokens: int = 48) -> Iterator[Said]:
        self.prompts.append(prompt)
        for word in self.reply(encoded, prompt).split(" "):
            if self.pause:
                time.sleep(self.pause)
            yield Said(word[:2], self.confidence)
            yield Said(word[2:] + " ", self.confidence)


def picture(seed: int = 0, size: tuple[int, int] = (240, 180)) -> Image.Image:
    """A sharp, well-lit picture of blocks; different for each seed."""
    random = np.random.default_rng(seed)
    image = Image.new("RGB", size, (214, 208, 196))
    pen = ImageDraw.Draw(image)
    for _ in range(14):
        x, y = random.integers(0, size[0] - 40), random.integers(0, size[1] - 40)
        w, h = random.integers(15, 60, size=2)
        pen.rectangle(
            [int(x), int(y), int(x + w), int(y + h)], fill=tuple(int(v) for v in random.integers(20, 235, size=3))
        )
    return image


def encoded(image: Image.Image, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form)
    return buffer.getvalue()


IMAGES = Path(__file__).parents[2] / "docs" / "images"
TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]


def keep(page: Any, name: str) -> None:
    """Writes a picture of the page into docs/images when MMSLM_SCREENSHOTS is set; else only draws it."""
    if os.environ.get("MMSLM_SCREENSHOTS"):
        IMAGES.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=str(IMAGES / f"apps-{name}.png"), full_page=True)


def violations(page: Any, axe_source: str) -> list[str]:
    """Axe's violations of the page as it stands, one line each: rule, impact, the elements."""
    page.evaluate(axe_source)
    result = page.evaluate(
        """async (tags) => await axe.run(document, {
             runOnly: {type: 'tag', values: tags}, resultTypes: ['violations', 'incomplete']})""",
        TAGS,
    )
    lines = [f"{v['id']} ({v['impact']}): {[n['target'] for n in v['nodes']][:4]}" for v in result["violations"]]
    lines += [
        f"undecided {v['id']}: {[n['target'] for n in v['nodes']][:4]}"
        for v in result["incomplete"]
        if v["id"] != "color-contrast"
    ]
    return lines


LISTEN = """
() => {
  const listening = Boolean(window.said);
  window.said = [];
  if (listening) return;
  const watch = (node, role) => new MutationObserver(() => {
    const text = node.textContent.trim();
    if (text) window.said.push([role, text]);
  }).observe(node, {childList: true, characterData: true, subtree: true});
  document.querySelectorAll('[role=status],[role=alert],[aria-live=polite],[aria-live=assertive]').forEach(
    (node) => watch(node, node.getAttribute('role')));
}
"""


def listen(page: Any) -> None:
    """Starts to record what every live region of the page says, in order."""
    page.evaluate(LISTEN)


def said(page: Any) -> list[list[str]]:
    """What was said since ``listen``: [role, text]."""
    return page.evaluate("() => window.said")


class Client:
    """A page without a browser: speaks the HTTP that the page speaks, as one session."""

    def __init__(self, address: str, session: str = "session-1") -> None:
        self.address, self.session = address.rstrip("/"), session
        config = json.loads(self.get("/config"))
        self.events = {target[1]: item["id"] for item in config["dependencies"] for target in item["targets"]}

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(self.address + path, timeout=30) as answer:
            return answer.read()

    def post(self, path: str, body: object, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
        """Status and body; an error status is returned, not raised."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(
            self.address + path, data, {"content-type": "application/json", **(headers or {})}
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def join(self, event: str, data: dict[str, Any]) -> dict[str, Any]:
        body = {
            "data": [],
            "event_data": data,
            "fn_index": self.events[event],
            "session_hash": self.session,
            "trigger_id": 1,
        }
        status, answer = self.post("/gradio_api/queue/join", body)
        if status != 200:
            raise RuntimeError(f"{event} was answered {status}: {answer[:200]!r}")
        return json.loads(answer)

    def send(self, event: str, data: dict[str, Any]) -> dict[str, Any]:
        """One event and the last state that the server sent for it."""
        self.join(event, data)
        return self.finish()

    def finish(self) -> dict[str, Any]:
        """The last state that the server sends for the event that was joined."""
        value: Any = {}
        with urllib.request.urlopen(
            f"{self.address}/gradio_api/queue/data?session_hash={self.session}", timeout=60
        ) as stream:
            for line in stream:
                if not line.startswith(b"data:"):
                    continue
                message = json.loads(line[5:])
                output = (message.get("output") or {}).get("data")
                if message["msg"] == "process_completed":
                    if not message.get("success", True):
                        raise RuntimeError("the event failed")
                    return output[0] if output and isinstance(output[0], dict) and "id" in output[0] else value
                if message["msg"] == "process_generating" and output:
                    value = patched(value, output[0])
        return value

    def now(self, event: str, data: dict[str, Any]) -> int:
        """One event that does not wait in the queue; the status."""
        body = {"data": [], "event_data": data, "fn_index": self.events[event], "session_hash": self.session}
        return self.post("/gradio_api/run/predict", body)[0]


def patched(value: Any, change: Any) -> Any:
    """The state after a change: the whole of it, or Gradio's list of [operation, path, new value]."""
    if not isinstance(change, list):
        return change
    for operation, path, new in change:
        if not path:
            value = new
            continue
        target = value
        for key in path[:-1]:
            target = target[key]
        if operation == "delete":
            del target[path[-1]]
        elif operation == "append":
            target[path[-1]] += new
        elif operation == "add" and isinstance(target, list):
            target.insert(path[-1], new)
        else:
            target[path[-1]] = new
    return value


def data_url(blob: bytes) -> str:
    """A photo as the page sends it."""
    return "data:image/png;base64," + base64.b64encode(blob).decode()
