"""What the federated machinery costs beyond the training itself: CPU seconds, ratios within one run.

    python benchmarks/federated.py [--devices 100] [--rounds 5] [--repeats 3] [--json out.json]

Compared, doing the same work (so many devices, one local step each, the same batches):

    plain loop   a for-loop over devices around one model: train, subtract, add. No messages, no privacy.
    ours         the ServerApp and ClientApp over the in-process Grid, one worker, without privacy
    ours, DP     the same with clipping, noise, ledger (on disk before each release) and round checkpoints

Two models: "mlp" of 85 thousand parameters, where the machinery shows, and "nano", the model that ships, where training
dominates. CPU seconds are compared, because they hold on a machine that others use too; each figure is the least of the
repeats, which alternate. Memory is what a round with 1,000 devices (a cohort of about 100) adds to the resident set.
``--deployed`` measures the seconds of a round of a deployment on loopback instead.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import math
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import torch
from torch import Tensor, nn

# Python puts this folder first on the path, where this file's own name would hide the package that it measures.
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]

from federated.settings import FederatedConfig  # noqa: E402
from federated.simulation import simulate  # noqa: E402
from federated.vector import AdapterVector  # noqa: E402
from mmslm.training import local_update  # noqa: E402
from privacy.sampling import PoissonSampler  # noqa: E402

VOCABULARY, LENGTH = 64, 16


class Mlp(nn.Module):
    """85 thousand parameters, 77 thousand of them trained: the size of the simulation example that others measure."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(VOCABULARY, 128).requires_grad_(False)
        self.first, self.second = nn.Linear(128, 400, bias=False), nn.Linear(400, VOCABULARY, bias=False)

    def adapter_parameters(self) -> dict[str, nn.Parameter]:
        return {"first": self.first.weight, "second": self.second.weight}

    def freeze_base(self) -> None:
        self.table.requires_grad_(False)

    def forward(self, input_ids: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.second(torch.relu(self.first(self.table(input_ids)))))


class MlpFeeder:
    def batches(self, model: nn.Module, device: int, round_number: int) -> list[dict[str, Tensor]]:
        tokens = torch.arange(LENGTH).mul(device + 1).remainder(VOCABULARY).expand(4, LENGTH)
        return [{"input_ids": tokens, "labels": tokens}]


class NanoFeeder:
    """Four photos a device, 36 image tokens and 44 text tokens each; features are given, as the cache gives them."""

    def __init__(self) -> None:
        self.features = torch.randn(4, 36, 192, generator=torch.Generator().manual_seed(0))

    def batches(self, model: nn.Module, device: int, round_number: int) -> list[dict[str, Tensor]]:
        tokens = torch.arange(81).mul(device + 1).remainder(2000).add(10).expand(4, 81).clone()
        tokens[:, 0], tokens[:, 1:37] = 1, 4
        labels = tokens.clone()
        labels[:, :45] = -100
        return [{"input_ids": tokens, "labels": labels, "image_features": self.features}]


def nano() -> nn.Module:
    from mmslm.model.configuration import MMSLMConfig
    from mmslm.model.modeling import MMSLMForConditionalGeneration

    model = MMSLMForConditionalGeneration(MMSLMConfig()).eval()
    model.add_image_experts(4, train="b")
    model.freeze_base()
    return model


class Watched:
    """A feeder that notes when it is first asked: from then on a round is training."""

    def __init__(self, feeder: MlpFeeder | NanoFeeder) -> None:
        self.feeder, self.first = feeder, math.inf

    def batches(self, model: nn.Module, device: int, round_number: int) -> list[dict[str, Tensor]]:
        self.first = min(self.first, time.perf_counter())
        return self.feeder.batches(model, device, round_number)


def settings(devices: int, rounds: int, *, private: bool, rate: float = 1.0) -> FederatedConfig:
    return FederatedConfig(
        households=devices,
        rounds=rounds,
        sampling_rate=rate,
        local_learning_rate=0.01,
        private=private,
        epsilon=900.0,
        delta=1e-6,
        accountant="rdp",
        noise_multiplier=4.0,
        noise="simulation",
        workers=1,
    )


def plain_loop(model: nn.Module, feeder: MlpFeeder | NanoFeeder, config: FederatedConfig) -> Tensor:
    """The work itself: what anybody would write for one experiment."""
    adapters = AdapterVector(model.adapter_parameters())  # type: ignore[operator]
    vector = adapters.read()
    sampler = PoissonSampler(config.households, config.sampling_rate, seed_or_generator=config.seed)
    for number in range(config.rounds):
        total, cohort = torch.zeros(adapters.dimension), sampler.draw(number)
        for device in cohort:
            adapters.write(vector)
            batches = feeder.batches(model, int(device), number)
            local_update(model, batches, adapters.parameters, steps=1, learning_rate=config.local_learning_rate)
            total += adapters.read() - vector
        vector = vector + 0.01 * total / len(cohort)
    return vector


