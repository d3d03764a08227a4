"""The checks that recompute: epsilon and all that is stated with it (1), delta against N (10), measured lower bounds
(12), and the agreement of the accountants (13).
"""

from __future__ import annotations

from collections.abc import Iterator

from privacy.audit.evidence import Evidence
from privacy.audit.result import Check, Verdict, worst
from privacy.events import GaussianRelease, Unaccountable
from privacy.report.build import TRAJECTORY_POINTS, TRAJECTORY_WORK, runs_over_time
from privacy.report.models import EmpiricalAudit
from privacy.report.recompute import (
    ACCOUNTANTS,
    CURVES,
    TOLERANCE,
    Pricer,
    RecomputationError,
    without_amplification,
)

Finding = tuple[Verdict, str]
_STATED = 1e-3  # how far a stated number may lie from the recomputed one: room for other versions
_AGREEMENT = 0.02
_PRV_ERROR = 0.011  # what Opacus' PRV accountant adds to its estimate
_SMALL_DELTA = 1e-9
_MOST_CANARIES = 1_000_000


def check_epsilon(evidence: Evidence, pricer: Pricer) -> Check:
    """1: the claimed epsilon is at least what the named accountant computes; every number beside it is repeated too."""
    return worst("epsilon", _epsilon_findings(evidence, pricer), _epsilon_summary(evidence, pricer))


def _epsilon_findings(evidence: Evidence, pricer: Pricer) -> Iterator[Finding]:
    claim = evidence.report.claim
    if evidence.event_problem or evidence.events is None:
        yield "fail", evidence.event_problem or "The events cannot be read."
        return
    if not evidence.run:
        yield "fail", "The ledger records no release, so there is nothing that the claim could be about."
        return
    for event in evidence.run:
        if isinstance(event, Unaccountable):
            yield "fail", f"Something was released that has no provable price: {event.reason}"
            return
    name = claim.accountant.lower()
    if name in ("clt", "gdp", "gaussian", "normal"):
        yield (
            "fail",
            (
                f"The claim rests on the {name} accountant, a central-limit approximation that under-reports epsilon; "
                "it proves nothing."
            ),
        )
        return
    if claim.accountant not in ACCOUNTANTS:
        yield "fail", f"Nobody here knows the accountant {claim.accountant!r}; the claim cannot be proven."
        return
    try:
        value = pricer.epsilon(evidence.runs, claim.delta, claim.accountant)
    except RecomputationError as error:
        yield "fail", f"The {claim.accountant} accountant cannot vouch for the claim: {error}"
        return
    if claim.epsilon < value * (1 - TOLERANCE):
        yield (
            "fail",
            (
                f"The claim says {claim.epsilon:.6g}, but the events cost {value:.6g} at delta {claim.delta:g} "
                f"by the {claim.accountant} accountant."
            ),
        )
    yield from _stated_rows(evidence, pricer)
    yield from _stated_curves(evidence, pricer)


def _epsilon_summary(evidence: Evidence, pricer: Pricer) -> str:
    claim = evidence.report.claim
    values, _ = pricer.all_epsilons(evidence.runs, claim.delta) if evidence.run else ({}, {})
    found = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
    count = sum(getattr(event, "count", 1) for run in evidence.runs for event in run)
    return f"{count} releases cost {found} at delta {claim.delta:g}; claimed {claim.epsilon:.4f} by {claim.accountant}."


