"""A whole run in process: it computes what a plain loop computes, repeats itself, and survives every interruption."""

from __future__ import annotations

import copy
import multiprocessing
import os
import random
import signal
import time

import numpy as np
import pytest
import torch
from flwr.app import RecordDict

from federated import wire
from federated.accounts import LEDGER, AccountError, planned_noise
from federated.bench import Bench
from federated.checkpoint import CheckpointError, Checkpoints
from federated.client_app import client_app
from federated.codecs import codec
from federated.grid import InProcessGrid
from federated.server_optimiser import ServerOptimiser
from federated.simulation import simulate
from federated.strategy import Interrupted, RunFailed
from federated.vector import AdapterVector
from mmslm.training import local_update
from privacy.accounting import epsilon
from privacy.budget import BudgetExceeded
from privacy.ledger import Ledger
from privacy.mechanism import GaussianSum
from privacy.noise import SeededNoise
from privacy.sampling import PoissonSampler


@pytest.fixture
def start(tiny_model, tiny_feeder, tiny_settings, tmp_path):
    """start(name, **changes of the settings, **keywords of simulate): a fresh
    model every time, as a new process has."""

    def run(name="run", progress=None, absent=None, feeder=None, **changes):
        settings = type(tiny_settings).model_validate(tiny_settings.model_dump() | changes)
        return simulate(
            settings,
            model=copy.deepcopy(tiny_model),
            feeder=feeder or tiny_feeder,
            run_dir=tmp_path / name,
            progress=progress,
            absent=absent,
        )

    return run


def stop_after(number):
    def progress(facts):
        if facts.round == number:
            raise KeyboardInterrupt

    return progress


def plain_loop(model, feeder, settings, *, without=frozenset()):
    """The same run without Flower, messages, threads or checkpoints: the oracle."""
    adapters = AdapterVector(model.adapter_parameters())
    vector = adapters.read()
    optimiser = ServerOptimiser(settings.server, adapters.dimension)
    sampler = PoissonSampler(settings.households, settings.sampling_rate, seed_or_generator=settings.seed)
    mechanism = GaussianSum(
        settings.clip_norm,
        settings.noise_multiplier,
        sampler.sampling,
        settings.expected_cohort,
        SeededNoise(settings.seed),
    )
    residuals = {}
    for number in range(settings.rounds):
        deltas = []
        for device in (int(d) for d in sampler.draw(number)):
            if device in without:
                continue
            adapters.write(vector)
            local_update(
                model,
                feeder.batches(model, device, number),
                adapters.parameters,
                steps=settings.local_steps,
                learning_rate=settings.local_learning_rate,
            )
            delta = adapters.read() - vector
            if settings.codec != "fp32":
                way = codec(settings.codec, residuals.get(device))
                dice = np.random.default_rng([settings.seed, device, number])
                delta = codec(settings.codec).decode(way.encode(delta, dice), adapters.dimension)
                residuals[device] = getattr(way, "residual", None)
            deltas.append(delta)
        if settings.private:
            mean = mechanism.release(deltas, step=number, dimension=adapters.dimension)
        else:
            mean = (torch.stack(deltas).double().sum(0) / len(deltas)).float()
        vector = optimiser.step(vector, mean)
    return vector


# What is computed


@pytest.mark.parametrize("private", [True, False])
@pytest.mark.parametrize("optimiser", ["sgd", "momentum", "adam"])
def test_a_run_equals_a_plain_loop_bit_for_bit(start, tiny_model, tiny_feeder, tiny_settings, private, optimiser):
    settings = tiny_settings.model_copy(
        update={"private": private, "server": tiny_settings.server.model_copy(update={"name": optimiser})}
    )
    result = start(private=private, server={"name": optimiser, "learning_rate": 0.05})
    assert torch.equal(result.vector, plain_loop(tiny_model, tiny_feeder, settings))


@pytest.mark.parametrize("name", ["bf16", "int8", "topk"])
def test_updates_are_clipped_after_they_were_decoded(start, tiny_model, tiny_feeder, tiny_settings, name):
    settings = tiny_settings.model_copy(update={"codec": name})
    sent = []
    result = start(codec=name, progress=lambda facts: sent.append(facts.bytes_up / facts.answered))
    assert torch.equal(result.vector, plain_loop(tiny_model, tiny_feeder, settings))
    assert max(sent) < 4 * len(result.vector) + 128  # less than whole, the array's header included


