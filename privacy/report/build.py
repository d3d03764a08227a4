"""Makes the report out of a ledger and a claim, and refuses a claim that the ledger does not bear out.

What follows from the ledger is computed here and cannot be given: noise run lengths, sensitivity, every accountant's
epsilon, the profile, epsilon over the steps, epsilon without amplification.
"""

from __future__ import annotations

import datetime
import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from privacy.canonical import UnreadableError, canonical_bytes, read_json
from privacy.events import CorrelatedGaussianRelease, Event, GaussianRelease, event_from_json
from privacy.ledger import Ledger
from privacy.report.models import (
    Claim,
    DataFacts,
    EmpiricalAudit,
    Gdp,
    Identity,
    LedgerCopy,
    Mechanism,
    NoiseRun,
    Outside,
    Parent,
    Point,
    Report,
    SamplingFacts,
    Spent,
    StatedClaim,
    Verification,
)
from privacy.report.recompute import (
    CURVES,
    TOLERANCE,
    Pricer,
    RecomputationError,
    Run,
    Tally,
    merge,
    without_amplification,
)

TRAJECTORY_POINTS = 40
TRAJECTORY_WORK = 2000  # points of the trajectory times different mechanisms
PROFILE_POINTS = 24

logger = logging.getLogger(__name__)


class ReportError(ValueError):
    """The report cannot be made or is not a report; the message says what contradicts what."""


def build_report(
    ledger: Ledger,
    claim: Claim,
    *,
    mechanism: Mechanism,
    sampling: SamplingFacts,
    data: DataFacts,
    identity: Identity,
    outside: Sequence[Outside] = (),
    audit: Sequence[EmpiricalAudit] = (),
    annex: dict[str, Any] | None = None,
    pricer: Pricer | None = None,
) -> dict[str, Any]:
    """The report as a JSON object (see `privacy.report.models.Report` for every field).

    Args:
        ledger: the run's ledger, open. claim: what is promised. mechanism, sampling, data, identity: facts that the
            ledger does not hold; their derived fields are filled in here whatever they were given.
        outside: what the guarantee does not cover; say something about every kind, also where there is nothing.
        annex: facts that depend on private data; leave it None for a report that may be published.
        pricer: shares its cache over several reports.

    Raises:
        ReportError: the ledger holds no release, the events contradict the claim's adjacency or unit, no accountant
            can treat them, or the claimed epsilon is below what they cost.
    """
    pricer = pricer or Pricer()
    releases = [event for event in ledger.events() if isinstance(event, GaussianRelease | CorrelatedGaussianRelease)]
    if not releases:
        raise ReportError("The ledger records no release, so there is no epsilon to state; run at least one step.")
    for event in releases:
        if (event.adjacency, event.unit) != (claim.adjacency, claim.unit):
            raise ReportError(
                f"The claim is about {claim.unit}, {claim.adjacency}, but the ledger holds releases accounted for "
                f"{event.unit}, {event.adjacency}; state what was done."
            )
    own = merge(ledger.events())
    runs = [own] + ([parent_run(parent) for parent in identity.parents] if claim.scope != "this_run" else [])
    values, reasons = pricer.all_epsilons(runs, claim.delta)
    if claim.accountant not in values:
        why = reasons.get(claim.accountant, f"expected one of {', '.join([*values, *reasons])}")
        raise ReportError(f"The accountant {claim.accountant!r} cannot vouch for this ledger: {why}")
    spent = values[claim.accountant]
    if claim.epsilon < spent * (1 - TOLERANCE):
        raise ReportError(
            f"The claim says epsilon {claim.epsilon:.6g} at delta {claim.delta:g}, but the ledger's releases cost "
            f"{spent:.6g} by the {claim.accountant} accountant; state at least that."
        )
    moves = {event.distance if isinstance(event, GaussianRelease) else event.sensitivity for event in releases}
    stated = StatedClaim(
        **claim.model_dump(include=set(Claim.model_fields)),
        epsilon_without_amplification=_unamplified(runs, claim, pricer),
        gdp=_gdp(runs, claim, pricer),
        profile=_profile(runs, claim, pricer),
        trajectory=_trajectory(ledger, runs[1:], claim, pricer),
    )
    report = Report(
        identity=identity.model_copy(update={"id": identity.id or f"report-{ledger.head[:16]}"}),
        claim=stated,
        mechanism=mechanism.model_copy(
            update={"sensitivity": float(max(moves)), "noise_multipliers": noise_runs(releases)}
        ),
        sampling=sampling,
        ledger=LedgerCopy(entries=ledger.to_json(), head=ledger.head),
        data=data,
        outside=list(outside),
        audit=list(audit),
        verification=[Verification(accountant=name, epsilon=value, upper_bound=True) for name, value in values.items()],
        annex=annex,
    )
    return report.to_json()


