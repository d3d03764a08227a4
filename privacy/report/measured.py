"""What attacks really found, for the page: the measured lower bound beside the claim, and each attack with its counts.

Every text and number of an attack's free `details` comes from a file and is shown only where it is what it should be.
"""

from __future__ import annotations

import math
from html import escape
from typing import Any

from privacy.report.charts import bar
from privacy.report.models import EmpiricalAudit, Report
from privacy.report.words import upward

_MOST = 20  # checks, or sentences, of one attack that are shown


def sure(confidence: float) -> str:
    """A confidence in percent, rounded down: 0.975 is '97.5%', never 98%."""
    return f"{math.floor(confidence * 1000 + 1e-9) / 10:g}%"


def measured_beside_claim(report: Report) -> str:
    """The strongest attack's lower bound next to the claim; nothing where nobody attacked."""
    if not report.audit:
        return ""
    best = max(report.audit, key=lambda item: item.lower_bound)
    claim = report.claim.epsilon
    shown = best.lower_bound if best.lower_bound > 0 else 0.0
    return f"""
<div class="card"><h3>Somebody tried</h3>
<p>The promise is a limit on paper. An attack with {best.m:,} planted participants tried to beat it. What is really lost
lies between what it found and what is promised.</p>
<div class="scroll"><table><caption>ε, found and promised</caption>
<tbody><tr><th scope="row">found: at least ({sure(best.confidence)} sure)</th><td class="n">{shown:.3g}</td>
<td>{bar(shown / claim)}</td></tr>
<tr><th scope="row">promised: at most</th><td class="n">{upward(claim)}</td><td>{bar(1.0)}</td></tr></tbody></table>
</div></div>"""


def measured_in_full(report: Report) -> str:
    """Each attack with its counts, its rule, and what it assumes."""
    if not report.audit:
        return "<p>No attack was run against this model.</p>"
    items = "".join(f"<li>{_item(item)}</li>" for item in report.audit)
    return (
        f"<ul>{items}</ul><p>A bound far below the promise, {upward(report.claim.epsilon)}, is what a correct mechanism gives: "
        "an attack can show that a promise is broken, and never that it is kept.</p>"
    )


def _item(item: EmpiricalAudit) -> str:
    assumes = item.details.get("assumes")
    attacked = item.details.get("attacked")
    parts = [
        f"{escape(item.method)}: with {sure(item.confidence)} confidence ε is at least "
        f"<strong>{item.lower_bound:.3g}</strong> ({item.m:,} canaries, {item.v:,} of {item.r:,} guesses right)."
    ]
    if isinstance(attacked, str):
        parts.append(f"Attacked: {escape(attacked[:200])}.")
    if isinstance(assumes, str):
        parts.append(f"It assumes {escape(assumes[:200])}.")
    if item.rule:
        parts.append(f"Against luck: {escape(item.rule)}.")
    details = item.details
    tested = [_tested(check) for check in _listed(details.get("checks"))]
    limits = [f"Not shown: {escape(said[:300])}" for said in _listed(details.get("not_shown")) if isinstance(said, str)]
    lines = [" ".join(parts), *filter(None, tested), *limits]
    return "<br>".join(lines) + _membership(details.get("membership"))


def _listed(found: Any) -> list[Any]:
    return found[:_MOST] if isinstance(found, list) else []


def _tested(check: Any) -> str:
    """One direct check: its name, whether the promise was kept, and by what."""
    if not isinstance(check, dict) or not isinstance(check.get("passed"), bool):
        return ""
    verdict = "kept" if check["passed"] else "<strong>BROKEN</strong>"
    return f"{escape(str(check.get('check'))[:40])}: {verdict}. {escape(str(check.get('reason'))[:200])}"


def _membership(found: Any) -> str:
    if not isinstance(found, dict):
        return ""
    interval = found.get("auc_interval")
    given = [found.get("auc"), *interval] if isinstance(interval, list) and len(interval) == 2 else []
    numbers = [float(number) for number in given if isinstance(number, float | int)]
    if len(numbers) != 3:
        return ""
    return (
        f"<br>Telling households that trained from others by how much their loss fell: right in {numbers[0]:.1%} of pairs "
        f"(between {numbers[1]:.1%} and {numbers[2]:.1%}; luck gives 50%)."
    )
