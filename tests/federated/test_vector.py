"""The adapters as one flat vector: reading and writing are inverse, the order
is the names', and misfits are refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from federated.vector import AdapterVector, all_finite


def make():
    return {"z": nn.Parameter(torch.arange(6.0).view(2, 3)), "a": nn.Parameter(torch.tensor([10.0, 11.0]))}


def test_order_is_by_name_and_not_by_insertion():
    assert AdapterVector(make()).read().tolist() == [10, 11, 0, 1, 2, 3, 4, 5]
    assert AdapterVector(dict(reversed(make().items()))).layout() == AdapterVector(make()).layout()


def test_what_was_written_is_read_back_and_lies_in_the_parameters():
    parameters = make()
    vector = AdapterVector(parameters)
    new = torch.randn(8)
    vector.write(new)
    assert torch.equal(vector.read(), new)
    assert torch.equal(parameters["z"].detach(), new[2:].view(2, 3))


def test_reading_gives_a_copy():
    parameters = make()
    vector = AdapterVector(parameters)
    vector.read().zero_()
    assert parameters["a"].tolist() == [10.0, 11.0]


@pytest.mark.parametrize(
    "bad",
    [
        torch.zeros(7),
        torch.zeros(9),
        torch.zeros(8, dtype=torch.float64),
        torch.zeros(2, 4),
        torch.full((8,), torch.nan),
    ],
)
def test_vectors_that_do_not_fit_are_refused_and_change_nothing(bad):
    vector = AdapterVector(make())
    with pytest.raises(ValueError, match="adapter vector"):
        vector.write(bad)
    assert vector.read().tolist() == [10, 11, 0, 1, 2, 3, 4, 5]


def test_half_precision_adapters_travel_as_float32():
    vector = AdapterVector({"h": nn.Parameter(torch.tensor([1.5, -2.0], dtype=torch.bfloat16))})
    assert vector.read().dtype == torch.float32
    vector.write(torch.tensor([0.25, 4.0]))
    assert vector.read().tolist() == [0.25, 4.0]


def test_layout_tells_shapes_apart_that_have_one_length():
    one = AdapterVector({"a": nn.Parameter(torch.zeros(2, 3))})
    other = AdapterVector({"a": nn.Parameter(torch.zeros(3, 2))})
    assert one.dimension == other.dimension and one.layout() != other.layout()


def test_a_model_without_adapters_is_refused():
    with pytest.raises(ValueError, match="no adapters"):
        AdapterVector({})


def test_finite_is_told_from_not_finite_whatever_the_size_of_the_numbers():
    large = torch.full((5,), torch.finfo(torch.float32).max)
    assert all_finite(large) and all_finite(-large) and all_finite(torch.zeros(0))
    for bad in (torch.nan, torch.inf, -torch.inf):
        for place in (0, 4):
            vector = large.clone()
            vector[place] = bad
            assert not all_finite(vector)
            assert not all_finite(torch.zeros(5).index_fill(0, torch.tensor([place]), bad))
