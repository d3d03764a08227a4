"""Partial devices: each expert is averaged over those that hold it, ranks average exactly, and nobody is counted singly."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from federated.bench import Bench
from federated.holdings import Holdings, HoldingsConfig, Part, average_products, parts_by_name, parts_by_rank
from federated.vector import AdapterVector


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class TwoExperts(nn.Module):
    """Words have an expert and pictures have one: tokens below 5 take the first, the others the second."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(gaussian(10, 6).float(), requires_grad=False)
        self.text = nn.Parameter(torch.zeros(6, 6))
        self.image = nn.Parameter(torch.zeros(6, 6))

    def adapter_parameters(self) -> dict[str, nn.Parameter]:
        return {"expert.text": self.text, "expert.image": self.image}

    def forward(self, input_ids: Tensor) -> SimpleNamespace:
        hidden = self.table[input_ids]
        chosen = torch.where((input_ids < 5)[..., None], hidden @ self.text, hidden @ self.image)
        return SimpleNamespace(logits=(hidden + chosen) @ self.table.T)


class Modalities:
    """Device 0 holds texts, 1 pictures, 2 both, 3 nothing that it could train on."""

    def batches(self, model, device, round_number):
        if device == 3:
            raise ValueError("device 3 holds nothing")
        tokens = {0: [[0, 1, 2, 3]], 1: [[6, 7, 8, 9]], 2: [[1, 6, 3, 9]]}[device]
        return [{"input_ids": torch.tensor(tokens), "labels": torch.tensor(tokens)}]


PREFIXES = {"text": ["text"], "image": ["image"]}
HOLDS = {(0, "text"), (1, "image"), (2, "text"), (2, "image")}


@pytest.fixture
def experts(tiny_settings):
    model = TwoExperts()
    adapters = AdapterVector(model.adapter_parameters())
    parts = parts_by_name(adapters, PREFIXES, {"text": 2 / 4, "image": 2 / 4})
    holdings = Holdings(parts, lambda device, part: (device, part) in HOLDS)
    return SimpleNamespace(
        adapters=adapters,
        holdings=holdings,
        bench=Bench(model, Modalities(), tiny_settings, holdings=holdings),
        alone=Bench(copy.deepcopy(model), Modalities(), tiny_settings),
    )


def test_what_a_device_does_not_hold_is_zero_in_its_update(experts):
    start = torch.zeros(72)
    text, image, both, nothing = (experts.bench.train(device, 0, start)[0] for device in range(4))
    part = {part.name: part.mask for part in experts.holdings.parts}
    assert text[part["image"]].abs().sum() == 0 < text[part["text"]].abs().sum()
    assert image[part["text"]].abs().sum() == 0 < image[part["image"]].abs().sum()
    assert both[part["text"]].abs().sum() > 0 and both[part["image"]].abs().sum() > 0
    assert torch.equal(nothing, torch.zeros(72))  # it answers like everybody
    assert torch.equal(both, experts.alone.train(2, 0, start)[0])


def test_each_expert_is_averaged_over_its_holders_from_sums_alone(experts):
    updates = [experts.bench.train(device, 0, torch.zeros(72))[0] for device in range(4)]
    total = sum(experts.holdings.with_counts(device, update) for device, update in enumerate(updates))
    mean = experts.holdings.mean_over_holders(total)
    part = {part.name: part.mask for part in experts.holdings.parts}
    assert torch.allclose(mean[part["text"]], (updates[0] + updates[2])[part["text"]] / 2)
    assert torch.allclose(mean[part["image"]], (updates[1] + updates[2])[part["image"]] / 2)
    # by published shares, from the mean over everybody: equal where the shares are true
    assert torch.allclose(experts.holdings.rescale(sum(updates) / 4), mean, atol=1e-6)
    nobody = experts.holdings.mean_over_holders(torch.zeros(74))
    assert torch.equal(nobody, torch.zeros(72))


def test_text_alone_moves_no_image_expert_of_the_real_model(tiny_base, tiny_settings):
    from mmslm.pretrained import load_model
    from mmslm.training import local_update

    model, _ = load_model(tiny_base, dtype=torch.float32)
    model.add_image_experts(2, train="b")
    model.freeze_base()
    adapters = AdapterVector(model.adapter_parameters())
    before, tokens = adapters.read(), torch.arange(10, 22)[None]
    local_update(model, [{"input_ids": tokens, "labels": tokens}], adapters.parameters, steps=2, learning_rate=1.0)
    assert torch.equal(adapters.read(), before)


