"""Federated evaluation: each device counts once, the worst decile stands beside the mean, and private runs are refused."""

from __future__ import annotations

import numpy as np
import pytest

from federated.bench import Bench
from federated.client_app import client_app
from federated.evaluation import ask_devices, evaluate_devices, spread
from federated.grid import InProcessGrid


def test_the_worst_decile_is_the_mean_of_the_tenth_that_fares_worst():
    losses = np.random.default_rng(1).permutation(np.arange(40.0))
    told = spread(losses)
    assert (told.devices, told.mean, told.median) == (40, 19.5, 19.5)
    assert told.worst_decile == np.mean([36, 37, 38, 39]) and told.best_decile == np.mean([0, 1, 2, 3])
    assert spread([2.0]).worst_decile == 2.0
    for bad in ([], [1.0, float("nan")]):
        with pytest.raises(ValueError, match="all finite"):
            spread(bad)


def test_a_grid_answers_what_the_bench_answers_and_failing_devices_are_left_out(tiny_model, tiny_feeder, tiny_settings):
    settings = tiny_settings.without_privacy()

    class Failing:
        def batches(self, model, device, round_number):
            if device == 4:
                raise OSError("the photos are gone")
            return tiny_feeder.batches(model, device, round_number)

    bench = Bench(tiny_model, Failing(), settings)
    vector = bench.adapters.read()
    with InProcessGrid(client_app(lambda context: bench), devices=20) as grid:
        asked = ask_devices(grid, settings, vector, bench.adapters.layout(), round_number=3)
    direct = evaluate_devices(bench, [d for d in range(20) if d != 4], vector, round_number=3)
    assert asked == direct and asked.devices == 19 and asked.worst_decile > asked.mean > asked.best_decile


def test_devices_of_a_private_run_are_not_evaluated(tiny_model, tiny_feeder, tiny_settings):
    bench = Bench(tiny_model, tiny_feeder, tiny_settings)
    vector = bench.adapters.read()
    with pytest.raises(ValueError, match="promises privacy"):
        evaluate_devices(bench, [1], vector, round_number=0)
    with (
        InProcessGrid(client_app(lambda context: bench), devices=2) as grid,
        pytest.raises(ValueError, match="privacy"),
    ):
        ask_devices(grid, tiny_settings, vector, bench.adapters.layout(), round_number=0)
    assert evaluate_devices(bench, [100, 101], vector, round_number=0, public=True).devices == 2
