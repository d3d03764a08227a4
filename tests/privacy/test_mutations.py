"""Every planted lie is caught, also when the liar recomputes the hash chain and every file that goes with it.

What only a signature or a head known from elsewhere can catch is held here too, so that nobody believes otherwise.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from report_samples import STEPS, change, events_of, make_run

from privacy.audit import AuditResult, audit_paths
from privacy.audit.empirical.one_run import steinke_bound
from privacy.audit.evidence import read_evidence
from privacy.audit.integrity import check_selection, check_trials
from privacy.events import Sampling
from privacy.report import Pricer, as_parent, check_report, sign_report, write_report


@pytest.fixture(scope="module")
def pricer() -> Pricer:
    return Pricer()


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory, pricer: Pricer) -> Path:
    folder = tmp_path_factory.mktemp("honest") / "run"
    make_run(folder, pricer)
    return folder


@pytest.fixture
def run(honest: Path, tmp_path: Path) -> Path:
    shutil.copytree(honest, tmp_path / "run")
    return tmp_path / "run"


def failed(result: AuditResult) -> set[str]:
    return {check.id for check in result.checks if check.verdict == "fail"}


def must_fail(folder: Path, pricer: Pricer, *checks: str, **options: Any) -> None:
    result = audit_paths([folder], pricer=pricer, **options)
    assert result.exit_code == 1, result.to_text()
    assert failed(result) >= set(checks), result.to_text()


def test_the_honest_run_passes_every_check(run: Path, pricer: Pricer) -> None:
    result = audit_paths([run], pricer=pricer)
    assert result.exit_code == 0
    verdicts = {check.id: check.verdict for check in result.checks}
    assert verdicts.pop("empirical") == "not_applicable"
    assert set(verdicts.values()) == {"pass"}, result.to_text()


def lower_sigma(report: dict[str, Any]) -> None:
    events_of(report)[7]["event"]["noise_multiplier"] = 0.6


def drop_steps(report: dict[str, Any]) -> None:
    del report["ledger"]["entries"][4:8]


def lower_rate(report: dict[str, Any]) -> None:
    for entry in events_of(report):
        entry["event"]["sampling"]["rate"] = 0.02


def relabel_unit(report: dict[str, Any]) -> None:
    report["claim"]["unit"] = "example"


def reorder(report: dict[str, Any]) -> None:
    entries = report["ledger"]["entries"]
    entries[5], entries[6] = entries[6], entries[5]


def truncate(report: dict[str, Any]) -> None:
    del report["ledger"]["entries"][-4:]


@pytest.mark.parametrize("edit", [lower_sigma, drop_steps, lower_rate, reorder, truncate])
def test_an_edited_ledger_breaks_the_chain(run: Path, pricer: Pricer, edit: Any) -> None:
    change(run, edit)
    must_fail(run, pricer, "integrity")
    # The report alone, without the ledger beside it, shows it as well.
    (run / "ledger.jsonl").unlink()
    must_fail(run / "report.json", pricer, "integrity")


@pytest.mark.parametrize(
    ("edit", "checks"),
    [
        (lower_sigma, {"epsilon", "clipping"}),
        (drop_steps, {"steps", "epsilon"}),
        (lower_rate, {"sampler", "epsilon"}),
        (reorder, {"steps"}),
        (truncate, {"steps"}),
    ],
)
def test_an_edited_ledger_with_a_new_chain_contradicts_the_rest(
    run: Path, pricer: Pricer, edit: Any, checks: set[str]
) -> None:
    change(run, edit, rechain=True)
    must_fail(run, pricer, *checks)
    assert "integrity" not in failed(audit_paths([run / "report.json"], pricer=pricer))


def test_a_ledger_file_that_was_cut_at_a_line_or_within_is_caught(run: Path, pricer: Pricer) -> None:
    whole = (run / "ledger.jsonl").read_bytes()
    lines = whole.splitlines(keepends=True)
    for cut in (b"".join(lines[:-3]), whole[:-10], b"", whole + lines[-1]):
        (run / "ledger.jsonl").write_bytes(cut)
        must_fail(run, pricer, "integrity")
    # Also when the note of its length is gone.
    (run / "ledger.jsonl.head").unlink()
    (run / "ledger.jsonl").write_bytes(b"".join(lines[:-3]))
    must_fail(run, pricer, "integrity")


def test_shuffling_labelled_poisson_is_caught(run: Path, pricer: Pricer) -> None:
    change(run, lambda report: report["sampling"].update(sampler="ShuffledSampler"))
    must_fail(run, pricer, "sampler")


def test_a_shuffled_ledger_under_a_poisson_sampler_is_caught(tmp_path: Path, pricer: Pricer) -> None:
    # The run shuffled and said so in its events; the report is edited to look amplified.
    shuffled = {"sampling": Sampling("shuffle", population=400, batch=20), "adjacency": "zero_out"}
    make_run(
        tmp_path / "run",
        pricer,
        event=shuffled,
        claim={"adjacency": "zero_out"},
        sampling={"sampler": "ShuffledSampler"},
    )
    change(
        tmp_path / "run",
        lambda report: report["sampling"].update(sampler="PoissonSampler", scheme="poisson", rate=0.05, batch=None),
    )
    must_fail(tmp_path / "run", pricer, "sampler")


def test_an_unknown_sampler_proves_nothing(run: Path, pricer: Pricer) -> None:
    change(run, lambda report: report["sampling"].update(sampler="MySampler"))
    must_fail(run, pricer, "sampler")


def test_a_relabelled_unit_is_caught(tmp_path: Path, pricer: Pricer) -> None:
    folder = tmp_path / "run"
    make_run(
        folder,
        pricer,
        event={"unit": "example"},
        claim={"unit": "example", "unit_definition": "one photo with its caption"},
    )
    honest_result = audit_paths([folder], pricer=pricer)
    assert {c.id for c in honest_result.checks if c.verdict == "flag"} == {"unit"}  # example only, and said
    shutil.copytree(folder, tmp_path / "forged")
    change(folder, lambda report: report["claim"].update(unit="user"))
    must_fail(folder, pricer, "unit")

    def relabel_all(report: dict[str, Any]) -> None:
        report["claim"]["unit"] = "user"
        for entry in events_of(report):
            entry["event"]["unit"] = "user"

    change(tmp_path / "forged", relabel_all, rechain=True)
    must_fail(tmp_path / "forged", pricer, "unit")


def test_a_record_bound_that_was_not_accounted_is_caught(run: Path, pricer: Pricer) -> None:
    change(run, lambda report: report["claim"].update(max_records_per_unit=8))
    must_fail(run, pricer, "unit")


def test_a_relabelled_adjacency_is_caught(tmp_path: Path, pricer: Pricer) -> None:
    folder = tmp_path / "run"
    make_run(folder, pricer, event={"adjacency": "replace_one"}, claim={"adjacency": "replace_one"})
    assert audit_paths([folder], pricer=pricer).exit_code == 0
    shutil.copytree(folder, tmp_path / "forged")
    change(folder, lambda report: report["claim"].update(adjacency="add_or_remove_one"))
    must_fail(folder, pricer, "adjacency")

    def relabel_all(report: dict[str, Any]) -> None:
        report["claim"]["adjacency"] = "add_or_remove_one"
        for entry in events_of(report):
            entry["event"]["adjacency"] = "add_or_remove_one"

    change(tmp_path / "forged", relabel_all, rechain=True)
    must_fail(tmp_path / "forged", pricer, "adjacency")


def test_a_swapped_model_is_caught(run: Path, pricer: Pricer) -> None:
    (run / "model.safetensors").write_bytes(b"another model")
    must_fail(run, pricer, "integrity")


def test_a_swapped_model_with_its_hash_in_the_report_contradicts_the_ledger(run: Path, pricer: Pricer) -> None:
    import hashlib

    (run / "model.safetensors").write_bytes(b"another model")
    digest = hashlib.sha256(b"another model").hexdigest()

    def edit(report: dict[str, Any]) -> None:
        report["identity"]["model_hash_after"] = digest
        report["identity"]["files"]["model.safetensors"] = digest

    change(run, edit)
    must_fail(run, pricer, "integrity")


def test_a_swapped_configuration_is_caught(run: Path, pricer: Pricer) -> None:
    (run / "config.yaml").write_text("seed: 2\n")
    must_fail(run, pricer, "integrity")


def test_another_data_set_than_the_ledger_was_begun_with_is_caught(run: Path, pricer: Pricer) -> None:
    change(run, lambda report: report["data"].update(commitment="12" * 32))
    must_fail(run, pricer, "integrity")


HEADER_LIES = {
    "unit": "example",
    "adjacency": "replace_one",
    "clip_norm": 0.1,
    "noise": "seeded (simulation)",
}


@pytest.mark.parametrize("name", HEADER_LIES)
def test_what_the_ledger_was_begun_with_binds_the_report(run: Path, pricer: Pricer, name: str) -> None:
    # A run's ledger opens with its own settings; here they differ from what the report states.
    change(run, lambda r: r["ledger"]["entries"][0]["header"].update({name: HEADER_LIES[name]}), rechain=True)
    must_fail(run, pricer, "integrity")


def test_what_is_called_free_or_paid_for_is_put_to_a_person(run: Path) -> None:
    from privacy.events import PostProcessing
    from privacy.ledger import Entry

    evidence = read_evidence(run / "report.json", run)
    assert check_selection(evidence).verdict == "pass"
    evidence.entries.append(Entry({"kind": "event", "index": 99}, "", PostProcessing("quantised to int8")))
    assert (check := check_selection(evidence)).verdict == "flag" and "quantised to int8" in check.reason
    plain = evidence.report.to_json()
    plain["outside"][3].update(data="private", accounted=True, count=5)
    plain["identity"]["parents"] = [{"id": "one", "ledger_head": "ab" * 32, "events": []}]
    evidence.report = check_report(plain)
    assert (check := check_trials(evidence)).verdict == "flag" and "5 trials" in check.reason


def test_a_ledger_handed_in_for_two_data_sets_is_caught(run: Path, tmp_path: Path, pricer: Pricer) -> None:
    shutil.copytree(run, tmp_path / "same")
    change(tmp_path / "same", lambda report: report["data"].update(commitment="ab" * 32))
    result = audit_paths([run, tmp_path / "same"], pricer=pricer)
    assert [check.verdict for check in result.checks if check.id == "composition"] == ["fail", "fail"]


def test_a_checkpoint_that_has_seen_more_steps_is_caught(run: Path, pricer: Pricer) -> None:
    import struct

    header = b'{"__metadata__":{"rounds_done":"%d"}}'
    for steps, verdict in ((STEPS, "pass"), (STEPS + 1, "fail")):
        (run / "round.safetensors").write_bytes(struct.pack("<Q", len(header % steps)) + header % steps)
        found = {check.id: check.verdict for check in audit_paths([run], pricer=pricer).checks}
        assert found["steps"] == verdict
    for damaged in (b"", b"\xff" * 8, struct.pack("<Q", 40) + b"{", struct.pack("<Q", 2) + b"[]"):
        (run / "round.safetensors").write_bytes(damaged)
        assert {c.id: c.verdict for c in audit_paths([run], pricer=pricer).checks}["steps"] == "pass"


def test_a_page_that_says_something_else_than_the_report_is_flagged(run: Path, pricer: Pricer) -> None:
    page = run / "report.html"
    page.write_text(page.read_text().replace("at most", "about", 1))
    flagged = {check.id for check in audit_paths([run], pricer=pricer).checks if check.verdict == "flag"}
    assert "integrity" in flagged


def test_an_omitted_second_run_is_caught(run: Path, tmp_path: Path, pricer: Pricer) -> None:
    make_run(tmp_path / "second", pricer, sigmas=(1.5,) * STEPS)
    assert audit_paths([run], pricer=pricer).exit_code == 0  # alone, nothing shows
    result = audit_paths([tmp_path], pricer=pricer)
    assert result.exit_code == 1
    assert [c.verdict for c in result.checks if c.id == "composition"] == ["fail", "fail"]
    (group,) = result.groups
    assert group.runs == 2
    assert group.epsilon is not None
    single = max(report["claim"]["epsilon"] for report in [change(run, lambda r: r["identity"].update(name="x"))])
    assert group.epsilon > single


def test_an_omitted_parent_is_caught_by_its_own_report(run: Path, tmp_path: Path, pricer: Pricer) -> None:
    import json

    first = json.loads((run / "report.json").read_bytes())
    make_run(tmp_path / "second", pricer, sigmas=(1.5,) * STEPS, parents=(as_parent(first),))
    result = audit_paths([tmp_path], pricer=pricer)
    assert result.exit_code == 0, result.to_text()  # the second covers both; the first is flagged as out of date
    verdicts = {c.report.split("/")[-2]: c.verdict for c in result.checks if c.id == "composition"}
    assert verdicts == {"run": "flag", "second": "pass"}
    # The parent's events are edited, so that the composed claim looks cheaper than the first run says.
    change(
        tmp_path / "second",
        lambda report: report["identity"]["parents"][0]["events"][0].update(noise_multiplier=9.0),
    )
    must_fail(tmp_path, pricer, "composition")


def test_a_central_limit_claim_is_refused(run: Path, pricer: Pricer) -> None:
    for name in ("gdp", "clt", "GDP"):
        change(run, lambda report, name=name: report["claim"].update(accountant=name, epsilon=0.5))
        must_fail(run, pricer, "epsilon")


@pytest.mark.parametrize("digits", [1, 2, 3, 4])
def test_epsilon_rounded_down_is_caught(run: Path, pricer: Pricer, digits: int) -> None:
    def round_down(report: dict[str, Any]) -> None:
        scale = 10**digits
        report["claim"]["epsilon"] = int(report["claim"]["epsilon"] * scale) / scale

    change(run, round_down)
    must_fail(run, pricer, "epsilon")


def test_epsilon_rounded_up_is_true(run: Path, pricer: Pricer) -> None:
    change(run, lambda report: report["claim"].update(epsilon=report["claim"]["epsilon"] + 0.1))
    assert audit_paths([run], pricer=pricer).exit_code == 0


def attack(**fields: Any) -> dict[str, Any]:
    """An attack's entry that nothing contradicts, unless a field makes it."""
    m, r, v = fields.get("m", 100), fields.get("r", 60), fields.get("v", 33)
    sound = {"method": "one run, steinke", "m": m, "r": r, "v": v, "confidence": 0.95, "delta": 0.001, "details": {}}
    bound = steinke_bound(m, r, v, 0.001, 1 - fields.get("confidence", 0.95))
    return {**sound, "lower_bound": bound, **fields}


