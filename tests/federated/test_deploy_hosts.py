"""A deployment across network namespaces, as separate hosts with no way out: it runs, and nobody tries to call elsewhere."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import deployments
import pytest
import torch

from federated.deploy import loopback
from federated.deploy.credentials import create
from federated.deploy.family import Family
from federated.deploy.programs import environment, stopped_afterwards

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        not hasattr(os, "geteuid") or os.geteuid() != 0 or shutil.which("ip") is None,
        reason="network namespaces need root and iproute2",
    ),
]
SERVER, HOSTS = "10.77.0.1", ("10.77.0.2", "10.77.0.3")


def ip(*words):
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def hosts():
    """A server and two hosts on a switch of their own: three namespaces without a route to anywhere else."""
    tag = f"mm{os.getpid() % 10000}"
    names = [f"{tag}{letter}" for letter in "sab"]
    made = []
    try:
        for name in names:
            ip("netns", "add", name)
            made.append(name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("-n", names[0], "link", "add", "switch", "type", "bridge")
        ip("-n", names[0], "link", "set", "switch", "up")
        ip("-n", names[0], "addr", "add", f"{SERVER}/24", "dev", "switch")
        for name, address in zip(names[1:], HOSTS, strict=True):
            ip("-n", names[0], "link", "add", f"to-{name}", "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("-n", names[0], "link", "set", f"to-{name}", "master", "switch")
            ip("-n", names[0], "link", "set", f"to-{name}", "up")
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
        yield [Path("/run/netns") / name for name in names]
    except subprocess.CalledProcessError as error:
        pytest.skip(f"this kernel makes no network namespaces: {error.stderr.strip()}")
    finally:
        for name in made:
            subprocess.run(["ip", "netns", "del", name], check=False)


def watch_calls():
    """From now on this process and its children write down every address that they call or look up."""
    import sys

    def hook(event, arguments):
        if event == "socket.connect":
            sys.stderr.write(f"CALL {arguments[1]}\n")
        elif event == "socket.getaddrinfo":
            sys.stderr.write(f"CALL ({arguments[0]!r}, {arguments[1]!r})\n")

    sys.addaudithook(hook)


def test_separate_hosts_train_and_call_nobody_but_each_other(hosts, tiny_base, tmp_path):
    server, *homes = hosts
    deployment = create(tmp_path / "d", host=SERVER, port=18000, nodes=2)
    settings = deployments.settings()
    here = deployments.in_process(settings, tiny_base, tmp_path / "here")
    env = environment(tmp_path / "flwr")

    def family(name, network, work):
        def watched():
            watch_calls()
            work()

        return Family(name, watched, environment=env, log=tmp_path / f"{name}.log", network=network)

    def serve():
        from federated.deploy import superlink

        superlink.serve(deployment, host="0.0.0.0")

    def node(number):
        from federated.deploy import supernode
        from federated.deploy.credentials import open_node

        supernode.serve([open_node(deployment.node(number))], poll=0.1)

    def operate():
        """On the server's host: register, run, and write the result where the test finds it."""
        from federated.runtimes import on_deployment

        loopback.wait_for_superlink(deployment, [])
        loopback.register_all(deployment)
        work = deployments.work(settings, tiny_base, tmp_path / "there")
        torch.save(on_deployment(work, deployment, wait_for=2).vector, tmp_path / "vector.pt")

    with stopped_afterwards([]) as running:
        running.append(family("superlink", server, serve))
        running.extend(
            family(f"node{number}", homes[number], lambda number=number: node(number)) for number in range(2)
        )
        operator = family("operator", server, operate)
        running.append(operator)
        deployments.until(lambda: not operator.alive, 240, "the run")
        # As a node's host: Control and the keys are out of reach.
        ask = ["curl", "-sk", "-o", "/dev/null", "-w", "%{http_code}", "-X", "POST"]
        ask.append(f"https://{SERVER}:18000/v1/control/list-runs")
        reached = subprocess.run(
            ["ip", "netns", "exec", homes[0].name, *ask], check=False, capture_output=True, text=True
        )
    assert torch.equal(torch.load(tmp_path / "vector.pt", weights_only=True), here.vector), operator.last_words()
    if shutil.which("curl"):
        assert reached.stdout == "403"  # a node's host does not reach Control
    calls = set()
    for log in tmp_path.glob("*.log"):
        calls |= {line for line in log.read_text().splitlines() if line.startswith("CALL")}
    assert any(SERVER in call for call in calls)
    strange = {
        call for call in calls if not any(f"'{known}'" in call for known in (SERVER, "127.0.0.1", "0.0.0.0", "::1"))
    }
    assert strange == set()
