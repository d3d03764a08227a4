"""What a privacy report says about a federated run, by its mode: claim, mechanism, sampling, and what lies outside.

Facts that follow from the ledger are not here; ``privacy.report`` computes them. With ``trust: device`` there is no ledger of
the run but one of each device, and a report is about one device; of a simulation it is about the one that spent most.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from federated.accounts import LEDGER
from federated.bounded import participation_of
from federated.checkpoint import write_atomically
from federated.modes import colluders, least_contributors
from federated.on_device import BOOKS
from federated.settings import FederatedConfig
from privacy.accounting import epsilon
from privacy.ledger import Ledger
from privacy.report import Mechanism, Outside, SamplingFacts
from privacy.report.models import NoiseKind
from privacy.sampling import GuardedArrivals, PoissonSampler


def open_report_ledger(settings: FederatedConfig, run_dir: Path) -> Ledger:
    """The ledger that a report of the run is made from, in the run directory itself, where an auditor looks for it.

    With ``trust: device`` it is a copy of that of the device that spent most.
    """
    path = run_dir / LEDGER
    if settings.trust == "device" and not path.exists():
        books = sorted((run_dir / BOOKS).glob("device-*.jsonl"))
        if not books:
            raise FileNotFoundError(f"no device has a ledger in {run_dir / BOOKS}; train before reporting.")
        # Every step costs the same, so the most events are the largest epsilon.
        write_atomically(path, max(books, key=lambda book: len(Ledger.open(book).events())).read_bytes())
    return Ledger.open(path)


def spent(settings: FederatedConfig, ledger: Ledger) -> float:
    """Epsilon of the ledger's releases at the run's delta, by its accountant."""
    return epsilon(ledger.events(), settings.delta, settings.accountant)


def claim_facts(settings: FederatedConfig) -> dict[str, Any]:
    """The claim's words: adjacency, unit, unit_definition, released, threat_model."""
    knows = "Whoever sees every released update and the final model, and knows all other households."
    facts = {
        "adjacency": "add_or_remove_one",
        "unit": "user",
        "unit_definition": "one household and all its photos, captions and questions",
        "released": "the noised mean update of every round, and so the final image adapters",
        "threat_model": f"{knows} The server is trusted with single updates while a round lasts (central model).",
    }
    if settings.participation == "bounded":
        facts["adjacency"] = "zero_out"
        facts["threat_model"] = (
            f"{knows} They may also know who took part and when: no amplification is claimed. The server is trusted with "
            "single updates while a round lasts (central model)."
        )
    if settings.trust == "secure_aggregation":
        facts["threat_model"] = (
            f"{knows} They may also know who took part and when. The server too, with up to {colluders(settings)} devices of "
            f"a round that help it: it sees sums of at least {least_contributors(settings)} updates, with noise from the "
            "devices, and no update alone."
        )
    if settings.trust == "device":
        facts |= {
            "unit": "example",
            "unit_definition": "one photo of the device that spent most, with its captions and questions",
            "released": "every update that the device sent",
            "threat_model": (
                "Whoever receives the device's updates, the server included, and knows all its other photos. Nobody but the "
                "device is trusted; what the server does with the updates is post-processing."
            ),
        }
    return facts


def mechanism_facts(settings: FederatedConfig) -> Mechanism:
    """How contributions were bounded and noised."""
    noise: NoiseKind = "seeded (simulation)" if settings.noise == "simulation" else "csprng"
    dtypes = {"update": "float32", "norm and sum": "float64", "noise": "float64", "model": "float32"}
    divisor = settings.divisor
    if settings.trust == "secure_aggregation":
        dtypes |= {"norm and sum": "float64, then integers modulo 2**32", "noise": "discrete Gaussian on each device"}
    if settings.trust == "device":
        dtypes = {"gradient": "float32", "norm": "float64", "noise": "float64", "model": "float32"}
        divisor = settings.on_device.sampling_rate * settings.photos_per_household
    return Mechanism(
        clip_kind="adaptive" if settings.adaptive.enabled else "flat",
        clip_norm=settings.clip_norm,
        count_noise_multiplier=settings.adaptive.count_noise if settings.adaptive.enabled else None,
        divisor=divisor,
        divisor_is_public=True,
        dtypes=dtypes,
        noise=noise,
    )


def sampling_facts(settings: FederatedConfig, ledger: Ledger) -> SamplingFacts:
    """The sampler that ran, and how many steps it gave."""
    steps = len(set(ledger.steps()))  # an evaluation belongs to its round, and a step paid for again is one step
    simulation = settings.noise == "simulation"
    if settings.participation == "bounded":
        bound = participation_of(settings)
        arrivals = GuardedArrivals(settings.households, settings.cohort, bound)
        return SamplingFacts.of(arrivals, steps=settings.rounds, participation_bound=bound.max_participations)
    if settings.trust == "device":
        return SamplingFacts(
            sampler=PoissonSampler.__name__,
            randomness="seeded (simulation)" if simulation else "csprng",
            scheme="poisson",
            rate=settings.on_device.sampling_rate,
            steps=steps,
        )
    sampler = PoissonSampler(settings.households, settings.sampling_rate, seed_or_generator=0 if simulation else None)
    return SamplingFacts.of(sampler, steps=steps)


def outside_facts(settings: FederatedConfig) -> list[Outside]:
    """What leaves the devices, or the run, and is no release of the ledger."""
    statements = [Outside(kind="loss_curves", statement="Devices do not send losses; none is kept.", data="none")]
    if settings.participation == "bounded" or settings.trust == "device":
        statements.append(
            Outside(
                kind="other",
                statement="The server knows which devices took part in which round, and how long they took.",
                data="none",
            )
        )
    return statements
