"""Rounds on a virtual clock: the same apps and the same training, while seconds, bytes and joules are simulated.

``ClockGrid`` stands where the in-process grid stands. When the server asks a cohort, it works out each device's trip
(``federated.fleet``), trains those that arrive before the round closes, and answers "came too late" for the rest. The
clock then stands at the round's end, where the next one begins.

When a round closes:
    a deadline            at the deadline, or earlier where every device is back or lost
    none                  when every device is back or lost
    over-selection        without privacy: as soon as as many arrived as were wanted. With privacy: never early. Who is
                          among the first k depends on who else was there, so one device could change what others
                          contribute; a private run takes everybody who arrives by the deadline and is accounted at the
                          raised rate at which it sampled.

A device that is away, lost or late contributes zero, which is what the accountant assumes. What is refused: secure
noise. Who took part, and when, is a function of the seed here; a model trained so protects nobody.

``clock.jsonl`` holds one line a round, written before the round's release, so that a killed run finds its time again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, Self

import numpy as np
import torch
from flwr.app import Error, Message
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from pydantic import Field, model_validator

from federated import wire
from federated.checkpoint import write_atomically
from federated.codecs import codec
from federated.fleet import HOUR, Fleet, Trip, Work
from federated.grid import FIRST_NODE_ID, InProcessGrid
from federated.settings import FederatedConfig, Section

LOG = "clock.jsonl"


class SimulatorConfig(Section):
    """The section ``simulator``: how rounds run on the clock. The fleet stands in a file of its own."""

    mode: Literal["synchronous", "fedbuff"] = "synchronous"
    start_hour: float = Field(default=0.0, ge=0, lt=24, description="time of day at which the run begins")
    flops_per_sample: float | None = Field(default=None, gt=0, description="forward and backward pass of one photo")
    memory_mb: float = Field(default=0.0, ge=0, description="what training needs; smaller devices take no part")
    deadline_s: float | None = Field(default=None, gt=0, description="synchronous: a round is closed after so long")
    over_selection: float = Field(default=1.0, ge=1, le=10, description="synchronous: sample so many times the cohort")
    buffer: int = Field(default=10, ge=1, description="fedbuff: updates to one step of the server (K)")
    concurrency: int = Field(default=50, ge=1, description="fedbuff: devices at work at a time")
    max_staleness: int = Field(default=20, ge=0, description="fedbuff: an update of an older model is thrown away")
    max_participations: int | None = Field(
        default=None, ge=1, description="fedbuff: buffers that one device is in, at most; a private run needs it"
    )
    min_separation: int = Field(default=1, ge=1, description="fedbuff: buffers between two of one device")
    bands: int = Field(default=1, ge=1, description="private fedbuff: 1 is fresh noise; more correlates it (DP-FTRL)")

    @model_validator(mode="after")
    def _of_the_mode(self) -> Self:
        synchronous = {"deadline_s", "over_selection"}
        buffered = {"buffer", "concurrency", "max_staleness", "max_participations", "min_separation", "bands"}
        idle = (buffered if self.mode == "synchronous" else synchronous) & self.model_fields_set
        if idle:
            raise ValueError(
                f"{', '.join(sorted(idle))} mean nothing in {self.mode} mode; leave them out, or change the mode."
            )
        return self

    def work(self, settings: FederatedConfig, dimension: int) -> Work:
        """What one trip asks of a device: ``dimension`` float32 numbers down, as many through the codec up."""
        zeros = torch.zeros(dimension)
        return Work(
            samples=settings.local_steps * min(settings.local_batch, settings.photos_per_household),
            down_bytes=4 * dimension,
            up_bytes=len(codec(settings.codec).encode(zeros, np.random.default_rng(0))),
            flops_per_sample=self.flops_per_sample,
            memory_mb=self.memory_mb,
        )


def check_clock(settings: FederatedConfig) -> None:
    """ValueError for secure noise (on a clock, cohorts come from a seed) and for modes that the clock does not know."""
    if settings.private and settings.noise == "secure":
        raise ValueError(
            "a virtual clock repeats who took part from its seed, so secure noise would promise what it cannot hold; "
            "say noise: simulation here, and train a model to be released with mmslm run."
        )
    if settings.trust != "central" or settings.participation != "poisson":
        raise ValueError(
            f"the virtual clock knows rounds of one exchange with Poisson cohorts, and trust is {settings.trust} with "
            f"{settings.participation} participation; leave both out here, or simulate without the clock."
        )


@dataclass(frozen=True)
class ClockFacts:
    """One round (or buffer) on the clock. Seconds are simulated, joules modelled from the profiles' watts.

    start_s, seconds: since the run began, and how long it lasted. asked: sampled devices (fedbuff: trips that ended
    while this buffer filled). arrived + late + away + lost = asked: used, after the close (or too stale), not there or
    too small, failed on the way. bytes_down, bytes_up: on the devices' links. staleness: mean age of what was used, in
    server steps.
    """

    round: int
    start_s: float
    seconds: float
    asked: int
    arrived: int
    late: int
    away: int
    lost: int
    bytes_down: int
    bytes_up: int
    joules: float
    staleness: float = 0.0

    @property
    def end_s(self) -> float:
        return self.start_s + self.seconds


class ClockLog:
    """The rounds' facts in ``folder/clock.jsonl``: read back by a resumed run. A line that a crash broke off is ignored."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOG
        self.rounds: dict[int, ClockFacts] = {}
        if self.path.exists():
            for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    facts = ClockFacts(**json.loads(line))
                except (ValueError, TypeError):
                    break
                self.rounds[facts.round] = facts

    def add(self, facts: ClockFacts) -> None:
        """Append a round; what an interrupted run wrote of it or of later ones is replaced."""
        again = [number for number in self.rounds if number >= facts.round]
        for number in again:
            del self.rounds[number]
        self.rounds[facts.round] = facts
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if again or len(self.rounds) == 1:
            text = "".join(json.dumps(asdict(told)) + "\n" for _, told in sorted(self.rounds.items()))
            write_atomically(self.path, text.encode())
        else:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(facts)) + "\n")

    def end_before(self, number: int) -> float:
        """The second at which round ``number`` (from 1) begins."""
        earlier = [told for told in self.rounds if told < number]
        return self.rounds[max(earlier)].end_s if earlier else 0.0


