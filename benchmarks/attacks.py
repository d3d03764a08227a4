"""What hostile devices do to a federated run, against what defends it: measured damage, as a table.

    python benchmarks/attacks.py [--devices 80] [--rounds 8] [--share 0.15] [--seeds 3] [--json out.json]
                                 [--markdown]

A real small training: devices are households of the embedded scenes, and learn which room a photo shows from what the
shipped base model's frozen vision tower sees, by a low-rank adapter over a linear layer. A share of the devices is
hostile in every round in which it is sampled. Measured on households that took no part:

    accuracy       share of photos whose room is named; first column of the back door's cells too
    back door      share of photos of the source room that are called the target room

Defences: "none" is Flower's own weighted mean (``aggregate_arrayrecords``) over whatever comes; "gate" is this house's
gate and plain mean; "gate + norm" drops updates more than twice as long as those of households that take no part; the others
stand behind the gate. "clip" bounds each update without noise; "clip + noise" is the
private run, at the epsilon that is printed. Cells are means over `--seeds` draws of cohorts, liars and noise; the JSON file keeps
each.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from flwr.app import ConfigRecord, Context, MetricRecord, RecordDict
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords
from torch import Tensor, nn

# Python puts this folder first on the path, where this file's own name would hide nothing but its neighbours' might.
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]

from federated import wire  # noqa: E402
from federated.accounts import planned_noise  # noqa: E402
from federated.attacks import ATTACKS, EXAMPLES, Attack, Mislabelled, hostile  # noqa: E402
from federated.bench import Bench  # noqa: E402
from federated.client_app import client_app  # noqa: E402
from federated.grid import FIRST_NODE_ID, InProcessGrid  # noqa: E402
from federated.server_app import server_app  # noqa: E402
from federated.settings import FederatedConfig, ServerOptimiserConfig  # noqa: E402
from federated.strategy import Job, RunFailed  # noqa: E402
from federated.vector import AdapterVector  # noqa: E402
from privacy.sampling import PoissonSampler  # noqa: E402

PHOTOS, RANK, HELD_OUT, TESTED = 4, 8, 50_000, 40
DEFENCES = ("none", "gate", "gate + norm", "clip", "clip + noise", "trimmed mean", "krum", "multi-krum", "median")
AGGREGATORS = {
    "gate": "mean",
    "gate + norm": "mean",
    "clip": "clipped_mean",
    "trimmed mean": "trimmed_mean",
    "krum": "krum",
    "multi-krum": "multi_krum",
    "median": "median",
}


class Rooms(nn.Module):
    """A linear layer of zeros over fixed features with a low-rank adapter, A frozen: [B, D] -> [B, 2, rooms]."""

    def __init__(self, width: int, rooms: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.a = nn.Parameter(torch.randn(width, 4 * RANK, generator=generator) / width**0.5, requires_grad=False)
        self.b = nn.Parameter(torch.zeros(4 * RANK, rooms))

    def adapter_parameters(self) -> dict[str, nn.Parameter]:
        return {"b": self.b}

    def forward(self, features: Tensor) -> SimpleNamespace:
        logits = features @ self.a @ self.b
        return SimpleNamespace(logits=torch.stack([logits, logits], dim=1))


class RoomFeeder:
    """features: [N, photos, D]. rooms: [N, photos]. The label stands in the second place: it is "the next token"."""

    def __init__(self, features: Tensor, rooms: Tensor) -> None:
        self.features, self.rooms = features, rooms

    def batches(self, model: nn.Module, device: int, round_number: int) -> list[dict[str, Tensor]]:
        rooms = self.rooms[device]
        labels = torch.stack([torch.full_like(rooms, -100), rooms], dim=1)
        return [{"features": self.features[device], "labels": labels}]


def photos(first: int, households: int) -> tuple[Tensor, list[list[str]]]:
    """(features [N, photos, D], rooms) of households, seen by the shipped base model's frozen tower."""
    from federated.job import base_directory
    from mmslm.data.scenes import household
    from mmslm.pretrained import load_model

    model, processor = load_model(base_directory("base"), dtype=torch.float32)
    features, rooms = [], []
    with torch.no_grad():
        for number in range(first, first + households):
            held = [household(number).photo(place) for place in range(PHOTOS)]
            pixels = processor.pixels([photo.image(processor.image_size) for photo in held]).unsqueeze(1)
            seen = model.encode_images(pixels)  # [photos, tokens, D]
            features.append(torch.cat([seen.mean(1), seen.amax(1)], dim=1))
            rooms.append([photo.truth.place for photo in held])
    return torch.stack(features), rooms


