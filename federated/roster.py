"""Which node is which device. Flower gives nodes random ids; a device is known by its partition, which it tells itself.

The server asks every node once and remembers. In a simulation all are there at once; in a deployment nodes come and go,
and each round asks those that are new.

What it refuses: two nodes that claim one partition (one of them would be counted twice: more than clipping bounds).
The first keeps it, the second is ignored and named.
"""

from __future__ import annotations

import logging

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid

from federated.wire import IDENTITY, PARTITION, WHO

logger = logging.getLogger(__name__)


def device_number(context: Context) -> int:
    """The device that a node is, from its configuration. ValueError where the node was started without one."""
    number = context.node_config.get(PARTITION)
    if isinstance(number, bool) or not isinstance(number, int) or number < 0:
        raise ValueError(
            f"this node's {PARTITION} is {number!r}; start it with --node-config 'partition-id=0 num-partitions=2', "
            "counting from 0."
        )
    return number


def introduce(message: Message, context: Context) -> Message:
    """A node's answer to "who are you"."""
    content = RecordDict({IDENTITY: ConfigRecord({PARTITION: device_number(context)})})
    return Message(content, reply_to=message)


class Roster:
    """Nodes by device number."""

    def __init__(self, grid: Grid, devices: int) -> None:
        self._grid = grid
        self._devices = devices
        self._node_of: dict[int, int] = {}
        self._device_of: dict[int, int] = {}

    def refresh(self, timeout: float | None = 60.0) -> None:
        """Ask the nodes that are new; forget those that are gone."""
        present = set(self._grid.get_node_ids())
        for node in set(self._device_of) - present:
            del self._node_of[self._device_of.pop(node)]
        strangers = sorted(present - set(self._device_of))
        if not strangers:
            return
        questions = [
            self._grid.create_message(RecordDict(), message_type=WHO, dst_node_id=node, group_id="roster")
            for node in strangers
        ]
        replies = list(self._grid.send_and_receive(questions, timeout=timeout))
        node_of_question = {question.metadata.message_id: question.metadata.dst_node_id for question in questions}
        for reply in replies:
            asked = node_of_question.get(reply.metadata.reply_to_message_id)
            if asked is not None:
                self._admit(asked, reply)

    def _admit(self, node: int, reply: Message) -> None:
        if reply.has_error():
            logger.warning("node %d did not say which device it is: %s", node, reply.error.reason)
            return
        record = reply.content.config_records.get(IDENTITY)
        device = record.get(PARTITION) if record is not None else None
        if isinstance(device, bool) or not isinstance(device, int) or not 0 <= device < self._devices:
            logger.warning(
                "node %d says it is device %r, and there are devices 0 to %d; ignored", node, device, self._devices - 1
            )
            return
        if device in self._node_of:
            logger.warning(
                "node %d says it is device %d, which node %d is already; ignored", node, device, self._node_of[device]
            )
            return
        self._node_of[device] = node
        self._device_of[node] = device

    def node(self, device: int) -> int | None:
        """The node of a device, or None while it is not connected."""
        return self._node_of.get(device)

    def present(self) -> list[int]:
        """The devices that are connected, ascending."""
        return sorted(self._node_of)

    def __len__(self) -> int:
        return len(self._node_of)
