"""Devices and their photos: the same photos and batches everywhere, cached features equal encoded pictures."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from federated.devices import PhotoFeeder, PhotosByOwner, SceneHouseholds, check_population
from federated.job import adapted_model, base_directory
from federated.settings import AdapterConfig, FederatedConfig
from federated.simulation import train_on_photos
from mmslm.data.collate import Collator, draw_turns
from mmslm.training import sample_losses
from privacy.ledger import Ledger


def settings(**changes):
    given = {
        "households": 12,
        "rounds": 3,
        "sampling_rate": 0.4,
        "photos_per_household": 3,
        "local_batch": 2,
        "seed": 5,
    }
    given |= {"delta": 1e-2, "epsilon": 60.0, "noise_multiplier": 1.0, "accountant": "rdp", "noise": "simulation"}
    given |= {"local_learning_rate": 0.5, "adapters": AdapterConfig(rank=2)}
    return FederatedConfig(**(given | changes))


@pytest.fixture(scope="module")
def loaded(tiny_base):
    return adapted_model(tiny_base, settings())


def test_a_household_holds_the_same_photos_every_time():
    one, other = SceneHouseholds(3, 2, seed=1), SceneHouseholds(3, 2, seed=1)
    assert [photo.id for photo in one.photos(2)] == [photo.id for photo in other.photos(2)]
    assert one.photos(2)[0].image(32).tobytes() == other.photos(2)[0].image(32).tobytes()
    assert len({photo.owner for device in range(3) for photo in one.photos(device)}) == 3


def test_held_out_households_are_others():
    trained, held_out = SceneHouseholds(3, 1, seed=1), SceneHouseholds(3, 1, seed=1, first=3)
    owners = [{photo.owner for device in range(3) for photo in homes.photos(device)} for homes in (trained, held_out)]
    assert not owners[0] & owners[1]


@dataclass(frozen=True)
class Snapshot:
    id: str
    owner: str


def test_real_photos_go_to_their_owners_and_none_is_lost_or_shared():
    photos = [Snapshot(f"p{i}", f"owner {i % 4}") for i in range(18)]
    homes = PhotosByOwner(photos)
    held = [photo.id for device in range(homes.size) for photo in homes.photos(device)]
    assert homes.size == 4 and sorted(held) == sorted(photo.id for photo in photos)
    assert all(len({photo.owner for photo in homes.photos(device)}) == 1 for device in range(4))
    shuffled = PhotosByOwner(photos[::-1])
    assert all(homes.photos(device) == shuffled.photos(device) for device in range(4))


def test_too_few_devices_and_unknown_ones_are_refused(tmp_path, tiny_base):
    with pytest.raises(ValueError, match="count on 12 households and the data has 5"):
        check_population(SceneHouseholds(5, 2), settings())
    with pytest.raises(ValueError, match="no device 7"):
        SceneHouseholds(5, 2).photos(7)
    with pytest.raises(ValueError, match="no photos"):
        PhotosByOwner([])
    with pytest.raises(ValueError, match="count on"):
        train_on_photos(settings(), base=tiny_base, population=SceneHouseholds(5, 2), run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_missing_base_model_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        base_directory(tmp_path)


def test_cached_features_give_the_losses_of_encoded_pictures(loaded):
    model, processor = loaded
    chosen = settings(local_batch=3)
    feeder = PhotoFeeder(SceneHouseholds(12, 3), processor, chosen)
    (batch,) = feeder.batches(model, 4, 1)
    photos = SceneHouseholds(12, 3).photos(4)
    seed = chosen.seed * 1_000_003 + 4
    items = [(photo, draw_turns(photo, chosen.turns_per_photo, seed=seed, epoch=1)) for photo in photos]
    oracle = Collator(processor)(items)  # pictures, mask and padding as in central training
    with torch.no_grad():
        torch.testing.assert_close(sample_losses(model, batch), sample_losses(model, oracle), rtol=1e-5, atol=1e-5)


def test_batches_depend_on_device_and_round_and_nothing_else(loaded):
    model, processor = loaded
    one = PhotoFeeder(SceneHouseholds(12, 3), processor, settings())
    other = PhotoFeeder(SceneHouseholds(12, 3), processor, settings())
    other.batches(model, 9, 5)
    first, again = one.batches(model, 4, 1), other.batches(model, 4, 1)
    assert [len(batch["input_ids"]) for batch in first] == [2, 1]
    assert all(torch.equal(a[key], b[key]) for a, b in zip(first, again, strict=True) for key in a)
    next_round = one.batches(model, 4, 2)
    assert any(a["input_ids"].shape != b["input_ids"].shape or not torch.equal(a["input_ids"], b["input_ids"])
               for a, b in zip(first, next_round, strict=True))  # fmt: skip


def test_a_forgotten_device_is_encoded_again_with_equal_results(loaded):
    model, processor = loaded
    small = PhotoFeeder(SceneHouseholds(12, 3), processor, settings(), cache_bytes=1)
    large = PhotoFeeder(SceneHouseholds(12, 3), processor, settings())
    before = small.held(model, 0).inputs.clone()
    small.held(model, 1)
    assert list(small._held) == [1]
    assert torch.equal(small.held(model, 0).inputs, before) and torch.equal(large.held(model, 0).inputs, before)


def test_experts_before_the_decoder_are_trained_from_pixels(tiny_base):
    chosen = settings(adapters=AdapterConfig(rank=2, include=("decoder", "projector")))
    model, processor = adapted_model(tiny_base, chosen)
    batch = PhotoFeeder(SceneHouseholds(12, 3), processor, chosen).batches(model, 0, 0)[0]
    assert "image_features" not in batch and batch["pixel_values"].shape == (2, 1, 3, 32, 32)
    assert torch.isfinite(sample_losses(model, batch)).all()


def test_a_run_on_photos_trains_the_adapters_and_nothing_else(tiny_base, tmp_path):
    before, _ = adapted_model(tiny_base, settings())
    trained = train_on_photos(settings(), base=tiny_base, population=SceneHouseholds(12, 3), run_dir=tmp_path)
    adapters = trained.model.adapter_parameters()
    changed = {
        n for (n, a), b in zip(before.named_parameters(), trained.model.parameters(), strict=True) if not a.equal(b)
    }
    assert changed == set(adapters)
    assert len(Ledger.open(trained.result.ledger).events()) == 3
    again = train_on_photos(
        settings(workers=1), base=tiny_base, population=SceneHouseholds(12, 3), run_dir=tmp_path / "again"
    )
    assert torch.equal(again.result.vector, trained.result.vector)


def test_training_without_privacy_on_photos_lowers_the_loss(tiny_base, tmp_path):
    losses = []
    chosen = settings(private=False, rounds=8, server={"name": "adam", "learning_rate": 0.1})
    train_on_photos(
        chosen,
        base=tiny_base,
        population=SceneHouseholds(12, 3),
        run_dir=tmp_path,
        progress=lambda facts: losses.append(facts.loss),
    )
    assert sum(losses[-2:]) < sum(losses[:2])
