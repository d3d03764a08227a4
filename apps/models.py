"""Which model a command uses: a model's folder, a run's folder, ``base``, or by default the newest finished run.

It refuses a folder without weights, and names what it looked for.
"""

from __future__ import annotations

from pathlib import Path

BASE = Path(__file__).parents[1] / "mmslm" / "assets" / "base"
RUNS = Path("runs")


def _is_model(folder: Path) -> bool:
    return (folder / "config.json").is_file() and (folder / "model.safetensors").is_file()


def base_model() -> Path:
    """The checkpoint that ships with the package."""
    if not _is_model(BASE):
        raise FileNotFoundError(
            "the shipped base model is missing; install mmslm again, or train it: mmslm base configs/base_scenes.yaml."
        )
    return BASE


def newest_run(runs: Path = RUNS) -> Path | None:
    """The model of the run finished last under ``runs``, or None. A model without a report is none of ours to serve."""
    models = [f for f in runs.glob("*/model") if _is_model(f) and (f.parent / "report.json").is_file()]
    return max(models, key=lambda folder: (folder / "model.safetensors").stat().st_mtime, default=None)


def find_model(given: str | Path | None, runs: Path = RUNS) -> Path:
    """The folder that holds the model meant by ``given``."""
    if given is None:
        return newest_run(runs) or base_model()
    if str(given) == "base":
        return base_model()
    folder = Path(given)
    for candidate in (folder, folder / "model"):
        if _is_model(candidate):
            return candidate
    if not folder.exists():
        raise FileNotFoundError(f"no folder {folder}; give a model's or a run's folder, or 'base'.")
    raise ValueError(
        f"{folder} holds no model (config.json and model.safetensors); finish the run first, or give another folder."
    )
