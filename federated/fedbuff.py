"""Buffered asynchronous training on the virtual clock (FedBuff; Nguyen et al., 2022, arXiv:2106.06639).

``concurrency`` devices are at work at any time, each from the model that was newest when it started. Whoever arrives
puts its update into a buffer; when ``buffer`` updates are in, the server takes one step with them, an update of a model
that is s steps old weighing 1 / sqrt(1 + s), and the buffer is emptied. Nobody waits for the slowest.

The schedule (``federated.buffers``) depends on the fleet and the seed and on nothing that is trained. It is worked out
whole before the first photo is touched; a run that is killed works it out again and goes on in the same place.

**Privacy.** Devices come when they like, so no amplification by sampling can be claimed. What is claimed instead:
    unit, adjacency   one device; zero_out: the neighbouring run has the same schedule, and this device's updates are
                      zero. (Without a device the later buffers would be composed otherwise, and no bound would hold.)
    sensitivity       an update is clipped to C and then weighed by at most 1; a device is in a buffer at most once, in
                      at most ``max_participations`` buffers, at least ``min_separation`` apart. A guard checks the
                      whole schedule.
    event             one CorrelatedGaussianRelease for the run, in the ledger before the first release. With one band
                      the noise of every buffer is fresh and the price is that of max_participations Gaussian releases;
                      with more bands noise is correlated (DP-FTRL), which costs less for the same model.

What is refused: privacy without max_participations, secure noise (``check_clock``), robust aggregators, and a fleet
that cannot fill the buffers under these bounds, before anything is written.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from flwr.serverapp import Grid
from torch import Tensor

from federated import wire
from federated.accounts import LABEL, LEDGER, AccountError, open_ledger
from federated.buffers import plan_buffers, weight
from federated.checkpoint import Checkpoints, Facts, RoundState
from federated.clock import ClockLog, SimulatorConfig
from federated.fleet import Fleet
from federated.gate import admit
from federated.roster import Roster
from federated.server_optimiser import ServerOptimiser
from federated.settings import FederatedConfig
from federated.strategy import Interrupted, Job, Result, RoundFacts
from federated.vector import norm_quantiles
from privacy.accounting.calibration import calibrate_noise
from privacy.budget import Budget
from privacy.clipping.vector import clip_vector
from privacy.correlated import CorrelatedNoise, Encoder, ParticipationGuard
from privacy.events import CorrelatedGaussianRelease, Participation, Sampling
from privacy.ledger import Ledger
from privacy.mechanism import GaussianSum
from privacy.noise import SeededNoise

logger = logging.getLogger(__name__)

_VERSION = "version-"


class BufferAccount:
    """The account of a private buffered run: one event for all of it, and the noise of every buffer."""

    repeatable = True

    def __init__(self, settings: FederatedConfig, simulator: SimulatorConfig, path: Path, *, fresh: bool) -> None:
        self.path = path
        participation = participation_of(settings, simulator)
        encoder = Encoder(settings.rounds, min(simulator.bands, settings.rounds))
        self.noise = CorrelatedNoise(encoder, participation, SeededNoise(settings.seed))
        self.budget = Budget(settings.epsilon, settings.delta, settings.accountant)
        if path.exists():
            self.ledger = open_ledger(path)
            self.noise_multiplier = float(self.ledger.header["noise_multiplier"])
        elif fresh:
            self.noise_multiplier = settings.noise_multiplier or calibrate_noise(
                settings.epsilon,
                settings.delta,
                sampling=Sampling("none"),
                steps=1,
                accountant=settings.accountant,
                adjacency="zero_out",
                unit="user",
                sensitivity=self.noise.sensitivity,
            )
            self.budget.allow(self._event())
            self.ledger = Ledger.create(path, self._header(settings, simulator))
        else:
            raise AccountError(
                f"{path} is missing, but the model has seen buffers that it must list; put the ledger back, or begin "
                "anew in another run directory."
            )
        self.mechanism = GaussianSum(
            clip_norm=settings.clip_norm,
            noise_multiplier=self.noise_multiplier,
            sampling=Sampling("none"),
            divisor=simulator.buffer,
            noise=self.noise,
            unit="user",
            adjacency="zero_out",
        )
        for event in self.ledger.events():
            self.budget.spend(event)

    def pay(self) -> None:
        """The whole run's event into the ledger, once, before its first release."""
        if not self.ledger.events():
            self.ledger.append(self._event(), step=0)
            self.budget.spend(self._event())

    def skip(self, buffers: int, dimension: int) -> None:
        """Draw (and throw away) the noise of the first ``buffers`` releases again: later noise is correlated with it."""
        for step in range(buffers):
            self.noise.normal((dimension,), self.mechanism.std, step=step, dtype=torch.float64)

    def release(self, number: int, updates: list[tuple[Tensor, float]], dimension: int) -> Tensor:
        """(sum of weight * clipped update + noise) / K, [dimension] float32. Weights lie in (0, 1]."""
        self.pay()
        weighed = [clip_vector(update, self.mechanism.clip_norm)[0] * share for update, share in updates]
        return self.mechanism.release(weighed, step=number, dimension=dimension)

    def epsilon(self) -> float:
        return self.budget.spent()

    def _event(self) -> CorrelatedGaussianRelease:
        return self.noise.event(self.noise_multiplier, unit="user", adjacency="zero_out", label=LABEL)

    def _header(self, settings: FederatedConfig, simulator: SimulatorConfig) -> Mapping[str, object]:
        return {
            "kind": "federated",
            "unit": "user",
            "adjacency": "zero_out",
            "epsilon": settings.epsilon,
            "delta": settings.delta,
            "accountant": settings.accountant,
            "noise_multiplier": self.noise_multiplier,
            "clip_norm": settings.clip_norm,
            "rounds": settings.rounds,
            "noise": "seeded (simulation)",
            "configuration": fingerprint(settings, simulator),
        }


