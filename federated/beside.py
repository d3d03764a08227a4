"""What lies beside a run's folder and never in it: the folder is what one hands to an auditor.

It refuses nothing.
"""

from __future__ import annotations

from pathlib import Path

SECRET = "-secret"  # past noise, and who took part (bounded participation)
DEVICES = "-devices"  # what simulated devices keep to themselves
CEILING = "-without-privacy"  # the model that the same data gives without privacy


def beside(run_dir: Path, what: str) -> Path:
    """The folder beside `run_dir` for SECRET, DEVICES or CEILING."""
    run_dir = run_dir.resolve()
    return run_dir.with_name(run_dir.name + what)


__all__ = ["CEILING", "DEVICES", "SECRET", "beside"]
