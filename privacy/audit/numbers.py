"""The checks that recompute: epsilon and all that is stated with it (1), delta against N (10), measured lower bounds
(12), and the agreement of the accountants (13).
"""

from __future__ import annotations

from collections.abc import Iterator

from privacy.audit.evidence import Evidence
from privacy.audit.result import Check, Verdict, worst
from privacy.events import GaussianRelease, Unaccountable
from privacy.report.build import TRAJECTORY_POINTS, TRAJECTORY_WORK, profile_epsilons, runs_over_time
from privacy.report.models import EmpiricalAudit
from privacy.report.recompute import (
    ACCOUNTANTS,
    CURVES,
    TOLERANCE,
    Pricer,
    RecomputationError,
    Run,
    without_amplification,
)

Finding = tuple[Verdict, str]
_STATED = 1e-3  # how far a stated number may lie from the recomputed one: room for other versions
_AGREEMENT = 0.02
_PRV_ERROR = 0.011  # what Opacus' PRV accountant adds to its estimate
_GRID_ERROR = 1e-3  # what loss grids of 1e-4 may differ by where epsilon itself is next to nothing
_SMALL_DELTA = 1e-9
_MOST_CANARIES = 1_000_000
_FEW_CANARIES = 100
_MOST_LIMITS = 10  # sentences on what an attack did not look at
_OWN_SIGNIFICANCE = 0.01  # an attack that claims more confidence than this is judged at this: it may not excuse itself
_MOST_CANDIDATES = 20


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
    if stated is not None and not any(plain):
        yield "fail", "An epsilon without amplification is stated, but no event is amplified by sampling."
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
    elif stated is None and any(plain):
        yield from _hidden_amplification(
            evidence, [new or old for new, old in zip(plain, evidence.runs, strict=True)], pricer
        )


def _hidden_amplification(evidence: Evidence, runs: list[Run], pricer: Pricer) -> Iterator[Finding]:
    """The claim rests on secret sampling and does not say what it is worth without."""
    for accountant in (evidence.report.claim.accountant, "rdp"):
        try:
            value = pricer.epsilon(runs, evidence.report.claim.delta, accountant)
        except RecomputationError:
            continue
        yield "fail", f"The report hides that without amplification by sampling epsilon is {value:.4g}."
        return


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
    """12: no measured lower bound exceeds the claim, at the delta that it was measured at, and the counts bear it out."""
    claim, audits = evidence.report.claim, evidence.report.audit
    if not audits:
        return Check("empirical", "not_applicable", "No attack was run against this model.")
    findings = [finding for item in audits for finding in _attack_findings(evidence, item, pricer)]
    best = max(item.lower_bound for item in audits)
    return worst("empirical", findings, f"The strongest attack shows at least {best:.3g}; claimed {claim.epsilon:.4g}.")


def _attack_findings(evidence: Evidence, item: EmpiricalAudit, pricer: Pricer) -> Iterator[Finding]:
    claim = evidence.report.claim
    if item.v > item.r or item.r > item.m or item.m > _MOST_CANARIES:
        yield "fail", f"An attack cannot have {item.v} right of {item.r} guesses on {item.m} canaries."
        return
    attacked = item.details.get("ledger_head")
    if attacked is not None and attacked != evidence.report.ledger.head:
        yield "fail", "A measured bound is of another run: its ledger's head is not this one's."
    checks = item.details.get("checks")
    for check in checks if isinstance(checks, list) else []:
        if isinstance(check, dict) and check.get("passed") is False:
            yield (
                "fail",
                f"A promise was found broken ({str(check.get('check'))[:40]}): {str(check.get('reason'))[:200]}",
            )
    limits = item.details.get("not_shown")
    for sentence in limits[:_MOST_LIMITS] if isinstance(limits, list) else []:
        if isinstance(sentence, str):
            yield "flag", f"Not shown: {sentence[:300]}"
    limit = claim.epsilon
    if item.delta < claim.delta:  # a smaller delta allows a larger epsilon: ask the accountant there
        try:
            limit = max(limit, pricer.curve_epsilon(evidence.runs, item.delta)) if item.delta > 0 else float("inf")
        except RecomputationError:
            limit = float("inf")
    borne = _borne_out(item)
    if item.lower_bound > limit:
        yield (
            "fail",
            f"An attack found epsilon at least {item.lower_bound:.4g} with {item.confidence:.0%} confidence; "
            f"the claim allows {limit:.4g}.",
        )
    elif _contradicted(evidence, item, pricer):
        yield (
            "fail",
            f"{item.v} right of {item.r} guesses on {item.m} canaries contradict epsilon {claim.epsilon:.4g}, "
            "whatever lower bound and confidence are stated.",
        )
    elif borne is not None and abs(item.lower_bound - borne) > _STATED * max(borne, 0.1):
        yield "fail", f"The counts of the attack ({item.method}) give {borne:.4g}, not {item.lower_bound:.4g}."
    if item.m < _FEW_CANARIES:
        yield "flag", f"The attack used {item.m} canaries, with which hardly anything is ever found."


def _candidates(item: EmpiricalAudit) -> int:
    found = item.details.get("candidates", 1)
    return found if isinstance(found, int) and 1 <= found <= _MOST_CANDIDATES else 1


def _borne_out(item: EmpiricalAudit) -> float | None:
    """The lower bound that the stated counts give by a method that needs nothing else; None for other methods."""
    from privacy.audit.empirical.one_run import gdp_bound, gdp_epsilon, steinke_bound

    significance = (1 - item.confidence) / _candidates(item)
    if item.method == "one run, steinke":
        return steinke_bound(item.m, item.r, item.v, item.delta, significance)
    if item.method == "one run, f-dp" and item.delta > 0:
        return gdp_epsilon(gdp_bound(item.m, item.r, item.v, significance), item.delta)
    return None


def _contradicted(evidence: Evidence, item: EmpiricalAudit, pricer: Pricer) -> bool:
    """Whether the counts alone refute the claim, or the curve of its events: two tests, which share the significance."""
    from privacy.audit.empirical.one_run import curve_rejects, profile_shrink, steinke_p_value

    claim = evidence.report.claim
    share = max(1 - item.confidence, _OWN_SIGNIFICANCE) / _candidates(item) / 2
    if steinke_p_value(item.m, item.r, item.v, claim.epsilon, claim.delta) <= share:
        return True
    try:
        # The claim itself is a point of the curve; the others are what its events promise beyond it.
        points = [(claim.epsilon, claim.delta)] + [
            (epsilon, min(1.0, pricer.curve_delta(evidence.runs, epsilon)))
            for epsilon in profile_epsilons(claim.epsilon)
        ]
    except RecomputationError:
        return False
    return curve_rejects(item.m, item.r, item.v, profile_shrink(points), share)


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
    if spread > _AGREEMENT * max(tight.values()) + (_PRV_ERROR if "prv" in tight else _GRID_ERROR):
        return Check("agreement", "fail", f"The accountants differ by more than 2 %: {shown}.")
    if delta < _SMALL_DELTA:
        return Check("agreement", "flag", f"Below delta 1e-9 not every accountant keeps its precision: {shown}.")
    return Check("agreement", "pass", f"{shown}.")
