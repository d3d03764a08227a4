"""Secure sums through the real rounds: exact in the ring, whoever drops; nothing replayed, swapped or forged is believed."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Error, Message
from flwr.common.constant import ErrorCode

from federated import secure_wire as sw
from federated import wire
from federated.accounts import LEDGER
from federated.bench import Bench
from federated.bounded import planned_bounded_noise
from federated.client_app import client_app
from federated.grid import InProcessGrid
from federated.secure_aggregation import Identity
from federated.secure_aggregation.keys import KeysInProcess, KeysOnDisk, write_identities
from federated.secure_aggregation.plan import SecurePlan
from federated.server_optimiser import ServerOptimiser
from federated.strategy import Job, Rounds, RunFailed
from federated.vector import AdapterVector
from mmslm.training import local_update
from privacy.ledger import Ledger

SECURE = {
    "trust": "secure_aggregation",
    "participation": "bounded",
    "sampling_rate": 0.25,  # five of twenty
    "rounds": 4,
    "bounded": {"min_separation": 2, "max_participations": 2},
}


@pytest.fixture
def settings(tiny_settings):
    def make(**changes):
        return type(tiny_settings).model_validate(tiny_settings.model_dump() | SECURE | changes)

    return make


class TamperingGrid(InProcessGrid):
    """A server, or a network, that changes messages: ``change(kind, device, content)`` before they reach the device."""

    change = staticmethod(lambda kind, device, content: None)
    answer = staticmethod(lambda kind, device, reply: reply)

    def _deliver(self, message):
        device, kind = message.metadata.dst_node_id - 2, message.metadata.message_type
        try:
            self.change(kind, device, message.content)
        except ConnectionError as error:
            return Message(Error(ErrorCode.NODE_UNAVAILABLE, str(error)), reply_to=message)
        reply = super()._deliver(message)
        return reply if reply.has_error() else self.answer(kind, device, reply)


@pytest.fixture
def run(tiny_model, tiny_feeder, tmp_path):
    """run(settings, change=, answer=, absent=) -> (result, what the server and operator saw)"""

    def start(settings, name="run", *, change=None, answer=None, absent=None, keys=None):
        model = copy.deepcopy(tiny_model)
        adapters = AdapterVector(model.adapter_parameters())
        facts = []
        job = Job(settings, adapters.read(), adapters.layout(), tmp_path / name, progress=facts.append)
        keys = keys or KeysInProcess(settings.seed)
        app = client_app(lambda _: Bench(model, tiny_feeder, settings), lambda _: keys)
        with TamperingGrid(app, devices=settings.households, workers=1, absent=absent) as grid:
            grid.change = change or grid.change
            grid.answer = answer or grid.answer
            return Rounds(grid, job).run(), facts

    return start


def expected(model, feeder, settings, contributors):
    """The same run in the clear: what each device clips, rounds and noises, summed as integers."""
    adapters = AdapterVector(copy.deepcopy(model).adapter_parameters())
    model = copy.deepcopy(model)
    adapters = AdapterVector(model.adapter_parameters())
    vector = adapters.read()
    optimiser = ServerOptimiser(settings.server, adapters.dimension)
    plan = SecurePlan.of(settings, planned_bounded_noise(settings), adapters.dimension)
    for number, devices in enumerate(contributors):
        total = np.zeros(adapters.dimension, dtype=np.uint32)
        for device in devices:
            adapters.write(vector)
            local_update(
                model,
                feeder.batches(model, device, number),
                adapters.parameters,
                steps=settings.local_steps,
                learning_rate=settings.local_learning_rate,
            )
            update = (adapters.read() - vector).double().numpy()
            total += plan.ring.encode(update) + plan.noise((settings.seed, device, number)).astype(np.uint32)
        mean = torch.from_numpy(plan.ring.decode(total)) / settings.divisor
        vector = optimiser.step(vector, mean.to(torch.float32))
    return vector


def watching(seen):
    """Remembers which devices sent a masked vector in each round."""

    def answer(kind, device, reply):
        if kind == sw.MASKED:
            seen.setdefault(int(reply.metadata.group_id) - 1, []).append(device)
        return reply

    return answer


def test_the_rounds_give_the_sum_of_clipped_rounded_noised_updates_bit_for_bit(run, settings, tiny_model, tiny_feeder):
    seen: dict[int, list[int]] = {}
    result, facts = run(settings(), answer=watching(seen))
    assert [len(devices) for devices in seen.values()] == [5] * 4
    assert torch.equal(result.vector, expected(tiny_model, tiny_feeder, settings(), list(seen.values())))
    assert all(fact.answered == 5 and not fact.rejections for fact in facts)


@pytest.mark.parametrize("stage", [sw.ADVERTISE, sw.SHARE, sw.MASKED, sw.CONFIRM, sw.UNMASK])
def test_a_device_may_drop_at_every_stage(run, settings, tiny_model, tiny_feeder, stage):
    seen: dict[int, list[int]] = {}
    dropped = {}

    def change(kind, device, content):
        number = content.config_records[sw.SECURE]["number"] if sw.SECURE in content else None
        if kind == stage and dropped.setdefault(number, device) == device:
            raise ConnectionError("the battery is empty")

    result, facts = run(settings(rounds=2, bounded={}), change=change, answer=watching(seen))
    there = 4 if stage in (sw.ADVERTISE, sw.SHARE, sw.MASKED) else 5
    assert [len(devices) for devices in seen.values()] == [there] * 2
    assert torch.equal(
        result.vector, expected(tiny_model, tiny_feeder, settings(rounds=2, bounded={}), list(seen.values()))
    )
    assert {r.device for r in facts[0].rejections} == {dropped[0]}


def test_too_few_devices_give_no_sum_and_the_next_cohort_is_tried(run, settings):
    def change(kind, device, content):
        if kind == sw.MASKED and device in (0, 3):
            raise ConnectionError("gone")

    result, _facts = run(settings(rounds=2, bounded={}), change=change)
    assert result.lost == () and len(result.history) == 2  # the first cohort held both, another one took its place


def test_when_nobody_stays_the_run_stops_and_nothing_was_revealed(run, settings, tmp_path):
    def change(kind, device, content):
        if kind == sw.CONFIRM:
            raise ConnectionError("gone")

    with pytest.raises(RunFailed, match="nothing was revealed"):
        run(settings(), change=change)
    assert Ledger.open(tmp_path / "run" / LEDGER).events() == []


def test_a_sum_that_cannot_be_unmasked_is_paid_and_lost_and_the_run_goes_on(run, settings, tmp_path):
    def change(kind, device, content):
        if kind == sw.UNMASK and content.config_records[sw.SECURE]["number"] == 1:
            raise ConnectionError("gone")

    result, _ = run(settings(), change=change)
    assert result.lost == (1,) and len(result.history) == 4
    assert len(Ledger.open(tmp_path / "run" / LEDGER).events()) == 1


def test_a_secure_run_resumes_bit_for_bit(run, settings, tmp_path, monkeypatch):
    from federated.checkpoint import Checkpoints

    whole, _ = run(settings(), "whole")
    original = Checkpoints.save

    def save(self, state):
        if state.rounds_done == 3:
            monkeypatch.setattr(Checkpoints, "save", original)
            raise OSError(28, "No space left on device")
        return original(self, state)

    monkeypatch.setattr(Checkpoints, "save", save)
    with pytest.raises(OSError, match="No space"):
        run(settings(), "cut")
    resumed, _ = run(settings(), "cut")
    assert torch.equal(resumed.vector, whole.vector) and resumed.lost == ()


# What is not believed


def old_message(kind, kept):
    """Sends a device, in the second round, what it was sent in the first."""

    def change(message_kind, device, content):
        if message_kind == kind:
            kept.setdefault(kind, content.copy())
            for name in list(content):
                content[name] = kept[kind][name]

    return change


@pytest.mark.parametrize("kind", [sw.ADVERTISE, sw.SHARE, sw.MASKED, sw.CONFIRM, sw.UNMASK])
def test_a_replayed_message_of_another_round_is_refused(run, settings, kind):
    kept = {}
    with pytest.raises(RunFailed) if kind != sw.UNMASK else pytest.raises(AssertionError):
        result, _facts = run(settings(rounds=2, bounded={}, secure={"attempts": 1}), change=old_message(kind, kept))
        assert result.lost == ()  # unmasking happens after paying: the round is lost, not the run


def test_swapped_post_and_forged_survivors_are_refused(run, settings):
    letters = {}

    def swap(kind, device, content):
        if kind == sw.MASKED:
            record = content.config_records[sw.SECURE]
            if letters:
                record["post"] = letters["post"]
            letters.setdefault("post", record["post"])

    result, facts = run(settings(rounds=1, bounded={}), "swapped", change=swap)
    refused = [r.reason for r in facts[0].rejections]
    assert result.lost == (0,) and any("altered, swapped or replayed" in reason for reason in refused)

    def forge(kind, device, content):
        record = content.config_records.get(sw.SECURE)
        if kind == sw.CONFIRM and device % 2:
            record["survivors"] = record["survivors"][4:]  # tells half of them that the first one dropped

    with pytest.raises((RunFailed, AssertionError)):
        result, _ = run(settings(rounds=1, bounded={}, secure={"attempts": 1}), "forged", change=forge)
        assert result.lost == ()


def test_a_device_the_server_invented_is_refused(run, settings):
    invented = Identity()

    def answer(kind, device, reply):
        if kind == sw.ADVERTISE and device == min(devices):
            record = reply.content.config_records[sw.SECURE]
            record["identity"] = invented.public  # the server puts its own keys in a device's place
            data = record["adverts"]
            record["adverts"] = data[:64] + invented.sign(b"anything")
        return reply

    devices = {0, 3, 8, 13, 14}
    # The server here checks honestly, and drops it; a lying one is caught by the devices (test_secure_aggregation).
    result, facts = run(settings(rounds=1, bounded={}), answer=answer)
    assert any("not signed" in r.reason for r in facts[0].rejections) and result.lost == ()


def test_a_device_keeps_its_own_count_and_turns_a_greedy_server_away(tiny_model, tiny_feeder, settings):
    """A server that asks one device in every round is refused by the device, whatever the server's own books say."""
    wanted = settings(bounded={"min_separation": 2, "max_participations": 2})
    keys = KeysInProcess(3)
    app = client_app(lambda _: Bench(copy.deepcopy(tiny_model), tiny_feeder, wanted), lambda _: keys)
    members = np.arange(4, dtype="<u4").tobytes()
    with InProcessGrid(app, devices=5) as grid:

        def ask(number, session):
            content = sw.content(session, number, members=members)
            (reply,) = grid.send_and_receive([grid.create_message(content, sw.ADVERTISE, 2, "1")])
            return reply

        assert not ask(0, b"a" * 32).has_error()
        assert "replayed" in ask(0, b"a" * 32).error.reason
        book = {"rounds": np.array([0, 2], dtype="<u4").tobytes(), "sessions": b""}
        grid._contexts[0].state["secure.book"] = ConfigRecord(book)
        assert "2 of 2 sums" in ask(5, b"b" * 32).error.reason
        grid._contexts[0].state["secure.book"] = ConfigRecord({"rounds": book["rounds"][:4], "sessions": b""})
        assert "must lie between" in ask(1, b"c" * 32).error.reason
        assert not ask(2, b"d" * 32).has_error()
        few = sw.content(b"e" * 32, 3, members=np.arange(2, dtype="<u4").tobytes())
        (reply,) = grid.send_and_receive([grid.create_message(few, sw.ADVERTISE, 2, "1")])
        assert "over 4 to 5" in reply.error.reason
        update = wire.request(wire.to_array(torch.zeros(32)), 0, "layout")
        (reply,) = grid.send_and_receive([grid.create_message(update, wire.TRAIN, 2, "1")])
        assert "sums securely" in reply.error.reason


