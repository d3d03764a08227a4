"""The privacy dashboard: opens a report, a run (also one that is still going) or a folder of them, and checks the
promise (``apps.dashboard_view``).

A file that was dropped on the page is kept in the scratch folder for as long as it is read. When the page can be reached
from other machines, only what lies under the folders given at the start can be opened.
"""

from __future__ import annotations

import logging
import os
import re
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.captioner import Update, component, guarded, request_id
from apps.dashboard_view import MAX_LISTED, View, look_at
from apps.i18n import LANGUAGES, say
from apps.sessions import Trouble, field_of

if TYPE_CHECKING:
    import gradio as gr

    from privacy.report import Pricer

log = logging.getLogger(__name__)

EVENTS = ("open", "list", "export")
MAX_TEXT = 10 * 1024 * 1024
MAX_DROPPED = 60
# What of a dropped folder is read: texts that the report or its checks need, no weights.
DROPPED = ("report.json", "ledger.jsonl", "ledger.jsonl.head", "config.yaml", "metrics.json")


def _texts(files: object) -> dict[str, str]:
    """The files of a dropped folder by their place in it. Raises Trouble for what is no such list."""
    found: dict[str, str] = {}
    for file in files if isinstance(files, list) else []:
        place, text = (file.get("place"), file.get("text")) if isinstance(file, Mapping) else (None, None)
        if not isinstance(place, str) or not isinstance(text, str) or len(found) >= MAX_DROPPED:
            raise Trouble("privacy.too_large")
        # Names from elsewhere become names of ours: no way out of the folder, nothing that is no text of a report.
        *folders, name = place.replace("\\", "/").split("/")
        if name in DROPPED:
            safe = [re.sub(r"[^\w-]", "-", part)[:60] or "-" for part in folders[-3:]]
            found["/".join([*safe, name])] = text
    if not any(place.endswith(("report.json", "ledger.jsonl")) for place in found):
        raise Trouble("privacy.no_report")
    # One run's folder is opened as that run, not as a folder of one.
    common = os.path.commonpath([Path(place).parent for place in found])
    return {Path(place).relative_to(common or ".").as_posix(): text for place, text in found.items()}


def warm() -> None:
    """Loads the accountants while the person still chooses: their packages are most of the first report's time."""
    from privacy.events import GaussianRelease, Sampling
    from privacy.report import Pricer

    event = GaussianRelease(noise_multiplier=2.0, unit="user", sampling=Sampling("poisson", rate=0.5), count=2)
    Pricer().all_epsilons([(event,)], 1e-5)


