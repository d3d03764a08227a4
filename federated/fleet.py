"""A fleet of virtual devices: how fast each computes and sends, when it is there, how often it fails, what it burns.

A profile describes one kind of device, in YAML. A fleet deals kinds to device numbers and answers one question: when
device i is asked at second t to fetch so many bytes, train on so many samples and send so many bytes, when is it done,
if at all, and at what energy? Every answer is a pure function of (seed, device, trip), so a resumed run sees the same
devices.

    seconds = down_bytes * 8 / down_mbit + samples / samples_per_second + up_bytes * 8 / up_mbit + 2 * latency
    joules  = radio_watts * seconds on the link + compute_watts * seconds computing

Seconds and joules are a *model*: they follow from the stated speeds and watts, and nothing here measures a device. What
is refused: unknown keys, shares that are no shares, a day that has not 24 hours, speed in FLOP/s where nobody says how
many a sample takes.
"""

from __future__ import annotations

import bisect
import itertools
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from pydantic import Field, field_validator, model_validator

from federated.settings import Section

HOUR = 3600.0
Outcome = Literal["arrived", "away", "too small", "dropped out", "became unavailable"]


class DeviceProfile(Section):
    """One kind of device. Speeds are sustained ones, as a person's device reaches them in a pocket, not a benchmark's."""

    share: float = Field(..., gt=0, le=1, description="part of the fleet that is of this kind")
    samples_per_second: float | None = Field(default=None, gt=0, description="training speed; or give flops_per_second")
    flops_per_second: float | None = Field(
        default=None, gt=0, description="sustained, with flops_per_sample of the job"
    )
    speed_spread: float = Field(default=0.0, ge=0, le=3, description="deviation of log speed from trip to trip")
    memory_mb: float = Field(default=4096, gt=0, description="free for training; below the job's need it takes no part")
    availability: tuple[float, ...] = Field(
        default=(1.0,), description="chance of being idle, charged and on an unmetered link: one number, or 24 by hour"
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="chance of failing somewhere between start and arrival")
    down_mbit: float = Field(default=20.0, gt=0, description="megabit per second, from the server")
    up_mbit: float = Field(default=5.0, gt=0, description="megabit per second, to the server")
    latency_s: float = Field(default=0.05, ge=0, le=3600, description="one way")
    compute_watts: float = Field(default=4.0, ge=0, description="drawn while training")
    radio_watts: float = Field(default=1.0, ge=0, description="drawn while the link is in use")

    @field_validator("availability", mode="before")
    @classmethod
    def _one_or_a_day(cls, value: object) -> object:
        return (value,) if isinstance(value, int | float) else value

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if len(self.availability) not in (1, 24) or not all(0 <= chance <= 1 for chance in self.availability):
            raise ValueError(
                f"availability has {len(self.availability)} numbers; give one chance between 0 and 1, or 24 of them, "
                "one for each hour of the day."
            )
        if (self.samples_per_second is None) == (self.flops_per_second is None):
            raise ValueError("give either samples_per_second or flops_per_second, and not both.")
        return self


class FleetConfig(Section):
    """A file of ``configs/devices/``: kinds of devices by name; their shares add up to 1."""

    name: str = Field(..., min_length=1, max_length=64)
    kinds: dict[str, DeviceProfile] = Field(..., min_length=1)

    @model_validator(mode="after")
    def _shares(self) -> Self:
        total = sum(kind.share for kind in self.kinds.values())
        if abs(total - 1) > 1e-6:
            raise ValueError(f"the shares of the kinds add up to {total:g}; make them add up to 1.")
        return self


class Work(Section):
    """What one trip asks of a device."""

    samples: int = Field(..., ge=1, description="photos (or sequences) trained on, all local steps together")
    down_bytes: int = Field(..., ge=0)
    up_bytes: int = Field(..., ge=0)
    flops_per_sample: float | None = Field(default=None, gt=0)
    memory_mb: float = Field(default=0.0, ge=0)


