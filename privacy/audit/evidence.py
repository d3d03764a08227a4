"""Finding reports, and reading each with all that lies beside it, before anything is judged.

A path may be a report file, a run directory (it holds report.json), or a folder: then every report.json below it, every
*.report.json below it, and every *.json directly in it are reports. Links are not followed. What cannot be read becomes
a sentence, not an exception.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from privacy.audit.result import Unreadable
from privacy.canonical import UnreadableError, read_json
from privacy.events import Event, EventError, event_from_json
from privacy.ledger import Entry, LedgerTamperedError, read_entries
from privacy.report.build import ReportError, check_report, parent_run
from privacy.report.models import Report
from privacy.report.recompute import Run, merge

MAX_FILES = 100_000


@dataclass
class Evidence:
    """A report and what could be made of it.

    Attributes:
        path: the report file. run_dir: its run directory, where the whole directory was handed in.
        report: the JSON object, typed. entries: the ledger's, empty where the chain is broken.
        chain_problem: why, in a sentence. events: the recorded releases in order; None where they cannot be read.
        steps: their steps. run: the releases merged. parents: the parents' releases, likewise.
        event_problem: why events or parents cannot be read. priced: whether `run` is what the ledger records.
    """

    path: Path
    run_dir: Path | None
    report: Report
    entries: list[Entry] = field(default_factory=list)
    chain_problem: str | None = None
    events: list[Event] | None = None
    steps: list[int] = field(default_factory=list)
    run: Run = ()
    parents: dict[str, Run] = field(default_factory=dict)
    event_problem: str | None = None
    priced: bool = False

    def slim(self) -> None:
        """Forget what only this report's own checks need: a folder may hold thousands of long ledgers."""
        ledger = self.report.ledger.model_copy(update={"entries": []})
        claim = self.report.claim.model_copy(update={"profile": [], "trajectory": []})
        self.report = self.report.model_copy(update={"ledger": ledger, "claim": claim, "audit": [], "annex": None})
        self.entries, self.events, self.steps = [], None, []

    @property
    def runs(self) -> list[Run]:
        """What the claim has to cover: this run, and its parents where the claim is about all runs."""
        if self.report.claim.scope == "this_run":
            return [self.run]
        return [self.run, *self.parents.values()]


def find_reports(paths: Iterable[Path]) -> Iterator[tuple[Path, Path | None] | Unreadable]:
    """(report file, run directory or None) for everything that the paths stand for, each file once."""
    seen: set[Path] = set()
    for path in paths:
        found = list(_find(path))
        if not found:
            yield Unreadable(str(path), f"{path} holds no report: neither report.json nor another JSON file.")
        for item in found:
            if isinstance(item, Unreadable):
                yield item
            elif item[0].absolute() not in seen:
                seen.add(item[0].absolute())
                yield item


def _find(path: Path) -> Iterator[tuple[Path, Path | None] | Unreadable]:
    try:
        is_folder = path.is_dir()
    except (OSError, ValueError):
        is_folder = False
    if not is_folder:
        yield path, None
        return
    if os.path.lexists(path / "report.json"):
        yield path / "report.json", path
        return
    count = 0
    for folder, folders, names in os.walk(path):
        folders.sort()
        for name in sorted(names):
            count += 1
            if count > MAX_FILES:
                yield Unreadable(str(path), f"{path} holds more than {MAX_FILES} files; audit it in parts.")
                return
            file = Path(folder) / name
            if name == "report.json":
                yield file, Path(folder)
            elif name.endswith(".report.json") or (name.endswith(".json") and Path(folder) == path):
                yield file, None


def read_evidence(path: Path, run_dir: Path | None) -> Evidence:
    """Read one report.

    Raises:
        UnreadableError: it cannot be read as a report at all.
    """
    raw = read_json(path)
    try:
        report = check_report(raw)
    except ReportError as error:
        raise UnreadableError(f"{path} is not a privacy report: {error}") from error
    evidence = Evidence(path, run_dir, report)
    objects = report.ledger.entries
    try:
        evidence.entries = read_entries(objects, source="the ledger")
        recorded = [(entry.event, entry.step) for entry in evidence.entries if entry.event is not None]
        evidence.events = [event for event, _ in recorded if event is not None]
        evidence.steps = [int(step or 0) for _, step in recorded]
    except LedgerTamperedError as error:
        evidence.chain_problem = str(error)
        _read_events_without_chain(evidence, objects)
    try:
        evidence.run = merge(evidence.events or [])
    except EventError as error:  # counts that add up to more than any training run
        evidence.events, evidence.event_problem = None, f"The ledger's events cannot be added up: {error}"
    evidence.priced = evidence.events is not None
    try:
        for parent in report.identity.parents:
            evidence.parents[parent.ledger_head] = parent_run(parent)
    except EventError as error:
        evidence.event_problem = f"A parent's event is impossible: {error}"
    return evidence


def _read_events_without_chain(evidence: Evidence, objects: list[dict[str, Any]]) -> None:
    """A broken chain is judged for itself; what its events would cost is still worth knowing."""
    try:
        recorded = [(event_from_json(item["event"]), item["step"]) for item in objects if item.get("kind") == "event"]
        evidence.steps = [int(step) for _, step in recorded]
        evidence.events = [event for event, _ in recorded]
    except (EventError, KeyError, TypeError, ValueError) as error:
        evidence.events, evidence.steps = None, []
        evidence.event_problem = f"The ledger's events cannot be read: {error}"
