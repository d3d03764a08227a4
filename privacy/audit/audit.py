"""Audits reports: thirteen checks on each, and all runs on one data set together.

Nothing is believed that can be computed again. What a self-consistent forger can still do, and what stops them, is in
docs/auditing.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from privacy.audit.composition import compose
from privacy.audit.evidence import Evidence, find_reports, read_evidence
from privacy.audit.integrity import check_integrity, check_selection, check_trials
from privacy.audit.mechanism import check_adjacency, check_clipping, check_sampler, check_steps, check_unit
from privacy.audit.numbers import check_agreement, check_delta, check_empirical, check_epsilon
from privacy.audit.result import CHECKS, AuditResult, Check, ReportResult, Unreadable
from privacy.canonical import UnreadableError
from privacy.report.recompute import Pricer


def audit_paths(
    paths: Iterable[Path | str],
    *,
    trusted_key: str | None = None,
    expected_head: str | None = None,
    pricer: Pricer | None = None,
) -> AuditResult:
    """Audit reports, run directories and folders of them.

    Args:
        paths: report files, run directories (report.json with ledger and model beside it), or folders of many.
        trusted_key: the signer's ed25519 public key, known from elsewhere (64 hexadecimal digits): every report must be
            signed by it.
        expected_head: the ledger's head hash, known from elsewhere: the report must have it. For one report.
        pricer: keeps computed epsilons over several calls.

    Returns:
        The verdicts. Never raises for what a file holds: what cannot be read is in `unreadable`.
    """
    pricer = pricer or Pricer()
    found: list[Evidence] = []
    checked: list[list[Check]] = []
    unreadable: list[Unreadable] = []
    for item in find_reports(Path(path) for path in paths):
        if isinstance(item, Unreadable):
            unreadable.append(item)
            continue
        try:
            evidence = read_evidence(*item)
        except UnreadableError as error:
            unreadable.append(Unreadable(str(item[0]), str(error)))
            continue
        checked.append(_checks(evidence, pricer, trusted_key, expected_head))
        evidence.slim()
        found.append(evidence)
    composed, groups = compose(found, pricer)
    reports = tuple(
        _result(evidence, [*checks, together])
        for evidence, checks, together in zip(found, checked, composed, strict=True)
    )
    return AuditResult(reports, tuple(unreadable), tuple(groups))


def _checks(evidence: Evidence, pricer: Pricer, trusted_key: str | None, expected_head: str | None) -> list[Check]:
    """The twelve checks that one report answers for by itself."""
    return [
        check_epsilon(evidence, pricer),
        check_integrity(evidence, trusted_key, expected_head),
        check_sampler(evidence),
        check_adjacency(evidence),
        check_unit(evidence),
        check_trials(evidence),
        check_selection(evidence),
        check_clipping(evidence),
        check_delta(evidence),
        check_steps(evidence),
        check_empirical(evidence, pricer),
        check_agreement(evidence, pricer),
    ]


def _result(evidence: Evidence, checks: list[Check]) -> ReportResult:
    claim = evidence.report.claim
    plain = claim.epsilon_without_amplification
    text = (
        f"epsilon {claim.epsilon:.6g} at delta {claim.delta:g} for {claim.unit_definition} ({claim.adjacency})"
        + (f"; {plain:.4g} without amplification" if plain is not None else "")
        + ("; a simulation" if claim.simulation else "")
    )
    by_id = {check.id: replace(check, report=str(evidence.path)) for check in checks}
    return ReportResult(str(evidence.path), evidence.report.identity.id, text, tuple(by_id[name] for name in CHECKS))