def write_report(run_dir: Path | str, report: dict[str, Any]) -> tuple[Path, Path]:
    """Write report.json (canonical encoding) and report.html beside each other; each appears whole or not at all.

    Raises:
        ReportError: the object is not a report.
        OSError: the directory cannot be written.
    """
    from privacy.report.html import to_html

    checked = check_report(report)
    folder = Path(run_dir)
    json_path, html_path = folder / "report.json", folder / "report.html"
    _put(json_path, canonical_bytes(checked.to_json()) + b"\n")
    _put(html_path, to_html(checked).encode("utf-8"))
    return json_path, html_path


def rewrite_report(path: Path | str, report: dict[str, Any]) -> None:
    """Put a changed report back where it was read from; a run directory's page follows. Raises as `write_report`."""
    path = Path(path)
    if path.name == "report.json":
        write_report(path.parent, report)
    else:
        _put(path, canonical_bytes(check_report(report).to_json()) + b"\n")


def read_report(path: Path | str) -> dict[str, Any]:
    """The report in a file, or in a run directory's report.json, as a JSON object with every field.

    Raises:
        UnreadableError: it cannot be read, or is not a report. Whether it is true is the audit's business.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "report.json"
    try:
        return check_report(read_json(path)).to_json()
    except ReportError as error:
        raise UnreadableError(f"{path} is not a privacy report: {error}") from error


def check_report(value: object) -> Report:
    """The typed report that a JSON object stands for.

    Raises:
        ReportError: a field is missing, unknown or of the wrong type; the message names the first ones.
    """
    if not isinstance(value, dict):
        raise ReportError("expected a JSON object.")
    try:
        return Report.model_validate(value)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False, include_context=False)
        shown = "; ".join(
            f"{'.'.join(str(key)[:60] for key in p['loc']) or 'report'}: {p['msg']}" for p in problems[:3]
        )
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise ReportError(f"{shown}{more}.") from error


def now() -> str:
    """The time in UTC as `identity.created` wants it, e.g. 2026-11-21T02:40:00Z."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def as_parent(report: dict[str, Any]) -> Parent:
    """An earlier report on the same data, ready for `Identity.parents`: its own releases without its parents'.

    To compose a chain of runs, list every earlier report, not only the latest.
    """
    checked = check_report(report)
    events = [event_from_json(item["event"]) for item in checked.ledger.entries if item.get("kind") == "event"]
    return Parent(
        id=checked.identity.id, ledger_head=checked.ledger.head, events=[event.to_json() for event in merge(events)]
    )


def parent_run(parent: Parent) -> Run:
    """A parent's releases. Raises EventError where one is impossible."""
    return merge(event_from_json(item) for item in parent.events)


def attach_audit(report: dict[str, Any], result: EmpiricalAudit | Mapping[str, Any]) -> dict[str, Any]:
    """The report with one more measured lower bound. A signature is dropped: it was over another text.

    Args:
        result: the entry, typed or as a JSON object (what `privacy.audit.empirical` results' `to_json` gives).

    Raises:
        ReportError: one of the two is not what it should be.
    """
    entry = result.model_dump(mode="json") if isinstance(result, EmpiricalAudit) else dict(result)
    checked = check_report(report).to_json()
    return check_report({**checked, "audit": [*checked["audit"], entry], "signature": None}).to_json()