class ClockGrid(InProcessGrid):
    """An in-process grid whose devices take simulated time. ``wanted``: arrivals that close a round, None for all."""

    def __init__(
        self,
        client_app: ClientApp,
        *,
        fleet: Fleet,
        simulator: SimulatorConfig,
        work: Work,
        log: ClockLog,
        wanted: int | None = None,
        workers: int = 1,
    ) -> None:
        super().__init__(client_app, devices=fleet.devices, workers=workers)
        self.fleet, self.simulator, self.work, self.log, self.wanted = fleet, simulator, work, log, wanted

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        asked = list(messages)
        if not asked or asked[0].metadata.message_type != wire.TRAIN:
            return super().send_and_receive(asked, timeout=timeout)
        number = int(asked[0].metadata.group_id)
        start = self.log.end_before(number)
        of_day = start + self.simulator.start_hour * HOUR
        trips = [
            self.fleet.trip(message.metadata.dst_node_id - FIRST_NODE_ID, number, of_day, self.work)
            for message in asked
        ]
        used, close = close_round(trips, of_day, self.simulator.deadline_s, self.wanted)
        self.log.add(round_facts(number, trips, used, start, close - of_day, self.work))
        came = [message for message, is_used in zip(asked, used, strict=True) if is_used]
        replies = super().send_and_receive(came, timeout=timeout) if came else []
        for place, (message, trip) in enumerate(zip(asked, trips, strict=True)):
            if not used[place]:
                message.metadata.__dict__["_message_id"] = f"never-{number}-{place}"
                why = "it came after the round was closed" if trip.arrived else f"it is {trip.outcome}"
                replies.append(Message(Error(ErrorCode.NODE_UNAVAILABLE, why), reply_to=message))
        return replies


def close_round(
    trips: list[Trip], start: float, deadline: float | None, wanted: int | None = None
) -> tuple[list[bool], float]:
    """(which trips are used, the second at which the round closes) for trips that began at ``start``."""
    limit = float("inf") if deadline is None else start + deadline
    in_time = sorted((trip.end, trip.device) for trip in trips if trip.arrived and trip.end <= limit)
    if wanted is not None and len(in_time) >= wanted:
        last = in_time[wanted - 1]
        return [trip.arrived and (trip.end, trip.device) <= last for trip in trips], last[0]
    begun = [trip.end for trip in trips if trip.end > start]
    # Where nobody is there, the server asks again when the next hour may have brought devices back.
    close = max(begun) if begun else (int(start // HOUR) + 1) * HOUR
    close = min(close, limit) if begun or deadline is None else limit
    return [trip.arrived and trip.end <= limit for trip in trips], close


def round_facts(
    number: int, trips: list[Trip], used: list[bool], start: float, seconds: float, work: Work
) -> ClockFacts:
    """What the trips of one synchronous round add up to."""
    arrived = sum(used)
    away = sum(trip.outcome in ("away", "too small") for trip in trips)
    lost = sum(trip.outcome in ("dropped out", "became unavailable") for trip in trips)
    close = trips[0].start + seconds if trips else 0.0
    return ClockFacts(
        round=number,
        start_s=start,
        seconds=seconds,
        asked=len(trips),
        arrived=arrived,
        late=len(trips) - arrived - away - lost,
        away=away,
        lost=lost,
        bytes_down=work.down_bytes * (len(trips) - away),
        bytes_up=work.up_bytes * arrived,
        joules=sum(trip.joules_until(close) for trip in trips),
    )