def test_the_result_does_not_depend_on_the_number_of_workers(start):
    vectors = [start(f"w{workers}", workers=workers).vector for workers in (1, 2, 5)]
    assert torch.equal(vectors[0], vectors[1]) and torch.equal(vectors[0], vectors[2])


def test_one_seed_repeats_and_another_does_not(start):
    assert torch.equal(start("one").vector, start("two").vector)
    assert not torch.equal(start("one").vector, start("three", seed=4).vector)


def test_the_model_ends_with_the_trained_adapters_and_the_base_untouched(
    tiny_model, tiny_feeder, tiny_settings, tmp_path
):
    before = {name: p.clone() for name, p in tiny_model.named_parameters()}
    result = simulate(tiny_settings, model=tiny_model, feeder=tiny_feeder, run_dir=tmp_path)
    assert torch.equal(AdapterVector(tiny_model.adapter_parameters()).read(), result.vector)
    assert torch.equal(tiny_model.table, before["table"]) and torch.equal(tiny_model.head, before["head"])
    assert not torch.equal(tiny_model.b, before["b"])


def test_training_without_privacy_lowers_the_loss(start):
    losses = []
    start(private=False, rounds=15, progress=lambda facts: losses.append(facts.loss))
    assert sum(losses[-3:]) < sum(losses[:3])


def test_secure_noise_differs_between_runs(start):
    assert not torch.equal(start("one", noise="secure").vector, start("two", noise="secure").vector)


# What is accounted


def test_the_ledger_holds_one_event_a_round_and_the_stated_epsilon_follows_from_it(start, tiny_settings, tmp_path):
    result = start()
    ledger = Ledger.open(tmp_path / "run" / LEDGER)
    events = ledger.events()
    assert ledger.steps() == list(range(5))
    assert {event.unit for event in events} == {"user"}
    assert {event.sampling.scheme for event in events} == {"poisson"}
    assert {event.sampling.rate for event in events} == {0.5}
    assert result.epsilon == pytest.approx(epsilon(events, tiny_settings.delta, accountant="rdp"))
    assert [facts["round"] for facts in result.history] == [1, 2, 3, 4, 5]


def test_the_event_is_on_disk_before_the_noise_is_drawn(start, tmp_path, monkeypatch):
    seen = []
    original = GaussianSum.release

    def release(self, vectors, *, step, dimension):
        seen.append(Ledger.open(tmp_path / "run" / LEDGER).steps()[-1] == step)
        return original(self, vectors, step=step, dimension=dimension)

    monkeypatch.setattr(GaussianSum, "release", release)
    start()
    assert seen == [True] * 5


def test_calibrated_noise_spends_the_budget_and_not_more(start):
    result = start(noise_multiplier=None, epsilon=4.0)
    assert 3.5 < result.epsilon <= 4.0


def test_noise_that_overspends_is_refused_before_anything_is_written(start, tmp_path):
    with pytest.raises(BudgetExceeded):
        start(noise_multiplier=0.3, epsilon=1.0)
    assert not (tmp_path / "run" / LEDGER).exists()


def test_a_run_without_privacy_writes_no_ledger_and_states_no_epsilon(start, tmp_path):
    result = start(private=False)
    assert result.epsilon is None and result.noise_multiplier is None and result.ledger is None
    assert not list((tmp_path / "run").glob("*.jsonl"))


def test_a_private_run_writes_nothing_that_depends_on_the_cohort(start, tmp_path):
    start(absent=lambda device, group: device in (1, 2))
    written = b"".join(path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file())
    for word in (b"cohort", b"answered", b"loss", b"rejections", b"bytes_up", b"seconds"):
        assert word not in written


