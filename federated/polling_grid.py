"""Another grid, asked more often. Flower's own waits 3 s between questions, which is longer than a small round takes.

The pause between two questions grows with the time waited, from a tenth of a second to one second: a short round is
not held up, and a long one does not ask in vain. Messages leave in batches, so that no request grows with the cohort.

What it refuses: nothing; what the grid beneath refuses stays refused.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable

from flwr.app import Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run

SHORTEST, LONGEST = 0.1, 1.0  # seconds between questions
SHARE = 0.1  # the pause is so much of the time waited so far
BATCH = 100  # messages in one request


class PollingGrid(Grid):
    """``beneath``, with its own ``send_and_receive``."""

    def __init__(self, beneath: Grid) -> None:
        self._beneath = beneath

    def set_run(self, run: Run) -> None:
        self._beneath.set_run(run)

    @property
    def run(self) -> Run:
        return self._beneath.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        # The constructor and not the grid's method, which Flower calls deprecated.
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        return self._beneath.get_node_ids()

    def get_nodes(self) -> Iterable[NodeInfo]:
        return self._beneath.get_nodes()

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        identifiers: list[str] = []
        left = iter(messages)
        while batch := list(itertools.islice(left, BATCH)):
            identifiers.extend(self._beneath.push_messages(batch))
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return self._beneath.pull_messages(message_ids)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Replies in the order in which they came; those that did not come within ``timeout`` seconds are left out."""
        # A message that the server would not take has no id, and there is no reply to wait for.
        waiting = {identifier for identifier in self.push_messages(messages) if identifier}
        began = time.monotonic()
        replies: list[Message] = []
        while waiting:
            for reply in self._beneath.pull_messages(sorted(waiting)):
                replies.append(reply)
                waiting.discard(reply.metadata.reply_to_message_id)
            waited = time.monotonic() - began
            if not waiting or (timeout is not None and waited >= timeout):
                break
            pause = min(max(SHORTEST, SHARE * waited), LONGEST)
            time.sleep(pause if timeout is None else min(pause, timeout - waited))
        return replies
