"""A node's warm worker: one process that keeps the model, and does what the node's SuperNode has received.

Flower starts a new Python process for each message; importing torch and loading a model there takes longer than training.
This one is started once, imports, and then serves one message after another with the ClientApp of the mmslm that is
installed here. The code that a SuperLink might send along is not even unpacked.

It is a process of its own so that the app that sees photos does not see the node's key. The node hands out tasks only to
who knows a secret that both have from their parent.

What it refuses: tasks that are not for a ClientApp.
"""

from __future__ import annotations

import logging
import time
from typing import Any

import httpx
from flwr.app import Error, Message
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode, SubStatus
from flwr.proto.runtime_pb2 import AcquireTaskRequest, PullAppMessagesRequest, PullAppMessagesResponse
from flwr.supercore.constant import TaskType
from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.runtime.tracing import RuntimeTracingInterceptor
from flwr.supernode.runtime.run_clientapp import pull_task_input, push_message, push_task_output

logger = logging.getLogger(__name__)

ACQUIRE = frozenset({"/flwr.proto.Runtime/AcquireTask"})
MESSAGE_SECONDS = 5.0  # for a task's message to be there


class _Client(RuntimeHttpClient):
    """Flower's client. A node makes a task a moment before it stores the task's message, and we may be that quick."""

    def PullMessages(self, request: PullAppMessagesRequest) -> PullAppMessagesResponse:
        deadline = time.monotonic() + MESSAGE_SECONDS
        while not (answer := super().PullMessages(request)).messages_list and time.monotonic() < deadline:
            time.sleep(0.02)
        return answer


def work(runtime: str, secret: bytes, app: ClientApp, *, poll: float = 0.1) -> None:
    """Serve the node whose Runtime API is at ``runtime`` (host:port on loopback) until the process is ended.

    poll: seconds between questions while there is nothing to do.
    """
    client = _client(
        runtime, SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods=ACQUIRE), "SuperExec"
    )
    request = AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP])
    while True:
        try:
            answer = client.AcquireTask(request)
            if answer.HasField("task") and answer.token:
                serve_one(runtime, answer.token, app)
                continue
        except httpx.TransportError:
            logger.debug("the node does not answer; it is asked again")
        except Exception:
            logger.warning("the node's worker goes on after an error", exc_info=True)
        except KeyboardInterrupt:
            # How Flower's heartbeat says that the run was stopped. A person's Ctrl-C reaches our parent too, which ends us.
            logger.info("the work was called off")
        time.sleep(poll)


def serve_one(runtime: str, token: str, app: ClientApp) -> None:
    """Do one task: fetch the message, run the app, hand back the reply. An app that raises answers with an error."""
    client = _client(runtime, RuntimeTokenHttpInterceptor(token), "flwr-clientapp")
    heartbeat = HeartbeatSender(make_task_heartbeat_fn_http(client))
    heartbeat.start()
    context, status, details = None, SubStatus.FAILED, "the work was called off"
    try:
        message, context, _, _ = pull_task_input(client)
        try:
            reply = app(message, context)
            status, details = SubStatus.COMPLETED, ""
        except Exception as error:
            details = f"{type(error).__name__}: {error}"
            logger.warning("a message was answered with an error: %s", details, exc_info=True)
            reply = Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, details), reply_to=message)
        push_message(client, reply, context)
    finally:
        if heartbeat.is_running:
            heartbeat.stop()
        push_task_output(client, context, status, details)
        client.close()


def _client(runtime: str, identity: Any, component: str) -> RuntimeHttpClient:
    return _Client.from_server_address(
        server_address=runtime,
        insecure=True,  # loopback: the node and its worker are on one machine
        root_certificates=None,
        interceptors=[RuntimeTracingInterceptor(), RuntimeVersionHttpInterceptor(component_name=component), identity],
        # No retries of Flower's: they pause for up to 20 s, and end the process where a token has expired.
        retry_invoker=None,
    )