class Experiment:
    """The data, and one run of it under an attack and a defence."""

    def __init__(self, devices: int, rounds: int, share: float, epsilon: float) -> None:
        train, rooms = photos(0, devices)
        test, test_rooms = photos(HELD_OUT, TESTED)
        mean, deviation = train.mean((0, 1)), train.std((0, 1)) + 1e-6
        self.names = sorted({room for home in rooms for room in home})
        number = {name: place for place, name in enumerate(self.names)}
        self.feeder = RoomFeeder(
            (train - mean) / deviation, torch.tensor([[number[r] for r in home] for home in rooms])
        )
        self.test = ((test - mean) / deviation).flatten(0, 1)
        self.truth = torch.tensor([number.get(room, -1) for home in test_rooms for room in home])
        self.source, self.target = number["kitchen"], number["hallway"]
        self.devices, self.rounds, self.epsilon = devices, rounds, epsilon
        self.share = share
        self.noise: float | None = None
        self.gate_norm: float | None = None
        self.draw(0)
        strangers = torch.tensor([[number.get(room, 0) for room in home] for home in test_rooms])
        bench = Bench(
            Rooms(self.test.shape[1], len(self.names)),
            RoomFeeder(self.test.unflatten(0, (TESTED, PHOTOS)), strangers),
            self.settings("gate"),
        )
        start = bench.adapters.read()
        self.gate_norm = 2 * float(torch.stack([bench.train(d, 0, start)[0].norm() for d in range(TESTED)]).median())
        self.noise = planned_noise(self.settings("clip + noise"))

    def draw(self, seed: int) -> None:
        """Other liars, other cohorts, other noise."""
        self.seed = seed
        dice = torch.Generator().manual_seed(seed + 1)
        places = torch.randperm(self.devices, generator=dice)[: round(self.share * self.devices)]
        self.liars = frozenset(places.tolist())

    def settings(self, defence: str) -> FederatedConfig:
        return FederatedConfig(
            households=self.devices,
            photos_per_household=PHOTOS,
            rounds=self.rounds,
            sampling_rate=0.3,
            local_steps=2,
            local_learning_rate=0.2,
            private=defence == "clip + noise",
            clip_norm=0.3,
            epsilon=self.epsilon,
            delta=1e-3,
            accountant="rdp",
            noise_multiplier=self.noise if defence == "clip + noise" else None,
            aggregator=AGGREGATORS.get(defence, "mean"),
            gate_norm=self.gate_norm if defence == "gate + norm" else None,
            seed=self.seed,
            hostile_share=0.3,  # the cohort's share of liars varies from round to round: twice what is there
            server=ServerOptimiserConfig(name="sgd", learning_rate=2.0),
            noise="simulation",
            workers=1,
        )

    def run(self, attack: Attack, defence: str) -> tuple[float, float, str]:
        """(accuracy, share of source photos called the target, remark)."""
        settings = self.settings(defence)
        model = Rooms(self.test.shape[1], len(self.names))
        feeder: Any = self.feeder
        if attack == "back door":
            feeder = Mislabelled(feeder, self.liars, self.source, self.target)
        app = hostile(client_app(lambda _context: Bench(model, feeder, settings)), self.liars, attack)
        adapters = AdapterVector(model.adapter_parameters())
        try:
            if defence == "none":
                vector = stock(settings, app, adapters)
            else:
                vector = ours(settings, app, adapters)
        except (RunFailed, ValueError) as error:
            return float("nan"), float("nan"), f"the run dies: {str(error)[:60]}"
        if not bool(torch.isfinite(vector).all()):
            return 0.0, 0.0, "the model is NaN"
        adapters.write(vector)
        with torch.no_grad():
            said = model(self.test).logits[:, 0].argmax(1)
        asked = self.truth == self.source
        return float((said == self.truth).float().mean()), float((said[asked] == self.target).float().mean()), ""


def ours(settings: FederatedConfig, app: Any, adapters: AdapterVector) -> Tensor:
    """The run as users start it: gate, aggregator or private account, server step."""
    with tempfile.TemporaryDirectory() as folder:
        job = Job(settings, adapters.read(), adapters.layout(), Path(folder))
        results: list[Any] = []
        server = server_app(lambda _context: job, lambda _context, _job, result: results.append(result))
        with InProcessGrid(app, devices=settings.households) as grid:
            server(grid, Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={}))
    return results[0].vector


