"""The grid that asks more often: the same replies as the grid beneath, in batches, within a deadline."""

from __future__ import annotations

import threading
import time

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

from federated import polling_grid
from federated.grid import InProcessGrid
from federated.polling_grid import PollingGrid


class Recording(InProcessGrid):
    """Notes how many messages each push carried; replaces nothing."""

    def push_messages(self, messages):
        messages = list(messages)
        self.__dict__.setdefault("pushes", []).append(len(messages))
        return super().push_messages(messages)


def make_app(work=lambda device: None):
    app = ClientApp()

    @app.train()
    def train(message, context):
        work(context.node_config["partition-id"])
        number = int(context.node_config["partition-id"])
        return Message(RecordDict({"c": ConfigRecord({"device": number})}), reply_to=message)

    return app


def ask(grid, nodes):
    return [grid.create_message(RecordDict(), message_type="train", dst_node_id=node, group_id="1") for node in nodes]


@pytest.fixture
def beneath():
    with Recording(make_app(), devices=7, workers=2) as grid:
        yield grid


def test_every_message_is_answered_once(beneath, monkeypatch):
    monkeypatch.setattr(polling_grid, "BATCH", 3)
    grid = PollingGrid(beneath)
    messages = ask(beneath, beneath.get_node_ids())
    replies = grid.send_and_receive(messages)
    assert sorted(reply.content["c"]["device"] for reply in replies) == list(range(7))
    answered = {reply.metadata.reply_to_message_id for reply in replies}
    assert answered == {message.metadata.message_id for message in messages}
    assert beneath.pushes == [3, 3, 1]


def test_a_reply_is_fetched_within_a_tenth_of_a_second(beneath):
    began = time.monotonic()
    PollingGrid(beneath).send_and_receive(ask(beneath, [2]))
    assert time.monotonic() - began < 1.0  # Flower's own would have slept 3 s


def test_late_replies_are_left_out_and_no_messages_take_no_time():
    release = threading.Event()
    with InProcessGrid(make_app(lambda device: device == 1 and release.wait(10)), devices=2, workers=2) as beneath:
        grid = PollingGrid(beneath)
        assert grid.send_and_receive([]) == []
        replies = grid.send_and_receive(ask(beneath, [2, 3]), timeout=0.3)
        release.set()
    assert [reply.content["c"]["device"] for reply in replies] == [0]