def test_a_private_device_sends_its_update_and_nothing_else(tiny_model, tiny_feeder, tiny_settings):
    adapters = AdapterVector(tiny_model.adapter_parameters())
    app = client_app(lambda context: Bench(tiny_model, tiny_feeder, tiny_settings))
    with InProcessGrid(app, devices=3) as grid:
        record = wire.request(wire.to_array(adapters.read()), 0, adapters.layout())
        train = grid.create_message(record, message_type=wire.TRAIN, dst_node_id=2, group_id="1")
        ask = grid.create_message(record, message_type=wire.EVALUATE, dst_node_id=2, group_id="1")
        answer, evaluation = grid.send_and_receive([train, ask])
    assert set(answer.content) == {wire.UPDATE} and set(answer.content[wire.UPDATE]) == {wire.DELTA}
    assert evaluation.has_error() and "not covered" in str(evaluation.error.reason)


def test_a_device_refuses_adapters_of_another_layout(tiny_model, tiny_feeder, tiny_settings):
    app = client_app(lambda context: Bench(tiny_model, tiny_feeder, tiny_settings))
    with InProcessGrid(app, devices=1) as grid:
        record = wire.request(wire.to_array(torch.zeros(32)), 0, "another layout")
        (answer,) = grid.send_and_receive([grid.create_message(record, wire.TRAIN, 2, "1")])
        (empty,) = grid.send_and_receive([grid.create_message(RecordDict(), wire.TRAIN, 2, "1")])
    assert "same base model" in str(answer.error.reason) and "different versions" in str(empty.error.reason)


# Devices that fail


def test_absent_devices_contribute_zero(start, tiny_model, tiny_feeder, tiny_settings):
    gone = frozenset({1, 4, 9})
    result = start(absent=lambda device, group: device in gone and group != "roster")
    assert torch.equal(result.vector, plain_loop(tiny_model, tiny_feeder, tiny_settings, without=gone))


def test_a_device_that_never_connects_contributes_zero(start, tiny_model, tiny_feeder, tiny_settings):
    result = start(absent=lambda device, group: device == 4)
    assert torch.equal(result.vector, plain_loop(tiny_model, tiny_feeder, tiny_settings, without={4}))


def test_a_failing_device_is_dropped_and_named_and_the_run_goes_on(start, tiny_feeder):
    class Failing:
        def batches(self, model, device, round_number):
            if device == 6:
                raise OSError("the photos are gone")
            return tiny_feeder.batches(model, device, round_number)

    named = []
    start(feeder=Failing(), rounds=8, progress=lambda facts: named.extend(facts.rejections))
    assert named and {rejection.device for rejection in named} == {6}
    assert "the photos are gone" in named[0].reason


def test_when_all_devices_fail_the_run_stops_and_nothing_is_spent(start, tmp_path, tiny_feeder):
    class Broken:
        def batches(self, model, device, round_number):
            raise RuntimeError("the model does not fit")

    with pytest.raises(RunFailed, match="the model does not fit"):
        start(feeder=Broken())
    assert Ledger.open(tmp_path / "run" / LEDGER).events() == []
    assert len(start().history) == 5  # mended, the same directory goes on


# Interruptions


@pytest.mark.parametrize("after", [1, 3, 4])
def test_a_run_stopped_between_rounds_resumes_bit_for_bit(start, tmp_path, after):
    whole = start("whole")
    with pytest.raises(Interrupted, match=f"after round {after} of 5"):
        start("cut", progress=stop_after(after))
    resumed = start("cut")
    assert torch.equal(resumed.vector, whole.vector)
    assert resumed.history == whole.history and resumed.epsilon == whole.epsilon
    assert Ledger.open(tmp_path / "cut" / LEDGER).steps() == list(range(5))


