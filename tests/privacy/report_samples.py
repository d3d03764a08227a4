"""Sample runs for the tests of report and audit: real ledgers, real accounting, small files in place of a model."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from privacy.canonical import canonical_bytes, sha256_file
from privacy.events import GaussianRelease, Sampling
from privacy.ledger import Ledger, entry_hash
from privacy.report import (
    Claim,
    DataFacts,
    Identity,
    Mechanism,
    Outside,
    Parent,
    Pricer,
    SamplingFacts,
    build_report,
    data_commitment,
    write_report,
)

STEPS = 12
DELTA = 1e-3
KEY = b"a key of the data's owner, 32 by"
NOTHING_OUTSIDE = (
    Outside(kind="loss_curves", statement="Losses stayed on the devices.", data="private"),
    Outside(kind="evaluation", statement="Scored on households outside the training.", data="held_out_people"),
    Outside(kind="checkpoint_selection", statement="The last checkpoint is released.", data="none"),
    Outside(kind="hyperparameter_trials", statement="Settings were chosen on public scenes.", data="public", count=3),
    Outside(kind="logs", statement="Logs hold times only.", data="none"),
)


def release(sigma: float = 1.2, **changes: Any) -> GaussianRelease:
    sampling = changes.pop("sampling", Sampling("poisson", rate=0.05, population=400))
    return GaussianRelease(**{"noise_multiplier": sigma, "sampling": sampling, "unit": "user", **changes})


def make_run(
    folder: Path,
    pricer: Pricer,
    *,
    sigmas: tuple[float, ...] = (1.2,) * STEPS,
    event: dict[str, Any] | None = None,
    claim: dict[str, Any] | None = None,
    mechanism: dict[str, Any] | None = None,
    sampling: dict[str, Any] | None = None,
    identity: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
    parents: tuple[Parent, ...] = (),
    data_name: bytes = b"the data",
    **more: Any,
) -> dict[str, Any]:
    """A run directory with configuration, model, ledger and report; returns the report."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(f"seed: 1\nname: {folder.name}\n")
    (folder / "model.safetensors").write_bytes(b"weights of " + folder.name.encode())
    config, model = sha256_file(folder / "config.yaml"), sha256_file(folder / "model.safetensors")
    commitment = data_commitment(KEY, [data_name])
    ledger = Ledger.create(folder / "ledger.jsonl", {"config_hash": config, "data_commitment": commitment})
    for step, sigma in enumerate(sigmas):
        ledger.append(release(sigma, label=f"round {step}", **(event or {})), step=step)
    ledger.remark("finished", model_hash_after=model)
    facts = {
        "sampler": "PoissonSampler",
        "randomness": "csprng",
        "steps": len(sigmas),
        **release(**(event or {})).sampling.to_json(),
        **(sampling or {}),
    }
    stated: dict[str, Any] = {
        "delta": DELTA,
        "accountant": "pld",
        "unit_definition": "one household and all its photos",
        "released": "the final adapter",
        "threat_model": "anybody who sees the model; the server is trusted",
        **(claim or {}),
    }
    if "epsilon" not in stated:
        from privacy.report.build import parent_run
        from privacy.report.recompute import merge

        runs = [merge(ledger.events()), *map(parent_run, parents)]
        stated["epsilon"] = pricer.epsilon(runs, stated["delta"], stated["accountant"])
    report = build_report(
        ledger,
        Claim(**stated),
        mechanism=Mechanism(
            **{"clip_norm": 0.5, "divisor": 20.0, "noise": "csprng", "dtypes": {"sum": "float64"}, **(mechanism or {})}
        ),
        sampling=SamplingFacts(**facts),
        data=DataFacts(
            **{"commitment": commitment, "population": 400, "population_is_public": True, **(data or {})},
        ),
        identity=Identity(
            **{
                "name": folder.name,
                "created": "2026-01-02T03:04:05Z",
                "software": {"mmslm": "0.1.0"},
                "config_hash": config,
                "model_hash_after": model,
                "optimizer_steps": len(sigmas),
                "files": {"config.yaml": config, "model.safetensors": model},
                "parents": list(parents),
                **(identity or {}),
            }
        ),
        pricer=pricer,
        **{"outside": NOTHING_OUTSIDE, **more},
    )
    write_report(folder, report)
    return report


def change(folder: Path, edit: Callable[[dict[str, Any]], object], *, rechain: bool = False) -> dict[str, Any]:
    """Edit a run's report as an attacker would; with `rechain` the whole hash chain and the ledger's files follow."""
    path = folder / "report.json"
    report = json.loads(path.read_bytes())
    before = copy.deepcopy(report)
    edit(report)
    assert report != before, "the edit changed nothing"
    if rechain:
        previous = "0" * 64
        for index, entry in enumerate(report["ledger"]["entries"]):
            entry["index"] = index
            body = {key: value for key, value in entry.items() if key != "hash"}
            entry["hash"] = previous = entry_hash(previous, body)
        report["ledger"]["head"] = previous
        entries = report["ledger"]["entries"]
        (folder / "ledger.jsonl").write_bytes(b"".join(canonical_bytes(entry) + b"\n" for entry in entries))
        (folder / "ledger.jsonl.head").write_text(f"{len(entries):020d} {previous}\n")
    path.write_bytes(canonical_bytes(report) + b"\n")
    return dict(report)


def events_of(report: dict[str, Any]) -> list[dict[str, Any]]:
    return [entry for entry in report["ledger"]["entries"] if entry["kind"] == "event"]
