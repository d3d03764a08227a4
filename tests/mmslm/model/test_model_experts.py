"""Image experts: only image tokens feel them, text keeps its bits, and each sample's gradient is its own."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_models import alone, batch_of, row, tiny_model, train_randomly
from torch import Tensor, nn

from mmslm.model import MMSLMForConditionalGeneration
from mmslm.model.experts import ImageTokens

EVERYWHERE = ("decoder", "vision", "projector")
SPAN = [row(1, 9, 0), row(1, 5, 1)]  # image tokens of all rows lie together: sliced
SCATTERED = [row(1, 9, 0), row(3, 5, 1, between=2), row(0, 6, 2)]  # they do not: sorted


@pytest.fixture
def model() -> MMSLMForConditionalGeneration:
    return tiny_model()


@pytest.mark.parametrize("train", ["ab", "b"])
@pytest.mark.parametrize("rows", [SPAN, SCATTERED])
def test_fresh_experts_change_nothing(rows: list[list[int]], train: str) -> None:
    model, batch = tiny_model(), batch_of(rows)
    with torch.no_grad():
        before = model(**batch).logits
        model.add_image_experts(2, train=train, include=EVERYWHERE)
        assert torch.equal(model(**batch).logits, before)


def test_text_alone_keeps_its_bits_after_the_experts_were_trained() -> None:
    model = tiny_model()
    text = batch_of([row(0, 12, 5), row(0, 7, 6)], "left")
    with torch.no_grad():
        before = model(**text).logits
    model.add_image_experts(4, train="b", include=EVERYWHERE)
    model.freeze_base()
    optimiser = torch.optim.SGD(model.adapter_parameters().values(), lr=1.0)
    pictured = batch_of(SCATTERED)
    first = model(**pictured).loss
    for _ in range(3):
        optimiser.zero_grad()
        model(**pictured).loss.backward()
        optimiser.step()
    with torch.no_grad():
        assert model(**pictured).loss < first - 0.01, "the experts learned"
        assert torch.equal(model(**text).logits, before)


@pytest.mark.parametrize("rows", [SPAN, SCATTERED])
def test_sorted_dispatch_equals_blending_by_mask(rows: list[list[int]]) -> None:
    """The oracle runs every token through both paths and picks by mask."""
    model, batch = tiny_model(), batch_of(rows)
    model.add_image_experts(3)
    train_randomly(model)
    with torch.no_grad():
        dispatched = model(**batch).logits
        blended = copy.deepcopy(model)
        mask = batch["input_ids"] == model.config.image_token_id
        for layer in blended.model.language_model.layers:
            layer.mlp.forward = _blend(layer.mlp, mask)  # type: ignore[method-assign,assignment]
        torch.testing.assert_close(dispatched, blended(**batch).logits, rtol=1e-5, atol=1e-5)


def _blend(mlp: nn.Module, mask: Tensor):  # type: ignore[no-untyped-def]
    expert = mlp.image_expert

    def merged(projection: nn.Linear, delta: nn.Module) -> Tensor:
        return projection.weight + delta.b.weight @ delta.a.weight

    gate, up = merged(mlp.gate_proj, expert.gate_proj), merged(mlp.up_proj, expert.up_proj)
    down = merged(mlp.down_proj, expert.down_proj)

    def forward(x: Tensor, images: ImageTokens | None = None) -> Tensor:
        text = mlp.down_proj(nn.functional.silu(mlp.gate_proj(x)) * mlp.up_proj(x))
        image = (nn.functional.silu(x @ gate.T) * (x @ up.T)) @ down.T
        return torch.where(mask[..., None], image, text)

    return forward


@pytest.mark.parametrize("train", ["ab", "b"])
@pytest.mark.parametrize("rows", [SPAN, SCATTERED, [row(4, 6, 7), row(4, 3, 8)]])
def test_every_samples_gradient_is_that_of_its_own_backward_pass(rows: list[list[int]], train: str) -> None:
    """All parameters, a tied head, one to four pictures: the sample axis mixes nothing."""
    model, batch = tiny_model(), batch_of(rows, "left")
    model.add_image_experts(2, train=train, include=EVERYWHERE)
    train_randomly(model)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    losses = model(**batch, logits_at="labels").per_sample_loss
    for index in range(len(rows)):
        together = torch.autograd.grad(losses[index], list(trained.values()), retain_graph=True, allow_unused=True)
        by_itself = model(**alone(batch, index)).per_sample_loss[0]
        single = torch.autograd.grad(by_itself, list(trained.values()), allow_unused=True)
        for name, a, b in zip(trained, together, single, strict=True):
            zero = torch.zeros_like(trained[name])
            torch.testing.assert_close(
                zero if a is None else a,
                zero if b is None else b,
                rtol=1e-3,
                atol=1e-5,
                msg=lambda m, n=name: f"{n}: {m}",
            )


def test_every_trainable_module_sees_the_sample_as_its_first_axis() -> None:
    model, batch = tiny_model(), batch_of([row(3, 5, 1), row(3, 5, 2), row(3, 5, 3)])
    model.add_image_experts(2, include=EVERYWHERE)
    seen: dict[str, int] = {}
    for name, module in model.named_modules():
        if list(module.parameters(recurse=False)):
            module.register_forward_hook(lambda _m, args, _o, n=name: seen.__setitem__(n, args[0].shape[0]))
    model(**batch)
    assert len(seen) > 60
    assert set(seen.values()) == {3}


def test_only_the_adapters_stay_trainable_and_travel_in_one_order() -> None:
    model = tiny_model()
    with pytest.raises(ValueError, match="no image experts"):
        model.freeze_base()
    model.add_image_experts(2, layers=[0, 2], train="b", include=EVERYWHERE)
    model.freeze_base()
    adapters = model.adapter_parameters()
    assert list(adapters) == sorted(adapters)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == set(adapters)
    assert all(name.endswith(".b.weight") for name in adapters)
    # Two layers of three projections, two vision blocks and the projector of two layers each.
    assert len(adapters) == 2 * 3 + 2 * 2 + 2
    assert not any("layers.1.mlp" in name for name in adapters)


def test_the_frozen_factor_is_drawn_from_its_seed_alone() -> None:
    drawn = []
    for model_seed, expert_seed in ((0, 5), (1, 5), (0, 6)):
        model = tiny_model(model_seed)
        model.add_image_experts(2, train="b", seed=expert_seed)
        drawn.append(model.model.language_model.layers[1].mlp.image_expert.up_proj.a.weight)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_unused_experts_get_gradient_zero_or_none_and_nothing_else() -> None:
    model, batch = tiny_model(), batch_of([row(0, 8, 0)])
    model.add_image_experts(2)
    model(**batch).loss.backward()
    assert all(p.grad is None or not p.grad.any() for p in model.adapter_parameters().values())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"rank": 0}, "at least 1"),
        ({"rank": 2, "layers": [3]}, "0 to 2"),
        ({"rank": 2, "layers": []}, "0 to 2"),
        ({"rank": 2, "train": "a"}, '"ab"'),
        ({"rank": 2, "include": ("head",)}, "decoder, vision, projector"),
    ],
)
def test_senseless_experts_are_refused(
    model: MMSLMForConditionalGeneration, arguments: dict[str, object], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        model.add_image_experts(**arguments)  # type: ignore[arg-type]
    assert model.config.image_experts is None


def test_a_second_set_of_experts_is_refused(model: MMSLMForConditionalGeneration) -> None:
    model.add_image_experts(2)
    with pytest.raises(ValueError, match="already"):
        model.add_image_experts(2)
