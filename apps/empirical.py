"""``mmslm audit --empirical RUN``: attacks a run, and writes what was found into its report.

Canaries: a federated run's own rounds are run again with canary households (``federated.empirical``), in every mode whose
claim is about a household; of devices that protect their own photos, of any other report, or with ``--mechanism-only``, the
events are replayed (``privacy.audit.empirical.replay``). A federated run's own account is checked promise by promise in every
mode. Nothing of this touches private data. What was not looked at is written into the report too.

Membership inference looks at private photos, so its numbers go into the report of a simulation only; for real people
they are shown to the operator, and the report says no more than that the attack was made.

It refuses, before any work, a signed report without the key to sign it anew; a run that claims no privacy; a run whose
settings and ledger disagree.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from privacy.report import attach_audit, check_report, read_report, rewrite_report, sign_report
from privacy.report.models import Outside, Report

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from apps.run import Job
    from privacy.audit.empirical import EmpiricalAudit, Finding, Membership

FEWEST_CANARIES, MOST_CANARIES = 20, 20_000
FALLBACK_DIMENSION = 4096  # where no checkpoint says how long an update is
MEMBERSHIP = "Membership inference"


@dataclass(frozen=True)
class Options:
    """What the command line asked for; see ``mmslm audit --help``."""

    canaries: int = 1000
    confidence: float = 0.95
    households: int = 300
    mechanism_only: bool = False
    write: bool = True
    sign_with: Path | None = None
    seed: int | None = None


def attack(path: Path, options: Options) -> list[str]:
    """Attack the run or report at ``path``, and write what was found into its report unless asked not to.

    Returns what was found, in lines for a terminal.

    Raises ValueError or OSError with one sentence; nothing is written then.
    """
    _check(options)
    file = path / "report.json" if path.is_dir() else path
    plain = read_report(file)
    report = check_report(plain)
    key = _signing_key(report, options)
    job = None if options.mechanism_only or file.name != "report.json" else _run_of(file.parent, report)
    entries = _attacked(job, report, options)
    about_households = job is not None and report.claim.unit == "user"
    found = _membership(job, report, options) if job and about_households and options.households else None
    for entry in entries:
        plain = attach_audit(plain, entry.to_json())
    if found is not None:
        plain = _with_membership(plain, found)
    if options.write:
        if key is not None:
            plain = sign_report(plain, key)
        rewrite_report(file, plain)
    return _told(report, entries, found, written=options.write)


def _check(options: Options) -> None:
    if not FEWEST_CANARIES <= options.canaries <= MOST_CANARIES:
        raise ValueError(
            f"--canaries is {options.canaries}; give {FEWEST_CANARIES} to {MOST_CANARIES} (with few, hardly anything is found)."
        )
    if not 0.5 <= options.confidence < 1:
        raise ValueError(f"--confidence is {options.confidence:g}; give a number from 0.5 to below 1, usually 0.95.")
    if options.households and options.households < 10:
        raise ValueError(f"--households is {options.households}; give at least 10, or 0 to leave membership out.")


def _signing_key(report: Report, options: Options) -> Ed25519PrivateKey | None:
    """The key that signs the extended report. Asked for first: minutes of work should not end in a refusal."""
    if not options.write:
        return None
    if options.sign_with is None:
        if report.signature is not None:
            raise ValueError(
                "the report is signed, and a result added to it would break the signature; give --sign-with KEYFILE to "
                "sign it anew, or --no-write to see the result alone."
            )
        return None
    from privacy.report.keys import load_key, public_half

    key = load_key(options.sign_with)
    if report.signature is not None and report.signature.public_key != public_half(key):
        raise ValueError(
            "the report is signed by another key than --sign-with; sign with the key that it was signed with."
        )
    return key


def _run_of(folder: Path, report: Report) -> Job | None:
    """The federated run in the report's folder; None where the folder holds none, and the events alone are attacked."""
    from apps.run import Job
    from apps.run_config import RunConfig
    from federated.accounts import LEDGER
    from mmslm.config import ConfigError, load_config

    if not (folder / "config.yaml").is_file() or not (folder / LEDGER).is_file():
        return None
    try:
        settings = load_config(folder / "config.yaml", RunConfig)
    except ConfigError:
        return None
    federated = settings.federated
    if not federated.private:
        return None
    drawn = (report.sampling.rate, federated.sampling_rate)
    if federated.trust == "device":
        drawn = (report.sampling.rate, federated.on_device.sampling_rate)
    elif federated.participation == "bounded":
        drawn = (report.sampling.batch, federated.cohort)
    if drawn[0] != drawn[1] or federated.clip_norm != report.mechanism.clip_norm:
        raise ValueError(
            f"{folder / 'config.yaml'} and the report disagree about sampling or clipping norm; "
            f"`mmslm audit {folder}` says which files were changed."
        )
    return Job(settings, folder)


