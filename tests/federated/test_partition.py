"""Partitions: nothing is lost or shared, they repeat themselves, and they are as uneven as they were asked to be."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federated.partition import (
    PartitionedPhotos,
    by_class,
    by_owner,
    by_quantity,
    check_partition,
    dirichlet,
    picture,
)

LABELS = [f"class {i % 7}" for i in range(700)]


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 20),
    st.lists(st.integers(0, 5), min_size=60, max_size=200),
    st.floats(1e-3, 1e3),
    st.integers(1, 3),
    st.integers(0, 99),
)
def test_every_sample_is_held_exactly_once(devices, labels, amount, fewest, seed):
    for partition in (
        dirichlet(labels, devices, concentration=amount, seed=seed, fewest=fewest),
        by_quantity(len(labels), devices, spread=min(amount, 3.0), seed=seed, fewest=fewest),
    ):
        check_partition(partition, len(labels))
        assert len(partition) == devices and min(map(len, partition)) >= fewest


def test_one_seed_repeats_and_another_does_not():
    make = [
        lambda seed: dirichlet(LABELS, 20, concentration=0.3, seed=seed),
        lambda seed: by_quantity(700, 20, spread=1.0, seed=seed),
        lambda seed: by_class(LABELS, 20, classes_each=2, seed=seed),
    ]
    for function in make:
        assert function(1) == function(1) and function(1) != function(2)


def classes_held(partition):
    return np.mean([len({LABELS[index] for index in part}) for part in partition])


def test_a_small_concentration_makes_devices_differ():
    even, uneven = (dirichlet(LABELS, 10, concentration=c, seed=1) for c in (100.0, 0.05))
    assert classes_held(even) == 7 and classes_held(uneven) < 4
    assert max(map(len, even)) < 100


def test_spread_makes_sizes_differ():
    even, uneven = (sorted(map(len, by_quantity(700, 20, spread=s, seed=1))) for s in (0.0, 1.5))
    assert even[-1] - even[0] <= 1 and uneven[-1] > 5 * uneven[0]


def test_by_class_gives_each_device_a_few_classes_and_loses_none():
    partition = by_class(LABELS, 20, classes_each=2, seed=4)
    check_partition(partition, 700)
    assert max(len({LABELS[index] for index in part}) for part in partition) <= 2
    assert {LABELS[index] for part in partition for index in part} == set(LABELS)


def test_owners_keep_their_photos():
    owners = ["b", "a", "b", "c", "a"]
    assert by_owner(owners) == [[1, 4], [0, 2], [3]]
    homes = PartitionedPhotos(list("vwxyz"), by_owner(owners))
    assert homes.size == 3 and homes.photos(1) == ["v", "x"]
    with pytest.raises(ValueError, match="no device 3"):
        homes.photos(3)


def test_a_partition_that_loses_or_shares_is_refused():
    for bad in ([[0, 1], [1, 2]], [[0], [2]], [[0, 1, 2], []]):
        with pytest.raises(ValueError, match=r"lost, shared|hold nothing"):
            PartitionedPhotos(list("xyz"), bad)


def test_what_cannot_be_is_refused_with_the_numbers():
    with pytest.raises(ValueError, match="5 samples cannot give 6 devices"):
        by_quantity(5, 6, spread=1.0)
    with pytest.raises(ValueError, match="concentration"):
        dirichlet(LABELS, 3, concentration=0.0)
    with pytest.raises(ValueError, match="cannot hold 7 classes"):
        by_class(LABELS, 2, classes_each=3)


def test_the_picture_shows_every_device_with_its_classes():
    image = picture(dirichlet(LABELS, 12, concentration=0.2, seed=1), LABELS)
    assert image.size == (960, 320)
    colours = {colour for _, colour in image.getcolors(1 << 16)}
    assert len(colours) >= 8  # seven classes on white
