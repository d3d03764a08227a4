"""Which data a run used, so that runs on one data set meet: the commitment in its report, and the runs before it.

Real photos are committed to with a secret key, one for all runs that share data: `.commitment-key` beside the runs' folders
(or where the settings say), readable by its owner alone and never inside a run's folder, which is what one hands out. A
made-up population is named by its seed and needs no key: two runs on it share people even where they took different
numbers of them.

What it refuses: a key that others may read, and a key file inside the run's folder.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

from apps.run_config import DataConfig, RunConfig
from federated.accounts import LEDGER
from mmslm.config import ConfigError, load_config
from privacy.canonical import UnreadableError
from privacy.ledger import Ledger, LedgerError
from privacy.report import Parent, data_commitment, read_report
from privacy.report.commitment import commitment_key
from privacy.report.recompute import merge

KEYLESS = "hmac-sha256, public key: a simulated population, named by its seed"
KEYED = "hmac-sha256, secret key kept beside the runs"
_PUBLIC_KEY = b"mmslm: simulated data, no secret"

logger = logging.getLogger(__name__)


def commitment(data: DataConfig, folder: Path) -> tuple[str, str]:
    """(commitment, scheme) of the data that the run in ``folder`` uses. Raises ValueError, OSError."""
    if data.folder is None:
        return data_commitment(_PUBLIC_KEY, [f"{data.source} {data.seed}".encode()]), KEYLESS
    key = commitment_key(folder, data.commitment_key)
    photos = (path for path in sorted(data.folder.rglob("*")) if path.is_file() and path != data.commitment_key)
    return data_commitment(key, map(_digest, photos)), KEYED


def earlier_runs(settings: RunConfig, folder: Path, own_commitment: str) -> list[Parent]:
    """The private runs on this data that lie beside ``folder``: the claim of a real run has to cover them.

    Also those that never came to a report: what their ledgers list was released. Rehearsals release nothing about anybody.
    """
    found: dict[str, Parent] = {}
    for beside in sorted(
        path for path in folder.parent.iterdir() if path.is_dir() and path.resolve() != folder.resolve()
    ):
        if not (beside / LEDGER).is_file():
            continue
        try:
            theirs = load_config(beside / "config.yaml", RunConfig)
            report = read_report(beside) if (beside / "report.json").is_file() else None
            shared = theirs.data == settings.data or (report or {}).get("data", {}).get("commitment") == own_commitment
            if theirs.federated.noise == "simulation" or not theirs.federated.private or not shared:
                continue
            ledger = Ledger.open(beside / LEDGER)
        except (ConfigError, UnreadableError, LedgerError, OSError) as error:
            logger.warning(
                "%s may hold a run on the same data, but it cannot be read (%s): the claim leaves it out", beside, error
            )
            continue
        if events := merge(ledger.events()):
            name = report["identity"]["id"] if report else f"unfinished run {beside.name}"
            found[ledger.head] = Parent(id=name, ledger_head=ledger.head, events=[event.to_json() for event in events])
    return list(found.values())


def _digest(path: Path) -> bytes:
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest().encode()
