"""The systemd units in the documentation: systemd accepts them, and the commands in them are ours."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

UNITS = sorted((Path(__file__).parents[2] / "docs" / "systemd").glob("*.service"))


def command_of(unit):
    (line,) = [line for line in unit.read_text().splitlines() if line.startswith("ExecStart=")]
    return shlex.split(line.removeprefix("ExecStart="))


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_a_units_command_is_one_that_mmslm_knows(unit):
    from apps.cli import main

    program, *words = command_of(unit)
    assert Path(program).name == "mmslm" and words[0] == "deploy"
    with pytest.raises(SystemExit) as asked:
        main([*words, "--help"])  # parses nothing that it does not know
    assert asked.value.code == 0


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_systemd_accepts_the_unit(unit, tmp_path):
    here = tmp_path / unit.name
    here.write_text(unit.read_text().replace(command_of(unit)[0], sys.executable))  # what is installed here
    done = subprocess.run(["systemd-analyze", "verify", here], check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stderr.strip() == ""
