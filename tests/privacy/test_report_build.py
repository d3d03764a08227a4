"""A report says what its ledger bears out, obeys its published schema, and is not written otherwise."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from report_samples import DELTA, STEPS, make_run
from scipy.stats import norm

from privacy.canonical import UnreadableError, canonical_bytes
from privacy.events import GaussianRelease, Sampling, Unaccountable
from privacy.ledger import Ledger
from privacy.report import (
    Claim,
    DataFacts,
    Pricer,
    ReportError,
    SamplingFacts,
    as_parent,
    attach_audit,
    data_commitment,
    json_schema,
    read_report,
    sign_report,
    signature_problem,
    write_report,
)
from privacy.report.build import trajectory_marks
from privacy.report.recompute import merge, without_amplification
from privacy.report.schema import generate
from privacy.sampling import PoissonSampler


@pytest.fixture(scope="module")
def pricer() -> Pricer:
    return Pricer()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, pricer: Pricer) -> Path:
    path = tmp_path_factory.mktemp("build") / "run"
    make_run(path, pricer)
    return path


@pytest.fixture
def report(folder: Path) -> dict[str, Any]:
    return read_report(folder)


def test_the_published_schema_is_the_models_and_accepts_the_report(report: dict[str, Any]) -> None:
    assert json_schema() == generate()
    jsonschema.Draft202012Validator.check_schema(json_schema())
    jsonschema.Draft202012Validator(json_schema()).validate(report)


@pytest.mark.parametrize(
    "path",
    [("claim", "epsilon"), ("claim", "unit"), ("mechanism", "clip_norm"), ("data", "commitment"), ("ledger", "head")],
)
def test_schema_and_reader_refuse_the_same_gaps(folder: Path, tmp_path: Path, path: tuple[str, str]) -> None:
    broken = read_report(folder)
    broken[path[0]][path[1]] = {"not": "this"}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(json_schema()).validate(broken)
    (tmp_path / "report.json").write_bytes(canonical_bytes(broken))
    with pytest.raises(UnreadableError, match=path[1]):
        read_report(tmp_path)


def test_every_field_of_the_schema_is_described() -> None:
    document = (Path(__file__).parents[2] / "docs" / "report.md").read_text(encoding="utf-8")
    for name, model in {**json_schema()["$defs"], "Report": json_schema()}.items():
        for field in model["properties"]:
            assert f"`{field}`" in document, f"docs/report.md does not describe {name}.{field}"


def test_the_file_is_canonical_and_reads_back(folder: Path, report: dict[str, Any]) -> None:
    data = (folder / "report.json").read_bytes()
    assert data == canonical_bytes(json.loads(data)) + b"\n"
    assert read_report(folder / "report.json") == report


def test_what_follows_from_the_ledger_is_filled_in(report: dict[str, Any]) -> None:
    claim = report["claim"]
    assert report["mechanism"]["sensitivity"] == 1
    assert report["mechanism"]["noise_multipliers"] == [{"value": 1.2, "count": STEPS}]
    assert claim["trajectory"][-1]["releases"] == STEPS
    assert claim["trajectory"][-1]["epsilon"] == pytest.approx(claim["epsilon"], rel=1e-3)
    epsilons = [point["epsilon"] for point in claim["trajectory"]]
    assert epsilons == sorted(epsilons)
    deltas = [point["delta"] for point in claim["profile"]]
    assert deltas == sorted(deltas, reverse=True)
    assert [row["accountant"] for row in report["verification"]] == ["rdp", "prv", "pld", "own"]
    assert report["identity"]["id"] == f"report-{report['ledger']['head'][:16]}"
    assert report["annex"] is None


def test_without_amplification_counts_the_often_drawn_and_is_the_closed_form(report: dict[str, Any]) -> None:
    # The smallest k with P[Binomial(12, 0.05) > k] <= 1e-6, by hand; then k Gaussian releases of sigma 1.2 are one of
    # mean root(k) / 1.2, in closed form (Balle and Wang 2018).
    beyond = [sum(math.comb(12, j) * 0.05**j * 0.95 ** (12 - j) for j in range(k + 1, 13)) for k in range(13)]
    often = next(k for k, chance in enumerate(beyond) if chance <= 1e-6)
    assert often > 1
    epsilon, mu = report["claim"]["epsilon_without_amplification"], math.sqrt(often) / 1.2
    delta = norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu)
    assert delta == pytest.approx(DELTA, rel=1e-3)
    assert epsilon > report["claim"]["epsilon"]


def test_nothing_is_amplified_where_sampling_is_public() -> None:
    assert without_amplification(merge([GaussianRelease(1.0, Sampling("full"), count=3)])) is None
    shuffled = GaussianRelease(1.0, Sampling("shuffle", population=100, batch=10), adjacency="zero_out", count=3)
    assert without_amplification(merge([shuffled])) is None


def test_labels_do_not_tell_mechanisms_apart() -> None:
    run = merge([GaussianRelease(1.0, label="a"), GaussianRelease(1.0, label="b", count=4), GaussianRelease(2.0)])
    assert run == (GaussianRelease(1.0, count=5), GaussianRelease(2.0))


@pytest.mark.parametrize(
    ("releases", "distinct"), [(1, 1), (7, 1), (40, 1), (41, 1), (10_000, 1), (300, 300), (9, 5000)]
)
def test_the_trajectory_has_first_and_last_and_few_points(releases: int, distinct: int) -> None:
    marks = trajectory_marks(releases, distinct)
    assert marks[0] == 1
    assert marks[-1] == releases
    assert len(marks) <= 40
    assert marks == sorted(set(marks))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"claim": {"epsilon": 0.1}}, "state at least that"),
        ({"claim": {"accountant": "gdp"}}, "cannot vouch"),
        ({"claim": {"unit": "example"}}, "ledger holds releases accounted for user"),
        ({"claim": {"adjacency": "zero_out"}}, "ledger holds releases accounted for"),
    ],
)
def test_a_claim_that_the_ledger_contradicts_is_not_written(
    tmp_path: Path, pricer: Pricer, change: dict[str, Any], words: str
) -> None:
    change = {"claim": {"epsilon": 5.0, **change["claim"]}}
    with pytest.raises(ReportError, match=words):
        make_run(tmp_path / "run", pricer, **change)
    assert not (tmp_path / "run" / "report.json").exists()


def test_a_run_without_releases_or_with_an_unaccountable_one_has_no_report(tmp_path: Path, pricer: Pricer) -> None:
    with pytest.raises(ReportError, match="no release"):
        make_run(tmp_path / "none", pricer, sigmas=(), sampling={"steps": 1}, claim={"epsilon": 1.0})
    make_run(tmp_path / "run", pricer)
    ledger = Ledger.open(tmp_path / "run" / "ledger.jsonl")
    ledger.append(Unaccountable("validation images trained the codebook"), step=99)
    from privacy.report import Identity, Mechanism, build_report

    with pytest.raises(ReportError, match="cannot vouch"):
        build_report(
            ledger,
            Claim(epsilon=9.0, delta=DELTA, unit_definition="a home", released="a model", threat_model="all"),
            mechanism=Mechanism(clip_norm=1.0, divisor=1.0, noise="csprng"),
            sampling=SamplingFacts.of(PoissonSampler(400, 0.05, seed_or_generator=None), steps=STEPS),
            data=DataFacts(commitment="00" * 32),
            identity=Identity(),
            pricer=pricer,
        )


def test_facts_come_from_the_sampler_itself() -> None:
    facts = SamplingFacts.of(PoissonSampler(400, 0.05, seed_or_generator=3), steps=7)
    assert (facts.sampler, facts.scheme, facts.rate, facts.steps) == ("PoissonSampler", "poisson", 0.05, 7)
    assert facts.randomness == "seeded (simulation)"
    assert SamplingFacts.of(PoissonSampler(400, 0.05, seed_or_generator=None), steps=7).randomness == "csprng"


def test_a_parents_releases_are_in_the_claim(tmp_path: Path, pricer: Pricer, report: dict[str, Any]) -> None:
    second = make_run(tmp_path / "second", pricer, parents=(as_parent(report),))
    assert second["claim"]["epsilon"] > report["claim"]["epsilon"] * 1.2
    # Two equal runs are one run of twice the length.
    whole = pricer.epsilon(
        [merge([GaussianRelease(1.2, Sampling("poisson", 0.05, 400), 2 * STEPS, unit="user")])], DELTA, "pld"
    )
    assert second["claim"]["epsilon"] == pytest.approx(whole, rel=1e-6)


def test_data_dependent_numbers_have_no_place_but_the_annex(report: dict[str, Any]) -> None:
    with pytest.raises(Exception, match="clipped_fraction"):
        DataFacts(commitment="00" * 32, clipped_fraction=0.1)  # type: ignore[call-arg]
    with pytest.raises(Exception, match="population"):
        DataFacts(commitment="00" * 32, population=400)


def test_a_full_disk_leaves_the_old_report(
    folder: Path, report: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (folder / "report.json").read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="ledger is intact"):
        write_report(folder, {**report, "identity": {**report["identity"], "name": "other"}})
    assert (folder / "report.json").read_bytes() == before
    assert not list(folder.glob(".*.new"))


def test_a_signature_holds_until_anything_changes(report: dict[str, Any]) -> None:
    key = Ed25519PrivateKey.generate()
    trusted = key.public_key().public_bytes_raw().hex()
    assert signature_problem(report) is None
    assert "not signed" in str(signature_problem(report, trusted))
    signed = sign_report(report, key)
    assert signature_problem(signed, trusted) is None
    assert "another key" in str(signature_problem(signed, "00" * 32))
    signed["claim"]["delta"] = DELTA / 2
    assert "does not fit" in str(signature_problem(signed))
    assert sign_report(sign_report(report, key), key) == sign_report(report, key)


def test_a_measured_bound_is_attached_and_drops_the_signature(report: dict[str, Any]) -> None:
    entry = {"method": "one run", "m": 100, "r": 60, "v": 40, "confidence": 0.95, "lower_bound": 0.2, "delta": DELTA}
    changed = attach_audit(sign_report(report, Ed25519PrivateKey.generate()), entry)
    assert changed["audit"][0]["lower_bound"] == 0.2
    assert changed["signature"] is None
    with pytest.raises(ReportError, match="audit"):
        attach_audit(report, {"method": "one run"})


def test_the_commitment_hides_without_the_key_and_ignores_order() -> None:
    key, other = b"k" * 32, b"l" * 32
    assert data_commitment(key, [b"a", b"b"]) == data_commitment(key, [b"b", b"a"])
    assert data_commitment(key, [b"a", b"b"]) != data_commitment(other, [b"a", b"b"])
    assert data_commitment(key, [b"a", b"b"]) != data_commitment(key, [b"ab"])
    with pytest.raises(ValueError, match="16"):
        data_commitment(b"short", [])
