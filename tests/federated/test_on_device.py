"""DP-SGD on the device: what leaves is a function of paid releases, and no device ever overspends its own ledger."""

from __future__ import annotations

import copy
import hashlib
import json
import multiprocessing
import os
import random
import signal
import time
from types import SimpleNamespace

import pytest
import torch
from flwr.app import Context, RecordDict
from torch import nn

from federated.bench import Bench
from federated.on_device import Books, books_of_node, local_event, planned_noise_on_device, train_privately
from federated.settings import FederatedConfig
from federated.simulation import BOOKS, simulate
from mmslm.training import sample_losses
from privacy.accounting import epsilon
from privacy.budget import BudgetExceeded
from privacy.ledger import Ledger
from privacy.noise import SeededNoise
from privacy.sampling import PoissonSampler

PHOTOS = 3  # the tiny feeder's batch


class LinearModel(nn.Module):
    """The tiny model with its adapter in layers, which is where per-sample gradients are had."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        self.table = nn.Embedding(11, 8).requires_grad_(False)
        self.head = nn.Linear(8, 11, bias=False).requires_grad_(False)
        self.a, self.b = nn.Linear(8, 2, bias=False), nn.Linear(2, 8, bias=False)
        with torch.no_grad():
            for layer in (self.table, self.head, self.a):
                layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) / 2)
            self.b.weight.zero_()

    def adapter_parameters(self):
        return {"a": self.a.weight, "b": self.b.weight}

    def forward(self, input_ids):
        hidden = self.table(input_ids)
        return SimpleNamespace(logits=self.head(hidden + self.b(self.a(hidden))))


@pytest.fixture
def make(tiny_settings):
    device = {
        "trust": "device",
        "photos_per_household": PHOTOS,
        "epsilon": 30.0,
        "delta": 1e-4,
        "rounds": 4,
        "households": 6,
        "local_learning_rate": 0.2,
        "on_device": {"sampling_rate": 0.6},
    }
    return lambda **changes: FederatedConfig.model_validate(tiny_settings.model_dump() | device | changes)


@pytest.fixture
def start(make, tiny_feeder, tmp_path):
    def run(name="run", budgets=None, progress=None, **changes):
        return simulate(
            make(**changes),
            model=LinearModel(),
            feeder=tiny_feeder,
            run_dir=tmp_path / name,
            budgets=budgets,
            progress=progress,
        )

    return run


def spent(path, delta=1e-4):
    return epsilon(Ledger.open(path).events(), delta, "rdp")


def test_an_update_is_dp_sgd_by_the_book(make, tiny_feeder, tmp_path):
    """Against one photo at a time: draw, clip each gradient in fp64, sum, noise, divide by the public constant, step."""
    settings, model = make(), LinearModel()
    bench = Bench(model, tiny_feeder, settings)
    begin = bench.adapters.read()
    update = train_privately(bench, 4, 2, begin, Books(tmp_path).of(4, settings))

    oracle = LinearModel()
    seed = int.from_bytes(hashlib.sha256(b"device|3|4").digest()[:7], "big")
    (batch,) = tiny_feeder.batches(oracle, 4, 2)
    for step in (4, 5):
        rows = PoissonSampler(PHOTOS, 0.6, seed_or_generator=seed).draw(step)
        sums = [torch.zeros_like(p, dtype=torch.float64) for p in (oracle.a.weight, oracle.b.weight)]
        for row in rows:
            one = {name: value[int(row) : int(row) + 1] for name, value in batch.items()}
            grads = torch.autograd.grad(sample_losses(oracle, one).sum(), [oracle.a.weight, oracle.b.weight])
            length = torch.cat([g.double().flatten() for g in grads]).norm()
            for total, grad in zip(sums, grads, strict=True):
                total += grad.double() * min(1.0, settings.clip_norm / float(length))
        with torch.no_grad():
            for stream, (parameter, total) in enumerate(zip((oracle.a.weight, oracle.b.weight), sums, strict=True)):
                noisy = total.float()
                SeededNoise(seed).add_(noisy, settings.noise_multiplier * settings.clip_norm, step=step, stream=stream)
                parameter -= settings.local_learning_rate * noisy / (0.6 * PHOTOS)
    found = torch.cat([oracle.a.weight.detach().flatten(), oracle.b.weight.detach().flatten()]) - begin
    torch.testing.assert_close(update, found, rtol=1e-4, atol=1e-5)


def test_every_device_pays_for_its_own_steps(start, tmp_path):
    result = start()
    assert result.epsilon is None and result.ledger is None  # the server cannot know
    books = sorted((tmp_path / "run" / BOOKS).glob("*.jsonl"))
    assert books
    for path in books:
        events = Ledger.open(path).events()
        assert len(events) % 2 == 0 and {event.unit for event in events} == {"example"}
        assert {event.sampling.population for event in events} == {None}  # how many photos there are stays at home
        assert spent(path) <= 30.0


def test_a_device_with_less_budget_declines_before_it_overspends(start, make, tmp_path):
    named = []
    event = local_event(make(), 1.0)
    enough = epsilon([event.with_count(4)], 1e-4, "rdp")  # for two rounds of two steps
    start(budgets={2: enough * 1.0001}, rounds=8, sampling_rate=1.0, progress=lambda f: named.extend(f.rejections))
    path = Books(tmp_path / "run" / BOOKS).path(2)
    assert len(Ledger.open(path).events()) == 4 and spent(path) <= enough * 1.0001
    assert {r.device for r in named} == {2} and len(named) == 6 and "above the budget" in named[0].reason
    assert len(Ledger.open(Books(tmp_path / "run" / BOOKS).path(3)).events()) == 16


def test_a_declined_round_touches_no_photo(make, tmp_path):
    class Untouchable:
        def batches(self, model, device, round_number):
            raise AssertionError("a photo was touched")

    settings = make()
    bench = Bench(LinearModel(), Untouchable(), settings)
    with pytest.raises(BudgetExceeded):
        train_privately(bench, 0, 0, bench.adapters.read(), Books(tmp_path, {0: 0.01}).of(0, settings))


def test_budgets_compose_over_runs(make, tiny_feeder, tmp_path):
    first, second = make(noise="secure"), make(noise="secure", seed=9)
    events = []
    for settings in (first, second):
        bench = Bench(LinearModel(), tiny_feeder, settings)
        train_privately(bench, 0, 0, bench.adapters.read(), Books(tmp_path).of(0, settings))
        events.append(len(Ledger.open(Books(tmp_path).path(0)).events()))
    assert events == [2, 4]


def test_a_resumed_simulation_ends_bit_for_bit_and_pays_nothing_twice(start, tmp_path):
    whole = start("whole")

    def stop(facts):
        if facts.round == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        start("cut", progress=stop)
    assert torch.equal(start("cut").vector, whole.vector)
    for path in (tmp_path / "whole" / BOOKS).glob("*.jsonl"):
        twin = tmp_path / "cut" / BOOKS / path.name
        assert Ledger.open(twin).steps() == Ledger.open(path).steps()


def _run_and_log(settings, feeder, folder, log):
    """In a child process: every draw of noise leaves a line on the disk, so that a kill cannot hide one."""
    original = PrivateNoise.add_

    def add_(self, total, std, *, step, stream=0):
        if stream == 0:
            device = multiprocessing.current_process().device
            descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(descriptor, (json.dumps([device, step]) + "\n").encode())
            os.close(descriptor)
        return original(self, total, std, step=step, stream=stream)

    PrivateNoise.add_ = add_
    import federated.client_app as app

    inner = app.train_privately

    def traced(bench, device, *rest):
        multiprocessing.current_process().device = device
        return inner(bench, device, *rest)

    app.train_privately = traced
    simulate(settings, model=LinearModel(), feeder=feeder, run_dir=folder)


from privacy.noise import SecureNoise as PrivateNoise  # noqa: E402 - named for what the child patches


def test_killed_at_any_moment_no_device_released_what_its_ledger_does_not_hold(make, tiny_feeder, tmp_path):
    settings = make(noise="secure", workers=1, rounds=6, sampling_rate=0.8)
    fork = multiprocessing.get_context("fork")
    dice = random.Random(5)
    log = tmp_path / "draws.jsonl"
    arguments = (settings, tiny_feeder, tmp_path / "run", log)
    kills = 0
    for attempt in range(30):
        child = fork.Process(target=_run_and_log, args=arguments)
        child.start()
        # a kill in most attempts, soon after there is something to lose
        before = log.stat().st_size if log.exists() else 0
        deadline = time.monotonic() + 60
        while attempt < 8 and child.is_alive() and time.monotonic() < deadline:
            if log.exists() and log.stat().st_size > before:
                time.sleep(dice.random() * 0.15)
                os.kill(child.pid, signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.002)
        child.join()
        if child.exitcode == 0:
            break
    assert child.exitcode == 0 and kills >= 3
    drawn: dict[int, int] = {}
    for line in log.read_text().splitlines():
        device, _ = json.loads(line)
        drawn[device] = drawn.get(device, 0) + 1
    for device, draws in drawn.items():
        path = Books(tmp_path / "run" / BOOKS).path(device)
        events = Ledger.open(path).events()
        assert draws <= len(events) <= draws + kills
        assert epsilon(events, 1e-4, "rdp") <= 30.0


def test_noise_is_calibrated_for_a_device_that_is_drawn_often(make):
    settings = make(noise_multiplier=None, epsilon=4.0, sampling_rate=0.5, rounds=20)
    noise = planned_noise_on_device(settings)
    event = local_event(settings, noise)
    assert epsilon([event.with_count(2 * 10)], 1e-4, "rdp") < 4.0  # the mean device has something left
    with pytest.raises(BudgetExceeded, match="one round"):
        planned_noise_on_device(make(noise_multiplier=0.3, epsilon=1.0))


def test_a_node_without_a_place_for_its_ledger_is_refused(make):
    real = make(noise="secure")

    def context(**config):
        return Context(run_id=1, node_id=2, node_config=config, state=RecordDict(), run_config={"run-dir": "/run"})

    with pytest.raises(ValueError, match="no place for its privacy ledger"):
        books_of_node(context(), real)
    with pytest.raises(ValueError, match="absolute"):
        books_of_node(context(book="here"), real)
    with pytest.raises(ValueError, match="above 0"):
        books_of_node(context(**{"book": "/x", "epsilon": -1.0, "partition-id": 3}), real)
    assert books_of_node(context(**{"book": "/x", "epsilon": 2.0, "partition-id": 3}), real)._epsilon == {3: 2.0}
    assert books_of_node(context(), make()).path(7).parent.as_posix() == "/run/devices"  # simulated


def test_a_delta_above_one_photo_is_refused(make):
    with pytest.raises(ValueError, match="photos on a device"):
        make(delta=0.4)


def test_the_real_models_experts_train_privately(tiny_base, tmp_path, make):
    """Image experts of the real model, over features encoded once: the clipping engine knows their layers."""
    from federated.devices import PhotoFeeder, SceneHouseholds
    from federated.job import adapted_model

    settings = make(photos_per_household=2, adapters={"rank": 2, "layers": (1,)}, households=2, sampling_rate=1.0)
    model, processor = adapted_model(tiny_base, settings)
    bench = Bench(model, PhotoFeeder(SceneHouseholds(2, 2), processor, settings), settings)
    before = {name: p.clone() for name, p in model.named_parameters()}
    update = train_privately(copy.copy(bench), 0, 0, bench.adapters.read(), Books(tmp_path).of(0, settings))
    assert float(update.abs().max()) > 0
    trained = set(bench.adapters.parameters)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters() if name not in trained)
