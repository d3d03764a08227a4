"""The checks on what was done to each contribution: sampler (3), adjacency (4), unit (5), clipping (9), steps (11).

They compare statements that different parts of a run made independently of each other: the sampler's class, the events,
the mechanism's constants, the checkpoint's own count. A forger has to change all of them alike.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from privacy.audit.evidence import Evidence
from privacy.audit.integrity import weights_in
from privacy.audit.result import Check, Verdict, worst
from privacy.audit.weights import steps_of_weights
from privacy.events import CorrelatedGaussianRelease, EventError, GaussianRelease
from privacy.report.build import noise_runs

Finding = tuple[Verdict, str]
Release = GaussianRelease | CorrelatedGaussianRelease

# The samplers of privacy.sampling, and the schemes that each may state.
SAMPLERS: dict[str, frozenset[str]] = {
    "PoissonSampler": frozenset({"poisson", "truncated_poisson"}),
    "FixedSizeSampler": frozenset({"fixed_size_without_replacement"}),
    "ShuffledSampler": frozenset({"shuffle"}),
    "FullSampler": frozenset({"full"}),
    "CyclicSampler": frozenset({"none"}),
    "GuardedArrivals": frozenset({"none"}),
}
_ONE_RECORD = re.compile(
    r"^\s*(one|a|an|any|each|every)\s+(single\s+|individual\s+)?(photo|picture|image|example|record|caption|sample)\b",
    re.I,
)


def releases(evidence: Evidence) -> list[Release]:
    """The different releases of this run, merged."""
    return [event for event in evidence.run if isinstance(event, GaussianRelease | CorrelatedGaussianRelease)]


def check_sampler(evidence: Evidence) -> Check:
    """3: the class of the sampler that ran draws by the scheme, rate and sizes that the events were accounted with."""
    facts = evidence.report.sampling
    return worst(
        "sampler",
        _sampler_findings(evidence),
        f"{facts.sampler} draws by {facts.scheme}, and so say all events.",
    )


def _sampler_findings(evidence: Evidence) -> Iterator[Finding]:
    facts = evidence.report.sampling
    known = SAMPLERS.get(facts.sampler)
    if known is None:
        yield (
            "fail",
            f"Nobody here knows how {facts.sampler!r} draws; that it draws by {facts.scheme} cannot be proven.",
        )
    elif facts.scheme not in known:
        yield "fail", f"{facts.sampler} draws by {' or '.join(sorted(known))}, not by {facts.scheme}."
    try:
        stated = facts.sampling
    except EventError as error:
        yield "fail", f"The sampling contradicts itself: {error}"
        return
    for event in releases(evidence):
        if isinstance(event, CorrelatedGaussianRelease):
            if facts.sampler == "GuardedArrivals":  # turns away whoever comes too early or too often
                if facts.participation_bound != event.participation.max_participations:
                    yield (
                        "fail",
                        (
                            f"The events assume {event.participation.max_participations} participations at most; the "
                            f"sampler says it enforced {facts.participation_bound}."
                        ),
                    )
            elif facts.batch and facts.population:
                cycle = -(-facts.population // facts.batch)
                if event.participation.min_separation > cycle:
                    yield (
                        "fail",
                        (
                            f"The events assume {event.participation.min_separation} steps between two participations; "
                            f"the sampler comes back after {cycle}."
                        ),
                    )
                if facts.participation_bound and event.participation.max_participations < facts.participation_bound:
                    yield (
                        "fail",
                        (
                            f"The events assume at most {event.participation.max_participations} participations; the "
                            f"sampling allows {facts.participation_bound}."
                        ),
                    )
            elif event.participation.min_separation > 1:
                yield "fail", "Nothing in the sampling bounds how soon a record comes back, as the events assume."
        elif event.sampling != stated:
            differ = [
                f"{name} {getattr(event.sampling, name)} (sampler: {getattr(stated, name)})"
                for name in ("scheme", "rate", "population", "batch", "max_batch")
                if getattr(event.sampling, name) != getattr(stated, name)
            ]
            yield "fail", f"An event was accounted with {', '.join(differ)}."
    drawn = facts.scheme not in ("full", "none")
    if facts.randomness == "none" and drawn:
        yield "fail", f"Sampling by {facts.scheme} needs chance, and the report says that there was none."
    if facts.randomness == "seeded (simulation)" and drawn:
        if evidence.report.claim.simulation:
            yield "flag", "Who took part was drawn from a seed: a simulation, which protects no real data."
        else:
            yield "fail", "Who took part was drawn from a seed, yet the claim does not say that it is a simulation."


def check_adjacency(evidence: Evidence) -> Check:
    """4: the claim, the events and the mechanism's sensitivity are about the same neighbours."""
    claim = evidence.report.claim
    return worst(
        "adjacency", _adjacency_findings(evidence), f"All events are accounted for {claim.adjacency}, as claimed."
    )


