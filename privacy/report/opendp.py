"""The report as a record of the OpenDP deployments registry: YAML with exactly the keys that its schema allows.

The registry's schema refuses unknown keys, so nothing is added to it: what it has no field for (the hash chain, the
measured lower bound, epsilon without amplification) is said in its free texts. A record whose fields are all filled
has tier 3; a person still has to answer for it, so its status is Draft.

What the report cannot know (who publishes, where, when, what for) is asked of the caller. A report of a simulation is
refused: it is no deployment.
"""

from __future__ import annotations

import dataclasses
import datetime
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args

import yaml

from privacy.canonical import read_bytes
from privacy.report.build import ReportError, check_report
from privacy.report.models import Report

CuratorType = Literal["Government", "Industry", "Nonprofit"]
Sector = Literal["Technology", "Healthcare", "Education", "Government", "Energy", "Finance"]

# The keys that each part of a record may have, by the registry's schema as of 2026; "accounting" was merged into
# "implementation" there, where composition and post-processing now stand.
KEYS: Final[dict[str, frozenset[str]]] = {
    "basic": frozenset(
        {"name", "data_curators", "description", "intended_use", "data_product_type", "data_product_region"}
        | {"data_product_sector", "publication_date"}
    ),
    "dp_variant": frozenset({"variant_name", "data_domain", "unprotected_quantities"}),
    "privacy_loss": frozenset(
        {"privacy_unit", "privacy_unit_details", "number_of_privacy_units", "privacy_parameters"}
        | {"privacy_parameters_details"}
    ),
    "deployment_model": frozenset(
        {"model_name", "model_name_details", "trust_assumptions", "actors", "release_type", "release_type_details"}
        | {"data_source_type", "data_source_type_details", "access_type", "access_type_details"}
    ),
    "implementation": frozenset(
        {"preprocessing_and_hyperparameter_tuning", "mechanisms", "composition", "post_processing", "justification"}
        | {"utility", "additional_information"}
    ),
    "administrative": frozenset({"evidence_sources", "status", "registry_authors", "tier"}),
}


@dataclass(frozen=True)
class Deployment:
    """What only the publisher knows. publication_date: YYYY-MM-DD. authors: who fills in the record, at least one."""

    name: str
    curator: str
    curator_type: CuratorType
    description: str
    intended_use: str
    region: str
    publication_date: str
    authors: tuple[str, ...]
    sector: Sector = "Technology"
    federated: bool = True
    justification: str = "Not stated."

    def __post_init__(self) -> None:
        try:
            datetime.date.fromisoformat(self.publication_date)
        except ValueError as error:
            raise ReportError(f"The publication date is {self.publication_date!r}; give it as YYYY-MM-DD.") from error
        if not self.authors or not all(self.authors):
            raise ReportError("A registry record names at least one author; say who answers for it.")


FORM: Final = """# What a report cannot know, for the OpenDP deployments registry. Fill in every line.
name:              # of the deployment, e.g. Kitchen captions
curator:           # who publishes it
curator_type:      # Government, Industry or Nonprofit
description:       # what it is, in a sentence
intended_use:      # what for
region:            # where, e.g. Switzerland
publication_date:  # YYYY-MM-DD
authors: []        # who fills in this record, at least one
sector: Technology # Technology, Healthcare, Education, Government, Energy or Finance
federated: true    # false where the data lay in one place
justification: Not stated.  # why these epsilon and delta
"""


