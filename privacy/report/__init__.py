"""The privacy report: one JSON file that carries a claim with all its evidence, and one page that explains it.

    models.py      every field, once          build.py     from a ledger and a claim to the report, and its files
    recompute.py   epsilon from events        words.py     what an epsilon means to a person
    html.py        the page for people        opendp.py    the OpenDP deployments registry's YAML
    schema.py      the published JSON Schema  signature.py ed25519 over the canonical encoding
    keys.py        keys in files

A report that contradicts its own ledger is not written. docs/report.md describes every field.
"""

from privacy.report.build import (
    ReportError,
    as_parent,
    attach_audit,
    build_report,
    check_report,
    now,
    read_report,
    rewrite_report,
    write_report,
)
from privacy.report.commitment import data_commitment
from privacy.report.models import (
    Claim,
    DataFacts,
    EmpiricalAudit,
    Identity,
    Mechanism,
    Outside,
    Parent,
    Report,
    SamplingFacts,
)
from privacy.report.recompute import Pricer
from privacy.report.schema import json_schema
from privacy.report.signature import sign_report, signature_problem

__all__ = [
    "Claim",
    "DataFacts",
    "EmpiricalAudit",
    "Identity",
    "Mechanism",
    "Outside",
    "Parent",
    "Pricer",
    "Report",
    "ReportError",
    "SamplingFacts",
    "as_parent",
    "attach_audit",
    "build_report",
    "check_report",
    "data_commitment",
    "json_schema",
    "now",
    "read_report",
    "rewrite_report",
    "sign_report",
    "signature_problem",
    "write_report",
]
