"""The privacy dashboard: opens a report, a run (also one that is still going) or a folder of them, and checks the
promise.

Nothing is believed that can be computed again: epsilon over the rounds, every accountant's epsilon and what is left
of the budget come from the ledger's events, and the audit's thirteen verdicts stand beside them. A file that was
dropped on the page is kept in the scratch folder for as long as it is read. When the page can be reached from other
machines, only what lies under the folders given at the start can be opened.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.captioner import Update, component, guarded, request_id
from apps.i18n import LANGUAGES, say
from apps.sessions import Trouble, field_of

if TYPE_CHECKING:
    import gradio as gr

    from privacy.audit import AuditResult, ReportResult
    from privacy.report import Pricer, Report
    from privacy.report.recompute import Run

log = logging.getLogger(__name__)

EVENTS = ("open", "list", "export")
MAX_TEXT = 10 * 1024 * 1024
MAX_LISTED = 12
MAX_DROPPED = 60
# What of a dropped folder is read: texts that the report or its checks need, no weights.
DROPPED = ("report.json", "ledger.jsonl", "ledger.jsonl.head", "config.yaml", "metrics.json")
CURVE = "own"


@dataclass(frozen=True)
class Spent:
    """Epsilon after so many releases, the last of them at this round."""

    step: int
    releases: int
    epsilon: float


@dataclass(frozen=True)
class Quality:
    """One metric of metrics.json: its title and its values before, after, and of the ceiling without privacy."""

    title: str
    before: float | None
    after: float | None
    ceiling: float | None


@dataclass(frozen=True)
class Opened:
    """A report with what was recomputed from its ledger. ``spent`` is None where no accountant can treat the events;
    ``sent``: bytes of one participant's update in one round, None where the run's folder does not tell.
    """

    name: str
    report: Report
    audit: ReportResult | None
    budget: float
    spent: float | None
    accountants: dict[str, float]
    refused: dict[str, str]
    trajectory: tuple[Spent, ...]
    quality: tuple[Quality, ...] = ()
    sent: int | None = None

    @property
    def left(self) -> float | None:
        """What is left of the budget; None where what was spent is unknown."""
        return None if self.spent is None else max(0.0, self.budget - self.spent)


@dataclass(frozen=True)
class Running:
    """A run that has a ledger and no report yet."""

    name: str
    budget: float | None
    delta: float
    rounds: int | None
    trajectory: tuple[Spent, ...]


@dataclass(frozen=True)
class View:
    """What was found at a path."""

    opened: tuple[Opened, ...] = ()
    running: Running | None = None
    result: AuditResult | None = None
    more: int = 0
    notes: tuple[str, ...] = field(default_factory=tuple)


def look_at(path: Path, pricer: Pricer, *, alone: bool = False) -> View:
    """Everything at a path. Raises Trouble with a sentence where there is nothing to read.

    ``alone``: the reports' files did not come along (weights are too large for a page), so none is compared.
    """
    from privacy.audit import audit_paths

    if not path.exists():
        raise Trouble("privacy.nothing", f"There is nothing at {path}: check the path.")
    if (path / "ledger.jsonl").is_file() and not (path / "report.json").is_file():
        return View(running=_running(path, pricer))
    reports = sorted(path.rglob("report.json")) if alone and path.is_dir() else []
    result = audit_paths(reports or [path], pricer=pricer)
    if not result.reports:
        reasons = " ".join(item.reason for item in result.unreadable[:2])
        raise Trouble("privacy.unreadable", reasons or f"{path} holds no report.")
    opened = []
    for verdicts in result.reports[:MAX_LISTED]:
        opened.append(_opened(Path(verdicts.path), verdicts, pricer))
    notes = tuple(item.reason for item in result.unreadable[:3])
    # Runs of one name are told apart by their folders.
    named = Counter(one.name for one in opened)
    folders = [Path(verdicts.path).parent.name for verdicts in result.reports]
    opened = [
        replace(one, name=f"{one.name} ({folder})") if named[one.name] > 1 and folder != one.name else one
        for one, folder in zip(opened, folders, strict=False)
    ]
    return View(tuple(opened), None, result, len(result.reports) - len(opened), notes)


def _opened(path: Path, verdicts: ReportResult, pricer: Pricer) -> Opened:
    from privacy.audit.evidence import read_evidence

    evidence = read_evidence(path, None)
    report = evidence.report
    values, refused = pricer.all_epsilons(evidence.runs, report.claim.delta) if evidence.run else ({}, {})
    settings = _settings(path.parent)
    budget = max(report.claim.epsilon, _number(settings.get("epsilon")) or 0.0)
    return Opened(
        name=report.identity.name or path.parent.name,
        report=report,
        audit=verdicts,
        budget=budget,
        spent=values.get(report.claim.accountant, min(values.values(), default=None) if values else None),
        accountants=values,
        refused=refused,
        trajectory=_trajectory(evidence.events or [], evidence.steps, evidence.runs[1:], report.claim.delta, pricer),
        quality=_quality(path.parent),
        sent=_sent(path.parent, settings),
    )


def _running(folder: Path, pricer: Pricer) -> Running:
    from privacy.ledger import Ledger, LedgerError

    try:
        ledger = Ledger.open(folder / "ledger.jsonl")
    except (LedgerError, OSError) as error:
        raise Trouble("privacy.unreadable", str(error)) from None
    settings = _settings(folder)
    delta = _number(settings.get("delta")) or 1e-5
    rounds = settings.get("rounds")
    return Running(
        name=folder.name,
        budget=_number(settings.get("epsilon")),
        delta=delta,
        rounds=rounds if isinstance(rounds, int) else None,
        trajectory=_trajectory(ledger.events(), ledger.steps(), [], delta, pricer),
    )


def _trajectory(
    events: Sequence[Any], steps: Sequence[int], others: Sequence[Run], delta: float, pricer: Pricer
) -> tuple[Spent, ...]:
    """Epsilon over the rounds, recomputed from the ledger's events at no more than forty points."""
    from privacy.report.build import runs_over_time, trajectory_marks
    from privacy.report.recompute import RecomputationError, merge

    if not events:
        return ()
    marks = trajectory_marks(len(events), len(merge(events)) + sum(map(len, others)))
    points = []
    for mark, run in zip(marks, runs_over_time(events, marks), strict=True):
        with suppress(RecomputationError):
            points.append(Spent(steps[mark - 1], mark, pricer.epsilon([run, *others], delta, CURVE)))
    return tuple(points)


