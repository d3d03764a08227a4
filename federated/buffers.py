"""The schedule of a buffered run: which devices fill which buffer, from which model they started, and when.

An event queue over the fleet's trips. It depends on the fleet and the seed and on nothing that is trained, so a run knows
its whole schedule before it begins, and finds it again after a crash. What it refuses: a fleet that cannot fill the
buffers under the bounds on participation.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass

import numpy as np

from federated.clock import ClockFacts, SimulatorConfig
from federated.fleet import HOUR, Fleet, Trip, Work

PATIENCE = 14 * 24  # hours without anybody who could start, after which a fleet counts as used up


@dataclass(frozen=True)
class Arrival:
    """An update in a buffer: its device, and the server step whose model it was trained from."""

    device: int
    version: int


@dataclass(frozen=True)
class Buffer:
    """What one server step is made of, and the clock's facts about it."""

    arrivals: tuple[Arrival, ...]
    facts: ClockFacts


def plan_buffers(fleet: Fleet, simulator: SimulatorConfig, work: Work, buffers: int, *, seed: int = 0) -> list[Buffer]:
    """The whole schedule: ``buffers`` buffers of ``simulator.buffer`` arrivals. A pure function of its arguments.

    Raises ValueError where the fleet cannot fill them.
    """
    return _Schedule(fleet, simulator, work, seed).run(buffers)


class _Schedule:
    def __init__(self, fleet: Fleet, simulator: SimulatorConfig, work: Work, seed: int) -> None:
        self.fleet, self.simulator, self.work = fleet, simulator, work
        self.dice = np.random.default_rng([seed, 0xB0FF])
        self.begin = simulator.start_hour * HOUR
        self.now = self.begin
        self.version = 0
        self.trips = 0
        self.at_work: set[int] = set()
        self.heap: list[tuple[float, int, int, Trip]] = []  # end, number, version, trip
        self.last: dict[int, int] = {}
        self.count: dict[int, int] = {}
        self.able = [d for d in range(fleet.devices) if fleet.profile(d).memory_mb >= work.memory_mb]

    def run(self, buffers: int) -> list[Buffer]:
        done: list[Buffer] = []
        held: list[Arrival] = []
        ended: list[tuple[Trip, bool]] = []
        opened = self.now
        idle_hours = 0
        while len(done) < buffers:
            self._fill()
            if not self.heap:
                idle_hours += 1
                if idle_hours > PATIENCE:
                    raise ValueError(
                        f"the fleet fills {len(done)} of {buffers} buffers of {self.simulator.buffer} and then has "
                        "nobody left who may take part; plan fewer rounds, or allow more participations, more "
                        "households or a smaller buffer."
                    )
                self.now = (int(self.now // HOUR) + 1) * HOUR
                continue
            idle_hours = 0
            self.now, _, version, trip = heapq.heappop(self.heap)
            self.at_work.discard(trip.device)
            fresh = trip.arrived and self.version - version <= self.simulator.max_staleness
            ended.append((trip, fresh))
            if not fresh:
                continue
            held.append(Arrival(trip.device, version))
            self.last[trip.device] = self.version
            self.count[trip.device] = self.count.get(trip.device, 0) + 1
            if len(held) == self.simulator.buffer:
                done.append(Buffer(tuple(held), self._facts(opened, ended, held)))
                self.version += 1
                held, ended, opened = [], [], self.now
        return done

    def _fill(self) -> None:
        """Start devices until ``concurrency`` are at work, or nobody else is there who may."""
        while len(self.at_work) < self.simulator.concurrency:
            device = self._next()
            if device is None:
                return
            trip = self.fleet.trip(device, self.trips, self.now, self.work)
            heapq.heappush(self.heap, (trip.end, self.trips, self.version, trip))
            self.at_work.add(device)
            self.trips += 1

    def _next(self) -> int | None:
        """A device chosen at random among those that may start now."""
        for _ in range(32):  # almost always enough; the exhaustive search below is for the rare rest
            device = self.able[int(self.dice.integers(len(self.able)))] if self.able else -1
            if device >= 0 and self._may_start(device):
                return device
        candidates = [device for device in self.able if self._may_start(device)]
        return candidates[int(self.dice.integers(len(candidates)))] if candidates else None

    def _may_start(self, device: int) -> bool:
        simulator = self.simulator
        if device in self.at_work:
            return False
        if device in self.last and self.version - self.last[device] < simulator.min_separation:
            return False
        bound = simulator.max_participations
        if bound is not None and self.count.get(device, 0) >= bound:
            return False
        return self.fleet.available(device, self.now)

    def _facts(self, opened: float, ended: list[tuple[Trip, bool]], held: list[Arrival]) -> ClockFacts:
        lost = sum(not trip.arrived for trip, _ in ended)
        arrived = len(held)
        return ClockFacts(
            round=self.version + 1,
            start_s=opened - self.begin,
            seconds=self.now - opened,
            asked=len(ended),
            arrived=arrived,
            late=len(ended) - arrived - lost,
            away=0,
            lost=lost,
            bytes_down=self.work.down_bytes * len(ended),
            bytes_up=self.work.up_bytes * (len(ended) - lost),
            joules=sum(trip.joules for trip, _ in ended),
            staleness=sum(self.version - arrival.version for arrival in held) / arrived,
        )


def weight(staleness: int) -> float:
    """1 / sqrt(1 + s): how much an update counts that was trained from a model s server steps old."""
    return 1 / math.sqrt(1 + staleness)