def noise_runs(releases: Sequence[Event]) -> list[NoiseRun]:
    """The noise multipliers of the releases in order, run-length coded."""
    coded: list[tuple[float, int]] = []
    for event in releases:
        assert isinstance(event, GaussianRelease | CorrelatedGaussianRelease)
        value = float(event.noise_multiplier)
        if coded and coded[-1][0] == value:
            coded[-1] = (value, coded[-1][1] + event.count)
        else:
            coded.append((value, event.count))
    return [NoiseRun(value=value, count=count) for value, count in coded]


def _unamplified(runs: Sequence[Run], claim: Claim, pricer: Pricer) -> float | None:
    plain = [without_amplification(run) for run in runs]
    if not any(plain):
        return None
    with suppress(RecomputationError):
        return pricer.epsilon([new or old for new, old in zip(plain, runs, strict=True)], claim.delta, claim.accountant)
    # Beyond what the finer accountants are asked: the Rényi bound, which is above it, says how bad it would be.
    with suppress(RecomputationError):
        return pricer.epsilon([new or old for new, old in zip(plain, runs, strict=True)], claim.delta, "rdp")
    return None


def profile_epsilons(epsilon: float) -> list[float]:
    """Where the profile is evaluated: from 0 to a quarter beyond the claim, the claim itself included."""
    step = epsilon / (PROFILE_POINTS - 4)
    return [round(index * step, 6) for index in range(PROFILE_POINTS + 2)]


def _profile(runs: Sequence[Run], claim: Claim, pricer: Pricer) -> list[Point]:
    points: list[Point] = []
    for epsilon in profile_epsilons(claim.epsilon):
        with suppress(RecomputationError):
            points.append(Point(epsilon=epsilon, delta=min(1.0, pricer.curve_delta(runs, epsilon))))
    return points


def trajectory_marks(releases: int, distinct: int) -> list[int]:
    """After how many releases epsilon over the steps is stated: evenly spread, the first and the last included.

    Fewer points where the run has many different mechanisms: each point prices all of them.
    """
    points = max(2, min(TRAJECTORY_POINTS, TRAJECTORY_WORK // max(1, distinct)))
    if releases <= points:
        return list(range(1, releases + 1))
    return sorted({1 + round(i * (releases - 1) / (points - 1)) for i in range(points)})


def runs_over_time(events: Sequence[Event], marks: Sequence[int]) -> list[Run]:
    """What had been released after so many of the events, for each of the rising marks."""
    tally, runs, done = Tally(), [], 0
    for mark in marks:
        for event in events[done:mark]:
            tally.add(event)
        done = mark
        runs.append(tally.run())
    return runs


def _trajectory(ledger: Ledger, others: Sequence[Run], claim: Claim, pricer: Pricer) -> list[Spent]:
    events, steps = ledger.events(), ledger.steps()
    marks = trajectory_marks(len(events), len(merge(events)) + sum(map(len, others)))
    points: list[Spent] = []
    for mark, run in zip(marks, runs_over_time(events, marks), strict=True):
        with suppress(RecomputationError):
            epsilon = pricer.curve_epsilon([run, *others], claim.delta)
            points.append(Spent(step=steps[mark - 1], releases=mark, epsilon=epsilon))
    return points


def _gdp(runs: Sequence[Run], claim: Claim, pricer: Pricer) -> Gdp | None:
    with suppress(RecomputationError):
        mu, regret = pricer.gdp(runs, min(claim.delta, 0.05), CURVES[0])
        return Gdp(mu=mu, fit_error=regret)
    return None


def _put(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        temporary.write_bytes(content)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise OSError(
            error.errno,
            f"{path} could not be written ({error.strerror}); the ledger is intact, so free space and retry",
        ) from error
