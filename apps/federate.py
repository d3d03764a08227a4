"""``mmslm federate``: the private training of a run's YAML, and nothing else of it, on any of the three runtimes.

The folder is the one that ``mmslm run`` uses, so either command goes on with what the other began, and a run begun on one
runtime is resumed on another. It refuses a folder that holds a run of other settings.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from apps.run import Job, run_folder
from apps.run_config import RunConfig
from mmslm.config import load_config

RUNTIMES = ("process", "ray", "deployed")
MOST_ON_LOOPBACK = 16  # nodes of a trial deployment: each is two processes


def federate(
    config: str,
    overrides: dict[str, Any],
    *,
    runtime: str = "process",
    out: Path | None = None,
    restart: bool = False,
    deployment: Path | None = None,
    deadline: float = 0.0,
    wait_for: int | None = None,
) -> Path:
    """Train, and report where privacy is claimed; returns the run's folder.

    deployment: a deployment's folder, whose SuperLink runs on this machine; without one, "deployed" makes one on loopback
    for this run. deadline: seconds that a round of a deployment waits for its devices. wait_for: devices that must be
    connected before the first round (default: all). Raises ConfigError, ValueError, OSError or RunFailed.
    """
    if deployment is not None and runtime != "deployed":
        raise ValueError(f"--deployment is given with --runtime {runtime}; it belongs to --runtime deployed.")
    if deadline < 0 or (wait_for is not None and wait_for < 0):
        raise ValueError("--deadline and --wait-for count from 0; 0 waits for all, and for none.")
    settings = load_config(config, RunConfig, overrides)
    train = _elsewhere(runtime, settings, deployment, deadline, wait_for)
    job = Job(settings, run_folder(settings, out, restart=restart), train)
    job.begin()
    job.train()
    if settings.federated.private:
        job.report()
    return job.folder


def _elsewhere(
    runtime: str, settings: RunConfig, deployment: Path | None, deadline: float, wait_for: int | None
) -> Callable[..., Any] | None:
    households = settings.federated.households
    if runtime == "process":
        return None
    if runtime == "ray":
        _require_ray()

        def on_ray(work: Any, progress: Any) -> Any:
            from federated.runtimes import on_ray

            return on_ray(work, progress=progress)

        return on_ray
    if deployment is None:
        if households > MOST_ON_LOOPBACK:
            raise ValueError(
                f"a trial deployment of {households} nodes would start {2 * households} processes on this machine; give a "
                f"configuration with at most {MOST_ON_LOOPBACK} households, or --deployment for real machines."
            )

        def on_loopback(work: Any, progress: Any) -> Any:
            from federated.runtimes import on_loopback

            return on_loopback(work, deadline=deadline, progress=progress)

        return on_loopback
    from federated.deploy.credentials import open_deployment

    opened = open_deployment(deployment)
    if opened.nodes < households:
        raise ValueError(
            f"the settings count on {households} households and {deployment} has {opened.nodes} nodes; lower 'households' "
            "(fewer devices cost more noise), or make a deployment with more."
        )

    def on_deployment(work: Any, progress: Any) -> Any:
        from federated.runtimes import on_deployment

        fewest = households if wait_for is None else wait_for
        return on_deployment(work, opened, deadline=deadline, wait_for=fewest, progress=progress)

    return on_deployment


def _require_ray() -> None:
    from importlib.util import find_spec

    if find_spec("ray") is None:
        raise ValueError("Ray is not installed, and Flower's simulation runtime needs it; do: pip install 'mmslm[ray]'")
