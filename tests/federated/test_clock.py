"""Rounds on a virtual clock: closed forms hold, late devices contribute zero, and the accounting is what was sampled."""

from __future__ import annotations

import copy

import pytest
import torch

from federated.accounts import LEDGER
from federated.buffers import plan_buffers, weight
from federated.clock import LOG, SimulatorConfig, close_round
from federated.clock_run import over_selected, simulate_on_clock
from federated.fedbuff import fingerprint
from federated.fleet import HOUR, DeviceProfile, Fleet, FleetConfig, Trip, Work
from federated.simulation import simulate
from federated.strategy import Interrupted
from federated.vector import AdapterVector
from privacy.accounting import epsilon
from privacy.budget import BudgetExceeded
from privacy.correlated import ParticipationGuard
from privacy.events import GaussianRelease, Participation, Sampling
from privacy.ledger import Ledger

ONE = {"samples_per_second": 10.0, "down_mbit": 10.0, "up_mbit": 2.0, "latency_s": 0.5}
EQUAL = FleetConfig(name="equal", kinds={"one": DeviceProfile(share=1, **ONE)})
MIXED = FleetConfig(
    name="mixed",
    kinds={
        "quick": DeviceProfile(share=0.5, speed_spread=0.3, **(ONE | {"samples_per_second": 20.0})),
        "slow": DeviceProfile(share=0.5, dropout=0.1, **(ONE | {"samples_per_second": 1.0})),
    },
)
SYNC = SimulatorConfig()
# local_steps 2 of at most 4 photos: 8 samples; 32 numbers of 4 bytes each way
TRIP_S = 8 / 10 + 2 * 0.5 + 128 * 8e-6 / 10 + 128 * 8e-6 / 2


@pytest.fixture
def start(tiny_model, tiny_feeder, tiny_settings, tmp_path):
    def run(name="run", simulator=SYNC, fleet=EQUAL, progress=None, model=None, **changes):
        settings = type(tiny_settings).model_validate(tiny_settings.model_dump() | changes)
        return simulate_on_clock(
            settings,
            simulator,
            fleet,
            model=model or copy.deepcopy(tiny_model),
            feeder=tiny_feeder,
            run_dir=tmp_path / name,
            progress=progress,
        )

    return run


def stop_after(number):
    def progress(facts, clock):
        if facts.round == number:
            raise KeyboardInterrupt

    return progress


# Synchronous


def test_equal_devices_take_the_formulas_time_and_energy(start):
    done = start()
    for facts in done.rounds:
        assert facts.seconds == pytest.approx(TRIP_S)
        assert facts.arrived == facts.asked > 0 and facts.late == facts.lost == facts.away == 0
        assert facts.joules == pytest.approx(facts.asked * (4.0 * 0.8 + 1.0 * (TRIP_S - 0.8)))
        assert facts.bytes_up == facts.bytes_down == 128 * facts.asked
    assert done.seconds == pytest.approx(5 * TRIP_S)


def test_a_fleet_that_never_fails_computes_what_a_plain_simulation_computes(
    start, tiny_model, tiny_feeder, tiny_settings, tmp_path
):
    plain = simulate(tiny_settings, model=copy.deepcopy(tiny_model), feeder=tiny_feeder, run_dir=tmp_path / "plain")
    done = start().result
    assert torch.equal(done.vector, plain.vector) and done.history == plain.history


def test_who_misses_the_deadline_contributes_zero(start, tiny_model, tiny_feeder, tiny_settings, tmp_path):
    crowd = Fleet(MIXED, 20, seed=tiny_settings.seed)
    work = Work(samples=8, down_bytes=128, up_bytes=128)

    def in_time(device, group):
        trip = crowd.trip(device, int(group), 0.0, work)
        return trip.arrived and trip.end <= 4

    plain = simulate(
        tiny_settings,
        model=copy.deepcopy(tiny_model),
        feeder=tiny_feeder,
        run_dir=tmp_path / "plain",
        absent=lambda device, group: group != "roster" and not in_time(device, group),
    )
    named = []
    done = start(
        fleet=MIXED,
        simulator=SimulatorConfig(deadline_s=4),
        progress=lambda facts, clock: named.extend(rejection.reason for rejection in facts.rejections),
    )
    assert torch.equal(done.result.vector, plain.vector)
    assert sum(facts.late for facts in done.rounds) > 5 and all(facts.seconds <= 4 for facts in done.rounds)
    assert any("after the round was closed" in reason for reason in named)


def test_a_round_closes_when_it_should():
    trips = [
        Trip(0, 10.0, 13.0, "arrived", 1.0),
        Trip(1, 10.0, 19.0, "arrived", 1.0),
        Trip(2, 10.0, 30.0, "arrived", 1.0),
        Trip(3, 10.0, 12.0, "dropped out", 1.0),
        Trip(4, 10.0, 10.0, "away", 0.0),
    ]
    assert close_round(trips, 10.0, None) == ([True, True, True, False, False], 30.0)
    assert close_round(trips, 10.0, 10.0) == ([True, True, False, False, False], 20.0)
    assert close_round(trips, 10.0, 100.0) == ([True, True, True, False, False], 30.0)
    assert close_round(trips, 10.0, None, wanted=2) == ([True, True, False, False, False], 19.0)
    assert close_round(trips[4:], 10.0, None) == ([False], HOUR)  # nobody is there: asked again in the next hour
    assert close_round(trips[4:], 10.0, 60.0) == ([False], 70.0)


