"""What a device keeps to itself lies on its own disk: a node that restarts goes on as if nothing had been."""

from __future__ import annotations

import copy
import stat

import deployments
import pytest
import torch
from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from federated import wire
from federated.accounts import LEDGER
from federated.bench import Bench
from federated.client_app import client_app
from federated.deploy import loopback, supernode
from federated.deploy.certificates import DeploymentError
from federated.deploy.credentials import create, open_node
from federated.deploy.programs import free_port, stopped_afterwards
from federated.device_store import DeviceStore, store_of_node
from federated.runtimes import on_deployment
from federated.strategy import Interrupted
from privacy.ledger import Ledger


def test_a_run_is_told_from_others_by_its_settings_and_its_place(tmp_path):
    node = {"store": str(tmp_path)}
    folders = {
        store_of_node(node, fingerprint, run_dir).folder for fingerprint in "ab" for run_dir in ("/run/1", "/run/2")
    }
    assert len(folders) == 4 and all(folder.is_relative_to(tmp_path / "runs") for folder in folders)
    assert store_of_node(node, "a", "/run/1").folder == store_of_node(node, "a", "/run/1").folder
    assert store_of_node({}, "a", "/run/1") is None
    with pytest.raises(ValueError, match="absolute path"):
        store_of_node({"store": "here"}, "a", "/run/1")


def test_a_run_that_begins_anew_does_not_find_what_was_left_of_later_rounds(tmp_path):
    store, vectors = DeviceStore(tmp_path), torch.eye(8)
    for number in range(6):
        store.save(3, "residual", number, vectors[number])
    store.save(3, "residual", 0, vectors[7])  # the same folder, from the first round again
    assert torch.equal(store.load(3, "residual", before=6, dimension=8), vectors[7])
    store.save(3, "residual", 1, vectors[6])
    assert torch.equal(store.load(3, "residual", before=1, dimension=8), vectors[7])


def updates(model, feeder, settings, node_config, *, restarts):
    """What one device answers in four rounds; with ``restarts`` its process and its state are new in each."""

    def start():
        app = client_app(
            lambda context: Bench(
                copy.deepcopy(model),
                feeder,
                settings,
                store=store_of_node(context.node_config, settings.fingerprint(), "/run"),
            )
        )
        state = Context(run_id=1, node_id=2, node_config=node_config, state=RecordDict(), run_config={})
        return app, state

    app, context = start()
    bench = Bench(copy.deepcopy(model), feeder, settings)
    found = []
    for number in range(4):
        if restarts:
            app, context = start()
        content = wire.request(wire.to_array(bench.adapters.read()), number, bench.adapters.layout())
        message = Message(content, 2, wire.TRAIN, group_id=str(number + 1))
        message.metadata.__dict__["_message_id"] = message.object_id
        answer = app(message, context)
        found.append(bytes(answer.content.array_records[wire.UPDATE][wire.DELTA].data))
    return found


def test_the_rests_of_topk_survive_a_nodes_restart(tiny_model, tiny_feeder, tiny_settings, tmp_path, monkeypatch):
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)
    settings = tiny_settings.model_copy(update={"codec": "topk"})
    facts = {"partition-id": 1, "num-partitions": 20}
    undisturbed = updates(tiny_model, tiny_feeder, settings, facts, restarts=False)
    kept = updates(tiny_model, tiny_feeder, settings, facts | {"store": str(tmp_path)}, restarts=True)
    assert kept == undisturbed
    forgotten = updates(tiny_model, tiny_feeder, settings, facts, restarts=True)
    assert forgotten[0] == undisturbed[0] and forgotten != undisturbed


def test_a_nodes_configuration_names_its_store_and_its_keys_and_its_owner_may_say_otherwise(tmp_path):
    from flwr.common.config import parse_config_args

    node = open_node(create(tmp_path / "my fleet", host="127.0.0.1", port=1, nodes=2).node(1))
    found = parse_config_args([supernode.configuration(node)])
    assert found == {
        "partition-id": 1,
        "num-partitions": 2,
        "data": "scenes",
        "store": str(node.folder / "store"),
        "book": str(node.folder / "store" / "ledger"),
        "identity": str(node.identity),
        "directory": str(node.directory),
    }
    own = parse_config_args([supernode.configuration(node, "data='/photos' epsilon=2.0", tmp_path / "other")])
    assert (own["data"], own["epsilon"], own["store"]) == ("/photos", 2.0, str(tmp_path / "other"))
    node.identity.unlink()  # of a deployment that an older mmslm made
    assert "identity" not in parse_config_args([supernode.configuration(node)])
    with pytest.raises(DeploymentError, match="quote"):
        supernode.setting(tmp_path / "it's")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("changes", [{"codec": "topk"}, {"trust": "device"}], ids=["topk", "on-device ledger"])
def test_nodes_that_are_killed_between_two_rounds_end_the_run_as_undisturbed_ones(changes, tiny_base, tmp_path):
    settings = deployments.settings(rounds=5, **changes)
    here = deployments.in_process(settings, tiny_base, tmp_path / "here")
    deployment = create(tmp_path / "d", host="127.0.0.1", port=free_port(), nodes=2)
    work = deployments.work(settings, tiny_base, tmp_path / "there")

    def stop(seen):
        if seen.round == 2:
            raise KeyboardInterrupt

    with stopped_afterwards([]) as running:
        running.append(loopback.start_superlink(deployment))
        loopback.wait_for_superlink(deployment, running)
        loopback.register_all(deployment)
        nodes = loopback.start_nodes(deployment, range(2))
        running.append(nodes)
        with pytest.raises(Interrupted):
            on_deployment(work, deployment, wait_for=2, progress=stop)
        nodes.kill()  # node and worker, as devices that lose their power
        running.append(loopback.start_nodes(deployment, range(2)))
        there = on_deployment(work, deployment, wait_for=2)
    assert torch.equal(there.vector, here.vector)
    assert there.history == here.history and there.epsilon == here.epsilon
    for number in range(2):
        store = open_node(deployment.node(number)).store
        assert stat.S_IMODE(store.stat().st_mode) == 0o700
        if "codec" in changes:
            assert list((store / "runs").rglob("residual-*.safetensors"))
        else:
            ledger = Ledger.open(store / "ledger" / f"device-{number:06d}.jsonl")
            theirs = Ledger.open(tmp_path / "here" / "devices" / f"device-{number:06d}.jsonl")
            assert ledger.steps() == theirs.steps()  # each step paid once
            assert not (tmp_path / "there" / LEDGER).exists()  # nothing of it on the server
