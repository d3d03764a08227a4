"""The main job end to end, on a small scale: trained, reported, audited, measured, usable; resumed and refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from apps import cli
from apps.run import Job, run, run_folder
from apps.run_config import RunConfig
from mmslm.config import ConfigError, load_config
from privacy.audit import audit_paths

SMALL = {
    "federated.households": 60,
    "federated.rounds": 2,
    "federated.sampling_rate": 0.2,
    "federated.delta": 1e-3,
    "federated.photos_per_household": 2,
    "ceiling.steps": 2,
    "ceiling.batch": 4,
    "evaluation.households": 5,
    "evaluation.photos_per_household": 1,
    "evaluation.questions_per_photo": 2,
    "evaluation.sheet_photos": 4,
}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "small"
    return run("quickstart", SMALL, out=folder)


def test_the_run_leaves_all_that_it_promises(done: Path) -> None:
    for name in (
        "config.yaml",
        "run.json",
        "ledger.jsonl",
        "report.json",
        "report.html",
        "audit.txt",
        "metrics.json",
        "metrics.md",
        "sheet.png",
        "model/config.json",
        "model/model.safetensors",
        "model/tokenizer.json",
    ):
        assert (done / name).stat().st_size > 0, name


def test_the_audit_recomputes_the_claim_and_agrees(done: Path) -> None:
    result = audit_paths([done])
    assert result.exit_code == 0, result.to_text()
    claim = json.loads((done / "report.json").read_text())["claim"]
    assert 0 < claim["epsilon"] <= 8.0 + 1e-9
    assert claim["unit"] == "user"
    assert claim["simulation"] is True


def test_an_attack_on_the_trained_run_is_written_down_and_passes(
    done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    attacked = tmp_path / "attacked"
    shutil.copytree(done, attacked)
    command = ["audit", "--empirical", str(attacked), "--canaries", "60", "--households", "10", "--seed", "1"]
    assert cli.main(command) == 0
    told = capsys.readouterr().out
    report = json.loads((attacked / "report.json").read_text())
    first, last = report["audit"]
    assert first["details"]["attacked"] == "the run's own rounds, with canary households"
    assert first["m"] == 60 and first["lower_bound"] <= report["claim"]["epsilon"]
    kept = {check["check"]: check["passed"] for check in first["details"]["checks"]}
    assert kept == {"noise": True, "sensitivity": True, "sampler": True}
    assert last["details"]["membership"]["members"] > 0  # a simulation: its numbers may be told
    page = (attacked / "report.html").read_text()
    for said in ("noise: kept", "sensitivity: kept", "sampler: kept"):
        assert said in told and said in page


def test_a_run_moved_aside_takes_along_what_lies_beside_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = load_config("quickstart", RunConfig, SMALL)
    folder = tmp_path / "run"
    for name in ("run", "run-secret", "run-devices", "run-without-privacy", "run-of-others"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mark").write_text(name)
    assert run_folder(settings, folder, restart=True) == folder
    (aside,) = tmp_path.glob("run.*[0-9]")
    moved = {path.name: (path / "mark").read_text() for path in tmp_path.iterdir()}
    assert moved == {
        aside.name: "run",
        f"{aside.name}-secret": "run-secret",
        f"{aside.name}-devices": "run-devices",
        f"{aside.name}-without-privacy": "run-without-privacy",
        "run-of-others": "run-of-others",
    }
    assert str(aside) in capsys.readouterr().out


def test_a_lowered_noise_in_the_ledger_fails_the_audit(done: Path, tmp_path: Path) -> None:
    forged = tmp_path / "forged"
    shutil.copytree(done, forged)
    report = forged / "report.json"
    text = report.read_text()
    assert '"noise_multiplier":' in text
    report.write_text(text.replace('"noise_multiplier":', '"noise_multiplier":1', 1))
    assert audit_paths([forged]).exit_code != 0


def test_another_model_in_the_folder_fails_the_audit(done: Path, tmp_path: Path) -> None:
    swapped = tmp_path / "swapped"
    shutil.copytree(done, swapped)
    weights = swapped / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\x00\x00\x80\x3f")
    assert audit_paths([swapped]).exit_code == 1


def test_running_again_repeats_nothing(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in done.rglob("*.safetensors")}
    report = (done / "report.json").read_bytes()
    run("quickstart", SMALL, out=done)
    assert "going on" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in done.rglob("*.safetensors")} == before
    assert (done / "report.json").read_bytes() == report


def test_other_settings_are_refused_and_nothing_is_lost(done: Path) -> None:
    with pytest.raises(ConfigError, match="holds a run of other settings"):
        run("quickstart", {**SMALL, "federated.seed": 1}, out=done)
    assert (done / "report.json").is_file()


def test_a_folder_of_something_else_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="no run of mmslm"):
        run("quickstart", SMALL, out=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_two_runs_with_one_seed_agree(done: Path, tmp_path: Path) -> None:
    again = Job(load_config("quickstart", RunConfig, SMALL), tmp_path / "again")
    again.begin()
    again.train()
    first, second = (folder / "model" / "model.safetensors" for folder in (done, tmp_path / "again"))
    assert first.read_bytes() == second.read_bytes()


def test_the_trained_model_differs_from_the_base_only_in_its_experts(done: Path) -> None:
    from apps.models import base_model
    from mmslm.pretrained import load_model

    base, _ = load_model(base_model())
    trained, _ = load_model(done / "model")
    assert trained.config.image_experts is not None
    kept = trained.state_dict()
    assert all(value.equal(kept[name]) for name, value in base.state_dict().items())
    assert any(parameter.abs().max() > 0 for parameter in trained.adapter_parameters().values())


def test_the_result_captions_and_answers(done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from mmslm.data.scenes import household

    photo = tmp_path / "photo.png"
    household(1_000_123).photo(0).image(256).save(photo)
    assert cli.main(["caption", str(photo), "--model", str(done)]) == 0
    assert len(capsys.readouterr().out.split()) >= 3
    assert cli.main(["ask", str(photo), "what place is this?", "--model", str(done)]) == 0
    assert capsys.readouterr().out.strip()


def test_a_damaged_model_is_one_sentence(done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(done / "model", broken)
    (broken / "model.safetensors").write_bytes(b"not weights")
    photo = tmp_path / "photo.png"
    from PIL import Image

    Image.new("RGB", (32, 32)).save(photo)
    assert cli.main(["caption", str(photo), "--model", str(broken)]) == 2
    assert "damaged" in capsys.readouterr().err


def test_a_full_disk_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", str(tmp_path))

    monkeypatch.setattr(Path, "write_text", full)
    settings = [pair for key, value in SMALL.items() for pair in ("--set", f"{key}={value}")]
    assert cli.main(["run", "quickstart", "--out", str(tmp_path / "run"), *settings]) == 2
    assert "No space left" in capsys.readouterr().err
