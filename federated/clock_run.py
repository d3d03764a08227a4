"""A whole run on the virtual clock: the settings, a fleet and a model in, the trained adapters and the clock's facts out.

It computes what ``federated.simulation.simulate`` computes, with the devices that the clock let through. What it
refuses: secure noise, over-selection beyond everybody, a run directory that another fleet or simulator began.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flwr.app import Context, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor, nn

from federated.accounts import LEDGER
from federated.bench import Bench, Feeder
from federated.checkpoint import write_atomically
from federated.client_app import client_app
from federated.clock import LOG, ClockFacts, ClockGrid, ClockLog, SimulatorConfig, check_clock
from federated.fedbuff import BufferedRounds
from federated.fleet import Fleet, FleetConfig
from federated.grid import InProcessGrid
from federated.server_app import server_app
from federated.settings import FederatedConfig
from federated.strategy import Job, Result, RoundFacts
from federated.vector import AdapterVector

MARK = "clock.json"
ClockProgress = Callable[[RoundFacts, ClockFacts | None], None]


@dataclass(frozen=True)
class ClockResult:
    """result: as of any run. rounds: the clock's facts, one a round that asked anybody."""

    result: Result
    rounds: tuple[ClockFacts, ...]

    @property
    def seconds(self) -> float:
        """Simulated seconds from the first to the last round."""
        return self.rounds[-1].end_s if self.rounds else 0.0

    @property
    def joules(self) -> float:
        """Modelled energy of all devices together."""
        return sum(facts.joules for facts in self.rounds)


def simulate_on_clock(
    settings: FederatedConfig,
    simulator: SimulatorConfig,
    fleet: FleetConfig,
    *,
    model: nn.Module,
    feeder: Feeder,
    run_dir: Path,
    progress: ClockProgress | None = None,
    bench: Callable[[], Bench] | None = None,
    after_release: Callable[[Tensor], Tensor] | None = None,
) -> ClockResult:
    """Begin or resume the run in ``run_dir``; ``model`` ends with the trained adapters.

    model: adapters added, base frozen. bench: opens another bench than the plain one (personal adapters, partial
    devices); its model must be ``model``. after_release: as of ``federated.strategy.Job``. Raises ValueError for what
    cannot be simulated, and what ``federated.strategy.Rounds.run`` raises; the run directory then resumes.
    """
    check_clock(settings)
    sampled = over_selected(settings, simulator)
    _bind(run_dir, settings, simulator, fleet)
    adapters = AdapterVector(model.adapter_parameters())  # type: ignore[operator]
    log = ClockLog(run_dir)
    devices = client_app(lambda _context: bench() if bench is not None else Bench(model, feeder, sampled))
    crowd = Fleet(fleet, settings.households, seed=settings.seed)

    def told(facts: RoundFacts) -> None:
        if progress is not None:
            progress(facts, log.rounds.get(facts.round))

    job = Job(
        settings=sampled,
        initial=adapters.read(),
        layout=adapters.layout(),
        run_dir=run_dir,
        progress=told,
        may_be_empty=True,
        after_release=after_release,
    )
    if simulator.mode == "fedbuff":
        with InProcessGrid(devices, devices=settings.households, workers=settings.workers) as grid:
            result = BufferedRounds(grid, job, crowd, simulator, log).run()
    else:
        result = _synchronous(devices, job, crowd, simulator, log, wanted_of(settings, simulator))
    adapters.write(result.vector)
    return ClockResult(result, tuple(log.rounds[number] for number in sorted(log.rounds)))


def _synchronous(
    devices: ClientApp, job: Job, fleet: Fleet, simulator: SimulatorConfig, log: ClockLog, wanted: int | None
) -> Result:
    results: list[Result] = []
    server = server_app(lambda _context: job, lambda _context, _job, result: results.append(result))
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
    work = simulator.work(job.settings, job.initial.numel())
    with ClockGrid(
        devices,
        fleet=fleet,
        simulator=simulator,
        work=work,
        log=log,
        wanted=wanted,
        workers=job.settings.workers,
    ) as grid:
        server(grid, context)
    return results[0]


def over_selected(settings: FederatedConfig, simulator: SimulatorConfig) -> FederatedConfig:
    """The settings at the rate at which devices are really sampled: accounting, noise and divisor follow it."""
    rate = settings.sampling_rate * simulator.over_selection
    if rate > 1:
        raise ValueError(
            f"over_selection {simulator.over_selection:g} of sampling_rate {settings.sampling_rate:g} asks for more "
            f"than everybody; give at most {1 / settings.sampling_rate:g}."
        )
    return settings.model_copy(update={"sampling_rate": rate}) if rate != settings.sampling_rate else settings


def wanted_of(settings: FederatedConfig, simulator: SimulatorConfig) -> int | None:
    """Arrivals that close a round early: the cohort that was wanted, only with over-selection and without privacy."""
    if settings.private or simulator.over_selection == 1:
        return None
    return max(1, math.ceil(settings.expected_cohort - 1e-9))


def _bind(run_dir: Path, settings: FederatedConfig, simulator: SimulatorConfig, fleet: FleetConfig) -> None:
    """Write what the clock depends on into the run directory, or refuse one that other numbers began."""
    stated = {"simulator": simulator.model_dump(mode="json"), "fleet": fleet.model_dump(mode="json")}
    stated["rounds"] = {"households": settings.households, "sampling_rate": settings.sampling_rate}
    mark = run_dir / MARK
    text = json.dumps(stated, indent=1, sort_keys=True) + "\n"
    begun = any((run_dir / name).exists() for name in (LOG, LEDGER, "rounds"))
    if mark.exists() and begun:  # a run that was refused at its start left nothing but its settings
        if mark.read_text(encoding="utf-8") != text:
            raise ValueError(
                f"{run_dir} was begun with another fleet or simulator; resume with those, or give another folder."
            )
        return
    run_dir.mkdir(parents=True, exist_ok=True)
    write_atomically(mark, text.encode())
