"""The private step: what was drawn goes through, the event comes first, noise has its size, and Adam knows of it."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from privacy import optimizer as optimizer_module
from privacy.clipping.kinds import AutomaticClip, FlatClip, PerLayerClip
from privacy.correlated import CorrelatedNoise, Encoder
from privacy.events import CorrelatedGaussianRelease, GaussianRelease, Unaccountable
from privacy.noise import SecureNoise, SeededNoise
from privacy.optimizer import DPAdamW, PrivateOptimizer, make_engine, micro_batches
from privacy.sampling import CyclicSampler, FullSampler, PoissonSampler, ShuffledSampler

N = 60


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 1))

    def losses(self, x: Tensor) -> Tensor:
        return (self.layers(x)[:, 0] - x.sum(dim=1)).square()


def data() -> Tensor:
    return torch.randn(N, 5, generator=torch.Generator().manual_seed(0))


def make(clip=None, mode="one_backward", optimizer=None, sampler=None, noise=None, sigma=1.0, **options):
    torch.manual_seed(1)
    model = Net()
    engine = make_engine(model, clip or FlatClip(0.5), mode)
    optimizer = optimizer or (lambda parameters: torch.optim.SGD(parameters, lr=0.1))
    private = PrivateOptimizer(
        engine,
        optimizer(model.parameters()),
        noise_multiplier=sigma,
        sampler=sampler or PoissonSampler(N, 0.2, seed_or_generator=3),
        noise=noise or SeededNoise(0),
        **options,
    )
    return model, private


def run(model: Net, private: PrivateOptimizer, steps: int, micro: int = 8) -> list:
    x, events = data(), []
    for _ in range(steps):
        for rows in micro_batches(private.draw(), micro):
            private.backward(model.losses(x[rows]))
        events.append(private.step())
    return events


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().view(-1) for p in model.parameters()])


def test_a_step_is_the_noisy_clipped_sum_over_the_expected_batch() -> None:
    model, private = make(sigma=1e-9, noise=SeededNoise(0))
    before, x = flat(model), data()
    rows = private.draw()
    expected = torch.zeros_like(before, dtype=torch.float64)
    for row in rows:
        single = copy.deepcopy(model).double()
        single.losses(x[row : row + 1].double()).sum().backward()
        gradient = torch.cat([p.grad.view(-1) for p in single.parameters()])
        expected += gradient * min(1.0, 0.5 / float(gradient.norm()))
    private.backward(model.losses(x[rows]))
    private.step()
    torch.testing.assert_close((before - flat(model)).double() / 0.1, expected / 12.0, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("noise", [SeededNoise(7), SecureNoise()], ids=lambda noise: noise.kind)
def test_an_empty_draw_is_a_counted_step_of_pure_noise_of_the_right_size(noise) -> None:
    told = []
    torch.manual_seed(0)
    model = nn.Linear(300, 100, bias=False)
    private = PrivateOptimizer(
        make_engine(model, FlatClip(0.5)),
        torch.optim.SGD(model.parameters(), lr=1.0),
        noise_multiplier=1.7,
        sampler=PoissonSampler(10, 1e-9, seed_or_generator=0),
        noise=noise,
        divisor=4.0,
        before_release=lambda event, **facts: told.append((event, facts)),
    )
    before = flat(model)
    assert len(private.draw()) == 0
    event = private.step()
    moved = (before - flat(model)).numpy() / (1.7 * 0.5 / 4.0)
    assert stats.kstest(moved, "norm").pvalue > 1e-6  # no noise, or half of it, gives p = 0
    assert told == [(event, {"step": 0, "learning_rate": 1.0})] and private.next_step == 1
    assert isinstance(event, GaussianRelease) and event.noise_multiplier == 1.7


def test_noise_differs_between_steps_and_between_tensors_of_one_shape() -> None:
    model = nn.Sequential(nn.Linear(50, 50, bias=False), nn.Linear(50, 50, bias=False))
    private = PrivateOptimizer(
        make_engine(model, FlatClip(1.0)),
        torch.optim.SGD(model.parameters(), lr=1.0),
        noise_multiplier=1.0,
        sampler=PoissonSampler(10, 1e-9, seed_or_generator=0),
        noise=SeededNoise(0),
    )
    moves = []
    for _ in range(2):
        before = [p.detach().clone() for p in model.parameters()]
        private.draw()
        private.step()
        moves.extend((b - p.detach()).view(-1) for b, p in zip(before, model.parameters(), strict=True))
    correlations = torch.corrcoef(torch.stack(moves)) - torch.eye(4)
    assert float(correlations.abs().max()) < 5 / math.sqrt(2500)


def test_micro_batches_and_the_reference_engine_give_the_same_run() -> None:
    runs = []
    for mode, micro in (("one_backward", 100), ("one_backward", 3), ("hooks", 5)):
        model, private = make(mode=mode)
        run(model, private, 4, micro)
        runs.append(flat(model))
    torch.testing.assert_close(runs[1], runs[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(runs[2], runs[0], rtol=1e-5, atol=1e-6)


def test_the_event_comes_from_the_sampler_that_drew() -> None:
    for sampler in (
        PoissonSampler(N, 0.2, seed_or_generator=0),
        PoissonSampler(N, 0.2, seed_or_generator=0, max_batch=9),
        ShuffledSampler(N, 12, seed_or_generator=0),
        FullSampler(N),
    ):
        model, private = make(sampler=sampler, sigma=0.8)
        event = run(model, private, 1)[0]
        assert event.sampling == sampler.sampling and event.noise_multiplier == 0.8
    # a shuffled loader is priced as what it is
    assert ShuffledSampler(N, 12, seed_or_generator=0).sampling.probability == 1.0


@pytest.mark.parametrize("clip", [AutomaticClip(0.5), PerLayerClip({"layers.0": 0.3, "": 0.4})])
def test_other_clipping_scales_the_noise_by_its_own_bound(clip) -> None:
    model, private = make(clip=clip, sampler=PoissonSampler(N, 1e-9, seed_or_generator=0), divisor=1.0, sigma=2.0)
    assert clip.clip_norm == pytest.approx(0.5)
    before = flat(model)
    event = run(model, private, 1)[0]
    moved = (before - flat(model)).numpy() / 0.1
    assert moved.std() == pytest.approx(1.0, rel=0.25)
    assert event.sensitivity == 1.0 and clip.kind in event.label


def test_randomness_is_secret_unless_a_simulation_asks_otherwise() -> None:
    model = nn.Linear(3, 1)
    engine = make_engine(model, FlatClip(1.0))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    private = PrivateOptimizer(engine, optimizer, noise_multiplier=1.0, sampler=PoissonSampler(9, 0.5))
    assert (private.noise.kind, private.sampler.kind) == ("csprng", "csprng")
    again = PoissonSampler(9, 0.5)
    assert again.state() != private.sampler.state()


@pytest.mark.parametrize("wrong", ["fewer", "more", "undrawn"])
def test_other_rows_than_the_drawn_ones_are_refused(wrong) -> None:
    model, private = make()
    x = data()
    if wrong == "undrawn":
        with pytest.raises(ValueError, match="before draw"):
            private.backward(model.losses(x[:3]))
        with pytest.raises(ValueError, match="before draw"):
            private.step()
        return
    rows = private.draw()
    private.backward(model.losses(x[rows[1:]] if wrong == "fewer" else x[: len(rows) + 1]))
    before = flat(model)
    with pytest.raises(ValueError, match=rf"drew {len(rows)} examples"):
        private.step()
    assert torch.equal(flat(model), before)


def test_padding_rows_are_masked_and_do_not_count() -> None:
    model, private = make(sigma=1e-9)
    twin, other = make(sigma=1e-9)
    x = data()
    rows = private.draw()
    padded = torch.cat((x[rows], torch.full((4, 5), math.nan)))
    mask = torch.arange(len(padded)) < len(rows)
    private.backward(model.losses(padded), sample_mask=mask)
    private.step()
    run(twin, other, 1, micro=100)
    torch.testing.assert_close(flat(model), flat(twin))


def test_a_nan_example_is_dropped_counted_and_the_model_survives() -> None:
    model, private = make()
    x = data()
    rows = private.draw()
    x[rows[0]] = math.nan
    private.backward(model.losses(x[rows]))
    private.step()
    assert private.last_counts.dropped == 1 and private.last_counts.examples == len(rows)
    assert torch.isfinite(flat(model)).all()


def test_what_the_ledger_or_the_budget_refuses_is_not_released() -> None:
    class Exceeded(ValueError):
        pass

    def refuse(event, *, step, learning_rate) -> None:
        if step == 1:
            raise Exceeded("over budget")

    model, private = make(before_release=refuse)
    run(model, private, 1)
    before = flat(model)
    with pytest.raises(Exceeded):
        run(model, private, 1)
    assert torch.equal(flat(model), before) and private.next_step == 1


def test_schedules_reach_the_events_and_the_ledger() -> None:
    told = []
    model, private = make(
        sigma=lambda step: 2.0 - 0.5 * step,
        learning_rate=lambda step: 0.1 / (step + 1),
        before_release=lambda event, **facts: told.append((event.noise_multiplier, facts)),
    )
    run(model, private, 3)
    assert [sigma for sigma, _ in told] == [2.0, 1.5, 1.0]
    assert [facts for _, facts in told] == [{"step": t, "learning_rate": 0.1 / (t + 1)} for t in range(3)]


def test_no_noise_has_no_price() -> None:
    model, private = make(sigma=0.0)
    assert isinstance(run(model, private, 1)[0], Unaccountable)


def test_a_resumed_run_ends_where_the_whole_run_ends() -> None:
    def build():
        return make(optimizer=lambda p: DPAdamW(p, lr=0.01), learning_rate=lambda step: 0.01 + 0.001 * step)

    model, private = build()
    run(model, private, 6)
    first, half = build()
    run(first, half, 3)
    second, rest = build()
    second.load_state_dict(first.state_dict())
    rest.load_state_dict(copy.deepcopy(half.state_dict()))
    run(second, rest, 3)
    assert torch.equal(flat(second), flat(model)) and rest.next_step == 6


def test_a_loop_that_knows_nothing_of_privacy_can_call_it() -> None:
    model, private = make()
    x = data()
    for step in range(2):
        private(model.losses(x[private.draw()]), step)
    with pytest.raises(ValueError, match="at step 5"):
        private(model.losses(x[private.draw()]), 5)


def test_training_works() -> None:
    model, private = make(
        optimizer=lambda p: DPAdamW(p, lr=0.03), sigma=0.3, sampler=PoissonSampler(N, 0.5, seed_or_generator=0)
    )
    before = float(model.losses(data()).mean())
    run(model, private, 80, micro=100)
    assert float(model.losses(data()).mean()) < 0.3 * before


@pytest.mark.parametrize(
    "options",
    [{"sigma": -1.0}, {"sigma": math.nan}, {"divisor": 0.0}],
)
def test_impossible_numbers_are_refused(options) -> None:
    with pytest.raises(ValueError, match="expected"):
        model, private = make(**options)
        run(model, private, 1)


def test_parameters_of_optimiser_and_engine_must_agree() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    engine = make_engine(model, FlatClip(1.0))
    for parameters in (model[0].parameters(), [*model.parameters(), nn.Parameter(torch.ones(1))]):
        with pytest.raises(ValueError, match="exactly the model's trainable"):
            PrivateOptimizer(
                engine,
                torch.optim.SGD(parameters, lr=1.0),
                noise_multiplier=1.0,
                sampler=FullSampler(3),
                noise=SecureNoise(),
            )
    with pytest.raises(ValueError, match="clipping engine"):
        make_engine(model, FlatClip(1.0), "ghost")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="micro-batch"):
        list(micro_batches(np.arange(3), 0))


# DPAdamW


def test_without_noise_dp_adamw_is_adamw() -> None:
    torch.manual_seed(0)
    ours = nn.Linear(7, 5)
    theirs = copy.deepcopy(ours)
    settings = {"lr": 0.02, "betas": (0.8, 0.95), "weight_decay": 0.1, "eps": 1e-6}
    a, b = DPAdamW(ours.parameters(), **settings), torch.optim.AdamW(theirs.parameters(), **settings)
    for _ in range(20):
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        a.step()
        b.step()
    torch.testing.assert_close(flat(ours), flat(theirs), rtol=1e-5, atol=1e-6)


def test_dp_adamw_gives_the_same_whether_or_not_a_tensor_is_cut_for_the_cache() -> None:
    torch.manual_seed(0)
    whole = nn.Parameter(torch.randn(300, 200).t().clone(memory_format=torch.contiguous_format).t())  # not contiguous
    cut = nn.Parameter(whole.detach().clone(memory_format=torch.contiguous_format))
    assert not whole.is_contiguous() and cut.numel() > optimizer_module._CACHED
    settings = {"lr": 0.02, "betas": (0.8, 0.95), "weight_decay": 0.1}
    a, b = DPAdamW([whole], **settings), DPAdamW([cut], **settings)
    for _ in range(3):
        a.noise_std = b.noise_std = 0.3
        whole.grad = torch.randn_like(whole)
        cut.grad = whole.grad.clone(memory_format=torch.contiguous_format)
        a.step()
        b.step()
    torch.testing.assert_close(whole.detach(), cut.detach(), rtol=1e-6, atol=1e-7)


def test_the_noise_bias_of_the_second_moment_is_removed() -> None:
    # gradient 0.05 in every entry under noise of deviation 1: Adam's step is about 0.05 of the learning rate, and with
    # the bias removed it is as large as the floor lets it be; with a signal of 2 it is Adam's noiseless step, 1
    size, steps = 20_000, 400
    for signal, floor, expected in ((2.0, 0.1, 1.0), (0.05, 0.1, 0.05 / math.sqrt(0.1)), (0.05, 1.0, 0.05)):
        p = nn.Parameter(torch.zeros(size))
        optimizer = DPAdamW([p], lr=1.0, betas=(0.9, 0.99), floor=floor)
        optimizer.noise_std = 1.0
        generator = torch.Generator().manual_seed(0)
        for step in range(steps):
            if step == steps - 1:
                before = p.detach().clone()
            p.grad = signal + torch.randn(size, generator=generator)
            optimizer.step()
        moved = float((before - p.detach()).mean())
        assert moved == pytest.approx(expected, rel=0.3)


def test_a_changing_noise_level_is_followed() -> None:
    p = nn.Parameter(torch.zeros(3))
    optimizer = DPAdamW([p], betas=(0.9, 0.5))
    for std in (1.0, 2.0):
        optimizer.noise_std = std
        p.grad = torch.ones(3)
        optimizer.step()
    assert optimizer.state[p]["u"] == pytest.approx(0.5 * (0.5 * 1.0) + 0.5 * 4.0)


def test_the_private_optimiser_tells_adam_the_noise() -> None:
    model, private = make(optimizer=lambda p: DPAdamW(p), sigma=3.0)
    run(model, private, 1)
    assert private.optimizer.noise_std == pytest.approx(3.0 * 0.5 / 12.0)


@pytest.mark.parametrize("options", [{"lr": -1.0}, {"betas": (1.0, 0.9)}, {"eps": 0.0}, {"floor": 0.0}, {"floor": 2.0}])
def test_impossible_adam_settings_are_refused(options) -> None:
    with pytest.raises(ValueError, match="expected"):
        DPAdamW([nn.Parameter(torch.zeros(1))], **options)
    with pytest.raises(ValueError, match="closure"):
        DPAdamW([nn.Parameter(torch.zeros(1))]).step(lambda: 0.0)  # type: ignore[arg-type]


# Correlated noise


def correlated(sampler=None, steps: int = 12, **options):
    sampler = sampler or CyclicSampler(N, 15, seed_or_generator=0)
    bound = CyclicSampler(N, 15, seed_or_generator=0).participation(steps)
    noise = CorrelatedNoise(Encoder(steps, 4), bound, SeededNoise(0))
    return make(sampler=sampler, noise=noise, adjacency="zero_out", **options)


def test_a_correlated_run_is_one_event_before_its_first_release() -> None:
    told = []
    model, private = correlated(before_release=lambda event, **facts: told.append((event, facts["step"])))
    events = run(model, private, 12)
    assert len(told) == 1 and told[0][1] == 0 and all(event == told[0][0] for event in events)
    event = told[0][0]
    assert isinstance(event, CorrelatedGaussianRelease)
    assert (event.steps, event.participation.min_separation, event.participation.max_participations) == (12, 4, 3)
    with pytest.raises(ValueError, match=r"more often|is due"):
        run(model, private, 1)


def test_a_sampler_that_breaks_the_participation_bound_is_refused() -> None:
    model, private = correlated(sampler=PoissonSampler(N, 0.5, seed_or_generator=0))
    with pytest.raises(ValueError, match="come back after less than 4"):
        run(model, private, 3)


def test_a_resumed_correlated_run_ends_where_the_whole_run_ends() -> None:
    model, private = correlated()
    run(model, private, 8)
    first, half = correlated()
    run(first, half, 5)
    second, rest = correlated()
    second.load_state_dict(first.state_dict())
    rest.load_state_dict(copy.deepcopy(half.state_dict()))
    run(second, rest, 3)
    torch.testing.assert_close(flat(second), flat(model), rtol=0, atol=1e-6)


def test_correlated_noise_goes_with_neither_schedules_nor_amplified_adjacency() -> None:
    with pytest.raises(ValueError, match="schedule"):
        correlated(sigma=lambda step: 1.0)
    bound = CyclicSampler(N, 15, seed_or_generator=0).participation(4)
    with pytest.raises(ValueError, match="zero_out"):
        make(noise=CorrelatedNoise(Encoder(4, 2), bound, SeededNoise(0)))
