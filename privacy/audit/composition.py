"""Check 6: all runs on one data set are composed, and a claim about all of them covers all of them.

Reports with one data commitment belong together. The runs are told apart by their ledgers' heads, so two copies of a
report are one run, and a run known only as somebody's parent counts too. A claim over everything released so far must
cover every run that was handed in, unless a later report of the group does: then it is out of date, and flagged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from privacy.audit.evidence import Evidence
from privacy.audit.result import Check, Group, Verdict, worst
from privacy.report.recompute import TOLERANCE, Pricer, RecomputationError, Run

Finding = tuple[Verdict, str]


def compose(found: Sequence[Evidence], pricer: Pricer) -> tuple[list[Check], list[Group]]:
    """One check per report, in order, and the groups."""
    groups: dict[str, list[Evidence]] = {}
    for evidence in found:
        groups.setdefault(evidence.report.data.commitment, []).append(evidence)
    data_of: dict[str, set[str]] = {}  # one ledger belongs to one data set
    for evidence in found:
        data_of.setdefault(evidence.report.ledger.head, set()).add(evidence.report.data.commitment)
    checks: dict[int, Check] = {}
    summaries: list[Group] = []
    for commitment, members in groups.items():
        runs = _runs(members)
        delta = max(member.report.claim.delta for member in members)
        summaries.append(
            Group(commitment, tuple(str(m.path) for m in members), len(runs), _together(runs, delta, pricer), delta)
        )
        complete = [m for m in members if _covers(m, runs) and _follows(m, runs, pricer)]
        for member in members:
            findings = _findings(member, members, runs, complete, pricer)
            if len(data_of[member.report.ledger.head]) > 1:
                findings.append(("fail", "The same ledger was handed in as a run on other data as well."))
            checks[id(member)] = worst("composition", findings, _summary(member, runs))
    return [replace(checks[id(evidence)], report=str(evidence.path)) for evidence in found], summaries


def _runs(members: Sequence[Evidence]) -> dict[str, Run]:
    """Every run that the group knows of, by its ledger's head; a report's own events before anybody's copy of them."""
    runs: dict[str, Run] = {}
    for member in members:
        for head, run in member.parents.items():
            runs.setdefault(head, run)
    for member in members:
        if member.priced:
            runs[member.report.ledger.head] = member.run
    return runs


def _covers(member: Evidence, runs: dict[str, Run]) -> bool:
    known = {member.report.ledger.head, *member.parents}
    return member.report.claim.scope == "all_runs_on_this_data" and known >= set(runs)


def _follows(member: Evidence, runs: dict[str, Run], pricer: Pricer) -> bool:
    claim = member.report.claim
    try:
        value = pricer.epsilon(list(runs.values()), claim.delta, claim.accountant)
    except RecomputationError:
        return False
    return claim.epsilon >= value * (1 - TOLERANCE)


def _together(runs: dict[str, Run], delta: float, pricer: Pricer) -> float | None:
    for accountant in ("pld", "own", "rdp"):
        try:
            return pricer.epsilon(list(runs.values()), delta, accountant)
        except RecomputationError:
            continue
    return None


def _summary(member: Evidence, runs: dict[str, Run]) -> str:
    if len(runs) == 1:
        return "This is the only run on this data that was handed in."
    return f"The claim covers all {len(runs)} runs on this data that were handed in."


def _findings(
    member: Evidence, members: Sequence[Evidence], runs: dict[str, Run], complete: Sequence[Evidence], pricer: Pricer
) -> list[Finding]:
    findings: list[Finding] = []
    claim = member.report.claim
    for head, run in member.parents.items():
        if runs.get(head, run) != run:
            findings.append(("fail", f"The parent {head[:12]} has other events than its own report records."))
    if member.report.ledger.head in member.parents:
        findings.append(("fail", "The report names its own ledger as a parent."))
    if len(member.report.identity.parents) != len(member.parents):
        findings.append(("fail", "The report names one parent twice."))
    if any(not run for run in member.parents.values()):
        findings.append(
            ("fail", "The report names an earlier run without a single release, as if it had cost nothing.")
        )
    missing = set(runs) - {member.report.ledger.head, *member.parents}
    if not missing:
        return findings
    together = _together(runs, claim.delta, pricer)
    total = (
        f"together they cost epsilon {together:.4g}"
        if together is not None
        else "together they have no provable epsilon"
    )
    count = "another run" if len(missing) == 1 else f"{len(missing)} other runs"
    if claim.scope == "this_run":
        findings.append(("flag", f"The claim is about this run alone; with {count} on the same data, {total}."))
    elif complete:
        name = complete[0].report.identity.id or complete[0].path.name
        findings.append(("flag", f"Out of date: {name} covers {count} on the same data too; {total}."))
    else:
        findings.append(("fail", f"The claim is about all runs on this data but leaves out {count}; {total}."))
    return findings
