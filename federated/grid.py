"""Flower's Grid in one process: thousands of virtual devices around resident models, without Ray or a network.

The ServerApp talks to it as to any ``flwr.serverapp.Grid``; it hands each message to the ClientApp on a worker thread.
Contents are copied on the way in and out, as a network would, so that no device sees what another wrote. A device that
raises answers with Flower's error reply; the run goes on.

Every worker computes with one torch thread, so that a device's numbers do not depend on how many workers there are.
What it refuses: use after ``close``, and waiting for messages that were never pushed.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Self, TypeVar

import torch
from flwr.app import Array, Context, Error, Message, Metadata, RecordDict
from flwr.app.constants import DEFAULT_TTL
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from federated.settings import Scalar
from federated.wire import PARTITION, PARTITIONS

logger = logging.getLogger(__name__)

T = TypeVar("T")

FIRST_NODE_ID = SUPERLINK_NODE_ID + 1  # 1 is the server's own address


def copy_content(content: RecordDict) -> RecordDict:
    """A copy that shares no mutable part with the original. Array bytes are immutable, so they are not duplicated."""
    # Below the records' item assignment, whose checks cost more than the copy: the original has passed them.
    copied = content.copy()
    records = copied.__dict__["_data"]
    for name, record in records.items():
        records[name] = fresh = record.copy()
        values = fresh.__dict__["_data"]
        for key, value in values.items():
            if isinstance(value, Array):
                values[key] = _copy_of(value)
            elif isinstance(value, list):
                values[key] = list(value)
    return copied


def _copy_of(thing: T) -> T:
    """A shallow copy of one of Flower's plain objects, past its constructor."""
    copied = object.__new__(type(thing))
    copied.__dict__.update(thing.__dict__)
    return copied


def copy_message(message: Message) -> Message:
    """A copy whose metadata and content are its own."""
    copied = _copy_of(message)
    state = copied.__dict__
    state["_metadata"] = _copy_of(message.metadata)
    if message.has_content():
        state["_content"] = copy_content(message.content)
    return copied


class InProcessGrid(Grid):
    """Drives ``client_app`` for ``devices`` virtual devices on ``workers`` threads.

    Device i (from 0) is the node ``i + 2`` and finds its number in ``context.node_config["partition-id"]``, as under
    Flower's own runtimes. ``absent(device, group)``: true makes that device unreachable for that group of messages
    (a device that lost power); it answers with the error reply that Flower gives then.
    """

    def __init__(
        self,
        client_app: ClientApp,
        *,
        devices: int,
        run_config: Mapping[str, Scalar] | None = None,
        workers: int = 1,
        absent: Callable[[int, str], bool] | None = None,
    ) -> None:
        if devices < 1 or workers < 1:
            raise ValueError(f"asked for {devices} devices on {workers} workers; both must be at least 1.")
        self._client_app = client_app
        self._devices = devices
        self._run_config = dict(run_config or {})
        self._run = Run.create_empty(run_id=1)
        self._absent = absent
        self._contexts: dict[int, Context] = {}
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._waiting: dict[str, Future[Message]] = {}
        self._threads_before = torch.get_num_threads()
        self._workers = workers
        self._pool: ThreadPoolExecutor | None = ThreadPoolExecutor(
            workers, thread_name_prefix="device", initializer=torch.set_num_threads, initargs=(1,)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the workers; messages that no worker began are dropped. Safe to call twice."""
        if self._pool is None:
            return
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._pool = None
        self._waiting.clear()
        # A worker's set_num_threads also reaches MKL's process-wide setting: give the caller back what it had.
        torch.set_num_threads(self._threads_before)

    def set_run(self, run: Run) -> None:
        self._run = run

    @property
    def run(self) -> Run:
        return Run(**vars(self._run))

    def get_node_ids(self) -> list[int]:
        return list(range(FIRST_NODE_ID, FIRST_NODE_ID + self._devices))

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        metadata = Metadata(
            run_id=self._run.run_id,
            message_id="",
            src_node_id=SUPERLINK_NODE_ID,
            dst_node_id=dst_node_id,
            reply_to_message_id="",
            group_id=group_id,
            created_at=time.time(),
            ttl=DEFAULT_TTL if ttl is None else ttl,
            message_type=message_type,
        )
        return Message(content=content, metadata=metadata)  # type: ignore[call-overload]  # flwr's own way, not in its stubs

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        if self._pool is None:
            raise RuntimeError("this grid was closed; make a new one for another run.")
        identifiers = []
        for message in messages:
            identifier = str(next(self._numbers))
            sent = copy_message(message)
            sent.metadata.__dict__["_message_id"] = identifier
            message.metadata.__dict__["_message_id"] = identifier  # as Flower's grids do: replies are matched by it
            self._waiting[identifier] = self._pool.submit(self._deliver, sent)
            identifiers.append(identifier)
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        return [self._waiting.pop(i).result() for i in message_ids if i in self._waiting and self._waiting[i].done()]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Replies in the order of ``messages``; those that did not come within ``timeout`` seconds are left out."""
        if self._workers == 1 and not self._waiting:
            return self._one_by_one(messages, timeout)
        identifiers = self.push_messages(messages)
        futures = [self._waiting[i] for i in identifiers]
        try:
            wait(futures, timeout=timeout)
        except BaseException:
            # Ctrl-C: what no worker began is dropped, what runs is a fraction of a second and ends by itself.
            for future in futures:
                future.cancel()
            wait(futures)
            raise
        finally:
            finished = {i: self._waiting.pop(i) for i in identifiers if i in self._waiting}
        replies = []
        for identifier in identifiers:
            future = finished[identifier]
            if future.done():
                try:
                    replies.append(future.result())
                except CancelledError:
                    continue
            else:
                future.cancel()
        return replies

    def _one_by_one(self, messages: Iterable[Message], timeout: float | None) -> list[Message]:
        """The same on the caller's thread: with one worker there is nothing to hand over and nobody to wait for."""
        if self._pool is None:
            raise RuntimeError("this grid was closed; make a new one for another run.")
        deadline = None if timeout is None else time.monotonic() + timeout
        if torch.get_num_threads() != 1:
            torch.set_num_threads(1)  # given back by close()
        replies = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = str(next(self._numbers))
            reply = self._deliver(copy_message(message))
            if deadline is not None and time.monotonic() > deadline:
                break
            replies.append(reply)
        return replies

    def _deliver(self, message: Message) -> Message:
        """On a worker: run the ClientApp for one message; whatever it raises becomes an error reply."""
        device = message.metadata.dst_node_id - FIRST_NODE_ID
        if not 0 <= device < self._devices:
            return Message(
                Error(ErrorCode.NODE_UNAVAILABLE, f"no node {message.metadata.dst_node_id}"), reply_to=message
            )
        if self._absent is not None and self._absent(device, message.metadata.group_id):
            return Message(Error(ErrorCode.NODE_UNAVAILABLE, "the device is unreachable"), reply_to=message)
        try:
            return copy_message(self._client_app(message, self._context(device)))
        except Exception as error:
            logger.debug("device %d failed", device, exc_info=True)
            reason = f"{type(error).__name__}: {error}"
            return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)

    def _context(self, device: int) -> Context:
        with self._lock:
            if device not in self._contexts:
                self._contexts[device] = Context(
                    run_id=self._run.run_id,
                    node_id=device + FIRST_NODE_ID,
                    node_config={PARTITION: device, PARTITIONS: self._devices},
                    state=RecordDict(),
                    run_config=dict(self._run_config),
                )
            return self._contexts[device]
