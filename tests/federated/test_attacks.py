"""Planted attackers do what their names say, and the gate drops what cannot be an update."""

from __future__ import annotations

import copy

import pytest
import torch
from flwr.app import Context, RecordDict

from federated.attacks import ATTACKS, Mislabelled, hostile
from federated.bench import Bench
from federated.client_app import client_app
from federated.grid import InProcessGrid
from federated.server_app import server_app
from federated.strategy import Job

LIARS = frozenset({1, 5, 9})


@pytest.fixture
def run(tiny_model, tiny_feeder, tiny_settings, tmp_path):
    def start(attack, **changes):
        settings = type(tiny_settings).model_validate(tiny_settings.model_dump() | {"rounds": 2, **changes})
        bench = Bench(copy.deepcopy(tiny_model), tiny_feeder, settings)
        app = hostile(client_app(lambda context: bench), LIARS, attack)
        told = []
        folder = tmp_path / f"{attack}-{len(list(tmp_path.iterdir()))}"
        job = Job(settings, bench.adapters.read(), bench.adapters.layout(), folder, told.append)
        results = []
        server = server_app(lambda _c: job, lambda _c, _j, result: results.append(result))
        with InProcessGrid(app, devices=20) as grid:
            server(grid, Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={}))
        return results[0].vector, {r.device for facts in told for r in facts.rejections}

    return start


@pytest.mark.parametrize("attack", ["nan", "wrong shape", "claims 1e9"])
def test_what_is_no_update_is_dropped_named_and_costs_nothing_but_its_device(run, attack):
    vector, named = run(attack, private=False)
    assert named and named <= LIARS and bool(torch.isfinite(vector).all())


def test_a_huge_update_is_dropped_by_a_bound_and_else_clipped_by_privacy(run):
    vector, named = run("huge", private=False, gate_norm=10.0)
    assert named and named <= LIARS and vector.abs().max() < 5
    clipped, unnamed = run("huge")
    assert not unnamed and clipped.abs().max() < 5


def test_a_sign_flip_moves_the_mean_further_than_the_median(run):
    # sgd, so that a step shows the mean's own length
    given = {"private": False, "sampling_rate": 1.0, "server": {"name": "sgd", "learning_rate": 1.0}}
    honest, _ = run("none", **given)
    shift = {
        name: float((run("sign flip", aggregator=name, **given)[0] - honest).norm()) for name in ("mean", "median")
    }
    assert shift["median"] < shift["mean"]


def test_mislabelled_photos_differ_for_liars_only(tiny_feeder, tiny_model):
    lying = Mislabelled(tiny_feeder, LIARS, source=5, target=2)
    honest, told = (feeder.batches(tiny_model, 5, 0)[0]["labels"] for feeder in (tiny_feeder, lying))
    assert (honest == 5).any() and not (told == 5).any() and torch.equal(told[honest != 5], honest[honest != 5])
    assert torch.equal(lying.batches(tiny_model, 4, 0)[0]["labels"], tiny_feeder.batches(tiny_model, 4, 0)[0]["labels"])


def test_an_unknown_attack_is_refused():
    with pytest.raises(ValueError, match="back door"):
        hostile(lambda message, context: message, LIARS, "bribe")
    assert len(ATTACKS) == 7
