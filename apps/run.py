"""``mmslm run``: the main job, from a base model to an audited report, a better model, and what it bought.

Stages: federated private training, the report and its audit, the non-private ceiling, evaluation on held-out households.
Each leaves its result in the run's folder and is not repeated when the run is started again, so a stopped run goes on
where it was. It refuses a folder that holds a run of other settings, and never removes one.
"""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from apps.run_config import RunConfig
from federated.beside import CEILING, DEVICES, SECRET, beside
from mmslm.config import ConfigError, config_hash, load_config

HELD_OUT = 1_000_000  # households from here on never train
REPORTED = ("mmslm", "torch", "transformers", "flwr", "opacus", "dp-accounting", "numpy")


def check(config: str, overrides: dict[str, Any]) -> str:
    """Check a configuration without running it; says what it would cost. Raises ConfigError or BudgetExceeded."""
    from federated.accounts import planned_noise

    settings = load_config(config, RunConfig, overrides)
    return plan_line(settings, planned_noise(settings.federated))


def plan_line(settings: RunConfig, noise: float) -> str:
    """What will be done and at what price, in one sentence."""
    federated = settings.federated
    if not federated.private:
        return (
            f"{federated.households:,} households, {federated.rounds} rounds of about {federated.expected_cohort:.0f}, "
            "without clipping or noise: no privacy is claimed"
        )
    drawn = "Poisson" if federated.participation == "poisson" else "bounded participation"
    unit = "photo, on each device" if federated.trust == "device" else "household"
    return (
        f"{federated.households:,} households, {federated.rounds} rounds of about {federated.expected_cohort:.0f} "
        f"({drawn}), clipping norm {federated.clip_norm:g}, noise multiplier {noise:.3f}: "
        f"epsilon {federated.epsilon:g} per {unit} at delta {federated.delta:g}"
    )


def run(config: str, overrides: dict[str, Any], *, out: Path | None = None, restart: bool = False) -> Path:
    """Do the main job; returns the run's folder. Raises ConfigError, ValueError or OSError with one sentence."""
    settings = load_config(config, RunConfig, overrides)
    folder = run_folder(settings, out, restart=restart)
    job = Job(settings, folder)
    job.begin()
    job.train()
    job.report()
    job.ceiling()
    job.evaluate()
    job.say_where()
    return folder


def run_folder(settings: RunConfig, out: Path | None, *, restart: bool) -> Path:
    """The run's folder. ``restart``: an earlier run in it is moved aside, never removed."""
    folder = out or Path("runs") / settings.name
    if restart and folder.exists():
        aside = folder.with_name(f"{folder.name}.{time.strftime('%Y%m%d-%H%M%S')}")
        moved = [(beside(folder, what), beside(aside, what)) for what in (CEILING, DEVICES, SECRET)]
        for old, new in [(folder, aside), *((old, new) for old, new in moved if old.exists())]:
            old.rename(new)
        print(f"the earlier run is now in {aside}")
    return folder


