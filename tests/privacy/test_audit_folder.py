"""Auditing many reports: what is found, what is composed, what it costs, and what a person or a machine reads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from report_samples import STEPS, change, make_run

from privacy.audit import CHECKS, AuditResult, audit_paths
from privacy.audit.result import Check, ReportResult, Unreadable
from privacy.ledger import Ledger
from privacy.report import Pricer


@pytest.fixture(scope="module")
def pricer() -> Pricer:
    return Pricer()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, pricer: Pricer) -> Path:
    folder = tmp_path_factory.mktemp("base") / "run"
    make_run(folder, pricer)
    return folder


def test_report_run_and_folder_are_found_and_counted_once(base: Path, tmp_path: Path, pricer: Pricer) -> None:
    shutil.copytree(base, tmp_path / "runs" / "one")
    shutil.copy(base / "report.json", tmp_path / "runs" / "loose.json")
    shutil.copy(base / "report.json", tmp_path / "runs" / "one" / "copy.report.json")
    (tmp_path / "runs" / "one" / "metrics.json").write_text("{}")
    result = audit_paths([tmp_path / "runs", tmp_path / "runs" / "one", tmp_path / "runs" / "one" / "report.json"])
    assert [Path(report.path).name for report in result.reports] == ["loose.json", "copy.report.json", "report.json"]
    # Copies of one run are one run.
    (group,) = result.groups
    assert group.runs == 1
    assert result.exit_code == 0


def test_runs_on_different_data_are_not_composed(base: Path, tmp_path: Path, pricer: Pricer) -> None:
    shutil.copytree(base, tmp_path / "one")
    make_run(tmp_path / "two", pricer, data_name=b"other data")
    result = audit_paths([tmp_path], pricer=pricer)
    assert result.exit_code == 0
    assert [group.runs for group in result.groups] == [1, 1]


def test_claims_about_one_run_each_are_composed_and_flagged(tmp_path: Path, pricer: Pricer) -> None:
    for name in ("one", "two"):
        make_run(tmp_path / name, pricer, claim={"scope": "this_run"})
    result = audit_paths([tmp_path], pricer=pricer)
    assert result.exit_code == 0
    assert [check.verdict for check in result.checks if check.id == "composition"] == ["flag", "flag"]
    (group,) = result.groups
    assert group.epsilon == pytest.approx(pricer.epsilon([_twice()], group.delta, "pld"), rel=1e-6)
    assert "2 runs, together" in result.to_text()


def _twice() -> tuple:
    from report_samples import release

    from privacy.report.recompute import merge

    return merge([release()] * (2 * STEPS))


def test_a_repaired_ledger_is_flagged_and_one_that_lost_entries_fails(
    base: Path, tmp_path: Path, pricer: Pricer
) -> None:
    from privacy.canonical import canonical_bytes

    for lost, verdict in ((False, "flag"), (True, "fail")):
        folder = tmp_path / verdict
        shutil.copytree(base, folder)
        path = folder / "ledger.jsonl"
        if lost:
            lines = path.read_bytes().splitlines(keepends=True)
            path.write_bytes(b"".join(lines[:-1]))  # the remark at the end, which was recorded, is gone
        else:
            path.write_bytes(path.read_bytes() + b'{"event":{"adj')
        ledger = Ledger.repair(path)
        report = json.loads((folder / "report.json").read_bytes())
        report["ledger"] = {"entries": ledger.to_json(), "head": ledger.head}
        (folder / "report.json").write_bytes(canonical_bytes(report))
        result = audit_paths([folder], pricer=pricer)
        assert next(c.verdict for c in result.checks if c.id == "integrity") == verdict, result.to_text()


def test_the_weights_that_a_report_does_not_name_are_flagged(base: Path, tmp_path: Path, pricer: Pricer) -> None:
    shutil.copytree(base, tmp_path / "run")
    (tmp_path / "run" / "best").mkdir()
    (tmp_path / "run" / "best" / "model.safetensors").write_bytes(b"chosen by private accuracy")
    result = audit_paths([tmp_path / "run"], pricer=pricer)
    assert "best/model.safetensors" in next(c.reason for c in result.checks if c.id == "integrity")


def test_a_folder_costs_what_its_different_recipes_cost(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from privacy import accounting

    calls: list[str] = []
    for name in ("epsilon", "delta_for"):
        real = getattr(accounting, name)

        def counted(*args: object, real: object = real, name: str = name) -> float:
            calls.append(name)
            return float(real(*args))  # type: ignore[operator]

        monkeypatch.setattr(accounting, name, counted)
    audit_paths([base])
    once = len(calls)
    for index in range(30):
        shutil.copytree(base, tmp_path / f"run{index}")
    calls.clear()
    assert len(audit_paths([tmp_path]).reports) == 30
    assert len(calls) == once


def test_json_text_and_verdicts_say_the_same(base: Path, tmp_path: Path, pricer: Pricer) -> None:
    shutil.copytree(base, tmp_path / "run")
    change(tmp_path / "run", lambda report: report["claim"].update(epsilon=0.01))
    result = audit_paths([tmp_path / "run"], pricer=pricer)
    read = json.loads(result.to_json())
    assert read["exit_code"] == 1
    assert [check["id"] for check in read["reports"][0]["checks"]] == list(CHECKS)
    assert {check["verdict"] for check in read["reports"][0]["checks"]} <= {"pass", "fail", "flag", "not_applicable"}
    text = result.to_text()
    for name in CHECKS:
        assert f" {name} " in text
    assert "FAIL" in text
    assert text.splitlines()[-1].startswith("The claim is false or cannot be proven")
    assert "without amplification" in text.replace("\n ", "")


@pytest.mark.parametrize("width", [60, 80, 100, 160])
def test_lines_fit_the_terminal(base: Path, pricer: Pricer, width: int) -> None:
    text = audit_paths([base], pricer=pricer).to_text(width)
    assert all(len(line) <= width for line in text.splitlines()[1:])


def result_of(*verdicts: str, unreadable: int = 0) -> AuditResult:
    reports = tuple(ReportResult("p", "i", "c", (Check("epsilon", v, "r"),)) for v in verdicts)  # type: ignore[arg-type]
    return AuditResult(reports, tuple(Unreadable("p", "It is no file.") for _ in range(unreadable)))


@pytest.mark.parametrize(
    ("result", "code"),
    [
        (result_of("pass"), 0),
        (result_of("pass", "flag", "not_applicable"), 0),
        (result_of("pass", "fail"), 1),
        (result_of("pass", unreadable=1), 2),
        (result_of("fail", unreadable=1), 1),
        (result_of(unreadable=1), 2),
        (result_of(), 2),
    ],
)
def test_exit_codes(result: AuditResult, code: int) -> None:
    assert result.exit_code == code
    assert result.conclusion.endswith(".")
    assert result.conclusion in result.to_text()
