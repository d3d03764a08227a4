"""A fleet answers by formula, by its stated chances, and the same every time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from federated.fleet import HOUR, DeviceProfile, Fleet, FleetConfig, Work
from mmslm.config import load_config

FOLDER = Path(__file__).parents[2] / "configs" / "devices"
WORK = Work(samples=40, down_bytes=1_000_000, up_bytes=250_000)
ONE = {"samples_per_second": 10.0, "down_mbit": 10.0, "up_mbit": 2.0, "latency_s": 0.5}


def fleet(devices=200, seed=0, **profile):
    return Fleet(FleetConfig(name="t", kinds={"a": DeviceProfile(share=1, **(ONE | profile))}), devices, seed=seed)


def test_time_and_energy_are_the_formula():
    trip = fleet(compute_watts=3.0, radio_watts=2.0).trip(5, 0, 100.0, WORK)
    assert trip.outcome == "arrived"
    assert trip.seconds == pytest.approx((0.8 + 0.5, 4.0, 1.0 + 0.5))
    assert trip.end - trip.start == pytest.approx(6.8)
    assert trip.joules == pytest.approx(3.0 * 4.0 + 2.0 * 2.8)
    assert trip.joules_until(103.4) == pytest.approx(trip.joules / 2)


def test_speed_in_flops_needs_the_jobs_flops():
    slow = fleet(samples_per_second=None, flops_per_second=1e9)
    work = WORK.model_copy(update={"flops_per_sample": 2.5e8})
    assert slow.trip(0, 0, 0.0, work).seconds[1] == pytest.approx(10.0)
    with pytest.raises(ValueError, match="flops_per_sample"):
        slow.trip(0, 0, 0.0, WORK)


def test_dropouts_come_as_often_as_stated_and_burn_less():
    crowd = fleet(3000, dropout=0.3)
    trips = [crowd.trip(device, 1, 0.0, WORK) for device in range(3000)]
    lost = [trip for trip in trips if not trip.arrived]
    assert len(lost) / 3000 == pytest.approx(0.3, abs=4 * (0.21 / 3000) ** 0.5)
    whole = next(trip.joules for trip in trips if trip.arrived)
    assert all(0 < trip.joules < whole for trip in lost)
    assert np.mean([trip.joules for trip in lost]) == pytest.approx(whole / 2, rel=0.1)


def test_availability_follows_the_hour_and_ends_a_trip_that_outlasts_it():
    night = tuple(1.0 if hour < 6 else 0.0 for hour in range(24))
    homes = fleet(availability=night)
    assert homes.available(3, 5.9 * HOUR) and not homes.available(3, 6 * HOUR) and homes.available(3, 24 * HOUR)
    assert homes.trip(3, 0, 12 * HOUR, WORK).outcome == "away"
    cut = homes.trip(3, 0, 6 * HOUR - 3.4, WORK)
    assert cut.outcome == "became unavailable" and cut.end == 6 * HOUR
    assert cut.joules == pytest.approx(homes.trip(3, 0, 0.0, WORK).joules / 2)
    half = fleet(2000, availability=0.25)
    assert sum(half.available(d, 0.0) for d in range(2000)) / 2000 == pytest.approx(0.25, abs=0.04)


def test_a_device_without_the_memory_takes_no_part():
    small = fleet(memory_mb=500).trip(0, 0, 0.0, WORK.model_copy(update={"memory_mb": 501.0}))
    assert small.outcome == "too small" and small.joules == 0


def test_kinds_are_dealt_by_their_shares_and_everything_repeats():
    kinds = {n: DeviceProfile(share=s, speed_spread=0.4, **ONE) for n, s in (("a", 0.7), ("b", 0.3))}
    first, again, other = (Fleet(FleetConfig(name="t", kinds=kinds), 2000, seed=s) for s in (1, 1, 2))
    assert sum(first.kind(d) == "a" for d in range(2000)) / 2000 == pytest.approx(0.7, abs=0.04)
    trips = [crowd.trip(9, 4, 50.0, WORK) for crowd in (first, again, other)]
    assert trips[0] == trips[1] != trips[2]


def test_shipped_fleets_can_be_read():
    names = [load_config(path, FleetConfig).name for path in sorted(FOLDER.glob("*.yaml"))]
    assert names == [path.stem for path in sorted(FOLDER.glob("*.yaml"))] and len(names) >= 2


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"availability": (0.5, 0.5)}, "24 of them"),
        ({"availability": 1.5}, "between 0 and 1"),
        ({"flops_per_second": 1e9}, "either"),
        ({"watts": 3}, "watts"),
        ({"dropout": 1.0}, "dropout"),
    ],
)
def test_profiles_that_mean_nothing_are_refused(change, says):
    with pytest.raises(ValidationError, match=says):
        fleet(**change)


def test_shares_that_are_no_shares_are_refused():
    with pytest.raises(ValidationError, match="the shares of the kinds"):
        FleetConfig(name="t", kinds={"a": DeviceProfile(share=0.5, **ONE)})
