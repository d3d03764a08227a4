"""Runs with real ledgers and real accounting for the dashboard's tests; small files stand in for the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from privacy.canonical import sha256_file
from privacy.events import GaussianRelease, Sampling
from privacy.ledger import Ledger
from privacy.report import (
    Claim,
    DataFacts,
    Identity,
    Mechanism,
    Outside,
    Pricer,
    SamplingFacts,
    build_report,
    data_commitment,
    write_report,
)

# Everybody in every round: the accountants answer in a moment, and there is a closed form to check them by.
DELTA, ROUNDS, NOISE = 1e-4, 10, 4.0
SAMPLING = Sampling("full")
OUTSIDE = [
    Outside(kind="loss_curves", statement="Losses stayed on the devices.", data="none"),
    Outside(kind="evaluation", statement="Scored on households <outside> the training.", data="held_out_people"),
    Outside(kind="checkpoint_selection", statement="The last checkpoint is released.", data="none"),
    Outside(kind="hyperparameter_trials", statement="Settings were chosen on public scenes.", data="public"),
    Outside(kind="logs", statement="Logs hold times only.", data="none"),
]


def begin(
    folder: Path, *, budget: float = 8.0, rounds: int = ROUNDS, noise: float = NOISE, data: bytes = b"homes"
) -> Ledger:
    """A run's folder with its settings and a ledger of so many releases."""
    folder.mkdir(parents=True)
    settings = f"federated:\n  epsilon: {budget}\n  delta: {DELTA}\n  rounds: {ROUNDS}\n"
    (folder / "config.yaml").write_text(settings)
    commitment = data_commitment(b"k" * 32, [data])
    header = {"config_hash": sha256_file(folder / "config.yaml"), "data_commitment": commitment}
    ledger = Ledger.create(folder / "ledger.jsonl", header)
    for step in range(rounds):
        ledger.append(
            GaussianRelease(noise_multiplier=noise, sampling=SAMPLING, unit="user", label=f"round {step}"), step=step
        )
    return ledger


def make_run(
    folder: Path, pricer: Pricer, *, data: bytes = b"homes", simulation: bool = False, name: str = "", **more: Any
) -> dict[str, Any]:
    """A finished run: ledger, report.json, report.html, metrics.json."""
    ledger = begin(folder, data=data, **more)
    (folder / "model.safetensors").write_bytes(b"weights")
    model = sha256_file(folder / "model.safetensors")
    ledger.remark("finished", model_hash_after=model)
    epsilon = pricer.epsilon([_merged(ledger)], DELTA, "pld")
    kind = "seeded (simulation)" if simulation else "csprng"
    report = build_report(
        ledger,
        Claim(
            epsilon=epsilon,
            delta=DELTA,
            unit_definition="one household and all its photos",
            released="the final adapter",
            threat_model="anybody who sees the model",
            simulation=simulation,
        ),
        mechanism=Mechanism(clip_norm=0.5, divisor=400.0, noise=kind, dtypes={"sum": "float64"}),
        sampling=SamplingFacts(sampler="FullSampler", randomness=kind, steps=ROUNDS, **SAMPLING.to_json()),
        data=DataFacts(commitment=data_commitment(b"k" * 32, [data]), population=400, population_is_public=True),
        identity=Identity(
            name=name or folder.name,
            created="2026-01-02T03:04:05Z",
            software={"mmslm": "0.1.0"},
            config_hash=sha256_file(folder / "config.yaml"),
            model_hash_after=model,
            optimizer_steps=ROUNDS,
            files={"config.yaml": sha256_file(folder / "config.yaml"), "model.safetensors": model},
        ),
        outside=OUTSIDE,
        pricer=pricer,
    )
    write_report(folder, report)
    metrics = {"cider": {"title": "CIDEr", "before": 0.4, "after": 0.9, "ceiling": 1.1}}
    (folder / "metrics.json").write_text(json.dumps({"comparison": {"metrics": metrics}}))
    return report


def _merged(ledger: Ledger) -> tuple[Any, ...]:
    from privacy.report.recompute import merge

    return merge(ledger.events())
