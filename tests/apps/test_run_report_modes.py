"""Reports of every privacy mode: made by the run's own path, and every claim follows from its evidence."""

from __future__ import annotations

import json

import pytest
from apps_mode_runs import MODES, report_of

from privacy.audit import audit_paths
from privacy.canonical import canonical_bytes
from privacy.report.recompute import Pricer


@pytest.fixture(scope="module")
def pricer():
    return Pricer()


@pytest.mark.parametrize("mode", sorted(MODES))
def test_a_report_of_each_mode_passes_its_audit(mode, tmp_path, pricer):
    path = report_of(mode, tmp_path / "run")
    (found,) = audit_paths([tmp_path / "run"], pricer=pricer).reports
    assert found.failed == (), found
    assert {check.id: check.verdict for check in found.checks}["integrity"] == "pass", found
    claim = json.loads(path.read_text())["claim"]
    assert claim["unit"] == ("example" if mode == "device" else "user")
    assert claim["adjacency"] == ("zero_out" if mode in ("bounded", "secure") else "add_or_remove_one")
    if mode == "secure":
        assert "no update alone" in claim["threat_model"]


def test_the_audit_finds_a_split_that_does_not_add_up(tmp_path, pricer):
    path = report_of("adaptive", tmp_path / "run")
    report = json.loads(path.read_bytes())
    report["mechanism"]["count_noise_multiplier"] = 60.0  # says that the count took less of the noise than it did
    path.write_bytes(canonical_bytes(report) + b"\n")
    (found,) = audit_paths([tmp_path / "run"], pricer=pricer).reports
    assert "clipping" in {check.id for check in found.failed}


def test_the_audit_finds_a_participation_bound_that_nobody_enforced(tmp_path, pricer):
    path = report_of("secure", tmp_path / "run")
    report = json.loads(path.read_bytes())
    report["sampling"]["participation_bound"] = 3
    path.write_bytes(canonical_bytes(report) + b"\n")
    (found,) = audit_paths([tmp_path / "run"], pricer=pricer).reports
    assert "sampler" in {check.id for check in found.failed}
