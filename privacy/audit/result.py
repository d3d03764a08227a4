"""What an audit found: verdicts with reasons, an exit code, and its two forms, for a terminal and for a machine.

Texts that came out of a report are shown with their control characters made visible: a report cannot paint the
auditor's terminal.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

Verdict = Literal["pass", "fail", "flag", "not_applicable"]

CHECKS: Final = {
    "epsilon": "epsilon follows from the events",
    "integrity": "nothing was changed",
    "sampler": "the sampler is the one accounted",
    "adjacency": "adjacency and sensitivity agree",
    "unit": "the unit is what is protected",
    "composition": "all runs on the data are counted",
    "trials": "trials of settings are counted",
    "selection": "nothing else was looked at",
    "clipping": "clipping and noise fit the claim",
    "delta": "delta is below one in N",
    "steps": "every step is in the ledger",
    "empirical": "no attack found more",
    "agreement": "the accountants agree",
}
_MARKS: Final = {"pass": "ok", "fail": "FAIL", "flag": "flag", "not_applicable": "-"}
_SEVERITY: Final = {"fail": 0, "flag": 1, "pass": 2, "not_applicable": 3}


@dataclass(frozen=True)
class Check:
    """One check's outcome. id: a key of CHECKS; reason: one sentence; report: the file that it is about."""

    id: str
    verdict: Verdict
    reason: str
    report: str = ""

    def to_json(self) -> dict[str, str]:
        """All fields."""
        return {"id": self.id, "verdict": self.verdict, "reason": self.reason, "report": self.report}


def worst(id: str, findings: Iterable[tuple[Verdict, str]], otherwise: str) -> Check:
    """One check out of many findings: the gravest verdict, with its reasons; a pass saying `otherwise` without any."""
    found = sorted(findings, key=lambda finding: _SEVERITY[finding[0]])
    if not found:
        return Check(id, "pass", otherwise)
    verdict = found[0][0]
    reasons = [reason for kind, reason in found if kind == verdict]
    more = f" (and {len(reasons) - 3} more)" if len(reasons) > 3 else ""
    return Check(id, verdict, " ".join(reasons[:3]) + more)


@dataclass(frozen=True)
class ReportResult:
    """One report's checks. claim: the claim in short; conclusion: one sentence."""

    path: str
    id: str
    claim: str
    checks: tuple[Check, ...]

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if check.verdict == "fail")

    @property
    def flagged(self) -> tuple[Check, ...]:
        """The checks to weigh."""
        return tuple(check for check in self.checks if check.verdict == "flag")

    @property
    def conclusion(self) -> str:
        """The outcome in a sentence."""
        if self.failed:
            count = "one check failed" if len(self.failed) == 1 else f"{len(self.failed)} checks failed"
            return f"The claim is false or cannot be proven: {count} ({', '.join(c.id for c in self.failed)})."
        if self.flagged:
            names = ", ".join(check.id for check in self.flagged)
            return f"The claim follows from its evidence; weigh what is flagged ({names})."
        return "The claim follows from its evidence."

    def to_json(self) -> dict[str, Any]:
        """All fields, the conclusion included."""
        return {
            "path": self.path,
            "id": self.id,
            "claim": self.claim,
            "conclusion": self.conclusion,
            "checks": [check.to_json() for check in self.checks],
        }


@dataclass(frozen=True)
class Unreadable:
    """A path that could not be read as a report, and why, in a sentence."""

    path: str
    reason: str


@dataclass(frozen=True)
class Group:
    """Runs on one data set, composed. epsilon is None where no accountant could."""

    commitment: str
    reports: tuple[str, ...]
    runs: int
    epsilon: float | None
    delta: float

    def to_json(self) -> dict[str, Any]:
        """All fields."""
        return {
            "commitment": self.commitment,
            "reports": list(self.reports),
            "runs": self.runs,
            "epsilon": self.epsilon,
            "delta": self.delta,
        }