@dataclass(frozen=True)
class Trip:
    """One device's answer to one request. Seconds are simulated; ``end`` is when it arrived, or when it was lost.

    joules: spent until then, by the profile's stated watts. seconds: of downloading, computing, uploading.
    """

    device: int
    start: float
    end: float
    outcome: Outcome
    joules: float
    seconds: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @property
    def arrived(self) -> bool:
        return self.outcome == "arrived"

    def joules_until(self, moment: float) -> float:
        """Spent by ``moment``, where the server told the device to stop then (spread evenly over the trip)."""
        if self.end <= self.start or moment >= self.end:
            return self.joules
        return self.joules * max(0.0, moment - self.start) / (self.end - self.start)


class Fleet:
    """Devices 0 .. ``devices`` - 1 of the kinds in ``config``, dealt by their shares; ``seed`` decides everything."""

    def __init__(self, config: FleetConfig, devices: int, *, seed: int = 0) -> None:
        self.config, self.devices, self.seed = config, devices, seed
        self._names = sorted(config.kinds)
        self._kinds: dict[int, str] = {}
        self._bounds = list(itertools.accumulate(config.kinds[name].share for name in self._names))

    def kind(self, device: int) -> str:
        """The name of the kind that ``device`` is of."""
        if device not in self._kinds:
            place = bisect.bisect_right(self._bounds, self._dice(0, device).random() * self._bounds[-1])
            self._kinds[device] = self._names[min(place, len(self._names) - 1)]
        return self._kinds[device]

    def profile(self, device: int) -> DeviceProfile:
        return self.config.kinds[self.kind(device)]

    def available(self, device: int, moment: float) -> bool:
        """Whether ``device`` is there at second ``moment``: drawn once for each of its hours (hour 0 is midnight)."""
        hour = int(moment // HOUR)
        chances = self.profile(device).availability
        return self._dice(1, device, hour).random() < chances[hour % 24 if len(chances) == 24 else 0]

    def trip(self, device: int, number: int, start: float, work: Work) -> Trip:
        """Trip ``number`` (>= 0, of this device or of the run) of ``device``, asked at second ``start``."""
        profile = self.profile(device)
        if profile.memory_mb < work.memory_mb:
            return Trip(device, start, start, "too small", 0.0)
        if not self.available(device, start):
            return Trip(device, start, start, "away", 0.0)
        dice = self._dice(2, device, number)
        # Always the same draws in the same order, whatever the profile: a changed dropout changes no speed.
        spread, fate, where = dice.standard_normal(), dice.random(), dice.random()
        speed = self._samples_per_second(profile, work) * float(np.exp(profile.speed_spread * spread))
        down = work.down_bytes * 8e-6 / profile.down_mbit + profile.latency_s
        up = work.up_bytes * 8e-6 / profile.up_mbit + profile.latency_s
        compute = work.samples / speed
        whole = down + compute + up
        joules = profile.radio_watts * (down + up) + profile.compute_watts * compute
        end, outcome = start + whole, "arrived"
        if fate < profile.dropout:
            end, outcome = start + where * whole, "dropped out"
        gone = self._leaves(device, start, end)
        if gone is not None:
            end, outcome = gone, "became unavailable"
        part = (end - start) / whole if whole > 0 else 1.0
        return Trip(device, start, end, outcome, joules * part, (down, compute, up))  # type: ignore[arg-type]

    def _leaves(self, device: int, start: float, end: float) -> float | None:
        """The first full hour in (start, end) from which the device is no longer there."""
        for hour in range(int(start // HOUR) + 1, int(end // HOUR) + 1):
            if hour * HOUR < end and not self.available(device, hour * HOUR):
                return hour * HOUR
        return None

    @staticmethod
    def _samples_per_second(profile: DeviceProfile, work: Work) -> float:
        if profile.samples_per_second is not None:
            return profile.samples_per_second
        if work.flops_per_sample is None:
            raise ValueError(
                "a device's speed is given in FLOP/s, and nobody says how many FLOP a sample takes; add "
                "flops_per_sample to the simulator section."
            )
        assert profile.flops_per_second is not None
        return profile.flops_per_second / work.flops_per_sample

    def _dice(self, purpose: int, *where: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, 0xDE71CE, purpose, *where])