def participation_of(settings: FederatedConfig, simulator: SimulatorConfig) -> Participation:
    """The bound that the noise is sized for. ValueError where the settings give none."""
    if simulator.max_participations is None:
        raise ValueError(
            "a private buffered run has no amplification by sampling, since devices come when they like; say with "
            "max_participations how many buffers one device may be in, or say private: false."
        )
    fits = -(-settings.rounds // simulator.min_separation)
    return Participation(simulator.min_separation, min(simulator.max_participations, fits))


def fingerprint(settings: FederatedConfig, simulator: SimulatorConfig) -> str:
    """Of all that decides a run on the clock but its fleet (whose file the run directory holds)."""
    return hashlib.sha256(f"{settings.fingerprint()}{simulator.model_dump_json()}".encode()).hexdigest()


class BufferedRounds:
    """One buffered run's server side over ``grid``. ``run()`` begins or resumes it, by what the run directory holds."""

    def __init__(self, grid: Grid, job: Job, fleet: Fleet, simulator: SimulatorConfig, log: ClockLog) -> None:
        self.grid, self.job, self.settings, self.simulator, self.log = grid, job, job.settings, simulator, log
        self.dimension = job.initial.numel()
        if self.settings.aggregator != "mean":
            raise ValueError(
                f"aggregator {self.settings.aggregator!r} has no meaning for a buffer whose updates weigh by their age; "
                "leave it out, or choose synchronous rounds."
            )
        self.plan = plan_buffers(
            fleet,
            simulator,
            simulator.work(self.settings, self.dimension),
            self.settings.rounds,
            seed=self.settings.seed,
        )
        if self.settings.private:
            guard = ParticipationGuard(participation_of(self.settings, simulator))
            for number, buffer in enumerate(self.plan):
                guard.admit([arrival.device for arrival in buffer.arrivals], number)
        self.checkpoints = Checkpoints(job.run_dir / "rounds", fingerprint(self.settings, simulator))
        self.optimiser = ServerOptimiser(self.settings.server, self.dimension)
        self.roster = Roster(grid, self.settings.households)
        self.versions: dict[int, Tensor] = {0: job.initial.clone()}
        self.history: list[Facts] = []

    def run(self) -> Result:
        """Train to the last buffer. Raises what ``Rounds.run`` raises; the run directory then resumes."""
        settings = self.settings
        self.job.run_dir.mkdir(parents=True, exist_ok=True)
        state = self.checkpoints.latest()
        account = (
            BufferAccount(settings, self.simulator, self.job.run_dir / LEDGER, fresh=state is None)
            if settings.private
            else None
        )
        first = self._resume(state, account)
        self.roster.refresh()
        try:
            for number in range(first, settings.rounds):
                self._buffer(number, account)
        except KeyboardInterrupt:
            raise Interrupted(
                f"Stopped in buffer {len(self.history) + 1} of {settings.rounds}; everything before it is saved in "
                f"{self.job.run_dir}, and the same command goes on from it."
            ) from None
        return Result(
            vector=self.versions[settings.rounds],
            history=tuple(self.history),
            lost=(),
            epsilon=account.epsilon() if account else None,
            noise_multiplier=account.noise_multiplier if account else None,
            ledger=account.path if account else None,
        )

    def _resume(self, state: RoundState | None, account: BufferAccount | None) -> int:
        if state is None:
            return 0
        old = {name: value for name, value in state.optimiser.items() if name.startswith(_VERSION)}
        self.versions = {int(name.removeprefix(_VERSION)): value for name, value in old.items()}
        self.versions[state.rounds_done] = state.vector
        self.optimiser.load({k: v for k, v in state.optimiser.items() if k not in old}, state.optimiser_steps)
        self.history = list(state.history)
        if account is not None:
            if not account.ledger.events():
                raise AccountError(
                    f"the ledger {account.path} lists no release and the model has seen {state.rounds_done}; put the "
                    "right ledger back, or begin anew."
                )
            account.skip(state.rounds_done, self.dimension)
        return state.rounds_done

    def _buffer(self, number: int, account: BufferAccount | None) -> None:
        began = time.monotonic()
        buffer = self.plan[number]
        self.log.add(buffer.facts)
        messages, asked = [], {}
        for arrival in buffer.arrivals:
            node = self.roster.node(arrival.device)
            assert node is not None, "an in-process grid has a node for every device"
            sent = wire.to_array(self.versions[arrival.version])
            content = wire.request(sent, arrival.version, self.job.layout)
            messages.append(
                self.grid.create_message(content, message_type=wire.TRAIN, dst_node_id=node, group_id=str(number + 1))
            )
        replies = list(self.grid.send_and_receive(messages))
        asked = {m.metadata.message_id: a.device for m, a in zip(messages, buffer.arrivals, strict=True)}
        admitted = admit(replies, asked, self.dimension, self.settings.codec, most_norm=self.settings.gate_norm)
        for rejection in admitted.rejections:
            logger.warning("buffer %d: device %d was dropped: %s", number + 1, rejection.device, rejection.reason)
        age = {arrival.device: number - arrival.version for arrival in buffer.arrivals}
        updates = [(update, weight(age[device])) for device, update in admitted.updates.items()]
        if account is not None:
            mean = account.release(number, updates, self.dimension)
        else:
            total = torch.zeros(self.dimension, dtype=torch.float64)
            for update, share in updates:
                total += update.to(torch.float64) * share
            mean = (total / self.simulator.buffer).to(torch.float32)
        if self.job.after_release is not None:
            mean = self.job.after_release(mean)
        vector = self.optimiser.step(self.versions[number], mean)
        self.versions[number + 1] = vector
        losses = admitted.losses
        facts = RoundFacts(
            round=number + 1,
            rounds=self.settings.rounds,
            epsilon=account.epsilon() if account else None,
            update_norm=float(torch.linalg.vector_norm(mean)),
            seconds=time.monotonic() - began,
            cohort=len(buffer.arrivals),
            answered=len(updates),
            rejections=admitted.rejections,
            bytes_up=buffer.facts.bytes_up,
            bytes_down=buffer.facts.bytes_down,
            loss=sum(losses) / len(losses) if losses else None,
            norms=() if self.settings.private else norm_quantiles(admitted.updates.values()),
        )
        self.history.append(facts.public())
        self._save(number + 1, vector)
        if self.job.progress is not None:
            self.job.progress(facts)

    def _save(self, done: int, vector: Tensor) -> None:
        """The newest vector, and those older ones from which somebody at work has started: all of them are releases."""
        needed = {
            arrival.version for buffer in self.plan[done:] for arrival in buffer.arrivals if arrival.version < done
        }
        self.versions = {version: value for version, value in self.versions.items() if version in needed | {done}}
        old = {f"{_VERSION}{version:06d}": value for version, value in self.versions.items() if version != done}
        self.checkpoints.save(
            RoundState(
                rounds_done=done,
                vector=vector,
                optimiser=self.optimiser.state() | old,
                optimiser_steps=self.optimiser.steps,
                fingerprint=self.checkpoints.fingerprint,
                history=tuple(self.history),
            )
        )
