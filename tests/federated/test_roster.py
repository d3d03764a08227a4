"""The roster: nodes are known by the device that they say they are, once each, and may come late."""

from __future__ import annotations

import logging

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from federated.grid import InProcessGrid
from federated.roster import Roster, introduce


def grid_of(claims):
    """A grid whose node i claims to be device ``claims[i]``; None claims nothing that could be a device."""
    app = ClientApp()

    @app.query("identity")
    def identity(message: Message, context: Context) -> Message:
        claim = claims[context.node_config["partition-id"]]
        if isinstance(claim, int):
            context.node_config = {"partition-id": claim}
            return introduce(message, context)
        return Message(RecordDict({"identity": ConfigRecord({"partition-id": "five"})}), reply_to=message)

    return InProcessGrid(app, devices=len(claims))


def test_nodes_are_found_by_their_device_whatever_their_order():
    with grid_of([2, 0, 1]) as grid:
        roster = Roster(grid, 3)
        roster.refresh()
        nodes = grid.get_node_ids()
    assert [roster.node(device) for device in (0, 1, 2)] == [nodes[1], nodes[2], nodes[0]]


def test_a_second_claim_to_one_device_is_ignored_and_named(caplog):
    with grid_of([1, 1, 0]) as grid, caplog.at_level(logging.WARNING):
        roster = Roster(grid, 3)
        roster.refresh()
        nodes = grid.get_node_ids()
    assert roster.node(1) == nodes[0] and len(roster) == 2
    assert str(nodes[1]) in caplog.text and "already" in caplog.text


def test_claims_that_are_no_device_are_ignored():
    with grid_of([7, None, 0]) as grid:
        roster = Roster(grid, 3)
        roster.refresh()
    assert len(roster) == 1 and roster.node(0) is not None


def test_late_nodes_are_asked_and_gone_ones_forgotten():
    with grid_of([0, 1, 2]) as grid:
        everybody = grid.get_node_ids()
        present = everybody[:1]
        grid.get_node_ids = lambda: present
        roster = Roster(grid, 3)
        roster.refresh()
        assert len(roster) == 1
        present = everybody[1:]
        roster.refresh()
    assert roster.node(0) is None and len(roster) == 2