class LowRank(nn.Module):
    """One layer with B A added; A frozen."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.table = nn.Parameter(gaussian(10, 6).float(), requires_grad=False)
        self.a = nn.Parameter(gaussian(4, 6, seed=1)[:rank].float(), requires_grad=False)
        self.b = nn.Parameter(torch.zeros(6, rank))

    def adapter_parameters(self) -> dict[str, nn.Parameter]:
        return {"layer.b.weight": self.b}

    def forward(self, input_ids: Tensor) -> SimpleNamespace:
        hidden = self.table[input_ids]
        return SimpleNamespace(logits=(hidden + hidden @ self.a.T @ self.b.T) @ self.table.T)


class Words:
    def batches(self, model, device, round_number):
        tokens = torch.randint(10, (2, 5), generator=torch.Generator().manual_seed(device))
        return [{"input_ids": tokens, "labels": tokens}]


def test_a_low_rank_device_trains_what_a_model_of_that_rank_would(tiny_settings):
    settings = tiny_settings.model_copy(update={"local_steps": 3})
    wide, narrow = LowRank(4), LowRank(2)
    holdings = Holdings(
        parts_by_rank(AdapterVector(wide.adapter_parameters()), {2: 0.5, 4: 0.5}),
        lambda device, part: part == "rank 2" or device == 1,
    )
    start = torch.randn(6, 4, generator=torch.Generator().manual_seed(5)) / 5
    update, _ = Bench(wide, Words(), settings, holdings=holdings).train(0, 0, start.reshape(-1).clone())
    alone, _ = Bench(narrow, Words(), settings).train(0, 0, start[:, :2].reshape(-1).clone())
    assert torch.allclose(update.view(6, 4)[:, :2], alone.view(6, 2), atol=1e-6)
    assert torch.equal(update.view(6, 4)[:, 2:], torch.zeros(6, 2))


def test_with_frozen_a_the_mean_of_products_is_the_product_of_the_mean_for_mixed_ranks():
    a = gaussian(4, 7, seed=2)
    ranks = [1, 2, 4, 4, 2]
    padded = []
    for i, rank in enumerate(ranks):
        b = torch.zeros(5, 4, dtype=torch.float64)
        b[:, :rank] = gaussian(5, rank, seed=10 + i)
        padded.append(b)
    mean_of_products = torch.stack([b[:, :r] @ a[:r] for b, r in zip(padded, ranks, strict=True)]).mean(0)
    assert torch.allclose(torch.stack(padded).mean(0) @ a, mean_of_products, atol=1e-12)


def test_ranks_are_averaged_over_those_that_have_them_by_public_shares():
    adapters = AdapterVector(LowRank(4).adapter_parameters())
    parts = parts_by_rank(adapters, {1: 0.25, 2: 0.25, 4: 0.5})
    assert [(part.name, part.share) for part in parts] == [("rank 1", 1.0), ("rank 2", 0.75), ("rank 4", 0.5)]
    holdings = Holdings(parts, lambda device, part: int(part[5:]) <= [1, 2, 4, 4][device])
    updates = [torch.ones(24) * holdings.mask(device) for device in range(4)]
    assert torch.allclose(holdings.rescale(sum(updates) / 4), torch.ones(24))


@pytest.mark.parametrize("rank", [12, 3])
def test_products_of_any_ranks_average_exactly_or_as_well_as_the_rank_allows(rank):
    factors = [(gaussian(9, r, seed=r), gaussian(r, 8, seed=20 + r)) for r in (1, 2, 4)]
    exact = sum(b @ a for b, a in factors) / 3
    b, a, lost = average_products(factors, rank)
    assert b.shape == (9, rank) and a.shape == (rank, 8)
    u, s, v = torch.linalg.svd(exact)  # numpy's and torch's best low-rank approximation of the m x n matrix itself
    best = (u[:, : min(rank, 8)] * s[:rank]) @ v[:rank]
    assert torch.allclose(b @ a, best, atol=1e-10)
    assert lost == pytest.approx(float(s[rank:].square().sum() / s.square().sum()), abs=1e-12)
    naive = sum(torch.nn.functional.pad(b, (0, 4 - b.shape[1])) for b, _ in factors) / 3
    naive = naive @ (sum(torch.nn.functional.pad(a, (0, 0, 0, 4 - a.shape[0])) for _, a in factors) / 3)
    assert (naive - exact).norm() > 3 * (
        b @ a - exact
    ).norm()  # padding both factors and averaging each is another matrix


def test_what_is_no_partition_of_the_adapters_is_refused():
    adapters = AdapterVector(TwoExperts().adapter_parameters())
    with pytest.raises(ValueError, match="belongs to no part"):
        parts_by_name(adapters, {"text": ["text"]}, {})
    with pytest.raises(ValueError, match="belongs to text, all"):
        parts_by_name(adapters, {"text": ["text"], "all": ["expert"]}, {})
    with pytest.raises(ValueError, match="A is frozen"):
        parts_by_rank(adapters, {2: 1.0})
    with pytest.raises(ValueError, match="more than once"):
        Holdings(
            [Part("a", torch.ones(3, dtype=torch.bool)), Part("b", torch.ones(3, dtype=torch.bool))], lambda d, p: True
        )
    with pytest.raises(ValueError, match="share of 0"):
        Part("a", torch.ones(3, dtype=torch.bool), 0.0)
    with pytest.raises(ValueError, match="either parts or ranks"):
        HoldingsConfig()


def test_holdings_from_a_configuration_follow_their_shares():
    adapters = AdapterVector(LowRank(4).adapter_parameters())
    holdings = HoldingsConfig(ranks={2: 0.3, 4: 0.7}).open(adapters, seed=1)
    full = sum(bool(holdings.mask(device).all()) for device in range(2000))
    assert full / 2000 == pytest.approx(0.7, abs=0.04)
    assert all(bool(holdings.mask(device).any()) for device in range(50))
    parts = HoldingsConfig(
        parts={"text": {"names": ["text"], "share": 0.6}, "image": {"names": ["image"], "share": 0.5}}
    )
    masks = [parts.open(AdapterVector(TwoExperts().adapter_parameters()), seed=2).mask(d).sum() for d in range(200)]
    assert {int(count) for count in masks} == {0, 36, 72}
