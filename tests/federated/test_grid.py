"""The in-process Grid: it behaves as Flower's own for the apps, isolates devices, and its speed changes no number."""

from __future__ import annotations

import threading
import time

import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from federated.grid import InProcessGrid, copy_content


def make_app(work):
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return Message(work(message, context), reply_to=message)

    return app


def content(values=(1.0, 2.0)):
    return RecordDict(
        {"a": ArrayRecord({"v": Array(torch.tensor(values).numpy())}), "c": ConfigRecord({"tags": ["x"], "n": 1})}
    )


def ask(grid, nodes, record=None):
    record = record or content()
    return [grid.create_message(record, message_type="train", dst_node_id=node, group_id="1") for node in nodes]


def test_it_is_a_flower_grid_and_devices_find_their_partition():
    app = make_app(lambda m, c: RecordDict({"r": MetricRecord({"device": int(c.node_config["partition-id"])})}))
    with InProcessGrid(app, devices=5, workers=2) as grid:
        assert isinstance(grid, Grid)
        nodes = list(grid.get_node_ids())
        replies = grid.send_and_receive(ask(grid, nodes))
    assert len(set(nodes)) == 5
    assert [reply.content["r"]["device"] for reply in replies] == [0, 1, 2, 3, 4]
    assert [reply.metadata.src_node_id for reply in replies] == nodes


def test_replies_name_the_message_they_answer():
    with InProcessGrid(make_app(lambda m, c: content()), devices=3, workers=3) as grid:
        messages = ask(grid, list(grid.get_node_ids()))
        replies = grid.send_and_receive(messages)
    assert [r.metadata.reply_to_message_id for r in replies] == [m.metadata.message_id for m in messages]


def test_what_a_device_writes_into_its_message_reaches_nobody_else():
    def scribble(message: Message, context: Context) -> RecordDict:
        message.content["a"]["v"].data = b"scribbled"
        message.content["c"]["tags"].append("scribbled")
        message.content["c"]["n"] = 99
        return RecordDict()

    shared = content()
    with InProcessGrid(make_app(scribble), devices=4, workers=2) as grid:
        replies = grid.send_and_receive(ask(grid, list(grid.get_node_ids()), shared))
    assert not any(reply.has_error() for reply in replies)
    assert shared["a"]["v"].numpy().tolist() == [1.0, 2.0]
    assert shared["c"]["tags"] == ["x"] and shared["c"]["n"] == 1


def test_a_reply_is_a_copy_of_what_the_device_keeps():
    kept = content()
    with InProcessGrid(make_app(lambda m, c: kept), devices=1) as grid:
        (reply,) = grid.send_and_receive(ask(grid, grid.get_node_ids()))
    reply.content["c"]["tags"].append("server")
    assert kept["c"]["tags"] == ["x"]


def test_copied_content_equals_the_original():
    original = content()
    assert copy_content(original) == original


def test_a_device_that_raises_answers_an_error_and_the_others_go_on():
    def work(message: Message, context: Context) -> RecordDict:
        if context.node_config["partition-id"] == 1:
            raise ValueError("the photos are gone")
        return RecordDict()

    with InProcessGrid(make_app(work), devices=3) as grid:
        replies = grid.send_and_receive(ask(grid, grid.get_node_ids()))
    assert [reply.has_error() for reply in replies] == [False, True, False]
    assert "the photos are gone" in str(replies[1].error.reason)


def test_absent_devices_and_unknown_nodes_answer_errors():
    with InProcessGrid(
        make_app(lambda m, c: RecordDict()), devices=2, absent=lambda device, group: device == 0 and group == "1"
    ) as grid:
        replies = grid.send_and_receive(ask(grid, [2, 3, 77]))
    assert [reply.has_error() for reply in replies] == [True, False, True]


def test_state_of_a_device_lasts_between_messages():
    def count(message: Message, context: Context) -> RecordDict:
        seen = context.state.metric_records.get("seen", MetricRecord({"n": 0}))
        context.state["seen"] = MetricRecord({"n": int(seen["n"]) + 1})
        return RecordDict({"seen": context.state["seen"]})

    with InProcessGrid(make_app(count), devices=2) as grid:
        grid.send_and_receive(ask(grid, [2]))
        replies = grid.send_and_receive(ask(grid, [2, 3]))
    assert [reply.content["seen"]["n"] for reply in replies] == [2, 1]


def test_push_and_pull_without_waiting():
    release = threading.Event()

    def wait(message: Message, context: Context) -> RecordDict:
        release.wait(10)
        return RecordDict()

    with InProcessGrid(make_app(wait), devices=1) as grid:
        identifiers = grid.push_messages(ask(grid, [2]))
        assert grid.pull_messages(identifiers) == []
        release.set()
        deadline = time.monotonic() + 10
        while not (replies := grid.pull_messages(identifiers)) and time.monotonic() < deadline:
            time.sleep(0.005)
        assert len(replies) == 1
        assert grid.pull_messages(identifiers) == []


def test_a_timeout_returns_what_came_in_time():
    release = threading.Event()

    def wait(message: Message, context: Context) -> RecordDict:
        if context.node_config["partition-id"] == 1:
            release.wait(10)
        return RecordDict()

    with InProcessGrid(make_app(wait), devices=2, workers=2) as grid:
        replies = grid.send_and_receive(ask(grid, [2, 3]), timeout=0.3)
        release.set()
    assert [reply.metadata.src_node_id for reply in replies] == [2]


def test_workers_compute_with_one_thread_and_the_caller_keeps_its_own():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        seen: list[int] = []

        def look(message: Message, context: Context) -> RecordDict:
            seen.append(torch.get_num_threads())
            return RecordDict()

        with InProcessGrid(make_app(look), devices=2, workers=2) as grid:
            grid.send_and_receive(ask(grid, [2, 3]))
        assert seen == [1, 1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_closed_grid_says_so():
    grid = InProcessGrid(make_app(lambda m, c: RecordDict()), devices=1)
    grid.close()
    grid.close()
    with pytest.raises(RuntimeError, match="closed"):
        grid.send_and_receive(ask(grid, [2]))
