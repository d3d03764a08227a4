"""kill -9 between any two steps, again and again: the same command ends with the same model and a true ledger.

Every function at which state changes hands is made to count; a child process kills itself at a chosen count, before or
after the step. The points are drawn from seeds over the whole run, and every kind of step is hit once for certain.
"""

from __future__ import annotations

import copy
import multiprocessing
import os
import random
import signal
from pathlib import Path

import pytest
import torch

from federated import checkpoint
from federated.accounts import LEDGER
from federated.bench import Bench
from federated.checkpoint import Checkpoints
from federated.clock import ClockLog, SimulatorConfig
from federated.clock_run import simulate_on_clock
from federated.fleet import DeviceProfile, FleetConfig
from federated.server_optimiser import ServerOptimiser
from federated.simulation import simulate
from privacy.ledger import Ledger
from privacy.mechanism import GaussianSum

ROUNDS = 4
STEPS = {
    "train": (Bench, "train"),
    "pay": (Ledger, "append"),
    "release": (GaussianSum, "release"),
    "step": (ServerOptimiser, "step"),
    "clock": (ClockLog, "add"),
    "checkpoint": (Checkpoints, "save"),
    "flush": (os, "fsync"),
    "rename": (Path, "replace"),
}
FLEET = FleetConfig(
    name="mixed",
    kinds={
        "quick": DeviceProfile(share=0.5, samples_per_second=20.0, speed_spread=0.3),
        "slow": DeviceProfile(share=0.5, samples_per_second=1.0, dropout=0.1),
    },
)
CLOCKS = {
    "sync": SimulatorConfig(deadline_s=5),
    "buffered": SimulatorConfig(mode="fedbuff", buffer=3, concurrency=5, max_participations=2),
    "correlated": SimulatorConfig(mode="fedbuff", buffer=3, concurrency=5, max_participations=2, bands=3),
}


class Killer:
    """Counts steps; kills the process at number ``at``. Writes what was released, so that the ledger can be judged."""

    def __init__(self, at: int | None, kind: str | None = None, told: Path | None = None) -> None:
        self.at, self.kind, self.told, self.count = at, kind, told, 0

    def tick(self, name: str) -> None:
        if self.kind in (None, name):
            self.count += 1
            if self.count == self.at:
                os.kill(os.getpid(), signal.SIGKILL)

    def install(self, patch) -> None:
        for name, (owner, function) in STEPS.items():
            original = getattr(owner, function)

            def counted(*given, _name=name, _original=original, **named):
                self.tick(_name)
                if _name == "release" and self.told is not None:
                    # On the disk before any noise is drawn: whatever may have been released is told.
                    descriptor = os.open(self.told, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
                    os.write(descriptor, f"{named['step']}\n".encode())
                    os.close(descriptor)
                result = _original(*given, **named)
                self.tick(_name)
                return result

            patch.setattr(owner, function, counted)


@pytest.fixture
def chaos(tiny_model, tiny_feeder, tiny_settings, tmp_path):
    class Chaos:
        def settings(self, **changes):
            # One worker: the points at which devices train are then the same in every process.
            given = tiny_settings.model_dump() | {"rounds": ROUNDS, "workers": 1, "households": 12, **changes}
            return type(tiny_settings).model_validate(given)

        def once(self, name, clock, **changes):
            model, folder = copy.deepcopy(tiny_model), tmp_path / name
            if clock is None:
                return simulate(self.settings(**changes), model=model, feeder=tiny_feeder, run_dir=folder)
            return simulate_on_clock(
                self.settings(**changes), CLOCKS[clock], FLEET, model=model, feeder=tiny_feeder, run_dir=folder
            ).result

        def killed(self, name, clock, at, kind=None, **changes):
            """Run in a child that kills itself; true where it was killed, false where it came to its end."""

            def child():
                with pytest.MonkeyPatch.context() as patch:
                    Killer(at, kind, tmp_path / f"{name}.released").install(patch)
                    self.once(name, clock, **changes)
                os._exit(0)

            process = multiprocessing.get_context("fork").Process(target=child)
            process.start()
            process.join(60)
            assert process.exitcode in (0, -signal.SIGKILL)
            return process.exitcode != 0

        def steps_of(self, name, clock, **changes):
            killer = Killer(None)
            with pytest.MonkeyPatch.context() as patch:
                killer.install(patch)
                result = self.once(name, clock, **changes)
            return killer.count, result

        def paid(self, name):
            """Steps whose release the ledger lists. The last line may be half written: it was not released then."""
            path = tmp_path / name / LEDGER
            return Ledger.repair(path).steps() if path.exists() else []

        def released(self, name):
            path = tmp_path / f"{name}.released"
            return [int(line) for line in path.read_text().split()] if path.exists() else []

    return Chaos()


def same(one, two):
    return torch.equal(one.vector, two.vector) and one.history == two.history and one.epsilon == two.epsilon


@pytest.mark.parametrize("clock", [None, "sync", "buffered", "correlated"])
@pytest.mark.parametrize("seed", [0, 1])
def test_killed_between_any_two_steps_it_ends_where_an_undisturbed_run_ends(chaos, clock, seed):
    steps, whole = chaos.steps_of("whole", clock)
    dice, kills = random.Random(f"{seed}{clock}"), 0
    for _ in range(7):
        kills += chaos.killed("cut", clock, dice.randint(1, steps // 2))
        assert clock in ("buffered", "correlated") or set(chaos.released("cut")) <= set(chaos.paid("cut"))
        if clock in ("buffered", "correlated"):
            assert not chaos.released("cut") or chaos.paid("cut") == [0]  # one event for the whole run
    assert kills >= 2
    assert same(chaos.once("cut", clock), whole)
    assert chaos.paid("cut") == (list(range(ROUNDS)) if clock in (None, "sync") else [0])


@pytest.mark.parametrize("kind", [name for name in STEPS if name != "clock"])
def test_every_kind_of_step_may_be_the_last(chaos, kind):
    whole = chaos.once("whole", None)
    assert chaos.killed("cut", None, 3, kind)  # before the second such step
    assert chaos.killed("cut", None, 2, kind)  # after the first one of the resumed run
    assert same(chaos.once("cut", None), whole)
    assert chaos.paid("cut") == list(range(ROUNDS))


@pytest.mark.parametrize("seed", [0, 1])
def test_with_secure_noise_no_round_is_released_twice_and_none_unpaid(chaos, seed):
    steps, _ = chaos.steps_of("whole", None, noise="secure")
    dice, kills = random.Random(seed), 0
    for _ in range(6):
        kills += chaos.killed("cut", None, dice.randint(1, steps // 2), noise="secure")
        assert set(chaos.released("cut")) <= set(chaos.paid("cut"))
    result = chaos.once("cut", None, noise="secure")
    assert kills >= 2 and chaos.paid("cut") == list(range(ROUNDS))  # never more releases than were planned
    before = chaos.released("cut")
    assert len(before) == len(set(before))  # no noise was drawn twice for one round
    moved = [facts["round"] - 1 for facts in result.history]
    assert sorted([*moved, *result.lost]) == list(range(ROUNDS))  # a lost round is spent, and said to be


def test_half_written_files_are_never_taken_for_whole_ones(tmp_path, monkeypatch):
    path = tmp_path / "round-000001.safetensors"
    checkpoint.write_atomically(path, b"old")

    def child():
        monkeypatch.setattr(os, "fsync", lambda descriptor: os.kill(os.getpid(), signal.SIGKILL))
        checkpoint.write_atomically(path, b"new" * 1000)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(30)
    assert process.exitcode == -signal.SIGKILL and path.read_bytes() == b"old"