class Job:
    """One run and its folder. Every stage may be called again; what is done is not done twice.

    train_elsewhere(work, progress): trains on another runtime than this process (``federated.runtimes``).
    """

    def __init__(self, settings: RunConfig, folder: Path, train_elsewhere: Callable[..., Any] | None = None) -> None:
        self.settings, self.folder = settings, folder
        self._train_elsewhere = train_elsewhere

    def begin(self) -> None:
        """Open the folder: write the resolved settings and versions, or check that they are these."""
        from federated.accounts import planned_noise

        # Refuses an impossible budget before anything is written.
        noise = planned_noise(self.settings.federated) if self.settings.federated.private else 0.0
        mark = self.folder / "run.json"
        facts: dict[str, Any] = {"config_hash": config_hash(self.settings)}
        if mark.exists():
            found = _read_json(mark)
            if found.get("config_hash") != facts["config_hash"]:
                raise ConfigError(
                    f"{self.folder} holds a run of other settings; give another folder with --out, "
                    "or move that run aside with --restart."
                )
            _say(f"going on with the run in {self.folder}")
        elif self.folder.exists() and any(self.folder.iterdir()):
            raise ConfigError(f"{self.folder} holds something that is no run of mmslm; give another folder with --out.")
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            text = yaml.safe_dump(self.settings.model_dump(mode="json"), sort_keys=False)
            _write(self.folder / "config.yaml", text)
            facts |= {"seed": self.settings.federated.seed, "python": platform.python_version(), "versions": versions()}
            _write(mark, json.dumps(facts, indent=1) + "\n")
        _say(plan_line(self.settings, noise))

    # Training ---------------------------------------------------------------------------------------------------------

    def train(self) -> None:
        """Federated private training, resumed where it was; the trained model in ``model/``."""
        if (self.folder / "model" / "model.safetensors").is_file():
            return
        settings = self.settings.federated
        title = "private training" if settings.private else "training without privacy"
        result, seconds = self._federate(settings, self.folder, title)
        spent = "each device kept its own budget, " if settings.private else ""
        spent = spent if result.epsilon is None else f"epsilon {result.epsilon:.3f} of {settings.epsilon:g} spent, "
        _say(
            f"{title}: {settings.rounds} rounds in {seconds:.0f} s, {spent}"
            f"{result.vector.numel():,} adapter weights travelled"
        )

    def ceiling(self) -> None:
        """The same adapters without privacy, for comparison only; it claims nothing."""
        settings = self.settings.ceiling
        if settings is None or (self.beside / "model" / "model.safetensors").is_file():
            return
        from apps.ceiling import train_ceiling

        began = time.monotonic()
        with _bar("non-private ceiling", settings.steps, "step") as bar:
            train_ceiling(
                settings,
                self.settings.federated,
                base=self.base,
                population=self.population(),
                folder=self.beside,
                progress=lambda told: bar.update(told.step - bar.n),
            )
        _say(f"non-private ceiling: {settings.steps} steps in {time.monotonic() - began:.0f} s (never to be released)")

    def _federate(self, settings: Any, folder: Path, title: str) -> tuple[Any, float]:
        from federated.job import trained_model
        from mmslm.pretrained import save_model

        began = time.monotonic()
        with _bar(title, settings.rounds, "round") as bar:

            def told(facts: Any) -> None:
                bar.update(facts.round - bar.n)
                spent = {} if facts.epsilon is None else {"epsilon": f"{facts.epsilon:.2f}"}
                devices = {"devices": facts.answered} if hasattr(facts, "answered") else {}
                bar.set_postfix(**spent, **devices)

            train = self._train_elsewhere or self._train_here
            result = train(self.work(settings, folder), told)
            bar.update(settings.rounds - bar.n)
        model, processor = trained_model(self.base, settings, result.vector)
        save_model(model, processor, folder / "model")  # type: ignore[arg-type]
        return result, time.monotonic() - began

    def _train_here(self, work: Any, progress: Any) -> Any:
        from federated.simulation import train_on_photos

        return train_on_photos(
            work.settings, base=self.base, population=self.population(), run_dir=work.run_dir, progress=progress
        ).result

    def work(self, settings: Any, folder: Path) -> Any:
        """What is to be trained, in the words that every runtime understands."""
        from federated.job import Work

        data = self.settings.data
        source: dict[str, Any] = {"data_seed": data.seed}
        if data.source == "coco":
            source = {"data": str(data.folder), "data_owner": data.owner_key or ""}
            source["held_out"] = self.settings.evaluation.households
        return Work(settings, folder, base=self.settings.base, **source)

    @property
    def beside(self) -> Path:
        """Where the ceiling lives: not in the run's folder, which is what one hands to an auditor."""
        return beside(self.folder, CEILING)

    @property
    def base(self) -> Path:
        from federated.job import base_directory

        return base_directory(self.settings.base)

    def population(self) -> Any:
        """The devices that train."""
        return self.work(self.settings.federated, self.folder).population()

    def held_out(self) -> list[Any]:
        """Photos of households that never train: of scenes beyond the last one, of real data every fifth owner's."""
        evaluation, data = self.settings.evaluation, self.settings.data
        if data.source == "scenes":
            from mmslm.data.scenes import household

            homes = [household(HELD_OUT + index, seed=data.seed) for index in range(evaluation.households)]
            return [home.photo(place) for home in homes for place in range(evaluation.photos_per_household)]
        from federated.job import held_out_owners

        photos = self._coco()
        chosen: list[Any] = []
        for owner in sorted(held_out_owners(photos, evaluation.households)):
            chosen += [photo for photo in photos if photo.owner == owner][: evaluation.photos_per_household]
        return chosen

    def _coco(self) -> Sequence[Any]:
        from mmslm.data.coco import CocoPhotos

        assert self.settings.data.folder is not None
        return CocoPhotos(self.settings.data.folder, owner=self.settings.data.owner_key)

    # The report -------------------------------------------------------------------------------------------------------

    def report(self) -> None:
        """report.json and report.html from the ledger, and the audit of what they say."""
        from apps.run_report import write_run_report
        from privacy.audit import audit_paths

        if not (self.folder / "report.json").is_file():
            write_run_report(self.settings, self.folder, self.base, versions())
        audit = audit_paths([self.folder])
        _write(self.folder / "audit.txt", audit.to_text() + "\n")
        verdict = "every claim holds" if audit.exit_code == 0 else "NOT PROVEN, see audit.txt"
        spent = _read_json(self.folder / "report.json")["claim"]
        _say(f"report: epsilon {spent['epsilon']:.4g} at delta {spent['delta']:g}; audit: {verdict}")

    # What it bought ---------------------------------------------------------------------------------------------------

    def evaluate(self) -> None:
        """Before, after and the ceiling on held-out households: metrics.json and the contact sheet."""
        from mmslm.evaluation.compare import compare
        from mmslm.evaluation.sheet import evaluation_sheet

        photos = self.held_out()
        before = self._measured("before", self.base, photos)
        after = self._measured("after", self.folder / "model", photos)
        ceiling = None
        if self.settings.ceiling is not None:
            ceiling = self._measured("ceiling", self.beside / "model", photos)
        comparison = compare(before, after, ceiling)
        sheet = evaluation_sheet(photos, before, after, ceiling, count=self.settings.evaluation.sheet_photos)
        sheet.save(self.folder / "sheet.png")
        facts = {
            "held_out": {"households": before.n_owners, "photos": before.n_photos},
            "comparison": comparison.to_json(),
        }
        _write(self.folder / "metrics.json", json.dumps(facts, indent=1) + "\n")
        _write(self.folder / "metrics.md", comparison.to_markdown() + "\n")
        _say("what it bought, on households that took no part:")
        print(comparison.to_text())

    def _measured(self, name: str, model: Path, photos: Sequence[Any]) -> Any:
        from mmslm.evaluation.evaluate import evaluate
        from mmslm.evaluation.results import Evaluation
        from mmslm.generation import Narrator

        kept = self.folder / "evaluation" / f"{name}.json"
        if kept.is_file():
            return Evaluation.from_json(_read_json(kept))
        settings = self.settings.evaluation
        narrator = Narrator.load(model)
        with _bar(f"asking the model {name}", 1, "reply") as bar:

            def told(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            found = evaluate(
                narrator,
                photos,
                styles=settings.styles,
                questions_per_photo=settings.questions_per_photo,
                batch_size=settings.batch,
                progress=told,
                image_size=narrator.processor.image_size,
            )
        kept.parent.mkdir(exist_ok=True)
        _write(kept, json.dumps(found.to_json()) + "\n")
        return found

    def say_where(self) -> None:
        """Where the results lie and how to go on."""
        _say(f"results are in {self.folder}/: report.html, metrics.json, sheet.png, model/")
        print(f"  mmslm audit {self.folder}")
        print(f"  mmslm caption PHOTO --model {self.folder}")
        print(f"  mmslm app captioner --model {self.folder}")


def versions() -> dict[str, str]:
    """The versions of what decides the numbers."""
    return {name: metadata.version(name) for name in REPORTED}


def _bar(title: str, total: int, unit: str) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, desc=title, unit=unit, file=sys.stderr, dynamic_ncols=True)


def _say(line: str) -> None:
    print(f"- {line}", flush=True)


def _write(path: Path, text: str) -> None:
    """Whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError):
        raise ValueError(f"{path} is damaged; remove that file and start again, the rest of the run is kept.") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} is not what a run writes; remove that file and start again.")
    return value