OTHER_LIES = {
    "a row of another accountant": ("epsilon", lambda r: r["verification"][0].update(epsilon=1.0)),
    "a row of an unknown accountant": ("epsilon", lambda r: r["verification"][0].update(accountant="magic")),
    "no amplification": ("epsilon", lambda r: r["claim"].update(epsilon_without_amplification=1.0)),
    "the profile": ("epsilon", lambda r: r["claim"]["profile"][3].update(delta=1e-12)),
    "the summary": ("epsilon", lambda r: r["claim"]["gdp"].update(mu=0.1)),
    "epsilon over the steps": ("epsilon", lambda r: r["claim"]["trajectory"][9].update(epsilon=0.01)),
    "epsilon over the steps, cut": ("epsilon", lambda r: r["claim"]["trajectory"].pop()),
    "the sensitivity": ("adjacency", lambda r: r["mechanism"].update(sensitivity=0.5)),
    "the noise": ("clipping", lambda r: r["mechanism"]["noise_multipliers"][0].update(value=9.0)),
    "a divisor from the data": ("clipping", lambda r: r["mechanism"].update(divisor_is_public=False)),
    "adaptive clipping unpaid": ("clipping", lambda r: r["mechanism"].update(clip_kind="adaptive")),
    "adaptive clipping with a count nobody paid": (
        "clipping",
        lambda r: r["mechanism"].update(clip_kind="adaptive", count_noise_multiplier=10.0),
    ),
    "layers without norms": ("clipping", lambda r: r["mechanism"].update(clip_kind="per_layer")),
    "layers that add up to more": (
        "clipping",
        lambda r: r["mechanism"].update(clip_kind="per_layer", layer_clip_norms={"a": 0.5, "b": 0.5}),
    ),
    "noise from a seed": ("clipping", lambda r: r["mechanism"].update(noise="seeded (simulation)")),
    "sampling from a seed": ("sampler", lambda r: r["sampling"].update(randomness="seeded (simulation)")),
    "another rate": ("sampler", lambda r: r["sampling"].update(rate=0.01)),
    "a large delta": ("delta", lambda r: r["claim"].update(delta=0.01)),
    "two values of N": ("delta", lambda r: r["data"].update(population=40)),
    "fewer steps than the checkpoint": ("steps", lambda r: r["identity"].update(optimizer_steps=STEPS + 1)),
    "fewer steps than the run": ("steps", lambda r: r["sampling"].update(steps=STEPS + 1)),
    "a measured bound above the claim": (
        "empirical",
        lambda r: r["audit"].append(
            {"method": "one run", "m": 100, "r": 60, "v": 60, "confidence": 0.95, "lower_bound": 9.0, "delta": 0.001}
        ),
    ),
    "an impossible attack": (
        "empirical",
        lambda r: r["audit"].append(
            {"method": "one run", "m": 10, "r": 60, "v": 61, "confidence": 0.95, "lower_bound": 0.1, "delta": 0.001}
        ),
    ),
    "trials said to be paid for": (
        "trials",
        lambda r: r["outside"][3].update(data="private", accounted=True),
    ),
    "what sampling is worth, hidden": ("epsilon", lambda r: r["claim"].update(epsilon_without_amplification=None)),
    "chance that was none": ("sampler", lambda r: r["sampling"].update(randomness="none")),
    "an attack on another run": (
        "empirical",
        lambda r: r["audit"].append(attack(details={"ledger_head": "ab" * 32})),
    ),
    "a bound below what its counts give": ("empirical", lambda r: r["audit"].append(attack(v=58, lower_bound=0.01))),
    "a damning attack that claims to be sure beyond all doubt": (
        "empirical",
        lambda r: r["audit"].append(attack(m=1000, r=1000, v=1000, confidence=1 - 1e-13, lower_bound=0.5)),
    ),
    "a promise found broken": (
        "empirical",
        lambda r: r["audit"].append(
            attack(details={"checks": [{"check": "noise", "passed": False, "reason": "half"}]})
        ),
    ),
    "an earlier run that cost nothing": (
        "composition",
        lambda r: r["identity"]["parents"].append({"id": "p", "ledger_head": "cd" * 32, "events": []}),
    ),
    "adaptive clipping whose count is the sum itself": (
        "clipping",
        lambda r: r["mechanism"].update(clip_kind="adaptive", count_noise_multiplier=1.2),
    ),
    "a file outside the run": ("integrity", lambda r: r["identity"]["files"].update({"../x": "00" * 32})),
    "a file that is absent": ("integrity", lambda r: r["identity"]["files"].update({"y": "00" * 32})),
}


