"""Personal adapters stay on the device, survive restarts, and answer the same round the same way twice."""

from __future__ import annotations

import copy

import pytest
import torch

from federated.bench import Bench
from federated.device_store import DeviceStore, DeviceStoreError
from federated.personal import Personal, PersonalConfig
from federated.simulation import simulate
from federated.strategy import Interrupted
from federated.vector import AdapterVector
from mmslm.training import local_update

FEDPER = PersonalConfig(kind="fedper", names=("b",))
DITTO = PersonalConfig(kind="ditto", strength=0.3, steps=2, learning_rate=0.2)


@pytest.fixture
def bench(tiny_model, tiny_feeder, tiny_settings, tmp_path):
    def make(config=None, folder="devices", **changes):
        model = copy.deepcopy(tiny_model)
        store = DeviceStore(tmp_path / folder)
        adapters = AdapterVector(model.adapter_parameters())
        personal = Personal(config, store, adapters) if config else None
        settings = type(tiny_settings).model_validate(tiny_settings.model_dump() | changes)
        return Bench(model, tiny_feeder, settings, personal=personal, store=store)

    return make


def start_of(made):
    return made.adapters.read()


def test_fedper_keeps_its_part_on_the_device_and_sends_the_rest(bench):
    made = bench(FEDPER)
    start = start_of(made)
    update, _ = made.train(3, 0, start)
    assert torch.equal(update[made.personal.own], torch.zeros(16))
    assert update[~made.personal.own].abs().sum() > 0
    kept = made.store.load(3, "personal", before=1, dimension=32)
    assert kept[made.personal.own].abs().sum() > 0
    later, _ = made.train(3, 1, start)
    assert later[~made.personal.own].abs().sum() > 0 and torch.equal(later[made.personal.own], torch.zeros(16))


def test_ditto_sends_what_a_plain_device_sends_and_trains_its_own_by_the_formula(bench, tiny_model, tiny_feeder):
    made, plain = bench(DITTO), bench()
    start = start_of(made)
    assert torch.equal(made.train(5, 2, start)[0], plain.train(5, 2, start)[0])
    model = copy.deepcopy(tiny_model)
    adapters = AdapterVector(model.adapter_parameters())
    own, batches = start.clone(), tiny_feeder.batches(model, 5, 2)
    for _ in range(2):
        adapters.write(own)
        local_update(model, batches, adapters.parameters, steps=1, learning_rate=0.2)
        own = adapters.read() - 0.2 * 0.3 * (own - start)
    assert torch.allclose(made.store.load(5, "personal", before=3, dimension=32), own)


def test_personal_adapters_fit_their_device_better_than_shared_ones(bench):
    made, plain = bench(PersonalConfig(kind="ditto", strength=0.01, steps=1, learning_rate=0.5)), bench(local_steps=1)
    shared = start_of(made)
    for number in range(40):
        made.train(7, number, shared)
    fresh = range(90, 98)  # batches that it never trained on
    assert sum(made.evaluate(7, n, shared) for n in fresh) < sum(plain.evaluate(7, n, shared) for n in fresh) - 0.2
    assert made.evaluate(8, 90, shared) == plain.evaluate(
        8, 90, shared
    )  # who has none of its own takes the shared ones


@pytest.mark.parametrize("config", [FEDPER, DITTO])
def test_a_round_asked_again_is_answered_the_same_also_after_a_restart(bench, config):
    first = bench(config)
    start = start_of(first)
    first.train(2, 0, start)
    once = first.train(2, 1, start)[0]
    kept = first.store.load(2, "personal", before=2, dimension=32)
    again = bench(config)  # a new process over the same folder
    assert torch.equal(again.train(2, 1, start)[0], once)
    assert torch.equal(again.store.load(2, "personal", before=2, dimension=32), kept)


def test_nothing_personal_travels_and_each_device_has_a_private_folder(bench, tmp_path):
    made = bench(FEDPER)
    for device in (1, 4):
        made.train(device, 0, start_of(made))
    homes = sorted((tmp_path / "devices").iterdir())
    assert [home.name for home in homes] == ["000001", "000004"]
    assert all(home.stat().st_mode & 0o077 == 0 for home in homes)
    assert not list((tmp_path / "devices").rglob("*.tmp"))


def test_names_that_make_nothing_or_all_personal_are_refused(bench):
    for names, says in ((("c",), "none"), (("a", "b"), "all")):
        with pytest.raises(ValueError, match=says):
            bench(PersonalConfig(kind="fedper", names=names))
    with pytest.raises(ValueError, match="needs names"):
        PersonalConfig(kind="fedper")


def test_a_damaged_file_and_one_of_another_length_are_refused(tmp_path):
    store = DeviceStore(tmp_path)
    store.save(1, "personal", 3, torch.ones(4))
    with pytest.raises(DeviceStoreError, match="another run"):
        store.load(1, "personal", before=4, dimension=5)
    (tmp_path / "000001" / "personal-000003.safetensors").write_bytes(b"x" * 40)
    with pytest.raises(DeviceStoreError, match="remove it"):
        store.load(1, "personal", before=4, dimension=4)


def test_only_the_newest_two_are_kept(tmp_path):
    store = DeviceStore(tmp_path)
    for number in (0, 4, 11):
        store.save(1, "rest", number, torch.full((2,), float(number)))
    assert len(list((tmp_path / "000001").iterdir())) == 2
    assert [store.load(1, "rest", before=b, dimension=2)[0].item() for b in (5, 12)] == [4.0, 11.0]
    assert store.load(1, "rest", before=4, dimension=2) is None


def test_the_rests_of_topk_survive_a_stop_bit_for_bit(tiny_model, tiny_feeder, tiny_settings, tmp_path):
    settings = tiny_settings.model_copy(update={"codec": "topk", "workers": 1})

    def run(name, progress=None):
        model = copy.deepcopy(tiny_model)
        return simulate(settings, model=model, feeder=tiny_feeder, run_dir=tmp_path / name, progress=progress)

    def stop(facts):
        if facts.round == 3:
            raise KeyboardInterrupt

    whole = run("whole")
    with pytest.raises(Interrupted):
        run("cut", stop)
    assert torch.equal(run("cut").vector, whole.vector)
    assert list((tmp_path / "cut-devices").rglob("residual-*.safetensors"))
    assert not list((tmp_path / "cut").rglob("residual-*"))
