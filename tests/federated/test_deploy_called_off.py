"""A node whose run ends while it receives a message is free for the next run at once."""

from __future__ import annotations

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.common.constant import Status
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run, RunNotRunningException
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode import start_client_internal
from flwr.supernode.nodestate import NodeStateFactory

from federated.deploy.called_off import tasks_end_with_their_message
from federated.deploy.control import bundle

RUN, NODE = 7, 3


@pytest.fixture
def stores(monkeypatch):
    for name, number in (("_run_id", RUN), ("_node_id", 1), ("_task_id", 1)):
        monkeypatch.setattr(TaskIdentity, name, number)
    objects = ObjectStoreFactory()
    state = NodeStateFactory(objects).state()
    state.set_node_id(NODE)
    return state, objects.store()


def receive(pull, stores, pull_object=None):
    """One look of Flower's own node for a message, whose objects come from ``pull_object`` (all at once)."""
    state, objects = stores
    message = Message(RecordDict({"facts": ConfigRecord({"round": 1})}), NODE, "train")
    message.metadata.__dict__["_message_id"] = message.object_id
    contents = {identifier: part.deflate() for identifier, part in get_all_nested_objects(message).items()}
    run = Run.create_empty(RUN)
    return pull(
        state=state,
        object_store=objects,
        node_config={},
        receive=lambda: (message, get_object_tree(message)),
        get_run=lambda number: run,
        get_fab=lambda digest, number: Fab("", bundle({"run-dir": "/r"}), {}),
        pull_object=pull_object or (lambda number, identifier: contents[identifier]),
        confirm_message_received=lambda number, identifier: None,
        trusted_entities=None,
    )


def unfinished(stores):
    return stores[0].get_tasks(statuses=[Status.PENDING, Status.STARTING, Status.RUNNING])


def gone(number, identifier):
    raise RunNotRunningException


def test_a_run_that_ends_while_its_message_comes_leaves_no_task_for_the_worker(stores):
    state, objects = stores
    pull = tasks_end_with_their_message(start_client_internal._pull_and_store_message)
    earlier = state.create_task(task_type="flwr-clientapp", run_id=RUN)
    assert receive(pull, stores, gone) is None
    assert [task.task_id for task in unfinished(stores)] == [earlier]  # one that is handing in its output is left alone
    assert not state.get_messages_legacy(is_reply=False) and len(objects) == 0


def test_flower_alone_leaves_the_task_and_a_received_message_keeps_its_own(stores):
    """Where the first half fails, Flower ends the task itself, and ours can go."""
    assert receive(start_client_internal._pull_and_store_message, stores, gone) is None
    assert len(unfinished(stores)) == 1
    pull = tasks_end_with_their_message(start_client_internal._pull_and_store_message)
    assert receive(pull, stores) == RUN
    assert len(unfinished(stores)) == 2
