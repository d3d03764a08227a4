"""Runs on one data set meet: one key for the data and not one for each run, a made-up population known by its seed."""

from __future__ import annotations

import shutil
import stat
from pathlib import Path

import pytest
from apps_reports import make_run

from apps.data_identity import commitment, earlier_runs
from apps.run_config import DataConfig, RunConfig
from mmslm.config import load_config
from privacy.audit import audit_paths
from privacy.report import Pricer
from privacy.report.commitment import commitment_key


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "captions.json").write_text("{}")
    (folder / "a.jpg").write_bytes(b"a photo")
    return folder


def coco(folder: Path, key: Path | None = None) -> DataConfig:
    return DataConfig(source="coco", folder=folder, commitment_key=key)


def test_two_runs_on_one_data_set_have_one_commitment_and_other_photos_another(photos: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    first, second = (commitment(coco(photos), runs / name)[0] for name in ("one", "two"))
    assert first == second
    other = tmp_path / "other"
    shutil.copytree(photos, other)
    assert commitment(coco(other), runs / "three")[0] == first  # the same photos, wherever they lie
    (other / "b.jpg").write_bytes(b"one more")
    assert commitment(coco(other), runs / "three")[0] != first


def test_the_key_is_secret_and_beside_the_runs_never_in_one(photos: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    (runs / "one").mkdir(parents=True)
    key = commitment_key(runs / "one")
    assert len(key) == 32 and key.hex() == (runs / ".commitment-key").read_text().strip()
    assert stat.S_IMODE((runs / ".commitment-key").stat().st_mode) == 0o600
    assert not list((runs / "one").iterdir())
    with pytest.raises(ValueError, match="handed out"):
        commitment_key(runs / "one", runs / "one" / "key")
    (runs / ".commitment-key").chmod(0o644)
    with pytest.raises(ValueError, match="chmod 600"):
        commitment_key(runs / "one")
    (runs / ".commitment-key").write_text("not hexadecimal")
    (runs / ".commitment-key").chmod(0o600)
    with pytest.raises(ValueError, match="no commitment key"):
        commitment_key(runs / "one")


def test_one_key_given_in_the_settings_joins_runs_in_different_places(photos: Path, tmp_path: Path) -> None:
    key = tmp_path / "the-data.key"
    found = {commitment(coco(photos, key), tmp_path / place / "run")[0] for place in ("a", "b")}
    assert len(found) == 1
    (tmp_path / "c").mkdir()
    assert commitment(coco(photos), tmp_path / "c" / "run")[0] not in found


def test_a_made_up_population_is_known_by_its_seed_alone(tmp_path: Path) -> None:
    here, there = tmp_path / "here" / "run", tmp_path / "there" / "run"
    assert commitment(DataConfig(seed=3), here) == commitment(DataConfig(seed=3), there)
    assert commitment(DataConfig(seed=3), here)[0] != commitment(DataConfig(seed=4), here)[0]
    assert not list(tmp_path.rglob(".commitment-key"))


def test_runs_on_one_data_set_are_composed_and_on_others_not(tmp_path: Path) -> None:
    pricer = Pricer()
    for name, data, noise in (("one", b"homes", 4.0), ("two", b"homes", 5.0), ("three", b"elsewhere", 6.0)):
        make_run(tmp_path / name, pricer, data=data, noise=noise)
    groups = {len(group.reports): group for group in audit_paths([tmp_path], pricer=pricer).groups}
    assert set(groups) == {1, 2} and groups[2].runs == 2


def test_the_private_runs_before_it_are_in_a_real_runs_claim(photos: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    pricer = Pricer()
    changes = {"data.source": "coco", "data.folder": str(photos), "federated.noise": "secure"}
    settings = load_config("quickstart", RunConfig, changes)
    text = settings.model_dump_json()  # JSON is YAML too
    own = commitment(settings.data, runs / "now") if runs.mkdir() is None else ("", "")
    for name in ("earlier", "unfinished", "elsewhere", "rehearsal"):
        make_run(runs / name, pricer, noise=4.0 + len(name) / 10)
        theirs = text
        if name == "elsewhere":
            theirs = text.replace(str(photos), str(tmp_path / "others"))
        if name == "rehearsal":
            theirs = text.replace('"noise":"secure"', '"noise":"simulation"')
        (runs / name / "config.yaml").write_text(theirs)
    (runs / "unfinished" / "report.json").unlink()
    found = earlier_runs(settings, runs / "now", own[0])
    assert len(found) == 2
    assert {parent.id.split()[0] for parent in found} == {"unfinished", found[0].id}
    assert all(parent.events for parent in found)
