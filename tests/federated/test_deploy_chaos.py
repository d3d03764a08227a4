"""A deployment that loses parts: a node, the SuperLink; and one that is approached by whoever has no business there."""

from __future__ import annotations

import os
import shutil
import signal

import deployments
import pytest
import torch

from federated.accounts import LEDGER
from federated.deploy import loopback
from federated.deploy.control import Control
from federated.deploy.credentials import create, public_key_bytes
from federated.deploy.programs import ProgramError
from federated.runtimes import on_deployment
from federated.strategy import RunFailed
from privacy.ledger import Ledger

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def control_of(deployment):
    return Control(f"127.0.0.1:{deployment.port}", deployment.superlink / "ca.crt")


@pytest.fixture
def alone(tmp_path):
    """A deployment of three nodes whose SuperLink is up, and a list of what else to stop."""
    from federated.deploy.programs import free_port, stopped_afterwards

    deployment = create(tmp_path / "d", host="127.0.0.1", port=free_port(), nodes=3)
    with stopped_afterwards([]) as running:
        running.append(loopback.start_superlink(deployment))
        loopback.wait_for_superlink(deployment, running)
        yield deployment, running


def test_a_killed_node_is_missed_for_a_deadline_and_comes_back(alone, tiny_base, tmp_path):
    deployment, running = alone
    loopback.register_all(deployment)
    families = [loopback.start_nodes(deployment, [number]) for number in range(3)]
    running.extend(families)
    settings = deployments.settings(households=3, sampling_rate=1.0, rounds=8)
    seen = []

    def progress(what):
        seen.append(what.round)
        if what.round == 2:
            for pid in families[1].children():  # node and worker, as a device that loses its power
                os.kill(pid, signal.SIGKILL)

    work = deployments.work(settings, tiny_base, tmp_path / "run")
    result = on_deployment(work, deployment, deadline=6.0, wait_for=3, progress=progress)
    assert len(result.history) == 8
    assert Ledger.open(tmp_path / "run" / LEDGER).steps() == list(range(8))  # every round paid once, none twice
    words = (deployment.superlink / "superlink.log").read_text()
    assert "device 1 was dropped" in words
    assert "node 1 ended" in families[1].log.read_text()

    def back():
        with control_of(deployment) as control:
            return dict(control.nodes()).get("node 0001") == "online"

    deployments.until(back, 90, "node 1's return")


def test_a_killed_superlink_costs_the_run_and_the_same_command_ends_it_as_if_nothing_had_been(
    alone, tiny_base, tmp_path
):
    deployment, running = alone
    loopback.register_all(deployment)
    running.append(loopback.start_nodes(deployment, range(3)))
    settings = deployments.settings(households=3, rounds=6)
    work = deployments.work(settings, tiny_base, tmp_path / "run")

    def progress(what):
        if what.round == 2:
            running[0].kill()  # SuperLink, its worker and the run's app at once

    with pytest.raises((ProgramError, RunFailed)):
        on_deployment(work, deployment, wait_for=3, progress=progress)
    done = deployments.rounds_done(tmp_path / "run")
    assert 2 <= done < 6
    running[0] = loopback.start_superlink(deployment)
    loopback.wait_for_superlink(deployment, running[:1])
    assert loopback.register_all(deployment) == 0  # keys outlive the SuperLink
    result = on_deployment(work, deployment, wait_for=3)
    here = deployments.in_process(settings, tiny_base, tmp_path / "here")
    assert torch.equal(result.vector, here.vector)
    assert result.epsilon == here.epsilon
    assert Ledger.open(tmp_path / "run" / LEDGER).steps() == list(range(6))


def test_strangers_are_refused(alone, tmp_path):
    """A key that nobody registered, a SuperLink with another authority's certificate, and a key that was revoked."""
    deployment, running = alone
    with control_of(deployment) as control:
        assert control.register(public_key_bytes(deployment.public_keys()[0]), "node 0000")
        assert not control.register(public_key_bytes(deployment.public_keys()[0]), "node 0000")
    stranger = loopback.start_nodes(deployment, [1])
    other = create(tmp_path / "other", host="127.0.0.1", port=deployment.port, nodes=1)
    shutil.copy(deployment.node(0) / "node.key", other.node(0) / "node.key")  # the right key, the wrong authority
    deceived = loopback.start_nodes(other, [0])
    running.extend([stranger, deceived])

    def said(family, *words):
        return lambda: any(word in family.log.read_text().lower() for word in words)

    deployments.until(said(stranger, "node 1 ended"), 90, "the stranger's refusal")
    deployments.until(said(deceived, "certificate", "ssl"), 90, "the wrong authority's refusal")
    with control_of(deployment) as control:
        assert dict(control.nodes())["node 0000"] != "online"
        assert len(control.nodes()) == 1
    with Control(f"127.0.0.1:{deployment.port}", other.superlink / "ca.crt") as control:
        assert not control.answers()
    known = loopback.start_nodes(deployment, [0])
    running.append(known)

    def online():
        with control_of(deployment) as control:
            return dict(control.nodes()).get("node 0000") == "online"

    deployments.until(online, 90, "the registered node's connection")