@pytest.mark.parametrize("lie", OTHER_LIES)
def test_other_lies_are_caught(run: Path, pricer: Pricer, lie: str) -> None:
    check, edit = OTHER_LIES[lie]
    change(run, edit)
    must_fail(run, pricer, check)


FLAGS = {
    "trials on private data": ("trials", lambda r: r["outside"][3].update(data="private")),
    "nothing said about trials": ("trials", lambda r: r["outside"].pop(3)),
    "checkpoint chosen on private data": ("selection", lambda r: r["outside"][2].update(data="private")),
    "losses published": ("selection", lambda r: r["outside"][0].update(published=True)),
    "nothing said about evaluation": ("selection", lambda r: r["outside"].pop(1)),
    "an annex": ("selection", lambda r: r.update(annex={"clipped": 0.3})),
    "steps not in the checkpoint": ("steps", lambda r: r["identity"].update(optimizer_steps=None)),
    "another divisor": ("clipping", lambda r: r["mechanism"].update(divisor=400.0)),
    "few canaries": ("empirical", lambda r: r["audit"].append(attack(m=40, r=20, v=11))),
    "a ledger that ends without naming the model": ("integrity", lambda r: r["ledger"]["entries"].pop()),
    "a model without hash": ("integrity", lambda r: r["identity"]["files"].pop("model.safetensors")),
}