def stock(settings: FederatedConfig, app: Any, adapters: AdapterVector) -> Tensor:
    """No defence: Flower's weighted mean of whatever comes, each device weighing as much as it says."""
    sampler = PoissonSampler(settings.households, settings.sampling_rate, seed_or_generator=settings.seed)
    vector, layout = adapters.read(), adapters.layout()
    with InProcessGrid(app, devices=settings.households) as grid:
        for number in range(settings.rounds):
            content = RecordDict(
                {
                    wire.ADAPTERS: wire.request(wire.to_array(vector), number, layout)[wire.ADAPTERS],
                    wire.ROUND: ConfigRecord({"number": number, "layout": layout}),
                }
            )
            messages = [
                grid.create_message(content, wire.TRAIN, int(device) + FIRST_NODE_ID, str(number + 1))
                for device in sampler.draw(number)
            ]
            records = [reply.content for reply in grid.send_and_receive(messages) if not reply.has_error()]
            for record in records:
                claim = record.metric_records.get("claim")
                weight = claim[EXAMPLES] if claim is not None else float(PHOTOS)
                for name in list(record.metric_records):
                    del record[name]
                record["claim"] = MetricRecord({EXAMPLES: weight})
            if not records:
                raise RunFailed("no device answers any more")
            mean = aggregate_arrayrecords(records, EXAMPLES)[wire.DELTA].numpy()
            vector = vector + settings.server.learning_rate * torch.from_numpy(mean.astype("float32"))
    return vector


Cell = list[tuple[float, float, str]]  # one run a seed: accuracy, back door, remark


def table(rows: dict[str, dict[str, Cell]], markdown: bool) -> str:
    """Attacks down, defences across; a cell is the mean accuracy, and for the back door also its success."""

    def cell(attack: str, defence: str) -> str:
        runs = rows[attack][defence]
        if any(remark for *_, remark in runs):
            return "dies" if any("dies" in remark for *_, remark in runs) else "NaN"
        both = f"{100 * statistics.mean(accuracy for accuracy, *_ in runs):.0f} %"
        door = f"{100 * statistics.mean(door for _, door, _ in runs):.0f} %"
        return f"{both} / {door}" if attack in ("none", "back door") else both

    lines = [["attack", *DEFENCES], *([attack, *(cell(attack, d) for d in DEFENCES)] for attack in rows)]
    widths = [max(len(line[place]) for line in lines) for place in range(len(lines[0]))]
    text = [" | ".join(value.ljust(width) for value, width in zip(line, widths, strict=True)) for line in lines]
    if markdown:
        text = [f"| {line} |" for line in text]
        text.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(text)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", type=int, default=80)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--share", type=float, default=0.15, help="of the devices that are hostile")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epsilon", type=float, default=8.0)
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args(argv)
    logging.disable(logging.WARNING)  # dropped devices are what this is about
    torch.set_num_threads(1)
    began = time.process_time()
    experiment = Experiment(options.devices, options.rounds, options.share, options.epsilon)
    print(
        f"{options.devices} households of {PHOTOS} photos, {len(experiment.names)} rooms, {options.rounds} rounds of "
        f"about {0.3 * options.devices:.0f}; {len(experiment.liars)} hostile; "
        f"{TESTED * PHOTOS} photos of {TESTED} other households; "
        f"private run at epsilon {options.epsilon:g}, noise multiplier {experiment.noise:.2f}; gate_norm "
        f"{experiment.gate_norm:.2f}; means of {options.seeds} seeds; back door: "
        "kitchen is called hallway"
    )
    rows: dict[str, dict[str, Cell]] = {}
    for attack in ATTACKS:
        rows[attack] = {defence: [] for defence in DEFENCES}
        for seed in range(options.seeds):
            experiment.draw(seed)
            for defence in DEFENCES:
                rows[attack][defence].append(experiment.run(attack, defence))
        if options.json is not None:  # what is measured is kept, also where the rest is interrupted
            options.json.write_text(json.dumps(rows, indent=1) + "\n")
        print(f"  {attack}: done after {time.process_time() - began:.0f} CPU s", file=sys.stderr)
    print(table(rows, options.markdown))
    print("accuracy on other households; after the stroke: kitchens that are called hallway")
    return 0


if __name__ == "__main__":
    sys.exit(main())
