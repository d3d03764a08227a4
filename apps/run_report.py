"""The report of a run: the facts that the ledger does not hold, put beside it.

The unit is one household with all its photos; what is released is the noised mean update of every round, and the final
adapters, which follow from those. The commitment's key stays beside the run and is no part of the report: who has it can
show later which data was meant. It refuses nothing of its own; ``privacy.report`` does.
"""

from __future__ import annotations

import hashlib
import math
import secrets
from pathlib import Path

from apps.run_config import RunConfig
from federated.reporting import claim_facts, mechanism_facts, open_report_ledger, outside_facts, sampling_facts, spent
from federated.settings import FederatedConfig
from privacy.ledger import Ledger
from privacy.report import (
    Claim,
    DataFacts,
    Identity,
    Outside,
    build_report,
    data_commitment,
    now,
    write_report,
)

KEY = "commitment.key"
MODEL = "model/model.safetensors"
CONFIG = "config.yaml"


def write_run_report(settings: RunConfig, folder: Path, base: Path, versions: dict[str, str]) -> tuple[Path, Path]:
    """report.json and report.html in ``folder``, from its ledger, its model and its settings."""
    federated = settings.federated
    ledger = open_report_ledger(federated, folder)
    # The last word of the ledger: a model that is swapped together with its hash in the report is caught by it.
    ledger.remark("finished", model_hash_after=file_hash(folder / MODEL))
    sampling = sampling_facts(federated, ledger)
    report = build_report(
        ledger,
        Claim(
            epsilon=_spent(ledger, federated),
            delta=federated.delta,
            accountant=federated.accountant,
            simulation=federated.noise == "simulation",
            **claim_facts(federated),
        ),
        mechanism=mechanism_facts(federated),
        sampling=sampling,
        data=_data_facts(settings, folder),
        identity=Identity(
            name=settings.name,
            created=now(),
            software=versions,
            config_hash=file_hash(folder / CONFIG),
            model_hash_before=file_hash(base / "model.safetensors"),
            model_hash_after=file_hash(folder / MODEL),
            optimizer_steps=sampling.steps,
            files={name: file_hash(folder / name) for name in (MODEL, CONFIG, *_checkpoints(folder))},
        ),
        outside=_outside(settings),
    )
    return write_report(folder, report)


def _spent(ledger: Ledger, federated: FederatedConfig) -> float:
    """What the ledger's releases cost, rounded up in the fourth decimal: a claim is never below its price."""
    return math.ceil(spent(federated, ledger) * 1e4) / 1e4


def _data_facts(settings: RunConfig, folder: Path) -> DataFacts:
    federated, data = settings.federated, settings.data
    description = (
        f"{federated.households} simulated households of the embedded scenes, {federated.photos_per_household} photos each"
        if data.source == "scenes"
        else "real photos, one device per owner"
    )
    # The embedded households are a function of the seed, so these few words are the whole data set; real photos are hashed.
    whole = [data.model_dump_json().encode(), f"{federated.households}/{federated.photos_per_household}".encode()]
    if data.folder is not None:
        whole = [file_hash(path).encode() for path in sorted(data.folder.rglob("*")) if path.is_file()]
    return DataFacts(
        commitment=data_commitment(_key(folder), whole),
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


def _key(folder: Path) -> bytes:
    """The run's commitment key, made once, readable by its owner alone."""
    path = folder / KEY
    if not path.exists():
        path.touch(mode=0o600)
        path.write_text(secrets.token_hex(32) + "\n", encoding="ascii")
    return bytes.fromhex(path.read_text(encoding="ascii").strip())


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