def test_no_secret_is_left_on_a_device_after_its_session(run, settings, monkeypatch):
    kept = []
    original = InProcessGrid.close
    monkeypatch.setattr(InProcessGrid, "close", lambda grid: (kept.append(dict(grid._contexts)), original(grid))[1])
    run(settings(rounds=1, bounded={}))
    assert kept and all("secure.session" not in context.state for context in kept[0].values())


# Identities


def test_identities_on_disk_are_private_and_checked(tmp_path):
    written = write_identities(tmp_path / "keys", [0, 1, 2])
    keys = KeysOnDisk(written[1], tmp_path / "keys" / "directory.json")
    assert keys.public([1])[1] == keys.identity(1).public
    with pytest.raises(ValueError, match="another key for device 0"):
        keys.identity(0)
    with pytest.raises(ValueError, match="does not list"):
        keys.public([7])
    with pytest.raises(FileExistsError):
        write_identities(tmp_path / "keys", [1])
    written[1].chmod(0o644)
    with pytest.raises(ValueError, match="chmod 600"):
        KeysOnDisk(written[1], tmp_path / "keys" / "directory.json")


def test_a_node_without_an_identity_is_refused_in_a_real_run(tiny_model, tiny_feeder, settings):
    real = settings(noise="secure")
    app = client_app(lambda _: Bench(copy.deepcopy(tiny_model), tiny_feeder, real))
    with InProcessGrid(app, devices=5) as grid:
        content = sw.content(b"a" * 32, 0, members=np.arange(5, dtype="<u4").tobytes())
        (reply,) = grid.send_and_receive([grid.create_message(content, sw.ADVERTISE, 2, "1")])
    assert "no identity" in reply.error.reason
