"""A run on Flower's other runtimes: its simulation (Ray), or a deployment; this process watches, the apps run elsewhere.

Both send the same bundle, which holds the run's configuration and no code, and read the trained adapters from the run
directory when the run has ended. The directory is the same as the in-process runtime's: a run begun on one runtime may be
resumed on another.

What it refuses: to leave a process behind, whether the run ends, fails or is stopped.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from federated.checkpoint import CheckpointError, Checkpoints
from federated.deploy import loopback, superlink
from federated.deploy.control import Control
from federated.deploy.credentials import Deployment
from federated.deploy.family import Family
from federated.deploy.programs import Running, environment, free_port, require, stopped_afterwards, wait_until
from federated.job import Work, read_result
from federated.strategy import Interrupted, Result, RunFailed

logger = logging.getLogger(__name__)

START_SECONDS = 120.0  # for a SuperLink to answer, on a busy machine
RAY_WAITS_FOR = 100  # devices to have answered once; then the workers are warm
LOOK = 0.25  # seconds between looks at a run's files
ASK = 1.0  # seconds between questions whether it has ended, which cost its SuperLink's CPU


@dataclass(frozen=True)
class Seen:
    """What is seen of a run from outside: public facts only. epsilon: spent, None without privacy."""

    round: int
    rounds: int
    epsilon: float | None


Progress = Callable[[Seen], None]


def on_ray(work: Work, *, cpus_per_device: int = 1, progress: Progress | None = None) -> Result:
    """Run on Flower's simulation runtime, on a SuperLink of our own that is ended afterwards."""
    with tempfile.TemporaryDirectory(prefix="mmslm-ray-") as folder, stopped_afterwards([]) as programs:
        port, log = free_port(), work.run_dir / "ray.log"
        log.unlink(missing_ok=True)
        programs.append(
            Family(
                "the simulation's SuperLink",
                lambda: superlink.simulate(port, None),
                environment=environment(Path(folder) / "flwr"),
                log=log,
            )
        )
        with Control(f"127.0.0.1:{port}", None) as control:
            wait_until(control.answers, programs, seconds=START_SECONDS, what="the simulation's SuperLink")
            # Ray's first answers take as long as its workers' imports; a round that did not wait would go without devices.
            fewest = min(work.settings.households, RAY_WAITS_FOR)
            run = control.start(
                work.run_config(wait_for=fewest), simulated_nodes=work.settings.households, cpus=cpus_per_device
            )
            try:
                return follow(control, run, work, programs, progress)
            except RunFailed as error:
                # Flower says only that there was an error; the app's own words are in the log.
                raise RunFailed(f"{error} (what Flower and Ray said is in {log})") from None


def on_deployment(
    work: Work,
    deployment: Deployment,
    *,
    deadline: float = 0.0,
    wait_for: int = 0,
    progress: Progress | None = None,
) -> Result:
    """Run on a deployment whose SuperLink is up, from the SuperLink's machine. Its nodes may come and go.

    deadline: seconds that a round waits for its devices; 0 waits for all. wait_for: devices to wait for at the start.
    """
    with Control(f"127.0.0.1:{deployment.port}", deployment.superlink / "ca.crt") as control:
        run = control.start(work.run_config(deadline=deadline, wait_for=wait_for))
        return follow(control, run, work, (), progress)


def on_loopback(work: Work, *, deadline: float = 0.0, progress: Progress | None = None) -> Result:
    """Run on a deployment made for this run on this machine, TLS and keys included, and ended afterwards."""
    households = work.settings.households
    with (
        tempfile.TemporaryDirectory(prefix="mmslm-deployed-") as folder,
        loopback.deployed(Path(folder) / "deployment", nodes=households, own=_own(work)) as deployment,
    ):
        return on_deployment(work, deployment, deadline=deadline, wait_for=households, progress=progress)


def _own(work: Work) -> str:
    return "" if work.data == "scenes" else f"data='{Path(work.data).absolute()}'"


def follow(
    control: Control,
    run: int,
    work: Work,
    programs: Sequence[Running],
    progress: Progress | None,
) -> Result:
    """Watch a run to its end and read its result. Ctrl-C stops the run; what it saved is kept."""
    rounds = Checkpoints(work.run_dir / "rounds", work.settings.fingerprint())
    told, due = 0, 0.0
    try:
        with _stopping(control, run):
            while True:
                if time.monotonic() >= due or _newest(rounds) >= work.settings.rounds:
                    if control.finished(run):
                        break
                    due = time.monotonic() + ASK
                for program in programs:
                    require(program)
                told = _tell(rounds, told, work.settings.rounds, progress)
                time.sleep(LOOK)
    except KeyboardInterrupt:
        raise Interrupted(
            f"Stopped after round {_newest(rounds)} of {work.settings.rounds}; everything up to there is saved in "
            f"{work.run_dir}, and the same command goes on from it."
        ) from None
    _tell(rounds, told, work.settings.rounds, progress)
    return read_result(work.run_dir, work.settings)


@contextlib.contextmanager
def _stopping(control: Control, run: int) -> Iterator[None]:
    """A run that nobody watches any more is stopped: two of them on one run directory would spoil it."""
    try:
        yield
    except KeyboardInterrupt:
        with contextlib.suppress(Exception):
            control.stop(run)
        raise


def _newest(rounds: Checkpoints) -> int:
    found = sorted(rounds.folder.glob("round-*.safetensors"))
    return int(found[-1].stem.removeprefix("round-")) if found else 0


def _tell(rounds: Checkpoints, told: int, of: int, progress: Progress | None) -> int:
    if progress is None or (newest := _newest(rounds)) <= told:
        return told
    try:
        state = rounds.latest()
    except CheckpointError:
        return told  # replaced while it was read; the next look finds its successor
    if state is None or not state.history:
        return told
    epsilon = state.history[-1]["epsilon"]
    progress(Seen(newest, of, None if epsilon is None else float(epsilon)))
    return newest