def test_over_selection_with_privacy_is_accounted_as_sampled_and_takes_everybody(start, tiny_settings, tmp_path):
    simulator = SimulatorConfig(over_selection=1.5, deadline_s=100)
    done = start(simulator=simulator, epsilon=100.0)
    events = Ledger.open(tmp_path / "run" / LEDGER).events()
    assert {event.sampling.rate for event in events} == {0.75}
    assert all(facts.arrived == facts.asked for facts in done.rounds)  # never cut at the first so many
    plain = GaussianRelease(1.0, Sampling("poisson", rate=0.75), count=5, unit="user")
    assert done.result.epsilon == pytest.approx(epsilon([plain], 1e-3, accountant="rdp"))
    with pytest.raises(ValueError, match="at most 2"):
        over_selected(tiny_settings, SimulatorConfig(over_selection=3))


def test_over_selection_without_privacy_stops_at_the_cohort_that_was_wanted(start):
    kinds = {
        name: kind.model_copy(update={"share": share})
        for (name, kind), share in zip(MIXED.kinds.items(), (0.8, 0.2), strict=True)
    }
    mostly_quick = FleetConfig(name="quick", kinds=kinds)
    done = start(simulator=SimulatorConfig(over_selection=1.8), fleet=mostly_quick, private=False)
    cut = [facts for facts in done.rounds if facts.asked - facts.lost > 10]
    assert cut and all(facts.arrived == 10 for facts in cut)
    assert min(facts.seconds for facts in cut) < 8 / 1.0  # the slow ones were not waited for


def test_a_night_without_devices_passes_and_is_no_fault(start):
    day = DeviceProfile(share=1, availability=tuple(float(hour >= 6) for hour in range(24)), **ONE)
    done = start(fleet=FleetConfig(name="day", kinds={"a": day}), rounds=8, simulator=SimulatorConfig(start_hour=1.5))
    assert [facts.arrived == 0 for facts in done.rounds] == [True] * 5 + [False] * 3
    assert done.rounds[4].end_s == pytest.approx(4.5 * HOUR)  # 1:30 to 6:00
    assert len(done.result.history) == 8


def test_secure_noise_on_a_clock_is_refused(start, tmp_path):
    with pytest.raises(ValueError, match="say noise: simulation"):
        start(noise="secure")
    assert not (tmp_path / "run").exists()


def test_another_fleet_does_not_continue_a_run(start):
    start()
    with pytest.raises(ValueError, match="another fleet or simulator"):
        start(fleet=MIXED)


def test_keys_of_the_other_mode_are_refused():
    with pytest.raises(ValueError, match="buffer mean nothing in synchronous"):
        SimulatorConfig(buffer=3)
    with pytest.raises(ValueError, match="deadline_s mean nothing in fedbuff"):
        SimulatorConfig(mode="fedbuff", deadline_s=3)


# Buffered

BUFFERED = SimulatorConfig(mode="fedbuff", buffer=4, concurrency=8)
BOUNDED = SimulatorConfig(mode="fedbuff", buffer=4, concurrency=8, max_participations=2)


def plan(simulator=BUFFERED, fleet=MIXED, buffers=12, devices=40, seed=1):
    crowd = Fleet(fleet, devices, seed=seed)
    return plan_buffers(crowd, simulator, Work(samples=8, down_bytes=128, up_bytes=128), buffers, seed=seed)


def test_equal_devices_fill_buffers_at_the_formulas_pace():
    # 8 at work, all equal: 8 arrive every TRIP_S seconds, which is two buffers of 4
    buffers = plan(fleet=EQUAL, buffers=6)
    assert [b.facts.end_s for b in buffers] == pytest.approx(
        [TRIP_S, TRIP_S, 2 * TRIP_S, 2 * TRIP_S, 3 * TRIP_S, 3 * TRIP_S]
    )
    assert [b.facts.staleness for b in buffers] == [0, 1, 1.75, 1.75, 1.75, 1.75]
    # each arrival starts the next device at once: three of four start one server step before their buffer's last


def test_the_schedule_repeats_and_does_not_depend_on_how_far_it_is_planned():
    assert plan() == plan() and plan(buffers=5) == plan()[:5] and plan(seed=2) != plan()


def test_nobody_waits_for_the_slowest(start):
    waiting = start("sync", fleet=MIXED, private=False)
    flowing = start("buffered", simulator=BUFFERED, fleet=MIXED, private=False)
    per_update = [d.seconds / sum(f.arrived for f in d.rounds) for d in (waiting, flowing)]
    assert per_update[1] < 0.8 * per_update[0]


