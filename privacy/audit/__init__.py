"""Auditing privacy reports: is the claimed epsilon true, as far as the evidence goes?

    audit.py        audit_paths: reports, run directories, folders     result.py       verdicts, text, JSON, exit code
    evidence.py     finding and reading reports                        numbers.py      checks 1, 10, 12, 13
    mechanism.py    checks 3, 4, 5, 9, 11                              integrity.py    checks 2, 7, 8
    composition.py  check 6

Exit codes: 0 every claim follows from its evidence (there may be flags), 1 a claim is false or cannot be proven,
2 something cannot be read. docs/auditing.md says what each check does and what no check can.
"""

from privacy.audit.audit import audit_paths
from privacy.audit.result import CHECKS, AuditResult, Check, Group, ReportResult, Unreadable

__all__ = ["CHECKS", "AuditResult", "Check", "Group", "ReportResult", "Unreadable", "audit_paths"]