# Canaries -------------------------------------------------------------------------------------------------------------


def _attacked(job: Job | None, report: Report, options: Options) -> list[EmpiricalAudit]:
    """The entries of the attack: canaries' bounds, with the direct checks of the run's own account where there is a run."""
    if job is None:
        said = ["Only the events were attacked: sampler, clipping and noise of the run's own path were not checked."]
        return _attack_events(report, options, [], said)
    from federated.accounts import LEDGER
    from federated.empirical import attack_rounds, attackable, check_rounds, not_shown

    federated, ledger = job.settings.federated, job.folder / LEDGER
    with tempfile.TemporaryDirectory(prefix="mmslm-attack-") as folder:
        checks = check_rounds(federated, ledger, Path(folder) / "checks")
        said = not_shown(federated)
        if not attackable(federated):
            return _attack_events(report, options, checks, said)
        with _bar("canary households", "round") as told:
            scores, coins = attack_rounds(
                federated,
                ledger,
                Path(folder),
                dimension=_dimension(job.folder),
                canaries=options.canaries,
                seed=options.seed,
                progress=told,
            )
    return _entries(scores, coins, report, options, "the run's own rounds, with canary households", checks, said)


def _attack_events(
    report: Report, options: Options, checks: Sequence[Finding], said: Sequence[str]
) -> list[EmpiricalAudit]:
    from privacy.audit.empirical.replay import replay_scores

    with _bar("canaries", "release") as told:
        scores, coins = replay_scores(
            _events(report),
            canaries=options.canaries,
            clip_norm=report.mechanism.clip_norm,
            seed=options.seed,
            progress=told,
        )
    return _entries(scores, coins, report, options, "the report's events, replayed", checks, said)


def _events(report: Report) -> list[Any]:
    from privacy.events import event_from_json

    return [event_from_json(item["event"]) for item in report.ledger.entries if item.get("kind") == "event"]


def _entries(
    scores: Any,
    coins: Any,
    report: Report,
    options: Options,
    attacked: str,
    checks: Sequence[Finding],
    said: Sequence[str],
) -> list[EmpiricalAudit]:
    from privacy.audit.empirical.claim import attack_entries
    from privacy.report.recompute import merge

    earlier = len({item.details.get("attack", place) for place, item in enumerate(report.audit)})
    details: dict[str, Any] = {"attacked": attacked, "ledger_head": report.ledger.head}
    if options.seed is not None:
        details["coins"] = "seeded (simulation)"
    first, *others = attack_entries(
        scores,
        coins,
        merge(_events(report)),
        delta=report.claim.delta,
        confidence=options.confidence,
        earlier=earlier,
        details=details,
    )
    beside: dict[str, Any] = {}  # said once, in the first entry of the attack
    if checks:
        beside["checks"] = [{"check": item.check, "passed": item.passed, "reason": item.reason} for item in checks]
    if said:
        beside["not_shown"] = list(said)
    return [replace(first, details={**first.details, **beside}), *others]


def _dimension(folder: Path) -> int:
    """How long the run's updates are, by its newest checkpoint."""
    from safetensors import SafetensorError, safe_open

    for path in sorted((folder / "rounds").glob("round-*.safetensors"), reverse=True):
        try:
            with safe_open(path, framework="np") as file:
                return int(file.get_slice("vector").get_shape()[0])
        except (SafetensorError, OSError):
            continue
    return FALLBACK_DIMENSION


# Membership -----------------------------------------------------------------------------------------------------------