def deployment_from(path: Path) -> Deployment:
    """What a filled-in `FORM` says.

    Raises:
        UnreadableError: the file is absent or no small text.
        ReportError: a line is empty, unknown or of the wrong kind; the message names it.
    """
    try:
        data = yaml.safe_load(read_bytes(path, max_bytes=100_000).decode("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        raise ReportError(f"{path} is not YAML; write it as the form that is made where no file is.") from None
    known = {field.name: field for field in dataclasses.fields(Deployment)}
    if not isinstance(data, dict) or set(data) - set(known):
        strange = sorted(map(str, set(data) - set(known)))[:3] if isinstance(data, dict) else "no lines of the form"
        raise ReportError(f"{path} holds {strange}; expected only {', '.join(known)}.")
    given: dict[str, Any] = {
        key: value.isoformat() if isinstance(value, datetime.date) else value for key, value in data.items()
    }
    empty = [name for name in known if name not in ("sector", "federated", "justification") and not given.get(name)]
    if empty:
        raise ReportError(f"{path} does not say {', '.join(empty)}; fill in every line.")
    authors = given["authors"]
    given["authors"] = (authors,) if isinstance(authors, str) else authors
    choices = {"curator_type": get_args(CuratorType), "sector": get_args(Sector)}
    for name, value in given.items():
        if name in choices and value not in choices[name]:
            raise ReportError(f"{path}: {name} is {str(value)[:60]!r}; expected one of {', '.join(choices[name])}.")
        if name == "authors":
            if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
                raise ReportError(f"{path}: authors is no list of names.")
        elif not isinstance(value, bool if name == "federated" else str):
            raise ReportError(
                f"{path}: {name} is {str(value)[:60]!r}; expected {'true or false' if name == 'federated' else 'text'}."
            )
    return Deployment(**{**given, "authors": tuple(given["authors"])})


def registry_record(report: dict[str, Any], deployment: Deployment) -> dict[str, Any]:
    """The record as an object.

    Raises:
        ReportError: the report is none, or is of a simulation.
    """
    checked = check_report(report)
    if checked.claim.simulation:
        raise ReportError("The report is of a simulation, which is no deployment; register a run with real randomness.")
    slug = re.sub(
        r"[^a-z0-9]+", "-", f"{deployment.name} {deployment.curator} {deployment.publication_date[:4]}".lower()
    )
    return {
        "url_slug": slug.strip("-"),
        "deployment": {
            "basic": {
                "name": deployment.name,
                "data_curators": [
                    {"data_curator_name": deployment.curator, "data_curator_type": deployment.curator_type}
                ],
                "description": deployment.description,
                "intended_use": deployment.intended_use,
                "data_product_type": "Machine learning model",
                "data_product_region": deployment.region,
                "data_product_sector": deployment.sector,
                "publication_date": deployment.publication_date,
            },
            "dp_variant": {
                "variant_name": "Approximate DP",
                "data_domain": checked.data.description or "Not described.",
                "unprotected_quantities": _unprotected(checked),
            },
            "privacy_loss": _privacy_loss(checked),
            "deployment_model": _model(checked, deployment),
            "implementation": _implementation(checked, deployment),
            "administrative": {
                "status": "Draft",
                "registry_authors": list(deployment.authors),
                "tier": 3,
            },
        },
    }


def to_opendp(report: dict[str, Any], deployment: Deployment) -> str:
    """The record as YAML, in the registry's order of keys. Raises as `registry_record`."""
    record = registry_record(report, deployment)
    return yaml.safe_dump(record, sort_keys=False, allow_unicode=True, width=110)


def _unprotected(report: Report) -> str:
    parts = ["The number of steps, the sampling rate, the clipping norm and the noise are public constants."]
    if report.data.population is not None:
        parts.append(f"The number of units, {report.data.population}, is public.")
    parts += [item.statement for item in report.outside if item.data == "private" and not item.accounted]
    return " ".join(parts)


def _privacy_loss(report: Report) -> dict[str, Any]:
    claim = report.claim
    plain = claim.epsilon_without_amplification
    details = f"Upper bound by the {claim.accountant} accountant."
    if plain is not None:
        details += f" Without amplification by sampling epsilon would be {plain:.4g}."
    details += "".join(
        f" An attack ({item.method}) shows at least {item.lower_bound:.3g} at confidence {item.confidence:g}."
        for item in report.audit
    )
    loss: dict[str, Any] = {
        "privacy_unit": "User-level" if claim.unit == "user" else "Example-level",
        "privacy_unit_details": f"{claim.unit_definition}; neighbours: {claim.adjacency.replace('_', ' ')}.",
        "privacy_parameters": {"epsilon": claim.epsilon, "delta": claim.delta},
        "privacy_parameters_details": details,
    }
    if report.data.population is not None:
        loss["number_of_privacy_units"] = report.data.population
    return loss


def _model(report: Report, deployment: Deployment) -> dict[str, Any]:
    return {
        "model_name": "Federated" if deployment.federated else "Central",
        "model_name_details": "Noise is added centrally, to the sum of clipped updates.",
        "trust_assumptions": report.claim.threat_model,
        "actors": "Participants hold the data; the server clips, sums and adds noise; users see the released model.",
        "release_type": "Many releases" if report.identity.parents else "One release",
        "release_type_details": (
            f"The claim composes this run with {len(report.identity.parents)} earlier ones."
            if report.identity.parents
            else f"Released: {report.claim.released}."
        ),
        "data_source_type": "Static",
        "access_type": "Non-interactive",
    }


def _implementation(report: Report, deployment: Deployment) -> dict[str, Any]:
    mechanism, sampling = report.mechanism, report.sampling
    trials = [item.statement for item in report.outside if item.kind == "hyperparameter_trials"]
    noise = ", ".join(f"{run.value:g} ({run.count} releases)" for run in mechanism.noise_multipliers[:5])
    software = ", ".join(f"{name} {version}" for name, version in report.identity.software.items())
    compression = [item.statement for item in report.outside if item.kind == "compression"]
    return {
        "preprocessing_and_hyperparameter_tuning": " ".join([*trials, f"Copies: {report.data.deduplicated}."]),
        "mechanisms": (
            f"Gaussian mechanism on sums of contributions clipped ({mechanism.clip_kind}) to {mechanism.clip_norm:g}; "
            f"noise multiplier {noise}; noise from {mechanism.noise}; "
            f"sampling: {sampling.scheme} by {sampling.sampler}, "
            f"rate {sampling.rate if sampling.rate is not None else 'none'}, {sampling.steps} steps. "
            f"Software: {software or 'not stated'}."
        ),
        "composition": (
            f"All releases of the run composed numerically ({report.claim.accountant}); "
            + ", ".join(f"{row.accountant} {row.epsilon:.4g}" for row in report.verification)
            + "."
        ),
        "post_processing": " ".join(
            ["Averaging, the optimiser and the released model are post-processing.", *compression]
        ),
        "justification": deployment.justification,
        "additional_information": (
            f"Report {report.identity.id}; ledger head {report.ledger.head}. Outside the guarantee: "
            + " ".join(f"{item.kind.replace('_', ' ')}: {item.statement}" for item in report.outside)
        ),
    }
