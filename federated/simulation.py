"""A federated run in one process: the same ServerApp and ClientApp, around resident models on a few threads.

``simulate`` takes any adapted model and feeder; ``train_on_photos`` builds both from a model directory and a
population of
photos, and returns the trained model. What it refuses: less data than the settings count on, before anything is
written.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from flwr.app import Context, RecordDict
from torch import nn

from federated.bench import Bench, Feeder
from federated.beside import DEVICES, beside
from federated.client_app import client_app
from federated.device_store import DeviceStore
from federated.devices import PhotoFeeder, Population, check_population
from federated.grid import InProcessGrid
from federated.job import adapted_model
from federated.on_device import BOOKS, Books
from federated.secure_aggregation.keys import KeysInProcess
from federated.server_app import server_app
from federated.settings import FederatedConfig
from federated.strategy import Job, Result, RoundFacts
from federated.vector import AdapterVector

logger = logging.getLogger(__name__)

Progress = Callable[[RoundFacts], None]


def simulate(
    settings: FederatedConfig,
    *,
    model: nn.Module,
    feeder: Feeder,
    run_dir: Path,
    progress: Progress | None = None,
    absent: Callable[[int, str], bool] | None = None,
    budgets: Mapping[int, float] | None = None,
    make_bench: Callable[[nn.Module, Feeder, FederatedConfig], Bench] = Bench,
) -> Result:
    """Begin or resume the run in ``run_dir`` and train to its last round; ``model`` ends with the trained adapters.

    model: adapters added, base frozen. absent(device, round from 1 as text): true makes a device unreachable.
    budgets: with ``trust: device``, epsilon of the devices whose budget is another than the settings'.
    make_bench: what devices work at; canaries plant theirs here (``federated.canaries``).
    Raises what ``federated.strategy.Rounds.run`` raises; the run directory then resumes.
    """
    adapters = AdapterVector(model.adapter_parameters())  # type: ignore[operator]
    job = Job(settings=settings, initial=adapters.read(), layout=adapters.layout(), run_dir=run_dir, progress=progress)
    results: list[Result] = []
    server = server_app(lambda _context: job, lambda _context, _job, result: results.append(result))
    keys = KeysInProcess(settings.seed if settings.noise == "simulation" else None)
    books = Books(run_dir / BOOKS, budgets)

    def open_bench(_context: Context) -> Bench:
        bench = make_bench(model, feeder, settings)
        if settings.codec == "topk" and bench.store is None:
            # What updates left out is private and must outlive the process: beside the run's folder, not in it.
            bench.store = DeviceStore(beside(run_dir, DEVICES))
        return bench

    devices = client_app(open_bench, lambda _: keys, lambda _: books)
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
    with InProcessGrid(devices, devices=settings.households, workers=settings.workers, absent=absent) as grid:
        server(grid, context)
    adapters.write(results[0].vector)
    return results[0]


class Trained(NamedTuple):
    """The outcome of a run on photos: the facts, and the model with the trained adapters in it."""

    result: Result
    model: nn.Module


def train_on_photos(
    settings: FederatedConfig,
    *,
    base: Path,
    population: Population,
    run_dir: Path,
    progress: Progress | None = None,
    absent: Callable[[int, str], bool] | None = None,
) -> Trained:
    """``simulate`` with the model in directory ``base`` and the photos of ``population``.

    Raises ValueError where the population is smaller than ``settings.households``.
    """
    check_population(population, settings)
    model, processor = adapted_model(base, settings)
    feeder = PhotoFeeder(population, processor, settings)
    result = simulate(settings, model=model, feeder=feeder, run_dir=run_dir, progress=progress, absent=absent)
    return Trained(result, model)
