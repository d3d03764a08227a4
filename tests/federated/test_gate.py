"""The gate: one bad reply is dropped and named, the others are used, and no reply is counted twice."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Error, Message, MetricRecord, RecordDict

from federated.gate import admit
from federated.grid import InProcessGrid
from federated.wire import DELTA, FACTS, UPDATE

D = 4


@pytest.fixture
def grid():
    with InProcessGrid(lambda message, context: message, devices=8) as made:
        yield made


def sent(grid, devices):
    messages = [
        grid.create_message(RecordDict(), message_type="train", dst_node_id=d + 2, group_id="1") for d in devices
    ]
    for number, message in enumerate(messages):
        message.metadata.__dict__["_message_id"] = f"m{number}"
    return messages, {f"m{number}": device for number, device in enumerate(devices)}


def good(message, value=1.0):
    arrays = ArrayRecord({DELTA: Array(np.full(D, value, np.float32))})
    return Message(RecordDict({UPDATE: arrays}), reply_to=message)


def with_array(message, array, name=DELTA):
    return Message(RecordDict({UPDATE: ArrayRecord({name: array})}), reply_to=message)


def lying(array, **changes):
    copied = Array(array.dtype, array.shape, array.stype, array.data)
    for name, value in changes.items():
        setattr(copied, name, value)
    return copied


HONEST = Array(np.ones(D, np.float32))
BAD = {
    "nan": lambda m: with_array(m, Array(np.array([1, np.nan, 1, 1], np.float32))),
    "infinite": lambda m: with_array(m, Array(np.array([1, np.inf, 1, 1], np.float32))),
    "wrong length": lambda m: with_array(m, Array(np.ones(D + 1, np.float32))),
    "wrong shape": lambda m: with_array(m, Array(np.ones((2, 2), np.float32))),
    "wrong type": lambda m: with_array(m, Array(np.ones(D, np.float64))),
    "wrong name": lambda m: with_array(m, HONEST, name="weights"),
    "no update": lambda m: Message(RecordDict(), reply_to=m),
    "two arrays": lambda m: Message(RecordDict({UPDATE: ArrayRecord({DELTA: HONEST, "x": HONEST})}), reply_to=m),
    "garbage bytes": lambda m: with_array(m, lying(HONEST, data=b"garbage")),
    "empty bytes": lambda m: with_array(m, lying(HONEST, data=b"")),
    "truncated bytes": lambda m: with_array(m, lying(HONEST, data=HONEST.data[:-3])),
    "other bytes than declared": lambda m: with_array(m, lying(Array(np.ones(D, np.float64)), dtype="float32")),
    "more bytes than declared": lambda m: with_array(m, lying(HONEST, data=HONEST.data + bytes(10_000))),
    "unknown serialisation": lambda m: with_array(m, lying(HONEST, stype="pickle")),
    "error": lambda m: Message(Error(2, "out of memory"), reply_to=m),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_reply_is_dropped_and_named_and_the_others_count(grid, kind):
    messages, asked = sent(grid, [3, 5, 6])
    admitted = admit([good(messages[0], 1.0), BAD[kind](messages[1]), good(messages[2], 2.0)], asked, D)
    assert list(admitted.updates) == [3, 6]
    assert torch.equal(admitted.updates[6], torch.full((D,), 2.0))
    assert [rejection.device for rejection in admitted.rejections] == [5]
    assert admitted.rejections[0].reason


def test_an_object_array_never_reaches_pickle(grid):
    messages, asked = sent(grid, [1])
    # A numpy file that says it holds objects would be unpickled by a careless reader.
    header = b"\x93NUMPY\x01\x00v\x00" + b"{'descr': '|O', 'fortran_order': False, 'shape': (4,), }".ljust(117) + b"\n"
    admitted = admit([with_array(messages[0], lying(HONEST, data=header + b"cos\nsystem\n"))], asked, D)
    assert not admitted.updates and "not what it declares" in admitted.rejections[0].reason


def test_order_of_arrival_does_not_matter(grid):
    messages, asked = sent(grid, [7, 0, 4])
    replies = [good(message, float(number)) for number, message in enumerate(messages)]
    assert list(admit(replies[::-1], asked, D).updates) == list(admit(replies, asked, D).updates) == [0, 4, 7]


def test_a_second_answer_and_an_uninvited_one_are_not_counted(grid):
    messages, asked = sent(grid, [2, 3])
    stranger, _ = sent(grid, [6])
    stranger[0].metadata.__dict__["_message_id"] = "elsewhere"
    admitted = admit([good(messages[0], 1.0), good(messages[0], 9.0), good(stranger[0], 9.0)], asked, D)
    assert {device: update.tolist() for device, update in admitted.updates.items()} == {2: [1.0] * D}
    assert sorted(rejection.device for rejection in admitted.rejections) == [-1, 2, 3]


def test_a_device_that_does_not_answer_is_named(grid):
    _, asked = sent(grid, [2, 3])
    assert [rejection.device for rejection in admit([], asked, D).rejections] == [2, 3]


def test_the_sender_is_told_by_the_message_it_answers_and_not_by_its_claim(grid):
    messages, asked = sent(grid, [2, 3])
    forged = good(messages[0])
    forged.metadata.__dict__["_src_node_id"] = messages[1].metadata.dst_node_id
    assert list(admit([forged], asked, D).updates) == [2]


def test_losses_are_taken_only_where_they_are_numbers(grid):
    messages, asked = sent(grid, [0, 1, 2])
    replies = [good(message) for message in messages]
    replies[0].content[FACTS] = MetricRecord({"loss": 1.5})
    replies[1].content[FACTS] = MetricRecord({"loss": float("nan")})
    admitted = admit(replies, asked, D)
    assert admitted.losses == (1.5,) and len(admitted.updates) == 3


def test_nothing_in_a_reply_weighs_it(grid):
    messages, asked = sent(grid, [3, 5, 6])
    replies = [good(message) for message in messages]
    replies[1].content[FACTS] = MetricRecord({"loss": 1.0, "num-examples": 10**9})
    replies[2].content["metrics"] = MetricRecord({"num-examples": 10**9})
    admitted = admit(replies, asked, D)
    assert list(admitted.updates) == [3]
    assert [rejection.device for rejection in admitted.rejections] == [5, 6]
    assert all("nothing weighs" in rejection.reason for rejection in admitted.rejections)


def test_an_update_longer_than_the_bound_is_dropped_and_named(grid):
    messages, asked = sent(grid, [3, 5])
    replies = [good(messages[0], 1.0), good(messages[1], 1e6)]
    assert list(admit(replies, asked, D, most_norm=10.0).updates) == [3]
    assert "at most 10" in admit(replies, asked, D, most_norm=10.0).rejections[0].reason
    assert list(admit(replies, asked, D).updates) == [3, 5]
    assert list(admit([good(messages[1], 3e38)], {"m1": 5}, D, most_norm=10.0).updates) == []  # its square overflows
