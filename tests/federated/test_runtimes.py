"""One app, three runtimes: with one seed the final adapters are equal, bit for bit, in process, deployed, and on Ray."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import deployments
import pytest
import torch

from federated.accounts import LEDGER
from federated.deploy import loopback
from federated.runtimes import on_deployment, on_ray
from federated.strategy import RunFailed
from privacy.ledger import Ledger


def processes_of(folder):
    """The command lines of running processes that mention ``folder``."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            line = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in line and int(place.name) != os.getpid():
            found.append(line)
    return found


def test_a_deployed_run_ends_as_the_run_in_process_bit_for_bit(tiny_base, tmp_path):
    """TLS, registered keys, SuperLink, two SuperNodes and their workers, each a process of its own."""
    settings, seen = deployments.settings(), []
    here = deployments.in_process(settings, tiny_base, tmp_path / "here")
    with loopback.deployed(tmp_path / "d", nodes=2) as deployment:
        work = deployments.work(settings, tiny_base, tmp_path / "there")
        there = on_deployment(work, deployment, wait_for=2, progress=seen.append)
        # What the app refuses comes back in its own words, and costs no other run anything.
        other = deployments.work(settings.model_copy(update={"seed": 1}), tiny_base, tmp_path / "there")
        with pytest.raises(RunFailed, match="another configuration"):
            on_deployment(other, deployment)
    assert torch.equal(there.vector, here.vector)
    assert there.epsilon == here.epsilon and there.history == here.history and there.lost == ()
    assert seen[-1].round == 3 and seen[-1].epsilon == here.epsilon
    assert Ledger.open(tmp_path / "there" / LEDGER).steps() == [0, 1, 2]
    assert processes_of(tmp_path) == []


SECURE = {
    "households": 3,
    "sampling_rate": 1.0,
    "rounds": 2,
    "trust": "secure_aggregation",
    "participation": "bounded",
    "bounded": {"min_separation": 1, "max_participations": 2},
}


def events(run_dir):
    """What the run cost, as its ledger says it."""
    return [entry.body for entry in Ledger.open(run_dir / LEDGER).entries if entry.kind == "event"]


@pytest.mark.slow  # ten exchanges between three nodes
@pytest.mark.timeout(600)
def test_a_deployed_secure_sum_with_the_nodes_own_keys_is_the_one_in_process(tiny_base, tmp_path):
    """The keys differ (here of a seed, there of files), and so do all masks; sum, noise, model and event are the same."""
    settings = deployments.settings(**SECURE)
    here = deployments.in_process(settings, tiny_base, tmp_path / "here")
    with loopback.deployed(tmp_path / "d", nodes=3) as deployment:
        work = deployments.work(settings, tiny_base, tmp_path / "there")
        there = on_deployment(work, deployment, wait_for=3)
        words = (deployment.superlink / "superlink.log").read_text()
    assert torch.equal(there.vector, here.vector)
    assert there.epsilon == here.epsilon and there.history == here.history and there.lost == ()
    assert events(tmp_path / "there") == events(tmp_path / "here")
    assert "was dropped" not in words


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_deployed_secure_sum_with_real_noise_and_real_keys_pays_what_it_planned(tiny_base, tmp_path):
    """Noise from each node's operating system: the model cannot be compared, the event and the path can."""
    settings = deployments.settings(**SECURE | {"noise": "secure"})
    planned = deployments.in_process(deployments.settings(**SECURE), tiny_base, tmp_path / "here")
    with loopback.deployed(tmp_path / "d", nodes=3) as deployment:
        work = deployments.work(settings, tiny_base, tmp_path / "there")
        there = on_deployment(work, deployment, wait_for=3)
        again = deployments.work(settings, tiny_base, tmp_path / "keyless")
        for number in range(3):
            (deployment.node(number) / "identity.pem").unlink()
        with pytest.raises(RunFailed, match="has no secure sum"):
            on_deployment(again, deployment, wait_for=3)
        words = (deployment.node(0) / "node.log").read_text()
    assert len(there.history) == 2 and there.epsilon == planned.epsilon
    assert not torch.equal(there.vector, planned.vector) and bool(there.vector.isfinite().all())
    mine, theirs = (events(tmp_path / name) for name in ("there", "here"))
    assert len(mine) == len(theirs) == 1
    assert mine[0]["event"] == theirs[0]["event"]
    assert deployments.rounds_done(tmp_path / "keyless") == 0
    assert "identity.pem" in words  # a node whose key is gone answers so, and is no part of any sum


@pytest.mark.slow  # Ray alone starts for most of a minute
@pytest.mark.timeout(900)
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
def test_a_run_on_ray_ends_as_the_run_in_process_bit_for_bit(tiny_base, tmp_path):
    settings = deployments.settings(households=4, rounds=2)
    here = deployments.in_process(settings, tiny_base, tmp_path / "here")
    there = on_ray(deployments.work(settings, tiny_base, tmp_path / "there"))
    assert torch.equal(there.vector, here.vector)
    assert there.epsilon == here.epsilon and there.history == here.history
