"""Accounting: what the events of a run cost, as upper bounds on epsilon, by four accountants.

See docs/accounting.md. An event that an accountant cannot price raises; central-limit accounting is refused.
"""

from privacy.accounting.calibration import calibrate_noise
from privacy.accounting.epsilon import (
    ACCOUNTANTS,
    Accountant,
    all_accountants,
    compose_runs,
    delta_for,
    epsilon,
    profile,
    refusals,
    tight_accountants,
)
from privacy.accounting.mechanisms import AccountingError, Composition, UnsupportedEvent, resolve
from privacy.accounting.summary import GdpSummary, gdp_summary
from privacy.budget import Budget, BudgetExceeded

__all__ = [
    "ACCOUNTANTS",
    "Accountant",
    "AccountingError",
    "Budget",
    "BudgetExceeded",
    "Composition",
    "GdpSummary",
    "UnsupportedEvent",
    "all_accountants",
    "calibrate_noise",
    "compose_runs",
    "delta_for",
    "epsilon",
    "gdp_summary",
    "profile",
    "refusals",
    "resolve",
    "tight_accountants",
]
