"""The report of a run: the facts that the ledger does not hold, put beside it.

The unit is one household with all its photos; what is released is the noised mean update of every round, and the final
adapters, which follow from those. The claim of a real run covers every earlier run on the data beside it; a rehearsal's
is about itself. It refuses nothing of its own; ``privacy.report`` and ``apps.data_identity`` do.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

from apps.data_identity import commitment, earlier_runs
from apps.run_config import RunConfig
from federated.reporting import claim_facts, mechanism_facts, open_report_ledger, outside_facts, sampling_facts
from federated.settings import FederatedConfig
from privacy.events import Event
from privacy.report import (
    Claim,
    DataFacts,
    Identity,
    Outside,
    build_report,
    now,
    write_report,
)
from privacy.report.build import parent_run
from privacy.report.recompute import Pricer, merge

MODEL = "model/model.safetensors"
CONFIG = "config.yaml"


def write_run_report(settings: RunConfig, folder: Path, base: Path, versions: dict[str, str]) -> tuple[Path, Path]:
    """report.json and report.html in ``folder``, from its ledger, its model and its settings."""
    federated = settings.federated
    ledger = open_report_ledger(federated, folder)
    # The last word of the ledger: a model that is swapped together with its hash in the report is caught by it.
    data = _data_facts(settings, folder)
    ledger.remark(
        "finished",
        model_hash_after=file_hash(folder / MODEL),
        config_hash=file_hash(folder / CONFIG),
        data_commitment=data.commitment,
    )
    simulation = federated.noise == "simulation"
    parents = [] if simulation else earlier_runs(settings, folder, data.commitment)
    sampling = sampling_facts(federated, ledger)
    report = build_report(
        ledger,
        Claim(
            epsilon=_spent([merge(ledger.events()), *map(parent_run, parents)], federated),
            delta=federated.delta,
            accountant=federated.accountant,
            scope="this_run" if simulation else "all_runs_on_this_data",
            simulation=simulation,
            **claim_facts(federated),
        ),
        mechanism=mechanism_facts(federated),
        sampling=sampling,
        data=data,
        identity=Identity(
            name=settings.name,
            created=now(),
            software=versions,
            config_hash=file_hash(folder / CONFIG),
            model_hash_before=file_hash(base / "model.safetensors"),
            model_hash_after=file_hash(folder / MODEL),
            optimizer_steps=sampling.steps,
            files={name: file_hash(folder / name) for name in (MODEL, CONFIG, *_checkpoints(folder))},
            parents=parents,
        ),
        outside=_outside(settings),
    )
    return write_report(folder, report)


def _spent(runs: list[tuple[Event, ...]], federated: FederatedConfig) -> float:
    """What the runs' releases cost together, rounded up in the fourth decimal: a claim is never below its price."""
    return math.ceil(Pricer().epsilon(runs, federated.delta, federated.accountant) * 1e4) / 1e4


def _data_facts(settings: RunConfig, folder: Path) -> DataFacts:
    federated, data = settings.federated, settings.data
    description = (
        f"{federated.households} simulated households of the embedded scenes, {federated.photos_per_household} photos each"
        if data.source == "scenes"
        else "real photos, one device per owner"
    )
    value, scheme = commitment(data, folder)
    return DataFacts(
        commitment=value,
        commitment_scheme=scheme,
        population=federated.photos_per_household if federated.trust == "device" else federated.households,
        population_is_public=True,
        deduplicated="households are drawn independently; no photo is at two of them"
        if data.source == "scenes"
        else "not done",
        public_pretraining="the base model has seen rendered public scenes only, and words about all kinds of things"
        if settings.base == "base"
        else "not stated",
        tokenizer_trained_on="public sentences of the embedded grammar" if settings.base == "base" else "not stated",
        description=description,
    )


def _outside(settings: RunConfig) -> list[Outside]:
    """Everything that looked at data and is not a release of the ledger."""
    statements = [
        *outside_facts(settings.federated),
        Outside(
            kind="evaluation",
            statement="Metrics are of households that took no part in the training.",
            data="held_out_people",
            published=True,
        ),
        Outside(kind="checkpoint_selection", statement="The last round is released; none was selected.", data="none"),
        Outside(
            kind="logs", statement="Logs hold round numbers, the spent epsilon and norms of releases.", data="none"
        ),
        Outside(kind="compression", statement="The model was not compressed.", data="none"),
    ]
    if settings.name == "quickstart" and settings.data.source == "scenes":
        # Of any other run we cannot know how its settings were chosen: it stays unsaid, and the audit flags that.
        said = "Settings were chosen on households of another seed; one earlier run on these was seen as well."
        statements.append(Outside(kind="hyperparameter_trials", statement=said, data="private", count=1))
    if settings.ceiling is not None:
        statements.append(
            Outside(
                kind="other",
                statement=(
                    "A comparison model was trained on the same simulated households without privacy; it is kept beside the "
                    "run's folder, not in it, and with real people it must not be made."
                ),
                data="private",
                published=False,
            )
        )
    return statements


def _checkpoints(folder: Path) -> list[str]:
    """The adapters that the rounds left: weights beside the report must be named in it."""
    return sorted(str(path.relative_to(folder)) for path in (folder / "rounds").glob("*.safetensors"))


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
