"""``mmslm partition`` and what ``mmslm devices`` reads: pictures, configurations, errors in one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from apps import cli
from apps.devices import DevicesConfig, deal, find_fleet
from federated.partition import check_partition
from mmslm.config import ConfigError, load_config

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("clock*.yaml")), ids=lambda path: path.stem)
def test_shipped_configurations_are_whole(path: Path) -> None:
    settings = load_config(path, DevicesConfig)
    assert find_fleet(settings.fleet).is_file()


def test_an_unknown_fleet_names_those_there_are() -> None:
    with pytest.raises(ConfigError, match="equal, phones"):
        find_fleet("fridges")


@pytest.mark.parametrize("by", ["owner", "dirichlet", "quantity", "class"])
def test_scenes_are_dealt_whole(by: str) -> None:
    dealt = deal("scenes", by, devices=5, photos=60)  # type: ignore[arg-type]
    check_partition(dealt.partition, 60)
    assert len(dealt.partition) == (15 if by == "owner" else 5)
    ids = [photo for part in dealt.ids() for photo in part]
    assert len(set(ids)) == 60


def test_the_command_draws_who_holds_what(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture, listed = tmp_path / "who.png", tmp_path / "who.json"
    given = ["partition", "scenes", "--by", "dirichlet", "--devices", "4", "--photos", "40"]
    assert cli.main([*given, "--out", str(picture), "--json", str(listed)]) == 0
    assert "40 photos on 4 devices" in capsys.readouterr().out
    assert Image.open(picture).size == (960, 320) and sum(map(len, json.loads(listed.read_text()))) == 40
    assert cli.main(["partition", "scenes", "--by", "class", "--devices", "1", "--classes-each", "1"]) == 2
    assert "cannot hold" in capsys.readouterr().err


def test_real_photographers_are_devices() -> None:
    folder = Path(__file__).parents[2] / ".." / "shared" / "data" / "fsa_color"
    if not (folder / "captions.json").is_file():
        pytest.skip("the FSA/OWI colour photographs are not here (../shared/data/fsa_color)")
    dealt = deal(str(folder), "owner", devices=0, owner="photographer", label="state")
    assert len(dealt.partition) == 19 and sum(map(len, dealt.partition)) == 1367
