"""Beside Opacus: the same clipped sums as its hooks engine, and a pair that plugs into an Opacus loop."""

from __future__ import annotations

import copy
import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from opacus.grad_sample import GradSampleModule
from opacus.optimizers import DPOptimizer
from opacus.utils.batch_memory_manager import BatchMemoryManager
from scipy import stats
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from privacy.clipping.engine import BatchCounts, OneBackward
from privacy.clipping.kinds import AutomaticClip, FlatClip, PerLayerClip
from privacy.clipping.opacus_pair import OneBackwardModule, OneBackwardOptimizer, OneBackwardPrivacyEngine
from privacy.clipping.reference import HooksEngine
from privacy.noise import SeededNoise

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
B, V = 6, 23


class Decoder(nn.Module):
    """Tied table, RMSNorm, LayerNorm, a linear layer called twice, an attention of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm1, self.norm2 = nn.Embedding(V, 32), nn.RMSNorm(32), nn.LayerNorm(32)
        self.qkv, self.out, self.twice = nn.Linear(32, 96, bias=False), nn.Linear(32, 32), nn.Linear(32, 32)
        self.head = nn.Linear(32, V, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        q, k, v = self.qkv(self.norm1(x)).chunk(3, dim=-1)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True))
        for _ in range(2):
            x = x + self.twice(self.norm2(x)).tanh()
        return self.head(x)

    def losses(self, ids: Tensor) -> Tensor:
        logits = self(ids)[:, :-1]
        return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(len(ids), -1).mean(1)


def fixture() -> tuple[Decoder, Tensor]:
    torch.manual_seed(0)
    return Decoder(), torch.randint(0, V, (B, 17))


def flat(values) -> Tensor:
    return torch.cat([value.detach().reshape(-1).double() for value in values])


def test_clipped_sums_equal_those_of_opacus_hooks() -> None:
    model, ids = fixture()
    wrapped = GradSampleModule(copy.deepcopy(model), loss_reduction="sum")
    optimizer = DPOptimizer(
        torch.optim.SGD(wrapped.parameters(), lr=1.0),
        noise_multiplier=0.0,
        max_grad_norm=0.9,
        expected_batch_size=None,
        loss_reduction="sum",
    )
    losses = F.cross_entropy(wrapped(ids)[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none").mean(dim=1)
    losses.sum().backward()
    optimizer.pre_step()
    theirs = flat(p.grad for p in wrapped.parameters())
    engine = OneBackward(model, FlatClip(0.9))
    counts = engine.backward(model.losses(ids))
    ours = flat(engine.take().values())
    assert float((ours - theirs).norm() / theirs.norm()) < 1e-5
    assert counts.clipped == B and engine.last_norms is not None and float(engine.last_norms.min()) > 0.9


@pytest.mark.parametrize("clip", [FlatClip(1.2), AutomaticClip(1.0), PerLayerClip({"": 0.5, "table": 0.4})])
def test_the_reference_engine_agrees_with_ours(clip) -> None:
    model, ids = fixture()
    reference = HooksEngine(copy.deepcopy(model).train(), clip)
    ours = OneBackward(model, clip)
    twin = reference._hooks._module
    mask = torch.tensor([True, True, False, True, True, True])
    counts = [ours.backward(model.losses(ids), mask), reference.backward(twin.losses(ids), mask)]
    assert counts[0] == counts[1] and counts[0].examples == 5
    torch.testing.assert_close(ours.last_norms, reference.last_norms, rtol=1e-5, atol=0)
    a, b = flat(ours.take().values()), flat(reference.take().values())
    assert float((a - b).norm() / b.norm()) < 1e-5
    reference.close()
    assert not hasattr(next(iter(twin.parameters())), "grad_sample")


def test_the_reference_engine_drops_what_is_not_finite_and_takes_empty_batches() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    x = torch.randn(5, 3)
    reference = HooksEngine(model, FlatClip(0.5))
    reference.backward(model(x[1:])[:, 0].square())
    good = flat(reference.take().values())
    x[0] = math.nan
    assert reference.backward(model(x)[:, 0].square()).dropped == 1
    torch.testing.assert_close(flat(reference.take().values()), good)
    assert reference.backward(torch.zeros(0)) == BatchCounts()
    assert not flat(reference.take().values()).any()
    with pytest.raises(ValueError, match="BatchNorm"):
        HooksEngine(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), FlatClip(1.0))


# The pair


def loader(n: int = 40, batch: int = 8) -> DataLoader:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 5, generator=generator)
    return DataLoader(TensorDataset(x, x.sum(dim=1)), batch_size=batch)


def net() -> nn.Module:
    torch.manual_seed(4)
    return nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 1))


def private(mode: str = "one_backward", sigma: float = 1.0, **options):
    model = net()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        engine = OneBackwardPrivacyEngine()
        return engine, *engine.make_private(
            module=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
            data_loader=loader(),
            noise_multiplier=sigma,
            max_grad_norm=0.5,
            grad_sample_mode=mode,
            noise_generator=torch.Generator().manual_seed(0),
            **options,
        )


def test_an_opacus_loop_runs_unchanged_and_trains_as_with_hooks() -> None:
    ends = []
    for mode in ("one_backward", "hooks"):
        engine, model, optimizer, _ = private(mode, sigma=1e-7)
        assert isinstance(model, OneBackwardModule) == (mode == "one_backward")
        for x, y in loader(batch=7):  # the same batches for both
            optimizer.zero_grad()
            (model(x)[:, 0] - y).square().mean().backward()
            optimizer.step()
        ends.append(flat(model.parameters()))
        assert len(engine.accountant) == 1
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-5, atol=1e-6)


def test_poisson_batches_noise_and_accounting() -> None:
    engine, model, optimizer, batches = private(sigma=1.3)
    start = flat(model.parameters())
    sizes = []
    for _ in range(6):
        for x, y in batches:
            sizes.append(len(x))
            optimizer.zero_grad()
            (model(x)[:, 0] - y).square().mean().backward()
            optimizer.step()
    assert len(set(sizes)) > 3 and engine.accountant.history == [(1.3, 1 / 5, 30)]
    assert engine.get_epsilon(1e-5) > 1 and not torch.equal(start, flat(model.parameters()))


def test_an_empty_batch_is_a_step_of_pure_noise() -> None:
    model = OneBackwardModule(nn.Sequential(nn.Linear(400, 50, bias=False)))
    optimizer = OneBackwardOptimizer(
        torch.optim.SGD(model.parameters(), lr=1.0),
        module=model,
        noise_multiplier=2.0,
        max_grad_norm=0.5,
        expected_batch_size=4,
        noise=SeededNoise(3),
    )
    before = flat(model.parameters())
    model(torch.zeros(0, 400)).square().sum().backward()
    optimizer.step()
    moved = (before - flat(model.parameters())).numpy() / (2.0 * 0.5 / 4)
    assert stats.kstest(moved, "norm").pvalue > 1e-3
    assert optimizer.last_counts == BatchCounts()


def test_memory_manager_batches_add_up_to_one_logical_batch() -> None:
    _, model, optimizer, _ = private(sigma=1e-7)
    twin = copy.deepcopy(model._module)
    x, y = next(iter(loader(batch=9)))
    optimizer.signal_skip_step(True)
    optimizer.signal_skip_step(False)
    for rows in (slice(0, 4), slice(4, 9)):
        optimizer.zero_grad()
        (model(x[rows])[:, 0] - y[rows]).square().mean().backward()
        optimizer.step()
    assert optimizer.last_counts.examples == 9
    engine = OneBackward(_bare(twin), FlatClip(0.5))
    engine.backward((twin(x)[:, 0] - y).square())
    moved = (flat(twin.parameters()) - flat(model.parameters())) / 0.1
    expected = flat(engine.take().values()) / 8
    torch.testing.assert_close(moved, expected, rtol=1e-4, atol=1e-6)


def _bare(model: nn.Module) -> nn.Module:
    """Without the hooks that came along with the copy."""
    for module in model.modules():
        module._forward_pre_hooks.clear()
        module._forward_hooks.clear()
    return model


def test_memory_manager_itself_works() -> None:
    engine, model, optimizer, batches = private()
    with BatchMemoryManager(data_loader=batches, max_physical_batch_size=3, optimizer=optimizer) as small:
        for x, y in small:
            optimizer.zero_grad()
            (model(x)[:, 0] - y).square().mean().backward()
            optimizer.step()
    assert sum(count for _, _, count in engine.accountant.history) == 5  # logical steps, not physical ones


def test_one_nan_example_does_not_destroy_the_model() -> None:
    _, model, optimizer, _ = private()
    x, y = next(iter(loader()))
    x[3] = math.nan
    (model(x)[:, 0] - y).square().mean().backward()
    optimizer.step()
    assert torch.isfinite(flat(model.parameters())).all()
    assert optimizer.last_counts.dropped == 1 and optimizer.last_counts.examples == 8


def test_without_a_generator_noise_comes_from_a_csprng() -> None:
    model = net()
    _, optimizer, _ = OneBackwardPrivacyEngine().make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        data_loader=loader(),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
    )
    assert optimizer.noise.kind == "csprng"


def test_calibration_to_a_budget_works() -> None:
    model = net()
    engine = OneBackwardPrivacyEngine(accountant="rdp")
    _, optimizer, _ = engine.make_private_with_epsilon(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        data_loader=loader(),
        target_epsilon=3.0,
        target_delta=1e-3,
        epochs=2,
        max_grad_norm=1.0,
    )
    assert isinstance(optimizer, OneBackwardOptimizer) and optimizer.noise_multiplier > 0.5


def test_the_model_comes_back_as_it_was() -> None:
    _, model, _, _ = private()
    plain = model.to_standard_module()
    plain(torch.randn(2, 5)).sum().backward()
    assert all(p.grad is not None and not hasattr(p, "grad_sample") for p in plain.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"poisson_sampling": False}, "poisson_sampling is False"),
        ({"clipping": "per_layer"}, "clips flat"),
        ({"wrap_model": False}, "wraps the model"),
        ({"batch_first": False}, "batch_first"),
    ],
)
def test_what_would_report_another_epsilon_than_was_spent_is_refused(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        private(**options)


def test_the_gdp_accountant_is_refused() -> None:
    with pytest.raises(ValueError, match="gdp"):
        OneBackwardPrivacyEngine(accountant="gdp")


def test_two_backward_passes_through_one_forward_are_refused() -> None:
    _, model, _, _ = private()
    loss = model(torch.randn(3, 5)).square().mean()
    loss.backward(retain_graph=True)
    with pytest.raises(ValueError, match="two backward passes"):
        loss.backward()


def test_a_weight_in_the_loss_is_refused() -> None:
    _, model, optimizer, _ = private()
    loss = model(torch.randn(3, 5)).square().mean() + model._module[0].weight.square().sum()
    loss.backward()
    with pytest.raises(ValueError, match=r"\['0.weight'\] have a gradient from outside"):
        optimizer.step()
