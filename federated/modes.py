"""Which privacy modes go together, and why the others do not: one sentence for each refusal.

    trust               participation   the server sees                   unit     priced as
    central             poisson         single updates, for a round       user     Poisson-sampled Gaussian sums
    central             bounded         single updates, for a round       user     one correlated Gaussian release
    secure_aggregation  bounded         sums with the devices' own noise  user     one Gaussian release
    device              poisson         updates that are private already  example  on each device, in its own ledger

What it refuses is raised as ValueError when settings are made, before anything runs.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from federated.settings import FederatedConfig

# What a run without privacy does not have: `without_privacy` puts these back to their defaults.
PRIVACY_MODES = ("trust", "participation", "bounded", "adaptive", "secure", "on_device", "private_evaluation")


def check_modes(settings: FederatedConfig) -> None:
    """ValueError with one sentence where the modes do not go together."""
    _check_ignored(settings)
    if settings.trust == "secure_aggregation":
        _check_secure(settings)
    if settings.trust == "device":
        _check_device(settings)
    if settings.participation == "bounded":
        _check_bounded(settings)
    if settings.private_evaluation.every and (settings.trust != "central" or settings.participation != "poisson"):
        raise ValueError(
            "private_evaluation was asked for outside the central, Poisson-sampled mode; only there is its release accounted, "
            "so leave it out, and evaluate on people who took no part."
        )
    if settings.adaptive.enabled and (settings.trust != "central" or settings.participation != "poisson"):
        raise ValueError(
            "adaptive clipping was asked for outside the central, Poisson-sampled mode; only there is its private "
            "quantile accounted, so leave adaptive out or choose trust: central and participation: poisson."
        )


def _check_ignored(settings: FederatedConfig) -> None:
    """A section that the chosen mode does not read must stand at its defaults."""
    fields = type(settings).model_fields
    if not settings.private:
        changed = [name for name in PRIVACY_MODES if getattr(settings, name) != fields[name].default]
        if changed:
            raise ValueError(
                f"private is false and {', '.join(changed)} was given, which only private runs have; leave it out, or say "
                "private: true."
            )
        return
    readers = {
        "bounded": (settings.participation == "bounded", "participation: bounded"),
        "secure": (settings.trust == "secure_aggregation", "trust: secure_aggregation"),
        "on_device": (settings.trust == "device", "trust: device"),
        "adaptive": (settings.adaptive.enabled, "adaptive: {enabled: true}"),
        "private_evaluation": (settings.private_evaluation.every > 0, "private_evaluation: {every: 5}"),
    }
    for name, (read, mode) in readers.items():
        if not read and getattr(settings, name) != fields[name].default:
            raise ValueError(
                f"the section {name} was given and nothing reads it; add {mode}, or leave the section out."
            )


def _check_bounded(settings: FederatedConfig) -> None:
    bounded = settings.bounded
    most = math.ceil(settings.rounds / bounded.min_separation)
    if bounded.max_participations > most:
        raise ValueError(
            f"bounded.max_participations is {bounded.max_participations}, but {settings.rounds} rounds with "
            f"{bounded.min_separation} between two participations hold {most} at most; give {most} or less."
        )
    if bounded.bands > settings.rounds:
        raise ValueError(f"bounded.bands is {bounded.bands} for {settings.rounds} rounds; give at most as many bands.")
    needed, offered = settings.rounds * settings.cohort, settings.households * bounded.max_participations
    if needed > offered:
        raise ValueError(
            f"{settings.rounds} rounds of {settings.cohort} devices need {needed} participations, and "
            f"{settings.households} devices that come {bounded.max_participations} times at most offer {offered}; lower "
            "sampling_rate or rounds, or allow more participations (which costs noise)."
        )


def _check_secure(settings: FederatedConfig) -> None:
    if settings.participation != "bounded":
        raise ValueError(
            "trust is secure_aggregation with Poisson cohorts, whose amplification fails against the very server that is "
            "not trusted, since it knows whom it asked; say participation: bounded."
        )
    if settings.bounded.bands != 1:
        raise ValueError(
            f"bounded.bands is {settings.bounded.bands} with secure aggregation, where each device draws its own noise and "
            "none can take back another's; say bands: 1, or trust: central."
        )
    if settings.codec != "fp32":
        raise ValueError(
            f"codec is {settings.codec!r} with secure aggregation, where updates travel as masked words of 32 bits; leave "
            "codec out."
        )
    least = least_contributors(settings)
    if settings.cohort < 3 or least - colluders(settings) < 1:
        raise ValueError(
            f"a cohort of {settings.cohort} devices, of which {least} must stay and {colluders(settings)} may collude, "
            "hides nobody; have at least 3 devices a round, and fewer colluders than must stay."
        )


def _check_device(settings: FederatedConfig) -> None:
    if settings.participation != "poisson":
        raise ValueError(
            "trust is device with bounded participation, which the device's own ledger makes needless; leave participation "
            "out: a device that has spent its budget refuses by itself."
        )


def least_contributors(settings: FederatedConfig) -> int:
    """Secure aggregation: devices without whose noise there is no sum; more than half of the cohort, a public constant."""
    return max(settings.cohort // 2 + 1, math.ceil(settings.secure.threshold * settings.cohort))


def colluders(settings: FederatedConfig) -> int:
    """Secure aggregation: devices of a cohort whose noise is not counted on."""
    return math.floor(settings.secure.colluders * settings.cohort)
