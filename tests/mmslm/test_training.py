"""One loop, many updates: what a step does is in the update, and the loop refuses to train less than was said."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from mmslm import training
from mmslm.training import SGD, AdamW, Progress, fit, local_update


class Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.frozen = nn.Parameter(torch.ones(1), requires_grad=False)


def losses_of(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return (batch["x"] @ model.weight - batch["y"]).square()


BATCH = {"x": torch.tensor([[1.0, 0.0], [0.0, 2.0]]), "y": torch.tensor([1.0, 2.0])}


def test_sgd_is_the_textbook_step() -> None:
    model = Line()
    fit(model, [BATCH], SGD([model.weight], 0.1), steps=1, losses_of=losses_of)
    # gradient of the mean of (w0 - 1)^2 and (2 w1 - 2)^2 at zero: (-1, -4)
    assert torch.allclose(model.weight, torch.tensor([0.1, 0.4]))


def test_the_last_loss_is_returned_and_every_step_is_told() -> None:
    model, told = Line(), list[Progress]()
    loss = fit(model, [BATCH] * 5, SGD([model.weight], 0.05), steps=5, on_step=told.append, losses_of=losses_of)
    assert [p.step for p in told] == [1, 2, 3, 4, 5]
    assert loss == told[-1].loss < told[0].loss == pytest.approx(2.5)


def test_too_little_data_is_refused_not_shortened() -> None:
    model = Line()
    with pytest.raises(ValueError, match="ended after 2 of 3 steps"):
        fit(model, [BATCH] * 2, SGD([model.weight], 0.1), steps=3, losses_of=losses_of)


def test_a_public_run_stops_at_a_loss_that_is_no_number() -> None:
    model = Line()
    bad = {"x": BATCH["x"], "y": torch.tensor([math.nan, 0.0])}
    update = AdamW(model, learning_rate=0.1, steps=1)
    before = model.weight.clone()
    with pytest.raises(FloatingPointError, match="step 0"):
        fit(model, [bad], update, steps=1, losses_of=losses_of)
    assert torch.equal(model.weight, before)


def test_adamw_leaves_frozen_parameters_and_refuses_a_frozen_model() -> None:
    model = Line()
    fit(model, [BATCH], AdamW(model, learning_rate=0.1, steps=1), steps=1, losses_of=losses_of)
    assert model.frozen.item() == 1.0
    model.weight.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter"):
        AdamW(model, learning_rate=0.1, steps=1)


def test_the_rate_warms_up_then_falls_to_a_tenth() -> None:
    update = AdamW(Line(), learning_rate=1.0, steps=100, warmup=10)
    rates = [update.rate_at(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0)
    assert rates[-1] == pytest.approx(0.1, abs=1e-3)
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))


def test_a_device_without_photos_is_refused() -> None:
    model = Line()
    with pytest.raises(ValueError, match="no batch"):
        local_update(model, [], {"weight": model.weight}, steps=1, learning_rate=0.1)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": False}, torch.float32),
        ({"architecture": "x86_64", "avx512_bf16": True, "amx_bf16": False}, torch.bfloat16),
        ({"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": True}, torch.bfloat16),
    ],
)
def test_bfloat16_is_not_emulated(monkeypatch, found, expected):
    """Where an x86 processor lacks these products, a step with them takes ten times as long as in float32."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    training._cpu_emulates_bfloat16.cache_clear()
    try:
        with training.bfloat16_products("cpu", True):
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == expected
        with training.bfloat16_products("cpu", False):
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
    finally:
        training._cpu_emulates_bfloat16.cache_clear()
