"""The registry record has exactly the keys and values that the registry's strict schema allows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from report_samples import make_run

from privacy.report import Pricer, ReportError
from privacy.report.opendp import KEYS, Deployment, registry_record, to_opendp

DEPLOYMENT = Deployment(
    name="Captions for household photos",
    curator="An institute",
    curator_type="Nonprofit",
    description="A small model that describes photos.",
    intended_use="Describing photos to people who cannot see them.",
    region="Global",
    publication_date="2026-03-01",
    authors=("A. Person",),
)

# The registry's rules, written down from its public schema: closed objects, required keys, closed lists of words.
TEXT = {"type": "string", "minLength": 1}
ENUMS: dict[str, list[str]] = {
    "data_product_type": [
        "Summary statistics", "Machine learning model", "Dataset", "Synthetic data", "Interactive API", "SQL queries",
    ],
    "data_product_sector": ["Technology", "Healthcare", "Education", "Government", "Energy", "Finance"],
    "variant_name": ["Pure DP", "Approximate DP", "Zero-concentrated DP", "Renyi DP", "Custom"],
    "model_name": ["Local", "Central", "Shuffle", "Federated", "Varies"],
    "release_type": ["One release", "Many releases"],
    "data_source_type": ["Static", "Dynamic"],
    "access_type": ["Interactive", "Non-interactive"],
    "status": ["Converted", "Draft", "Pending", "Changes Required", "Approved"],
}  # fmt: skip
SPECIAL: dict[str, Any] = {
    "data_curators": {
        "type": "array",
        "minItems": 1,
        "items": {
            "type": "object",
            "required": ["data_curator_name", "data_curator_type"],
            "additionalProperties": False,
            "properties": {
                "data_curator_name": TEXT,
                "data_curator_type": {"enum": ["Government", "Industry", "Nonprofit"]},
            },
        },
    },
    "publication_date": {"type": "string", "format": "date"},
    "number_of_privacy_units": {"type": "integer"},
    "privacy_parameters": {
        "type": "object",
        "additionalProperties": False,
        "properties": {name: {"type": "number"} for name in ("epsilon", "delta", "rho")},
    },
    "registry_authors": {"type": "array", "minItems": 1, "items": TEXT},
    "tier": {"enum": [1, 2, 3]},
}
REQUIRED = {
    "basic": sorted(KEYS["basic"] - {"data_product_sector"}),
    "administrative": ["status", "registry_authors", "tier"],
}


def rule(key: str) -> dict[str, Any]:
    return SPECIAL.get(key) or ({"enum": ENUMS[key]} if key in ENUMS else TEXT)


SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["url_slug", "deployment"],
    "properties": {
        "url_slug": {"type": "string", "pattern": "^[a-z0-9-]+$"},
        "deployment": {
            "type": "object",
            "additionalProperties": False,
            "required": ["basic", "administrative"],
            "properties": {
                part: {
                    "type": "object",
                    "additionalProperties": False,
                    "required": REQUIRED.get(part, []),
                    "properties": {key: rule(key) for key in keys},
                }
                for part, keys in KEYS.items()
            },
        },
    },
}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return make_run(tmp_path_factory.mktemp("registry") / "run", Pricer())


def test_the_record_obeys_the_closed_schema(report: dict[str, Any]) -> None:
    record = yaml.safe_load(to_opendp(report, DEPLOYMENT))
    jsonschema.Draft202012Validator(SCHEMA, format_checker=jsonschema.FormatChecker()).validate(record)
    assert record == registry_record(report, DEPLOYMENT)
    assert record["deployment"]["privacy_loss"]["privacy_parameters"] == {
        "epsilon": report["claim"]["epsilon"],
        "delta": report["claim"]["delta"],
    }


def test_every_tier_3_part_is_there(report: dict[str, Any]) -> None:
    assert set(registry_record(report, DEPLOYMENT)["deployment"]) == set(KEYS)


def test_a_simulation_is_no_deployment(report: dict[str, Any]) -> None:
    simulated = {**report, "claim": {**report["claim"], "simulation": True}}
    with pytest.raises(ReportError, match="simulation"):
        to_opendp(simulated, DEPLOYMENT)


@pytest.mark.parametrize("change", [{"publication_date": "1/1/2026"}, {"authors": ()}, {"authors": ("",)}])
def test_what_the_registry_would_refuse_is_refused_here(change: dict[str, Any]) -> None:
    with pytest.raises(ReportError):
        Deployment(**{**DEPLOYMENT.__dict__, **change})


def test_nothing_of_the_record_is_private(report: dict[str, Any], tmp_path: Path) -> None:
    with_annex = {**report, "annex": {"clipped_fraction": 0.123456}}
    assert "0.123456" not in to_opendp(with_annex, DEPLOYMENT)