@pytest.mark.parametrize("flag", FLAGS)
def test_what_needs_weighing_is_flagged_and_does_not_fail(run: Path, pricer: Pricer, flag: str) -> None:
    check, edit = FLAGS[flag]
    change(run, edit, rechain="ledger" in flag)
    result = audit_paths([run], pricer=pricer)
    assert result.exit_code == 0, result.to_text()
    assert check in {c.id for c in result.checks if c.verdict == "flag"}, result.to_text()


def forge_consistently(run: Path, pricer: Pricer) -> Path:
    """A report whose every number follows from events that never happened: sigma 3 where it was 1.2."""
    forged = run.parent / "forged"
    make_run(forged, pricer, sigmas=(3.0,) * STEPS)
    return forged


def test_a_self_consistent_forgery_passes_without_a_signature_or_a_known_head(run: Path, pricer: Pricer) -> None:
    # An honest limit of any audit of documents; docs/auditing.md says so.
    assert audit_paths([forge_consistently(run, pricer)], pricer=pricer).exit_code == 0


def test_a_self_consistent_forgery_fails_against_a_known_head(run: Path, pricer: Pricer) -> None:
    import json

    head = json.loads((run / "report.json").read_bytes())["ledger"]["head"]
    assert audit_paths([run], pricer=pricer, expected_head=head).exit_code == 0
    must_fail(forge_consistently(run, pricer), pricer, "integrity", expected_head=head)


def test_a_self_consistent_forgery_fails_against_the_signers_key(run: Path, pricer: Pricer) -> None:
    import json

    signer, forger = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    trusted = signer.public_key().public_bytes_raw().hex()
    write_report(run, sign_report(json.loads((run / "report.json").read_bytes()), signer))
    assert audit_paths([run], pricer=pricer, trusted_key=trusted).exit_code == 0
    forged = forge_consistently(run, pricer)
    must_fail(forged, pricer, "integrity", trusted_key=trusted)  # unsigned
    write_report(forged, sign_report(json.loads((forged / "report.json").read_bytes()), forger))
    assert audit_paths([forged], pricer=pricer).exit_code == 0
    must_fail(forged, pricer, "integrity", trusted_key=trusted)  # signed by somebody else


def test_a_signed_report_cannot_be_edited_at_all(run: Path, pricer: Pricer) -> None:
    import json

    signer = Ed25519PrivateKey.generate()
    write_report(run, sign_report(json.loads((run / "report.json").read_bytes()), signer))
    change(run, lambda report: report["identity"].update(name="another name"))
    must_fail(run, pricer, "integrity")
