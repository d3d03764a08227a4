"""The SuperLink's warm worker: runs the ServerApp of each run that is started, in a process forked for it.

Like a node's worker it runs the app of the mmslm that is installed here. The bundle that came with a run is read for its
configuration and never unpacked, so whoever may start runs still cannot bring code to this machine.

What it refuses: tasks of kinds that it was not given.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from queue import Queue

import httpx
from flwr.app import Context
from flwr.common.config import get_fused_config_from_fab
from flwr.common.constant import SubStatus
from flwr.common.serde import context_from_proto, fab_from_proto, run_from_proto
from flwr.proto.runtime_pb2 import AcquireTaskRequest, PullTaskInputRequest, PushTaskOutputRequest
from flwr.serverapp import ServerApp
from flwr.supercore.constant import TaskType
from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor, SuperExecAuthHttpInterceptor
from flwr.supercore.logger import start_log_uploader, stop_log_uploader
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.runtime.tracing import RuntimeTracingInterceptor
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import HttpGrid

from federated.deploy.family import die_with
from federated.deploy.worker import ACQUIRE

logger = logging.getLogger(__name__)


def work(
    superlink: str,
    certificate: bytes | None,
    secret: bytes,
    tasks: Mapping[TaskType, Callable[[str], None]],
    poll: float = 0.2,
) -> None:
    """Serve the SuperLink at ``superlink`` (host:port on this machine) until the process is ended.

    certificate: the authority's. tasks: what to do with a task's token, by its kind.
    """
    client = foreman(superlink, certificate, secret)
    request = AcquireTaskRequest(supported_task_types=list(tasks))
    runs: list[int] = []
    while True:
        runs = [pid for pid in runs if not os.waitpid(pid, os.WNOHANG)[0]]
        try:
            answer = client.AcquireTask(request)
            if answer.HasField("task") and answer.token:
                task, token = tasks[TaskType(answer.task.type)], answer.token
                runs.append(_forked(lambda task=task, token=token: task(token)))  # type: ignore[misc]
                continue
        except httpx.TransportError:
            logger.debug("the SuperLink does not answer; it is asked again")
        except httpx.HTTPStatusError as error:
            logger.warning("the SuperLink refused its worker: %s", error)
        # While a run goes on, its questions are the ones that matter.
        time.sleep(poll if not runs else 5 * poll)


def foreman(superlink: str, certificate: bytes | None, secret: bytes) -> RuntimeHttpClient:
    """A client that may take tasks. ``certificate``: None for plain HTTP on loopback."""
    return RuntimeHttpClient.from_server_address(
        server_address=superlink,
        insecure=certificate is None,
        root_certificates=certificate,
        interceptors=[
            RuntimeTracingInterceptor(),
            RuntimeVersionHttpInterceptor(component_name="SuperExec"),
            SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods=ACQUIRE),
        ],
        retry_invoker=None,
    )


def _forked(task: Callable[[], None]) -> int:
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        die_with(parent)
        task()
    except BaseException:
        logger.exception("a run ended badly")
    finally:
        os._exit(0)


def serve_run(superlink: str, certificate: bytes, token: str, app: ServerApp) -> None:
    """Do one run: fetch what it is, run the app, say how it ended."""
    grid = HttpGrid(runtime_api_address=superlink, insecure=False, root_certificates=certificate, token=token)
    client = grid._runtime_client
    heartbeat = HeartbeatSender(make_task_heartbeat_fn_http(client))
    heartbeat.start()
    words: Queue[str | None] = Queue()
    uploader = None
    status, details = SubStatus.FAILED, "the run was stopped"
    try:
        given = client.PullTaskInput(PullTaskInputRequest())
        TaskIdentity.task_id, TaskIdentity.run_id = given.task_id, given.run.run_id
        TaskIdentity.node_id = given.context.node_id
        run, bundle = run_from_proto(given.run), fab_from_proto(given.fab)
        context: Context = context_from_proto(given.context)
        context.run_config = get_fused_config_from_fab(bundle.content, run)
        grid.set_run(run)
        uploader = start_log_uploader(log_queue=words, node_id=0, run_id=run.run_id, client=client)
        # Of our words only those of federated.job: they are public, and the SuperLink keeps them.
        logging.getLogger("federated.job").addHandler(_ToQueue(words))
        logger.info("run %d begins", run.run_id)
        app(grid, context)
        status, details = SubStatus.COMPLETED, ""
        logger.info("run %d is done", run.run_id)
    except KeyboardInterrupt as stop:
        details = str(stop) or details
    except Exception as error:
        details = str(error) or type(error).__name__
        logger.warning("the run failed: %s", details, exc_info=True)
    finally:
        if heartbeat.is_running:
            heartbeat.stop()
        # How a run ended must not be lost to one request that came late; but nobody waits for a SuperLink that is gone.
        grid._retry_invoker.max_tries = 4
        if uploader is not None:
            stop_log_uploader(words, uploader)
        client.PushTaskOutput(PushTaskOutputRequest(context=None, sub_status=status, details=details))
        grid.close()


class _ToQueue(logging.Handler):
    """Sends log lines to whoever follows the run."""

    def __init__(self, words: Queue[str | None]) -> None:
        super().__init__(logging.INFO)
        self._words = words

    def emit(self, record: logging.LogRecord) -> None:
        self._words.put(record.getMessage() + "\n")