def _adjacency_findings(evidence: Evidence) -> Iterator[Finding]:
    claim, mechanism = evidence.report.claim, evidence.report.mechanism
    found = releases(evidence)
    for event in found:
        if event.adjacency != claim.adjacency:
            yield "fail", f"The claim is about {claim.adjacency}, but an event is accounted for {event.adjacency}."
            break
    moves = [event.distance if isinstance(event, GaussianRelease) else event.sensitivity for event in found]
    if moves:
        if mechanism.sensitivity is None:
            yield "fail", "The mechanism states no sensitivity."
        elif not math.isclose(mechanism.sensitivity, max(moves), rel_tol=1e-9):
            yield (
                "fail",
                (
                    f"The mechanism moves a sum by up to {mechanism.sensitivity:g} C, but the events are accounted for "
                    f"{max(moves):g} C under {claim.adjacency}."
                ),
            )
    shuffled = any(isinstance(event, GaussianRelease) and event.sampling.scheme == "shuffle" for event in found)
    if shuffled and claim.adjacency == "add_or_remove_one":
        yield "flag", "Under shuffling, add-or-remove-one is read as zero-out: the number of units is taken as public."
    if claim.adjacency != "add_or_remove_one" and not evidence.report.data.population_is_public:
        yield "flag", f"{claim.adjacency} treats the number of units as public, but the report does not publish it."


def check_unit(evidence: Evidence) -> Check:
    """5: what is protected is what was sampled and clipped: a user whole, or through a bound on their records."""
    claim = evidence.report.claim
    how = "each sampled and clipped whole" if claim.max_records_per_unit is None else "through their record bound"
    return worst("unit", _unit_findings(evidence), f"Users are protected, {how}: {claim.unit_definition}.")


def _unit_findings(evidence: Evidence) -> Iterator[Finding]:
    claim = evidence.report.claim
    bounds = set()
    for event in releases(evidence):
        if event.unit != claim.unit:
            yield "fail", f"The claim protects a {claim.unit}, but an event is accounted per {event.unit}."
            return
        if isinstance(event, GaussianRelease):
            bounds.add(event.contributions_per_unit)
    if claim.unit == "example":
        yield "flag", "Example only: one record is protected, not a person who owns several."
        return
    if _ONE_RECORD.match(claim.unit_definition):
        yield "fail", f"The claim says user, but defines it as {claim.unit_definition!r}, which is one record."
    least = min(bounds, default=1)
    if claim.max_records_per_unit is None and max(bounds, default=1) > 1:
        yield "fail", f"The events allow {max(bounds)} records per user, but the claim states no bound on them."
    if claim.max_records_per_unit is not None and claim.max_records_per_unit > least:
        yield "fail", f"A user may own {claim.max_records_per_unit} records, but events are accounted for {least}."


def check_clipping(evidence: Evidence) -> Check:
    """9: the clip kind has the sensitivity that was accounted; the noise is what the ledger says, and is random."""
    mechanism = evidence.report.mechanism
    kind = mechanism.clip_kind.replace("_", " ")
    return worst(
        "clipping",
        _clipping_findings(evidence),
        f"{kind} clipping to {mechanism.clip_norm:g}; noise: {mechanism.noise}.",
    )


def _clipping_findings(evidence: Evidence) -> Iterator[Finding]:
    mechanism, found = evidence.report.mechanism, releases(evidence)
    if mechanism.clip_kind == "per_layer":
        norms = mechanism.layer_clip_norms or {}
        total = math.sqrt(math.fsum(norm**2 for norm in norms.values()))
        if not norms:
            yield "fail", "Clipping is per layer, but the layers' norms are not stated, so its sensitivity is unknown."
        elif not math.isclose(total, mechanism.clip_norm, rel_tol=1e-6):
            yield (
                "fail",
                f"The layers' norms add up (root of squares) to {total:g}, not to C = {mechanism.clip_norm:g}.",
            )
    elif mechanism.layer_clip_norms:
        yield "fail", f"Layer norms are stated, but clipping is {mechanism.clip_kind}."
    if mechanism.clip_kind == "adaptive":
        count = mechanism.count_noise_multiplier
        if count is None:
            yield "fail", "The clipping norm follows the data, but the noise on that count is not stated."
        else:
            yield from _split_findings(evidence, count)
    for event in found:
        if isinstance(event, GaussianRelease) and not math.isclose(event.sensitivity, 1.0, rel_tol=1e-9):
            yield (
                "fail",
                (
                    f"{mechanism.clip_kind} clipping to C has sensitivity 1 C per contribution; an event says "
                    f"{event.sensitivity:g}."
                ),
            )
            break
    facts = evidence.report.sampling
    population = facts.population or evidence.report.data.population or 0
    expected = facts.batch or (facts.rate or 1.0) * population
    if expected and not math.isclose(mechanism.divisor, expected, rel_tol=0.01):
        yield (
            "flag",
            (
                f"Sums are divided by {mechanism.divisor:g}, where the sampling expects {expected:g} contributions: "
                "harmless if true, unusual enough to ask why."
            ),
        )
    if not mechanism.divisor_is_public:
        yield "fail", "The sum was divided by something that depends on the data, which nothing accounts for."
    if evidence.events is not None:
        ordered = [e for e in evidence.events if isinstance(e, GaussianRelease | CorrelatedGaussianRelease)]
        if noise_runs(ordered) != mechanism.noise_multipliers:
            yield "fail", "The noise multipliers that the mechanism states are not those of the ledger's events."
    if mechanism.noise == "seeded (simulation)":
        if evidence.report.claim.simulation:
            yield "flag", "The noise came from a seed: a simulation, which protects no real data."
        else:
            yield "fail", "The noise came from a seed, yet the claim does not say that it is a simulation."


