"""What lies at a path, computed again: a report, a run that still goes on, or a folder of them.

Nothing is believed that can be computed again: epsilon over the rounds, every accountant's epsilon and what is left
of the budget come from the ledger's events, and the audit's thirteen verdicts stand beside them. Nothing is written.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.sessions import Trouble

if TYPE_CHECKING:
    from privacy.audit import AuditResult, ReportResult
    from privacy.report import Pricer, Report
    from privacy.report.recompute import Run

MAX_LISTED = 12
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
