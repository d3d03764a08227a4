"""Flower's simulation runtime: Ray first, then the run.

Flower starts Ray while a run's task waits; a task that waits for 30 s is handed out again, and Ray itself gives up after
30 s. On a busy machine neither is enough. So Ray is started before a task is taken, and given the time that it needs.

What it refuses: a machine on which Ray does not start at all.
"""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import time
from queue import Queue

import httpx
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.constant import TaskType

from federated.deploy.family import die_with
from federated.deploy.programs import free_port

logger = logging.getLogger(__name__)

START_SECONDS = 240.0
# Ray takes 127.0.0.1 for "whatever others reach this machine by" and would listen there. Linux has more of loopback.
LOOPBACK = "127.0.0.2" if sys.platform == "linux" else "127.0.0.1"


def work(superlink: str, secret: bytes, cpus: int | None) -> None:
    """Start Ray, take one run of the SuperLink at ``superlink`` (host:port on loopback), and end with it."""
    from flwr.simulation.app import run_simulation_process

    from federated.deploy.server_worker import foreman

    _start_ray(cpus)
    client = foreman(superlink, None, secret)
    request = AcquireTaskRequest(supported_task_types=[TaskType.SIMULATION])
    while True:
        try:
            answer = client.AcquireTask(request)
        except httpx.TransportError:
            answer = None
        if answer is not None and answer.HasField("task") and answer.token:
            run_simulation_process(superlink, Queue(), answer.token, insecure=True)  # ends the process
        time.sleep(0.2)


def _start_ray(cpus: int | None) -> None:
    """Start Ray as a child of this process and connect to it."""
    import ray

    port, *agents = (free_port() for _ in range(5))
    line = [sys.executable, "-m", "federated.deploy.ray_head", str(agents[1]), str(START_SECONDS)]
    line += ["start", "--head", "--block", "--disable-usage-stats"]
    line += ["--include-dashboard=false", f"--node-ip-address={LOOPBACK}", f"--port={port}"]
    # Ray waits 15 s for its agents to choose ports; what is given needs no waiting for.
    names = (
        "dashboard-agent-grpc-port",
        "dashboard-agent-listen-port",
        "runtime-env-agent-port",
        "metrics-export-port",
    )
    line += [f"--{name}={agent}" for name, agent in zip(names, agents, strict=True)]
    line += [] if cpus is None else [f"--num-cpus={cpus}"]
    parent = os.getpid()
    head = subprocess.Popen(line, stdin=subprocess.DEVNULL, preexec_fn=lambda: die_with(parent))
    deadline = time.monotonic() + START_SECONDS
    # As Flower would: Ray's workers find the packages where this process has them.
    paths = ":".join(filter(None, sys.path))
    error: Exception | None = None
    while head.poll() is None and time.monotonic() < deadline:
        if not _listens(port):
            time.sleep(0.2)  # Ray's own wait for it is half a minute long
            continue
        try:
            ray.init(
                address=f"{LOOPBACK}:{port}",
                _node_ip_address=LOOPBACK,
                runtime_env={"env_vars": {"PYTHONPATH": paths}},
            )
        except (RuntimeError, OSError, ray.exceptions.RayError) as said:
            ray.shutdown()
            error = said
            time.sleep(1)
        else:
            while time.monotonic() < deadline and head.poll() is None:
                # A node is listed before what it has is known, and Flower asks once.
                if any(node["Resources"].get("CPU") for node in ray.nodes()):
                    logger.info("Ray is up")
                    return
                time.sleep(0.2)
    raise RuntimeError(
        f"Ray did not start within {START_SECONDS:.0f} s: {error or 'it ended or does not listen'}"
    ) from error


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((LOOPBACK, port)) == 0