class Dashboard:
    """The dashboard's requests. ``roots``: folders whose reports are offered; ``anywhere``: whether other paths may
    be opened.
    """

    def __init__(self, roots: Sequence[str | Path] = ("runs",), *, anywhere: bool = True) -> None:
        self.roots = [Path(root) for root in roots]
        self.anywhere = anywhere
        # What was priced once is not priced again; a pricer serves one thread at a time.
        self._pricer: Pricer | None = None
        self._pricing = threading.Lock()
        self._warmed = False

    def list(self, data: Mapping[str, Any], page: str | None) -> Iterator[Update]:
        """Names of the runs and reports under the roots, newest first."""
        found: dict[str, float] = {}
        for root in self.roots:
            if root.is_file():
                found[str(root)] = root.stat().st_mtime
            for pattern in ("report.json", "ledger.jsonl", "*/report.json", "*/ledger.jsonl"):
                for file in root.glob(pattern) if root.is_dir() else ():
                    found[str(file.parent)] = max(file.stat().st_mtime, found.get(str(file.parent), 0.0))
        names = sorted(found, key=lambda name: (-found[name], name))[:MAX_LISTED]
        if len(names) > 1:
            names += [str(root) for root in self.roots if root.is_dir() and str(root) not in names]
        yield {"phase": "found", "found": names}
        if not self._warmed:
            self._warmed = True
            threading.Thread(target=warm, name="mmslm-accountants", daemon=True).start()

    def open(self, data: Mapping[str, Any], page: str | None) -> Iterator[Update]:
        """Opens ``data["where"]`` or the text of a dropped file; the last update carries the page's HTML as ``html``.

        (Not "path": Gradio takes event data of that name for a file of its own, and refuses it.)
        """
        from apps.dashboard_page import render, summary

        def work() -> Iterator[Update]:
            language = data.get("language")
            language = language if isinstance(language, str) and language in LANGUAGES else "en"
            view = self._view(data)
            yield {
                "phase": "done",
                "single": len(view.opened) == 1,
                "running": view.running is not None,
                "summary": summary(view, language),
                "html": render(view, language),
            }

        return guarded(work(), request_id(data), {})

    def export(self, data: Mapping[str, Any], page: str | None) -> Iterator[Update]:
        """The self-contained page of one report, to be saved by the browser."""
        from privacy.report.html import to_html

        def work() -> Iterator[Update]:
            view = self._view(data)
            if len(view.opened) != 1:
                raise Trouble("privacy.not_one")
            report = view.opened[0].report
            name = "".join(c if c.isalnum() or c in "-_" else "-" for c in report.identity.id or "report")
            yield {"phase": "export", "page": to_html(report), "name": f"{name}.html"}

        return guarded(work(), request_id(data), {})

    def _view(self, data: Mapping[str, Any]) -> View:
        if data.get("files") is not None:
            return self._dropped(_texts(data["files"]))
        text = data.get("text")
        if text is None:
            return self._look_at(self._allowed(field_of(data, "where", 1000)))
        if not isinstance(text, str):
            raise Trouble("privacy.too_large")
        return self._dropped({"report.json": text}, field_of(data, "name", 300))

    def _dropped(self, texts: Mapping[str, str], name: str = "") -> View:
        """What the page sent, laid out in the scratch folder for as long as it is read."""
        if sum(map(len, texts.values())) > MAX_TEXT:
            raise Trouble("privacy.too_large")
        with tempfile.TemporaryDirectory(dir=os.environ.get("GRADIO_TEMP_DIR")) as folder:
            for place, text in texts.items():
                file = Path(folder) / place
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text, encoding="utf-8")
            only = Path(folder) / "report.json" if list(texts) == ["report.json"] else Path(folder)
            try:
                return self._look_at(only, alone=True)
            except Trouble as trouble:
                # The person knows the file's own name, not ours.
                raise Trouble(trouble.key, str(trouble).replace(str(only), name or "What was dropped")) from None

    def _look_at(self, path: Path, *, alone: bool = False) -> View:
        from privacy.report import Pricer

        with self._pricing:
            self._pricer = self._pricer or Pricer()
            return look_at(path, self._pricer, alone=alone)

    def _allowed(self, given: str) -> Path:
        if not given:
            raise Trouble("privacy.no_path")
        path = Path(given).expanduser()
        if not self.anywhere:
            real = path.resolve()
            if not any(real.is_relative_to(root.resolve()) for root in self.roots):
                raise Trouble("privacy.not_allowed", say("privacy.not_allowed"))
        return path

    def mount(self) -> gr.HTML:
        """The page's two components, controls and report, with their events wired; call it inside ``gr.Blocks``."""
        import gradio as gr

        view = component("dashboard", EVENTS)
        body = gr.HTML(
            value="", js_on_load=None, apply_default_css=False, elem_id="report-body", elem_classes=["report"]
        )

        def wire(name: str) -> None:
            handler = getattr(self, name)

            def respond(event: gr.EventData, request: gr.Request) -> Iterator[tuple[Any, Any]]:
                for update in handler(event._data or {}, request.session_hash):
                    page = update.pop("html", None)
                    yield update, gr.skip() if page is None else page

            respond.__annotations__ = {"event": gr.EventData, "request": gr.Request}
            getattr(view, name)(
                respond,
                inputs=None,
                outputs=[view, body],
                show_progress="hidden",
                api_visibility="private",
                concurrency_limit=1,
                concurrency_id="reports",
            )

        for name in EVENTS:
            wire(name)
        return view
