"""``mmslm audit``: recompute what reports claim."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path


def add(command: Callable[..., argparse.ArgumentParser]) -> None:
    """The command's arguments."""
    audit = command("audit", _audit, "recompute what a report claims; exit 1 if any claim is false or unproven")
    audit.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="a report, a run, or a folder of them")
    audit.add_argument("--json", action="store_true", help="machine-readable")


def _audit(arguments: argparse.Namespace) -> int:
    from privacy.audit import audit_paths

    result = audit_paths(arguments.paths)
    print(result.to_json() if arguments.json else result.to_text())
    return int(result.exit_code)