@dataclass(frozen=True)
class AuditResult:
    """The outcome for all paths."""

    reports: tuple[ReportResult, ...] = ()
    unreadable: tuple[Unreadable, ...] = ()
    groups: tuple[Group, ...] = field(default=())

    @property
    def checks(self) -> tuple[Check, ...]:
        """All checks of all reports."""
        return tuple(check for report in self.reports for check in report.checks)

    @property
    def exit_code(self) -> int:
        """1 if a claim is false or cannot be proven, else 2 if something (or everything) could not be read, else 0."""
        if any(report.failed for report in self.reports):
            return 1
        return 2 if self.unreadable or not self.reports else 0

    @property
    def conclusion(self) -> str:
        """The outcome in a sentence."""
        parts = []
        bad = sum(bool(report.failed) for report in self.reports)
        total = len(self.reports)
        if total == 1:
            parts.append(self.reports[0].conclusion)
        elif bad:
            parts.append(f"{bad} of {total} claims are false or cannot be proven.")
        elif total:
            parts.append(f"All {total} claims follow from their evidence.")
        if self.unreadable:
            count = len(self.unreadable)
            parts.append("One file could not be read." if count == 1 else f"{count} files could not be read.")
        return " ".join(parts) or "There is no report here."

    def to_json(self) -> str:
        """Everything as JSON text, for `--json`."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=True)

    def to_dict(self) -> dict[str, Any]:
        """Everything as a JSON object."""
        return {
            "schema_version": "mmslm.audit/1",
            "exit_code": self.exit_code,
            "conclusion": self.conclusion,
            "reports": [report.to_json() for report in self.reports],
            "groups": [group.to_json() for group in self.groups],
            "unreadable": [{"path": plain(item.path), "reason": plain(item.reason)} for item in self.unreadable],
        }

    def to_text(self, width: int = 100) -> str:
        """For a terminal of `width` columns: every check of few reports, the exceptions of many."""
        width = max(60, width)
        lines: list[str] = []
        if len(self.reports) <= 3:
            for report in self.reports:
                lines += [*_whole(report, width), ""]
        else:
            lines += _table(self.reports, width)
        for group in self.groups:
            if group.runs > 1:
                together = f"epsilon {group.epsilon:.4g}" if group.epsilon is not None else "no provable epsilon"
                text = f"Data {group.commitment[:12]}: {group.runs} runs, together {together} at delta {group.delta:g}."
                lines += [*_wrap(text, width, ""), ""]
        for item in self.unreadable:
            lines += [*_wrap(f"unreadable: {plain(item.reason)}", width, ""), ""]
        lines += _wrap(self.conclusion, width, "")
        return "\n".join(lines)


def _whole(report: ReportResult, width: int) -> list[str]:
    lines = [plain(report.path), *_wrap(plain(report.claim), width, "  "), ""]
    for number, check in enumerate(report.checks, 1):
        head = f"  {number:2d} {check.id:<12}{_MARKS[check.verdict]:<5} "
        lines += _wrap(head + plain(check.reason), width, " " * len(head))
    return lines


def _table(reports: Sequence[ReportResult], width: int) -> list[str]:
    lines: list[str] = []
    shown = [report for report in reports if report.failed] or [report for report in reports if report.flagged]
    for report in shown[:50]:
        mark = "FAIL" if report.failed else "flag"
        lines.append(f"{mark:<5}{plain(report.path)}")
        for check in report.failed or report.flagged:
            lines += _wrap(f"       {check.id}: {plain(check.reason)}", width, "         ")
    if len(shown) > 50:
        lines.append(f"       ... and {len(shown) - 50} more; --json lists all.")
    return [*lines, ""] if lines else []


def _wrap(text: str, width: int, indent: str) -> list[str]:
    lead = text[: len(text) - len(text.lstrip())]
    return textwrap.wrap(
        text.lstrip(), width, initial_indent=lead or (indent if not text.startswith(indent) else ""),
        subsequent_indent=indent, break_on_hyphens=False,
    ) or [""]  # fmt: skip


def plain(text: str, most: int = 600) -> str:
    """The text on one line, control characters escaped, cut to `most` characters."""
    clean = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text[: most + 1])
    return clean[: most - 3] + "..." if len(text) > most else clean
