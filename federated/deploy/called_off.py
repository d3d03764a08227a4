"""A node that receives a message whose run ends meanwhile, and a SuperLink that finds runs which died with its worker.

Flower makes a node's task before the message's objects are there. Where the run ends in between (it was stopped, or its
SuperLink was killed while it sent), Flower forgets the message but not the task, and whoever took the task waits two
hours for objects that never come. In stock Flower that is a process too many; here it is the node's only worker, and the
node would answer nobody. So the task ends with its message.

On the other side a run that died with its SuperLink counts as running for a minute more, and its nodes wait as long. The
runs that a new worker finds begun cannot be alive (they end with their worker), so it stops them.

What it refuses: nothing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flwr.common.constant import Status, SubStatus

logger = logging.getLogger(__name__)

UNFINISHED = (Status.PENDING, Status.STARTING, Status.RUNNING)
PATIENCE = 300.0  # seconds for a SuperLink to answer its worker


def tasks_end_with_their_message(pull: Callable[..., int | None]) -> Callable[..., int | None]:
    """Flower's ``_pull_and_store_message``, which answers the run of a message or None, without what None leaves behind."""

    def pulled(*, state: Any, object_store: Any, **rest: Any) -> int | None:
        # The task before may still be handing in its output; it is not ours to end.
        before = {task.task_id for task in state.get_tasks(statuses=UNFINISHED)}
        run = pull(state=state, object_store=object_store, **rest)
        if run is None:
            for task in state.get_tasks(statuses=UNFINISHED):
                if task.task_id not in before:
                    logger.info("run %d ended while a message of it was received", task.run_id)
                    state.finish_task(task.task_id, sub_status=SubStatus.FAILED, details="the run ended")
                    # A node deals with one message at a time: what is stored belongs to this one.
                    state.delete_messages()
                    object_store.delete_objects_in_run(task.run_id)
        return run

    return pulled


def stop_the_dead(superlink: str, certificate: Path, patience: float = PATIENCE) -> None:
    """Stop every run that the SuperLink at ``superlink`` (host:port on this machine) thinks has begun.

    For its worker, before it takes its first task. A SuperLink that does not answer within ``patience`` seconds is left.
    """
    from federated.deploy.control import Control
    from federated.deploy.programs import ProgramError

    deadline = time.monotonic() + patience
    with Control(superlink, certificate) as control:
        while not control.answers():
            if time.monotonic() > deadline:
                return
            time.sleep(0.1)
        for run, status in control.runs():
            if status.split()[0] in (Status.STARTING, Status.RUNNING):
                try:
                    control.stop(run)
                    logger.info("run %d died with its SuperLink; start it again", run)
                except ProgramError as error:
                    logger.warning("run %d could not be ended: %s", run, error)