def _settings(folder: Path) -> dict[str, Any]:
    """The federated settings in the run's config.yaml: the budget that was given; empty where there is none."""
    import yaml

    try:
        found = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    settings = found.get("federated") if isinstance(found, dict) else None
    return settings if isinstance(settings, dict) else {}


def _quality(folder: Path) -> tuple[Quality, ...]:
    """The metrics in the run's metrics.json; empty where there are none."""
    try:
        found = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        metrics = found["comparison"]["metrics"]
        return tuple(
            Quality(
                str(m.get("title") or m.get("label") or name),
                *(_number(m.get(key)) for key in ("before", "after", "ceiling")),
            )
            for name, m in metrics.items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ()


def _sent(folder: Path, settings: Mapping[str, Any]) -> int | None:
    """Bytes that one participant sends in one round, from the adapters' size and the run's codec: nothing private."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(folder / "adapters.safetensors", "numpy") as weights:
            count = math.prod(weights.get_slice("vector").get_shape())
    except (SafetensorError, OSError):
        return None
    import numpy as np
    import torch

    from federated.codecs import codec

    name = settings.get("codec", "fp32")
    try:
        return int(codec(name).encode(torch.zeros(count), np.random.default_rng(0)).size)
    except (ValueError, KeyError, TypeError):
        return None


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


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