def _stated_rows(evidence: Evidence, pricer: Pricer) -> Iterator[Finding]:
    claim = evidence.report.claim
    for row in evidence.report.verification:
        if row.accountant not in ACCOUNTANTS:
            yield "fail", f"A verification row names the accountant {row.accountant!r}, which nobody here can repeat."
            continue
        try:
            value = pricer.epsilon(evidence.runs, claim.delta, row.accountant)
        except RecomputationError as error:
            yield "fail", f"The stated {row.accountant} epsilon cannot be repeated: {error}"
            continue
        if abs(row.epsilon - value) > _STATED * value + 1e-9:
            yield "fail", f"The report says {row.epsilon:.6g} for {row.accountant}; its events give {value:.6g}."
    stated = claim.epsilon_without_amplification
    plain = [without_amplification(run) for run in evidence.runs]
    if stated is not None and any(plain):
        runs = [new or old for new, old in zip(plain, evidence.runs, strict=True)]
        for accountant in (claim.accountant, "rdp"):
            try:
                value = pricer.epsilon(runs, claim.delta, accountant)
            except RecomputationError:
                continue
            if abs(stated - value) > _STATED * value:
                yield "fail", f"Without amplification epsilon is {value:.6g}, not {stated:.6g}."
            break


def _stated_curves(evidence: Evidence, pricer: Pricer) -> Iterator[Finding]:
    claim = evidence.report.claim
    assert evidence.events is not None
    try:
        for point in claim.profile:
            delta = pricer.curve_delta(evidence.runs, point.epsilon)
            if point.delta < delta * (1 - _STATED) - 1e-15:
                yield (
                    "fail",
                    f"The profile says delta {point.delta:.3g} at epsilon {point.epsilon:g}; it is {delta:.3g}.",
                )
                break
        if claim.gdp is not None:
            mu, _ = pricer.gdp(evidence.runs, min(claim.delta, 0.05), CURVES[0])
            if claim.gdp.mu < mu * (1 - _STATED):
                yield "fail", f"The summary says mu {claim.gdp.mu:.4g}; the events need {mu:.4g}."
        marks = [point.releases for point in claim.trajectory]
        if marks != sorted(set(marks)) or (marks and marks[-1] != len(evidence.events)):
            yield "fail", "Epsilon over the steps does not rise step by step to the ledger's end."
            return
        if len(marks) * sum(map(len, evidence.runs)) > TRAJECTORY_WORK + TRAJECTORY_POINTS:
            yield "fail", "Epsilon over the steps is stated at more points than an audit will repeat."
            return
        runs = runs_over_time(evidence.events, marks)
        for spent, run, mark in zip(claim.trajectory, runs, marks, strict=True):
            value = pricer.curve_epsilon([run, *evidence.runs[1:]], claim.delta)
            step = evidence.steps[mark - 1]
            if abs(spent.epsilon - value) > _STATED * value + 1e-9 or spent.step != step:
                said = f"{spent.epsilon:.6g} (step {spent.step})"
                yield "fail", f"After {mark} releases epsilon was {value:.6g} (step {step}), not {said}."
                return
    except RecomputationError as error:
        yield "fail", f"A stated curve cannot be repeated: {error}"


def check_delta(evidence: Evidence) -> Check:
    """10: delta is below 1 / N, with N the public number of units."""
    claim, data = evidence.report.claim, evidence.report.data
    stated = {data.population} if data.population is not None else set()
    for event in evidence.run:
        # Where a unit owns several records the sampling counts records, which is not N.
        if isinstance(event, GaussianRelease) and event.contributions_per_unit == 1 and event.sampling.population:
            stated.add(event.sampling.population)
    numbers = sorted(number for number in stated if number is not None)
    if not numbers:
        return Check("delta", "flag", f"N is not public here, so delta {claim.delta:g} cannot be compared with 1 / N.")
    if len(numbers) > 1:
        return Check("delta", "fail", f"The report gives {len(numbers)} values of N ({numbers[0]}, {numbers[-1]}).")
    limit = 1 / numbers[0]
    if claim.delta >= limit:
        return Check(
            "delta",
            "fail",
            f"Delta {claim.delta:g} is not below 1 / N = {limit:.3g}: it would allow giving somebody away.",
        )
    return Check("delta", "pass", f"Delta {claim.delta:g} is below 1 / N = {limit:.3g}.")