def _split_findings(evidence: Evidence, count: float) -> Iterator[Finding]:
    """Update and count are one vector of one release: 1/z^2 = 1/u^2 + 1/c^2 in every event (Andrew et al. 1905.03871)."""
    paid = unpaid = 0
    for item in evidence.report.ledger.entries:
        event, stated = item.get("event"), item.get("public")
        if item.get("kind") != "event" or not isinstance(event, dict) or not isinstance(stated, dict):
            continue
        try:
            whole, update, noise = (
                float(value) for value in (event["noise_multiplier"], stated["update_noise"], stated["count_noise"])
            )
            split = math.isclose(whole**-2, update**-2 + noise**-2, rel_tol=1e-9) and noise == count
        except (KeyError, TypeError, ValueError, OverflowError, ZeroDivisionError):
            split = False
        paid, unpaid = paid + split, unpaid + (not split)
    if unpaid or not paid:
        yield (
            "fail",
            (
                f"The clipping norm follows the data, but {unpaid} events do not pay for its count (noise {count:g}): each "
                "must state update_noise and count_noise whose inverse squares add up to that of its noise multiplier."
            ),
        )


def check_steps(evidence: Evidence) -> Check:
    """11: the ledger holds every step that the checkpoint took."""
    return worst(
        "steps", _step_findings(evidence), f"{_steps_recorded(evidence)} steps: ledger, sampler and checkpoint agree."
    )


def _steps_recorded(evidence: Evidence) -> int:
    """Steps that the ledger covers: a step taken again after a crash, or releasing two sums, counts once."""
    most: dict[int, int] = {}
    for event, step in zip(evidence.events or [], evidence.steps, strict=False):
        if isinstance(event, CorrelatedGaussianRelease):
            most[step] = max(most.get(step, 0), event.count * event.steps)
        elif isinstance(event, GaussianRelease):
            most[step] = max(most.get(step, 0), event.count)
    return sum(most.values())


def _step_findings(evidence: Evidence) -> Iterator[Finding]:
    if evidence.events is None:
        yield "fail", "The ledger's events cannot be read, so its steps cannot be counted."
        return
    recorded = _steps_recorded(evidence)
    stated, taken = evidence.report.sampling.steps, evidence.report.identity.optimizer_steps
    if recorded < stated:
        yield "fail", f"The run says it took {stated} steps; the ledger records {recorded}."
    elif recorded > stated:
        yield (
            "flag",
            f"The ledger records {recorded} steps, the run says {stated}: the difference was paid for in vain.",
        )
    if taken is None:
        yield "flag", "The checkpoint does not say how many steps it took."
    elif recorded < taken:
        yield "fail", f"The checkpoint took {taken} steps; the ledger records {recorded}."
    elif recorded > taken:
        yield "flag", f"The ledger records {recorded} steps, the checkpoint took {taken}: more was paid than kept."
    yield from _checkpoint_findings(evidence, recorded)
    taken_twice = list(zip(evidence.steps, evidence.events, strict=False))  # a step may release two different sums
    repeated = len(taken_twice) - len(set(taken_twice))
    if repeated:
        yield "flag", f"{repeated} steps were released again after an interruption; all are counted."
    if evidence.steps != sorted(evidence.steps):
        first = next(b for a, b in zip(evidence.steps, evidence.steps[1:], strict=False) if b < a)
        if first not in evidence.steps[: evidence.steps.index(first)] and not repeated:
            yield "fail", f"The ledger's steps are out of order at step {first}."


def _checkpoint_findings(evidence: Evidence, recorded: int) -> Iterator[Finding]:
    """Weights beside the report that say themselves how many steps they have seen."""
    if evidence.run_dir is None:
        return
    header = evidence.entries[0].body.get("header") if evidence.entries else None
    if isinstance(header, dict) and header.get("kind") == "device":
        yield (
            "flag",
            "The ledger is one device's; weights beside it count the server's rounds and were not compared with it.",
        )
        return
    for name in sorted(weights_in(evidence.run_dir)):
        taken = steps_of_weights(evidence.run_dir / name)
        if taken is not None and taken > recorded:
            yield "fail", f"{name} says that it has seen {taken} steps; the ledger records {recorded}."
            return
