"""The ServerApp: opens the job that the run configuration describes and runs its rounds. The same in every runtime."""

from __future__ import annotations

from collections.abc import Callable

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from federated.strategy import Job, Result, Rounds


def server_app(open_job: Callable[[Context], Job], finish: Callable[[Context, Job, Result], None]) -> ServerApp:
    """The app over jobs that ``open_job`` opens; ``finish`` is given the result."""
    flower_app = ServerApp()

    @flower_app.main()
    def main(grid: Grid, context: Context) -> None:
        job = open_job(context)
        finish(context, job, Rounds(grid, job).run())

    return flower_app


def _open_from_run_config(context: Context) -> Job:
    # Imported here, as in client_app: the in-process runtime brings its own model.
    from federated.job import open_job

    return open_job(context)


def _write_result(context: Context, job: Job, result: Result) -> None:
    from federated.job import write_result

    write_result(job, result)


app = server_app(_open_from_run_config, _write_result)