def check_empirical(evidence: Evidence, pricer: Pricer) -> Check:
    """12: no measured lower bound exceeds the claim, at the delta that it was measured at."""
    claim, audits = evidence.report.claim, evidence.report.audit
    if not audits:
        return Check("empirical", "not_applicable", "No attack was run against this model.")
    findings: list[Finding] = []
    for item in audits:
        limit = claim.epsilon
        if item.delta < claim.delta:  # a smaller delta allows a larger epsilon: ask the accountant there
            try:
                limit = max(limit, pricer.curve_epsilon(evidence.runs, item.delta)) if item.delta > 0 else float("inf")
            except RecomputationError:
                limit = float("inf")
        if item.v > item.r or item.r > item.m or item.m > _MOST_CANARIES:
            findings.append(("fail", f"An attack cannot have {item.v} right of {item.r} guesses on {item.m} canaries."))
        elif item.lower_bound > limit:
            findings.append(
                (
                    "fail",
                    f"An attack found epsilon at least {item.lower_bound:.4g} with {item.confidence:.0%} confidence; "
                    f"the claim allows {limit:.4g}.",
                )
            )
        elif _contradicted(item, claim.epsilon, claim.delta):
            findings.append(
                (
                    "fail",
                    f"{item.v} right of {item.r} guesses on {item.m} canaries contradict epsilon {claim.epsilon:.4g} "
                    f"with {item.confidence:.0%} confidence, whatever lower bound is stated.",
                )
            )
    best = max(item.lower_bound for item in audits)
    return worst("empirical", findings, f"The strongest attack shows at least {best:.3g}; claimed {claim.epsilon:.4g}.")


def _contradicted(item: EmpiricalAudit, epsilon: float, delta: float) -> bool:
    """Whether the stated counts alone refute the claim (Steinke, Nasr, Jagielski 2023), whatever bound is stated."""
    from privacy.audit.empirical.one_run import steinke_p_value

    candidates = item.details.get("candidates", 1)
    shares = candidates if isinstance(candidates, int) and 1 <= candidates <= 1000 else 1
    return steinke_p_value(item.m, item.r, item.v, epsilon, delta) <= (1 - item.confidence) / shares


def check_agreement(evidence: Evidence, pricer: Pricer) -> Check:
    """13: the accountants that are tight for these events agree to 2 %, and none that is loose lies below them."""
    from privacy.accounting import tight_accountants  # imports scipy, which takes a while

    delta = evidence.report.claim.delta
    if not evidence.run:
        return Check("agreement", "fail", "There are no events that accountants could agree on.")
    values, reasons = pricer.all_epsilons(evidence.runs, delta)
    if not values:
        return Check("agreement", "fail", f"No accountant can treat these events: {next(iter(reasons.values()))}")
    names = tight_accountants(event for run in evidence.runs for event in run)
    tight = {name: value for name, value in values.items() if name in names}
    loose = {name: value for name, value in values.items() if name not in names}
    shown = ", ".join(
        f"{name} {value:.4f}" + (" (loose here)" if name in loose else "") for name, value in values.items()
    )
    for name, value in loose.items():
        if tight and value < min(tight.values()) * (1 - _STATED) - _PRV_ERROR:
            return Check("agreement", "fail", f"The loose bound {name} lies below a tight one: {shown}.")
    if len(tight) < 2:
        return Check("agreement", "flag", f"Too few tight accountants can treat these events to compare: {shown}.")
    spread = max(tight.values()) - min(tight.values())
    if spread > _AGREEMENT * max(tight.values()) + (_PRV_ERROR if "prv" in tight else 0.0):
        return Check("agreement", "fail", f"The accountants differ by more than 2 %: {shown}.")
    if delta < _SMALL_DELTA:
        return Check("agreement", "flag", f"Below delta 1e-9 not every accountant keeps its precision: {shown}.")
    return Check("agreement", "pass", f"{shown}.")
