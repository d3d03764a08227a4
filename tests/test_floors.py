"""The house's floors: imports go down only, also inside functions, and heavy packages stay in the rooms that need them."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

TOP = Path(__file__).parents[1]
FLOORS = ("privacy", "mmslm", "federated", "apps")  # from the ground up
HEAVY = {"gradio": {"apps"}, "flwr": {"federated"}, "ray": {"federated"}, "open_clip": {"mmslm"}}


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Every absolute import in a file, wherever it stands; relative ones resolve within the file's own package."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.lineno, node.module
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in {
            "import_module",
            "__import__",
        }:
            first = node.args[0] if node.args else None
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                yield node.lineno, first.value


def sources(package: str) -> list[Path]:
    return sorted((TOP / package).rglob("*.py"))


@pytest.mark.parametrize("level", range(len(FLOORS)), ids=FLOORS)
def test_imports_go_down_only(level: int) -> None:
    above = set(FLOORS[level + 1 :])
    wrong = [
        f"{path.relative_to(TOP)}:{line} imports {name}"
        for path in sources(FLOORS[level])
        for line, name in imports(path)
        if name.split(".")[0] in above
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("package", FLOORS)
def test_heavy_packages_stay_in_their_rooms(package: str) -> None:
    wrong = [
        f"{path.relative_to(TOP)}:{line} imports {name}"
        for path in sources(package)
        for line, name in imports(path)
        if package not in HEAVY.get(name.split(".")[0], {package})
    ]
    assert not wrong, "\n".join(wrong)


def test_the_floor_test_sees_an_import_inside_a_function(tmp_path: Path) -> None:
    file = tmp_path / "room.py"
    file.write_text(
        "def f():\n    from apps import cli\n    import importlib\n    importlib.import_module('federated.x')\n"
    )
    assert {name for _, name in imports(file)} == {"apps", "importlib", "federated.x"}


def test_nothing_unpickles_or_runs_remote_code() -> None:
    unsafe = re.compile(
        r"pickle\.loads?\(|torch\.load\((?!.*weights_only=True)|trust_remote_code\s*=\s*True|allow_pickle\s*=\s*True|yaml\.(unsafe_)?load\((?!.*(Safe|Unique))"
    )
    wrong = [
        f"{path.relative_to(TOP)}: {line.strip()}"
        for package in FLOORS
        for path in sources(package)
        for line in path.read_text(encoding="utf-8").splitlines()
        if unsafe.search(line)
    ]
    assert not wrong, "\n".join(wrong)


def test_help_answers_without_heavy_imports() -> None:
    code = (
        "import sys, time; t = time.process_time(); import apps.cli; apps.cli.parser().format_help(); "
        "heavy = {'torch', 'transformers', 'gradio', 'flwr', 'opacus', 'numpy', 'mmslm'} & set(sys.modules); "
        "assert not heavy, heavy; assert time.process_time() - t < 1.0"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=TOP)


def test_rooms_stay_small() -> None:
    """About 400 lines; past 500 a room wants a wall."""
    long = [(len(p.read_text().splitlines()), str(p.relative_to(TOP))) for f in FLOORS for p in sources(f)]
    assert not [row for row in long if row[0] > 500]
