"""The ServerApp: opens the job that the run configuration describes and runs its rounds. The same in every runtime."""

from __future__ import annotations

import contextlib
import fcntl
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from federated.grid import InProcessGrid
from federated.polling_grid import PollingGrid
from federated.roster import Roster
from federated.strategy import Job, Result, Rounds, RunFailed

LONGEST_WAIT = 120.0  # seconds for the devices of a deployment to connect
QUESTION = 15.0  # seconds for new nodes to say who they are, before they are asked again


def server_app(open_job: Callable[[Context], Job], finish: Callable[[Context, Job, Result], None]) -> ServerApp:
    """The app over jobs that ``open_job`` opens; ``finish`` is given the result."""
    flower_app = ServerApp()

    @flower_app.main()
    def main(grid: Grid, context: Context) -> None:
        if not isinstance(grid, InProcessGrid):
            grid = PollingGrid(grid)
        job = open_job(context)
        with the_only_one(job.run_dir):
            wait_for_devices(grid, job.settings.households, int(context.run_config.get("wait-for", 0)))
            finish(context, job, Rounds(grid, job).run())

    return flower_app


@contextlib.contextmanager
def the_only_one(run_dir: Path, seconds: float = 60.0) -> Iterator[None]:
    """Hold ``run_dir`` for this run: two that write one ledger would spoil it. The hold ends with its process.

    One that is about to end (its SuperLink was killed) is waited for. RunFailed where it does not end.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / ".lock").open("w") as lock:
        deadline = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise RunFailed(
                        f"another run works in {run_dir}; wait for it, stop it, or give another run directory."
                    ) from None
                time.sleep(0.1)
        yield


def wait_for_devices(grid: Grid, devices: int, fewest: int, seconds: float = LONGEST_WAIT) -> None:
    """Return when ``fewest`` of ``devices`` have said who they are. RunFailed where they have not after ``seconds``.

    Being listed is not enough: after a restart a SuperLink lists nodes that have not come back yet.
    """
    deadline, roster = time.monotonic() + seconds, Roster(grid, devices)
    while fewest:
        roster.refresh(timeout=QUESTION)
        if len(roster) >= fewest:
            return
        if time.monotonic() > deadline:
            raise RunFailed(
                f"{len(roster)} of {fewest} devices were connected after {seconds:.0f} s; start the others, or set "
                "wait-for to fewer. Nothing was released or spent."
            )
        time.sleep(0.2)


def _open_from_run_config(context: Context) -> Job:
    # Imported here, as in client_app: the in-process runtime brings its own model.
    from federated.job import open_job

    return open_job(context)


def _write_result(context: Context, job: Job, result: Result) -> None:
    from federated.job import write_result

    write_result(job, result)


app = server_app(_open_from_run_config, _write_result)