@pytest.fixture
def python_handles_ctrl_c():
    """As in a program of its own: tests before this one, in the same process, may have left another handler."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_in_the_middle_of_a_round_says_where_the_run_stands(start, tiny_feeder, python_handles_ctrl_c):
    whole = start("whole")

    class Stopping:
        def batches(self, model, device, round_number):
            if round_number == 2:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.05)
            return tiny_feeder.batches(model, device, round_number)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with pytest.raises(Interrupted, match="after round 2 of 5"):
            start("cut", feeder=Stopping())
    finally:
        signal.signal(signal.SIGINT, before)
    assert torch.equal(start("cut").vector, whole.vector)


def crash_in_save(monkeypatch, at):
    original = Checkpoints.save

    def save(self, state):
        if state.rounds_done == at:
            monkeypatch.setattr(Checkpoints, "save", original)
            raise OSError(28, "No space left on device")
        return original(self, state)

    monkeypatch.setattr(Checkpoints, "save", save)


def test_a_crash_after_payment_is_computed_again_under_seeded_noise(start, tmp_path, monkeypatch):
    whole = start("whole")
    crash_in_save(monkeypatch, 3)
    with pytest.raises(OSError, match="No space"):
        start("cut")
    assert Ledger.open(tmp_path / "cut" / LEDGER).steps() == [0, 1, 2]  # paid, and the model did not move
    resumed = start("cut")
    assert torch.equal(resumed.vector, whole.vector) and resumed.lost == ()
    assert Ledger.open(tmp_path / "cut" / LEDGER).steps() == list(range(5))


def test_a_crash_after_payment_stays_spent_under_secure_noise(start, tmp_path, monkeypatch):
    crash_in_save(monkeypatch, 3)
    with pytest.raises(OSError, match="No space"):
        start("cut", noise="secure")
    resumed = start("cut", noise="secure")
    assert resumed.lost == (2,)
    assert [facts["round"] for facts in resumed.history] == [1, 2, 4, 5]
    assert Ledger.open(tmp_path / "cut" / LEDGER).steps() == list(range(5))  # never more releases than planned


def test_a_finished_run_does_nothing_more(start):
    first = start()
    again = start(progress=lambda facts: pytest.fail("a finished run trained on"))
    assert torch.equal(first.vector, again.vector) and first.history == again.history


def test_a_ledger_line_broken_off_by_a_crash_is_cut_and_the_run_goes_on(start, tmp_path):
    whole = start("whole")
    with pytest.raises(Interrupted):
        start("cut", progress=stop_after(3))
    with (tmp_path / "cut" / LEDGER).open("ab") as file:
        file.write(b'{"kind":"event","ind')
    assert torch.equal(start("cut").vector, whole.vector)


def test_a_ledger_that_was_cut_or_removed_is_refused(start, tmp_path):
    with pytest.raises(Interrupted):
        start(progress=stop_after(3))
    path = tmp_path / "run" / LEDGER
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]))
    with pytest.raises(AccountError, match="epsilon"):
        start()
    path.unlink()
    with pytest.raises(AccountError, match="put the ledger back"):
        start()


def test_another_configuration_does_not_continue_a_run(start, tmp_path):
    with pytest.raises(Interrupted):
        start(progress=stop_after(3))
    with pytest.raises(CheckpointError, match="another configuration"):
        start(clip_norm=0.7)
    for path in (tmp_path / "run" / "rounds").iterdir():
        path.unlink()
    with pytest.raises(AccountError, match="another configuration"):
        start(clip_norm=0.7)


def test_a_lost_checkpoint_does_not_lose_what_was_spent(start, tmp_path):
    with pytest.raises(Interrupted):
        start(progress=stop_after(3), noise="secure")
    for path in (tmp_path / "run" / "rounds").iterdir():
        path.unlink()
    resumed = start(noise="secure")
    assert resumed.lost == (0, 1, 2) and len(Ledger.open(tmp_path / "run" / LEDGER).events()) == 5


def test_killed_again_and_again_it_ends_where_an_undisturbed_run_ends(start, tmp_path):
    whole = start("whole", rounds=20)
    chance = random.Random(5)
    processes = multiprocessing.get_context("fork")
    kills = 0
    for _ in range(8):
        child = processes.Process(target=start, args=("cut",), kwargs={"rounds": 20})
        child.start()
        child.join(chance.uniform(0.02, 0.15))
        if child.is_alive():
            os.kill(child.pid, signal.SIGKILL)
            kills += 1
        child.join(30)
    resumed = start("cut", rounds=20)
    assert kills >= 3
    assert torch.equal(resumed.vector, whole.vector) and resumed.history == whole.history
    assert Ledger.open(tmp_path / "cut" / LEDGER).steps() == list(range(20))


def test_planned_noise_is_the_given_one_or_calibrated(tiny_settings):
    assert planned_noise(tiny_settings) == 1.0
    calibrated = planned_noise(tiny_settings.model_copy(update={"noise_multiplier": None, "epsilon": 8.0}))
    assert 0.3 < calibrated < 3
