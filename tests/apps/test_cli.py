"""The command line words every error in one sentence and says by its exit code what happened."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from apps import cli

TOP = Path(__file__).parents[2]


def test_help_names_every_command() -> None:
    text = cli.parser().format_help()
    for name in ("run", "base", "audit", "caption", "ask", "app", "scenes", "describe", "init", "calibrate"):
        assert any(f"\n    {name}{after}" in text for after in (" ", "\n"))


def test_every_command_has_help_and_a_handler() -> None:
    for name, arguments in {
        "run": ["quickstart"],
        "base": ["x"],
        "audit": ["x"],
        "caption": ["x"],
        "ask": ["x", "y"],
        "app": [],
        "scenes": [],
        "describe": ["nano"],
        "init": ["--language", "x", "--vision", "patch", "--out", "y"],
        "calibrate": ["base"],
    }.items():
        assert callable(cli.parser().parse_args([name, *arguments]).handler)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["run", "nowhere.yaml"], "no configuration at nowhere.yaml"),
        (["run", "quickstart", "--check", "--set", "federated.rounds"], "write it as key=value"),
        (["run", "quickstart", "--check", "--set", "federated.round=3"], "did you mean 'rounds'"),
        (["run", "quickstart", "--check", "--set", "federated.delta=0.5"], "delta"),
        (["run", "quickstart", "--check", "--set", "federated.households=3"], "expects"),
        (["run", "quickstart", "--check", "--set", "federated.noise_multiplier=0.1"], "affords"),
        (["caption", "nowhere.jpg", "--model", "nowhere"], "no folder nowhere"),
        (["ask", "nowhere.jpg", " "], "the question is empty"),
        (["ask", "nowhere.jpg", "¿qué hay aquí?"], "not in English"),
        (["ask", "nowhere.jpg", "what is it?"], "nowhere.jpg"),
        (["scenes", "--photos", "0"], "at least 1"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_2(
    argv: list[str], says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(argv) == 2
    captured = capsys.readouterr()
    assert says in captured.err
    assert captured.err.startswith(f"mmslm {argv[0]}: ")
    assert "Traceback" not in captured.err
    assert not captured.out


def test_values_of_set_are_yaml() -> None:
    assert cli._overrides(["a.b=3", "c=[1, 2]", "d=text", "e=true"]) == {"a.b": 3, "c": [1, 2], "d": "text", "e": True}


def test_a_photo_that_is_none_does_not_stop_the_others(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from PIL import Image

    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    Image.new("RGB", (50, 40), (200, 30, 30)).save(good)
    bad.write_bytes(b"no picture")
    assert cli.main(["caption", str(bad), str(good), "--model", "base"]) == 2
    captured = capsys.readouterr()
    assert "bad.png" in captured.err
    assert captured.out.startswith(f"{good}: ")


def test_module_runs_as_a_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "apps.cli", "--help"], capture_output=True, text=True, cwd=TOP, check=False
    )
    assert done.returncode == 0
    assert "run" in done.stdout