def _membership(job: Job, report: Report, options: Options) -> Membership | None:
    """Loss differences of households that trained, against as many that did not."""
    from apps.run import HELD_OUT
    from federated.devices import PhotosByOwner, Population, SceneHouseholds
    from federated.empirical import household_losses
    from federated.job import adapted_model
    from federated.vector import AdapterVector
    from mmslm.pretrained import load_model
    from privacy.audit.empirical import membership_inference

    settings, data = job.settings.federated, job.settings.data
    if not (job.folder / "model" / "model.safetensors").is_file():
        return None
    trained, _ = load_model(job.folder / "model")
    final = AdapterVector(trained.adapter_parameters()).read()
    del trained
    model, processor = adapted_model(job.base, settings)
    initial = AdapterVector(model.adapter_parameters()).read()  # type: ignore[operator]
    members = job.population()
    others: Population
    if data.source == "scenes":
        others = SceneHouseholds(options.households, settings.photos_per_household, seed=data.seed, first=HELD_OUT)
    else:
        others = PhotosByOwner(job.held_out(), settings.photos_per_household)
    generator = np.random.default_rng(options.seed)
    took_part = _who_took_part(job, report)
    chosen = generator.permutation(took_part)[: options.households]
    count = min(options.households, others.size)
    losses = []
    with _bar("membership", "household") as told:
        done = 0

        def one() -> None:
            nonlocal done
            done += 1
            told(done, len(chosen) + count)

        for population, devices in ((members, chosen), (others, np.arange(count))):
            losses.append(
                household_losses(
                    model, processor, settings, population, devices, initial=initial, final=final, progress=one
                )
            )
    (members_before, members_after), (others_before, others_after) = losses
    return membership_inference(members_after, others_after, members_before, others_before)


def _who_took_part(job: Job, report: Report) -> NDArray[np.int64]:
    """Devices that were in a cohort where a seed says so; in a real run nobody knows, and all households are candidates.

    So are they with bounded participation, where who took part lies beside the run and is not asked for.
    """
    settings = job.settings.federated
    if settings.noise != "simulation" or settings.participation == "bounded":
        return np.arange(settings.households)
    from privacy.sampling import PoissonSampler

    sampler = PoissonSampler(settings.households, settings.sampling_rate, seed_or_generator=settings.seed)
    drawn = [sampler.draw(number) for number in range(report.sampling.steps)]
    return np.unique(np.concatenate(drawn))


def _with_membership(report: dict[str, Any], found: Membership) -> dict[str, Any]:
    """The report with the membership attack: its numbers for a simulation, the bare fact for real people."""
    simulation = bool(report["claim"]["simulation"])
    said = f"{MEMBERSHIP} was tried on households that trained; " + (
        "its result stands with the measured bounds, as these people are made up."
        if simulation
        else "its result was shown to the operator and is written nowhere."
    )
    item = Outside(kind="other", statement=said, data="private", published=simulation).model_dump(mode="json")
    outside = [*report["outside"], *([item] if item not in report["outside"] else [])]
    audit = [dict(entry) for entry in report["audit"]]
    if simulation:
        audit[-1]["details"] = {**audit[-1]["details"], "membership": found.to_json()}
    return {**report, "outside": outside, "audit": audit, "signature": None}


# Telling --------------------------------------------------------------------------------------------------------------


def _told(report: Report, entries: list[EmpiricalAudit], found: Membership | None, *, written: bool) -> list[str]:
    claim = report.claim
    lines = [
        f"- {entry.method}: epsilon is at least {entry.lower_bound:.3g} with {entry.confidence:.4g} confidence "
        f"({entry.v} of {entry.r} guesses right, {entry.m} canaries); claimed: at most {claim.epsilon:.4g}"
        for entry in entries
    ]
    for item in entries[0].details.get("checks", []):
        lines.append(f"- {item['check']}: {'kept' if item['passed'] else 'BROKEN'}. {item['reason']}")
    lines += [f"- not shown: {sentence}" for sentence in entries[0].details.get("not_shown", [])]
    if found is not None:
        rates = ", ".join(
            f"{rate.value:.1%} at {rate.false_positive_rate:.1%}" + ("" if rate.resolved else " (too few to tell)")
            for rate in found.rates
        )
        lines.append(
            f"- membership of {found.members} households against {found.non_members} others: AUC {found.auc:.3f} "
            f"[{found.auc_low:.3f}, {found.auc_high:.3f}] (0.5 is luck); true positives {rates} false ones"
        )
    return [*lines, "- written into the report" if written else "- the report was left as it is"]


@contextmanager
def _bar(title: str, unit: str) -> Iterator[Any]:
    from tqdm import tqdm

    with tqdm(total=1, desc=title, unit=unit, file=sys.stderr, dynamic_ncols=True) as bar:

        def told(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield told