def test_a_stale_update_weighs_less_and_too_stale_a_one_nothing():
    assert [weight(0), weight(3)] == [1.0, 0.5]
    strict = plan(SimulatorConfig(mode="fedbuff", buffer=4, concurrency=16, max_staleness=1), buffers=20)
    assert sum(b.facts.late for b in strict) > 0
    assert all(n - a.version <= 1 for n, b in enumerate(strict) for a in b.arrivals)


def test_buffered_training_equals_a_plain_loop_over_the_schedule(start, tiny_model, tiny_feeder, tiny_settings):
    from federated.bench import Bench
    from federated.server_optimiser import ServerOptimiser

    settings = tiny_settings.model_copy(update={"private": False})
    done = start(simulator=BUFFERED, fleet=MIXED, private=False)
    bench, optimiser = Bench(tiny_model, tiny_feeder, settings), ServerOptimiser(settings.server, 32)
    versions = [AdapterVector(tiny_model.adapter_parameters()).read()]
    for number, buffer in enumerate(plan(buffers=5, devices=20, seed=3)):
        total = torch.zeros(32, dtype=torch.float64)
        for arrival in sorted(buffer.arrivals, key=lambda a: a.device):
            delta, _ = bench.train(arrival.device, arrival.version, versions[arrival.version])
            total += delta.double() / (1 + number - arrival.version) ** 0.5
        versions.append(optimiser.step(versions[-1], (total / 4).float()))
    assert torch.allclose(done.result.vector, versions[-1], atol=1e-6)


def test_participation_bounds_hold_over_the_whole_schedule():
    simulator = SimulatorConfig(mode="fedbuff", buffer=4, concurrency=8, max_participations=2, min_separation=3)
    guard = ParticipationGuard(Participation(3, 2))
    for number, buffer in enumerate(plan(simulator, buffers=18)):
        guard.admit([arrival.device for arrival in buffer.arrivals], number)
    with pytest.raises(ValueError, match=r"fills (19|20) of 30 buffers"):
        plan(simulator, buffers=30)  # 40 devices twice are 80 updates: 20 buffers at most


def test_the_price_is_that_of_as_many_gaussian_releases_as_one_device_is_in(start, tmp_path):
    done = start(simulator=BOUNDED, fleet=MIXED, epsilon=60.0)
    events = Ledger.open(tmp_path / "run" / LEDGER).events()
    assert [event.kind for event in events] == ["correlated_gaussian"]
    assert events[0].adjacency == "zero_out" and events[0].unit == "user"
    oracle = GaussianRelease(1.0, Sampling("none"), count=2, adjacency="zero_out", unit="user")
    assert done.result.epsilon == pytest.approx(epsilon([oracle], 1e-3, accountant="rdp"), rel=1e-6)


def test_private_buffers_repeat_by_their_seed(start):
    one, two, other = start("one", BOUNDED), start("two", BOUNDED), start("three", BOUNDED, seed=4)
    assert torch.equal(one.result.vector, two.result.vector)
    assert not torch.equal(one.result.vector, other.result.vector)


def test_privacy_without_a_participation_bound_is_refused(start):
    with pytest.raises(ValueError, match="max_participations"):
        start(simulator=BUFFERED)
    with pytest.raises(BudgetExceeded):
        start(simulator=BOUNDED, epsilon=1.0)


@pytest.mark.parametrize("bands", [1, 3])
def test_calibrated_buffers_keep_the_budget(start, bands):
    simulator = SimulatorConfig(mode="fedbuff", buffer=4, concurrency=8, max_participations=2, bands=bands)
    done = start(simulator=simulator, noise_multiplier=None, epsilon=6.0)
    assert 5.9 < done.result.epsilon <= 6.0


# Killed and resumed


@pytest.mark.parametrize(
    "simulator", [SimulatorConfig(deadline_s=4), BUFFERED, BOUNDED], ids=["sync", "buffered", "private"]
)
@pytest.mark.parametrize("after", [1, 3])
def test_a_stopped_run_finds_its_time_again_and_ends_bit_for_bit(start, tmp_path, simulator, after):
    private = simulator is not BUFFERED
    whole = start("whole", simulator, MIXED, private=private)
    with pytest.raises(Interrupted):
        start("cut", simulator, MIXED, progress=stop_after(after), private=private)
    if after == 3:  # a line that was broken off, and one of a round that never ended
        lines = (tmp_path / "cut" / LOG).read_text().splitlines()
        (tmp_path / "cut" / LOG).write_text("\n".join([*lines, lines[-1].replace('"round": 3', '"round": 4'), "{"]))
    resumed = start("cut", simulator, MIXED, private=private)
    assert torch.equal(resumed.result.vector, whole.result.vector)
    assert resumed.result.history == whole.result.history and resumed.rounds == whole.rounds
    assert resumed.result.epsilon == whole.result.epsilon


def test_the_fingerprint_follows_the_simulator(tiny_settings):
    assert fingerprint(tiny_settings, BUFFERED) != fingerprint(tiny_settings, BOUNDED)