def ours(model: nn.Module, feeder: MlpFeeder | NanoFeeder | Watched, config: FederatedConfig) -> list[float]:
    """Seconds of wall time of each round."""
    seconds: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        simulate(
            config,
            model=model,
            feeder=feeder,
            run_dir=Path(folder),
            progress=lambda facts: seconds.append(facts.seconds),
        )
    return seconds


def measure(name: str, devices: int, rounds: int, repeats: int) -> dict[str, float | str]:
    model, feeder = (Mlp().eval(), MlpFeeder()) if name == "mlp" else (nano(), NanoFeeder())
    open_config, private_config = (settings(devices, rounds, private=private) for private in (False, True))
    process = psutil.Process()
    watched, began = Watched(feeder), time.perf_counter()
    first_rounds = ours(model, watched, settings(devices, 1, private=True))
    first, set_up = time.perf_counter() - began, watched.first - began
    ways = {
        "plain loop": lambda: plain_loop(model, feeder, open_config),
        "ours": lambda: ours(model, feeder, open_config),
        "ours, DP": lambda: ours(model, feeder, private_config),
    }
    cpu = dict.fromkeys(ways, float("inf"))
    for _ in range(repeats):
        for way, run in ways.items():
            start = time.process_time()
            run()
            cpu[way] = min(cpu[way], (time.process_time() - start) / rounds)
    before = process.memory_info().rss
    ours(model, feeder, settings(1000, 1, private=True, rate=0.1))
    return {
        "model": name,
        "devices": devices,
        "cpu_seconds_a_round_plain_loop": cpu["plain loop"],
        "ratio_ours": cpu["ours"] / cpu["plain loop"],
        "ratio_ours_dp": cpu["ours, DP"] / cpu["plain loop"],
        "first_round_seconds_set_up_included": first,
        "seconds_until_the_first_device_trains": set_up,
        "first_round_seconds": first_rounds[0],
        "megabytes_more_for_1000_devices": (process.memory_info().rss - before) / 1e6,
        "megabytes_in_all": process.memory_info().rss / 1e6,
        "megabytes_without_library_files": process.memory_full_info().uss / 1e6,
    }


def deployed_rounds(rounds: int) -> str:
    """Seconds between the ends of a deployment's rounds: two nodes on loopback, TLS and keys, the model that ships."""
    from federated.deploy import loopback
    from federated.job import Work
    from federated.runtimes import on_deployment

    ends: list[float] = []
    config = settings(2, rounds + 1, private=True)
    with tempfile.TemporaryDirectory() as folder, loopback.deployed(Path(folder) / "d", nodes=2) as deployment:
        work = Work(config, Path(folder) / "run")
        on_deployment(work, deployment, wait_for=2, progress=lambda seen: ends.append(time.perf_counter()))
    pauses = sorted(after - before for before, after in itertools.pairwise(ends))
    middle, worst = pauses[len(pauses) // 2], pauses[-1]
    return f"deployed on loopback, 2 nodes, {len(pauses)} rounds: median {middle:.2f} s a round, slowest {worst:.2f} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--models", nargs="+", default=["mlp", "nano"], choices=["mlp", "nano"])
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--deployed", action="store_true", help="measure rounds of a deployment on loopback instead")
    arguments = parser.parse_args()
    if arguments.deployed:
        print(deployed_rounds(arguments.rounds))
        return
    logging.basicConfig(level=logging.WARNING)
    torch.set_num_threads(1)
    after_imports = psutil.Process().memory_info().rss / 1e6
    figures = [measure(name, arguments.devices, arguments.rounds, arguments.repeats) for name in arguments.models]
    print(f"resident after the imports: {after_imports:.0f} MB")
    for row in figures:
        print(f"\n{row['model']}, {row['devices']} devices x 1 step, one worker")
        print(f"  plain loop            {row['cpu_seconds_a_round_plain_loop']:.3f} CPU-s a round")
        print(f"  ours                  x {row['ratio_ours']:.2f}")
        print(f"  ours, DP              x {row['ratio_ours_dp']:.2f}")
        print(f"  first device trains   after {row['seconds_until_the_first_device_trains']:.2f} s, set-up included")
        print(
            f"  first round           {row['first_round_seconds_set_up_included']:.2f} s, all devices' training included"
        )
        more, all_of_it, own = (
            row[f"megabytes_{what}"] for what in ("more_for_1000_devices", "in_all", "without_library_files")
        )
        print(f"  1,000 devices         {more:.0f} MB more; {all_of_it:.0f} MB in all, {own:.0f} without library files")
    if arguments.json:
        arguments.json.write_text(json.dumps({"after_imports_megabytes": after_imports, "figures": figures}, indent=1))


if __name__ == "__main__":
    main()
