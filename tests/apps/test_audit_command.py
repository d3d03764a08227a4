"""``mmslm audit`` and ``mmslm report`` as their users give them: keys, heads, attacks written into reports, exports."""

from __future__ import annotations

import json
import shutil
import stat
from pathlib import Path

import pytest
import yaml
from apps_reports import make_run

from apps import cli
from privacy.report import Pricer, read_report


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    make_run(folder, Pricer())
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def key(tmp_path: Path) -> Path:
    assert cli.main(["report", "keygen", str(tmp_path / "key.pem")]) == 0
    return tmp_path / "key.pem"


def attack(run: Path, *more: str) -> int:
    return cli.main(["audit", "--empirical", str(run), "--canaries", "60", "--seed", "1", *more])


def test_an_attack_is_written_into_report_and_page_and_the_audit_reads_it(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert attack(run) == 0
    told = capsys.readouterr().out
    assert "epsilon is at least" in told and "written into the report" in told
    report = read_report(run)
    assert [entry["method"] for entry in report["audit"]] == ["one run, steinke", "one run, f-dp, the run's own curve"]
    for entry in report["audit"]:
        assert entry["m"] == 60 and entry["confidence"] == pytest.approx(0.975)
        assert entry["details"]["ledger_head"] == report["ledger"]["head"]
        assert entry["lower_bound"] <= report["claim"]["epsilon"]
        assert "fixed before" in entry["rule"]
    assert "Somebody tried" in (run / "report.html").read_text()
    assert attack(run) == 0  # a second attack is made at half the significance
    assert [entry["confidence"] for entry in read_report(run)["audit"]] == pytest.approx([0.975] * 2 + [0.9875] * 2)


def test_without_writing_the_report_stays_as_it_is_and_json_stays_json(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (run / "report.json").read_bytes()
    assert attack(run, "--no-write", "--json") == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["exit_code"] == 0
    assert "left as it was" in told.err or "left as it is" in told.err
    assert (run / "report.json").read_bytes() == before


def test_a_signed_report_is_attacked_only_with_the_key_that_signs_it_anew(
    run: Path, key: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    public = str(key) + ".pub"
    assert cli.main(["report", "sign", str(run), "--key", str(key)]) == 0
    assert cli.main(["audit", str(run), "--key", public]) == 0
    before = (run / "report.json").read_bytes()
    capsys.readouterr()
    assert attack(run) == 2
    assert "--sign-with" in capsys.readouterr().err
    assert cli.main(["report", "keygen", str(tmp_path / "other.pem")]) == 0
    assert attack(run, "--sign-with", str(tmp_path / "other.pem")) == 2
    assert (run / "report.json").read_bytes() == before
    assert attack(run, "--sign-with", str(key), "--key", public) == 0
    assert read_report(run)["audit"]


def test_an_unsigned_or_otherwise_signed_report_fails_against_a_key(run: Path, key: Path, tmp_path: Path) -> None:
    digits = Path(str(key) + ".pub").read_text().strip()
    assert cli.main(["audit", str(run), "--key", digits]) == 1
    assert cli.main(["report", "keygen", str(tmp_path / "other.pem")]) == 0
    assert cli.main(["report", "sign", str(run), "--key", str(tmp_path / "other.pem")]) == 0
    assert cli.main(["audit", str(run), "--key", digits]) == 1
    assert cli.main(["audit", str(run)]) == 0


def test_a_head_known_from_elsewhere_is_held_against_the_ledger(run: Path) -> None:
    head = read_report(run)["ledger"]["head"]
    assert cli.main(["audit", str(run), "--expected-head", head.upper()]) == 0
    assert cli.main(["audit", str(run), "--expected-head", "ab" * 32]) == 1
    assert cli.main(["audit", str(run), "--expected-head", "abc"]) == 2


def test_a_report_whose_claim_fails_is_not_signed(run: Path, key: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = json.loads((run / "report.json").read_bytes())
    report["claim"]["epsilon"] /= 2
    (run / "report.json").write_text(json.dumps(report))
    capsys.readouterr()
    assert cli.main(["report", "sign", str(run), "--key", str(key)]) == 2
    assert "was not signed" in capsys.readouterr().err
    assert read_report(run)["signature"] is None


def test_keys_are_secret_never_overwritten_and_never_shown(
    key: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    told = capsys.readouterr().out
    secret = "".join(key.read_text().splitlines()[1:-1])
    assert secret not in told
    assert cli.main(["report", "keygen", str(key)]) == 2
    run = tmp_path / "nothing"
    key.chmod(0o644)
    assert cli.main(["report", "sign", str(run), "--key", str(key)]) == 2
    assert "chmod 600" in capsys.readouterr().err
    key.chmod(0o600)
    assert cli.main(["audit", str(run), "--key", str(key)]) == 2  # the private half where the public one belongs
    told = capsys.readouterr().err
    assert ".pub" in told and secret not in told
    garbled = tmp_path / "garbled.pem"
    garbled.write_text("no key")
    garbled.chmod(0o600)
    assert cli.main(["report", "sign", str(run), "--key", str(garbled)]) == 2
    assert "no private key" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--canaries", "5"], "--canaries is 5"),
        (["--confidence", "0.2"], "--confidence is 0.2"),
        (["--households", "3"], "--households is 3"),
    ],
)
def test_attacks_that_would_say_nothing_are_refused(
    run: Path, options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["audit", "--empirical", str(run), *options]) == 2
    assert said in capsys.readouterr().err


def test_options_of_an_attack_without_one_are_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["audit", str(run), "--no-write"]) == 2
    assert "--empirical" in capsys.readouterr().err


def test_the_registrys_record_is_exported_by_a_form(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    form, out = tmp_path / "about.yaml", tmp_path / "record.yaml"
    command = ["report", "export", str(run), "--opendp", str(out), "--about", str(form)]
    assert cli.main(command) == 2  # writes the form
    assert cli.main(command) == 2  # an empty form is no answer
    assert "does not say" in capsys.readouterr().err
    answers = {
        "name": "Kitchen captions",
        "curator": "A foundation",
        "curator_type": "Nonprofit",
        "description": "Captions of kitchens.",
        "intended_use": "Describing photos to blind people.",
        "region": "Switzerland",
        "publication_date": "2026-03-01",
        "authors": ["Somebody"],
    }
    form.write_text(yaml.safe_dump(answers))
    assert cli.main(command) == 0
    record = yaml.safe_load(out.read_text())
    assert record["deployment"]["basic"]["name"] == "Kitchen captions"
    assert record["deployment"]["privacy_loss"]["privacy_parameters"]["epsilon"] == read_report(run)["claim"]["epsilon"]
    for wrong in ({"curator_type": "Cooperative"}, {"authors": 3}, {"colour": "red"}, {"publication_date": "soon"}):
        form.write_text(yaml.safe_dump({**answers, **wrong}))
        assert cli.main(command) == 2


def test_page_and_schema_are_written_anew(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = (run / "report.html").read_bytes()
    (run / "report.html").unlink()
    assert cli.main(["report", "save", str(run)]) == 0
    assert (run / "report.html").read_bytes() == page
    assert cli.main(["report", "save", str(run), "--out", str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "page.html").read_bytes() == page
    capsys.readouterr()
    assert cli.main(["report", "schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    import jsonschema

    jsonschema.validate(read_report(run), schema)
