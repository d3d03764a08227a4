"""Empirical audits: what an attacker, or a test, really finds out about a mechanism. See docs/empirical-audit.md.

one_run.py      lower bounds on epsilon from one run with canaries      canaries.py    white-box canaries, audit_step
membership.py   the loss-difference membership attack                   federated.py   the one-shot estimate (no bound)
claim.py        an attack's entries in a report                  replay.py      a report's events made again, with canaries
release.py      noise, clipping and sampler of a mechanism
invariants.py   direct checks of noise, sensitivity, sampler, state     result.py      EmpiricalAudit, Finding
"""

from privacy.audit.empirical.canaries import audit_step, directions, fair_coins, gradients
from privacy.audit.empirical.federated import FederatedEstimate, federated_estimate
from privacy.audit.empirical.invariants import (
    check_isolation,
    check_noise,
    check_sampler,
    check_sensitivity,
    check_unit,
)
from privacy.audit.empirical.membership import Membership, membership_inference
from privacy.audit.empirical.one_run import claim_is_contradicted, curve_rejects, one_run_audit, profile_shrink
from privacy.audit.empirical.result import EmpiricalAudit, Finding

__all__ = [
    "EmpiricalAudit",
    "FederatedEstimate",
    "Finding",
    "Membership",
    "audit_step",
    "check_isolation",
    "check_noise",
    "check_sampler",
    "check_sensitivity",
    "check_unit",
    "claim_is_contradicted",
    "curve_rejects",
    "directions",
    "fair_coins",
    "federated_estimate",
    "gradients",
    "membership_inference",
    "one_run_audit",
    "profile_shrink",
]
