"""How long an audit takes: a folder of many reports, of few and of many different recipes.

    python benchmarks/audit.py [--reports 1000] [--steps 60] [--recipes 1 10 40]

Each report has its own ledger (another header, so other hashes), its own data commitment and its own file. Recipes
differ in their noise. Wall and CPU seconds are of the audit alone; making the reports is not counted. The first line is
what importing the accountants costs once. Memory: the process's peak, and how much of it came with the audit itself; the
rest is PyTorch and the accountants' own.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

from privacy.audit import audit_paths
from privacy.canonical import canonical_bytes
from privacy.events import GaussianRelease, Sampling
from privacy.ledger import Ledger, entry_hash
from privacy.report import Claim, DataFacts, Identity, Mechanism, Pricer, SamplingFacts, build_report

DELTA = 1e-4


def one_report(folder: Path, sigma: float, steps: int, pricer: Pricer) -> dict[str, Any]:
    """A report of `steps` rounds with noise `sigma`."""
    sampling = Sampling("poisson", rate=0.05, population=2000)
    event = GaussianRelease(sigma, sampling, unit="user")
    ledger = Ledger.create(folder / f"{sigma}.jsonl", {"sigma": sigma})
    for step in range(steps):
        ledger.append(event, step=step)
    claim = Claim(
        epsilon=pricer.epsilon([(event.with_count(steps),)], DELTA, "pld"),
        delta=DELTA,
        unit_definition="one household and all its photos",
        released="a model",
        threat_model="anybody",
    )
    return build_report(
        ledger,
        claim,
        mechanism=Mechanism(clip_norm=1.0, divisor=100.0, noise="csprng"),
        sampling=SamplingFacts(sampler="PoissonSampler", steps=steps, **sampling.to_json()),
        data=DataFacts(commitment="00" * 32, population=2000, population_is_public=True),
        identity=Identity(optimizer_steps=steps),
        pricer=pricer,
    )


def renamed(report: dict[str, Any], number: int) -> dict[str, Any]:
    """The same run under another name: another ledger header, so another chain, and another data set."""
    copied = copy.deepcopy(report)
    copied["ledger"]["entries"][0]["header"]["run"] = number
    previous = "0" * 64
    for entry in copied["ledger"]["entries"]:
        previous = entry_hash(previous, {key: value for key, value in entry.items() if key != "hash"})
        entry["hash"] = previous
    copied["ledger"]["head"] = previous
    copied["data"]["commitment"] = hashlib.sha256(str(number).encode()).hexdigest()
    return copied


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reports", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--recipes", type=int, nargs="+", default=[1, 10, 40])
    arguments = parser.parse_args()
    pricer = Pricer()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        started = time.perf_counter(), time.process_time()
        made = [one_report(folder, 1.0, arguments.steps, pricer)]
        wall, cpu = time.perf_counter() - started[0], time.process_time() - started[1]
        print(f"first report, imports included: {wall:.1f} s wall, {cpu:.1f} s CPU")
        for recipe in range(1, max(arguments.recipes)):
            made.append(one_report(folder, 1.0 + recipe / 100, arguments.steps, pricer))
        print("reports  recipes  steps   wall s    CPU s   ms CPU/report   peak MiB   audit MiB")
        for recipes in arguments.recipes:
            many = folder / f"recipes{recipes}"
            many.mkdir()
            for number in range(arguments.reports):
                data = canonical_bytes(renamed(made[number % recipes], number))
                (many / f"{number}.report.json").write_bytes(data)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            started = time.perf_counter(), time.process_time()
            result = audit_paths([many])
            wall, cpu = time.perf_counter() - started[0], time.process_time() - started[1]
            assert result.exit_code == 0, result.to_text()
            assert len(result.reports) == arguments.reports
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            each = cpu * 1000 / arguments.reports
            row = f"{arguments.reports:7d} {recipes:8d} {arguments.steps:6d} {wall:8.1f} {cpu:8.1f} {each:15.2f}"
            print(f"{row} {peak:10.0f} {peak - before:11.0f}")


if __name__ == "__main__":
    main()
