"""What would make per-sample clipping wrong is refused by name, not warned about."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from privacy.clipping.engine import OneBackward
from privacy.clipping.kinds import AutomaticClip, FlatClip, PerLayerClip
from privacy.clipping.parts import LinearPart
from privacy.clipping.rules import Rules, affine_parts, default_rules, linear_rule, wanted

B = 4


def engine_for(model: nn.Module, **options) -> OneBackward:
    return OneBackward(model, FlatClip(1.0), **options)


class Sums(nn.Module):
    """Any inner layer, then one loss per sample."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).square().flatten(1).sum(dim=1)


class Gain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain


def test_trainable_layers_without_a_rule_are_named() -> None:
    model = nn.ModuleDict({"a": nn.Linear(3, 3), "gain": Gain(), "b": nn.Bilinear(2, 2, 2)})
    with pytest.raises(ValueError, match=r"\['gain.gain', 'b.weight', 'b.bias'\]"):
        engine_for(model)
    model["gain"].requires_grad_(False)
    model["b"].requires_grad_(False)
    engine_for(model)  # frozen ones are nobody's business
    with pytest.raises(ValueError, match="no parameter of this model is trainable"):
        engine_for(model.requires_grad_(False))


def test_a_bare_parameter_of_a_container_is_named() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cls = nn.Parameter(torch.zeros(3))
            self.layer = nn.Linear(3, 3)

    with pytest.raises(ValueError, match=r"\['cls'\]"):
        engine_for(Net())


def test_a_subclass_with_its_own_forward_is_not_taken_for_its_parent() -> None:
    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    class Renamed(nn.Linear):
        pass

    with pytest.raises(ValueError, match=r"layers.0.weight"):
        engine_for(Sums(Doubled(3, 3)))
    engine_for(Sums(Renamed(3, 3)))


def test_a_layer_that_computes_something_else_than_its_type_is_caught_by_the_first_batch() -> None:
    model = Sums(nn.Linear(3, 3))
    layer = model.layers[0]
    layer.forward = lambda x: F.linear(x, 2 * layer.weight, layer.bias)  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r"'layers.0' gives another gradient for 'weight'"):
        engine_for(model).backward(model(torch.randn(B, 3)))


def test_a_wrong_rule_is_caught_by_the_first_batch() -> None:
    def halved(module: nn.Module, inputs: tuple[Tensor, ...], grad: Tensor):
        return linear_rule(module, inputs, 0.5 * grad)

    model = Sums(nn.Linear(3, 3))
    engine = engine_for(model, rules=Rules({nn.Linear: halved}))
    with pytest.raises(ValueError, match="another gradient"):
        engine.backward(model(torch.randn(B, 3)))
    engine.close()
    engine = engine_for(model, rules=Rules({nn.Linear: lambda module, inputs, grad: {}}))
    with pytest.raises(ValueError, match="gave nothing for its parameter 'weight'"):
        engine.backward(model(torch.randn(B, 3)))


def test_a_tied_head_used_outside_its_layer_is_caught() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(7, 4)

        def forward(self, ids: Tensor) -> Tensor:
            return F.linear(self.table(ids), self.table.weight).square().sum(dim=(1, 2))

    model = Net()
    with pytest.raises(ValueError, match=r"\['table.weight'\] are used outside the layer"):
        engine_for(model).backward(model(torch.randint(0, 7, (B, 5))))


def test_a_weight_regulariser_in_the_loss_is_caught() -> None:
    model = Sums(nn.Linear(3, 3))
    engine = engine_for(model)
    with pytest.raises(ValueError, match="used outside"):
        engine.backward(model(torch.randn(B, 3)) + model.layers[0].weight.square().sum())


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(3), nn.BatchNorm1d(3, affine=False)])
def test_batch_norm_is_refused_unless_frozen_in_eval_mode(norm) -> None:
    model = Sums(nn.Linear(3, 3), norm)
    with pytest.raises(ValueError, match=r"'layers.1' is a BatchNorm"):
        engine_for(model)
    norm.requires_grad_(False).eval()
    engine = engine_for(model)
    engine.backward(model(torch.randn(B, 3)))
    model.train()
    with pytest.raises(ValueError, match="BatchNorm"):
        model(torch.randn(B, 3))


@pytest.mark.parametrize("where", ["buffer", "frozen parameter"])
def test_statistics_that_move_in_the_forward_pass_are_refused(where) -> None:
    class Codebook(nn.Module):
        """An exponential moving average of what comes by."""

        def __init__(self) -> None:
            super().__init__()
            if where == "buffer":
                self.register_buffer("mean", torch.zeros(3))
            else:
                self.mean = nn.Parameter(torch.zeros(3), requires_grad=False)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                self.mean.lerp_(x.mean(dim=0), 0.1)
            return x - self.mean

    for model in (Sums(Codebook(), nn.Linear(3, 3)), Sums(nn.Linear(3, 3), Codebook())):
        with pytest.raises(ValueError, match=r"mean' changed during the forward pass"):
            engine_for(model).backward(model(torch.randn(B, 3)))


def test_a_buffer_without_data_may_be_allowed() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return x

    model = Sums(Counting(), nn.Linear(3, 3))
    engine_for(model, allow_buffers=["layers.0.calls"]).backward(model(torch.randn(B, 3)))


def test_a_table_that_renormalises_its_rows_is_refused() -> None:
    for options in ({"max_norm": 1.0}, {"scale_grad_by_freq": True}):
        model = Sums(nn.Embedding(5, 3, **options))
        with pytest.raises(ValueError, match=r"max_norm|changed during"):
            engine_for(model).backward(model(torch.randint(0, 5, (B, 2))))


@pytest.mark.parametrize("shape", [(), (B, 3), (1, B)])
def test_a_loss_that_is_not_one_per_sample_is_refused(shape) -> None:
    model = Sums(nn.Linear(3, 3))
    losses = model(torch.randn(B, 3))
    bad = (
        losses.mean() if shape == () else losses[None].expand(1, B) if shape == (1, B) else losses[:, None].expand(B, 3)
    )
    with pytest.raises(ValueError, match="one loss per sample"):
        engine_for(model).backward(bad)


def test_losses_from_elsewhere_are_refused() -> None:
    with pytest.raises(ValueError, match="no gradient"):
        engine_for(Sums(nn.Linear(3, 3))).backward(torch.ones(B))
    model = Sums(nn.Linear(3, 3))
    engine = engine_for(model)
    with pytest.raises(ValueError, match="sample_mask"):
        engine.backward(model(torch.randn(B, 3)), sample_mask=torch.ones(B + 1))


def test_losses_that_couple_examples_are_refused() -> None:
    model = Sums(nn.Linear(3, 3))
    engine = engine_for(model)
    losses = model(torch.randn(B, 3))
    with pytest.raises(ValueError, match=r"reaches the rows of other samples in layer 'layers.0'"):
        engine.backward(losses / losses.mean())


def test_outputs_normalised_over_the_batch_is_refused() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.layer(x)
            return (h - h.mean(dim=0)).square().sum(dim=1)

    model = Mixed()
    with pytest.raises(ValueError, match="coupled"):
        engine_for(model).backward(model(torch.randn(B, 3)))


def test_tokens_gathered_by_a_mask_are_refused() -> None:
    class Gathered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            mask = torch.ones(x.shape[:2], dtype=torch.bool)
            mask[0, 0] = False
            picked = self.layer(x[mask])
            return x.new_zeros(x.shape).masked_scatter(mask[..., None], picked).sum(dim=(1, 2))

    model = Gathered()
    with pytest.raises(ValueError, match=rf"'layer' saw a first axis of {5 * B - 1} for a batch of {B}"):
        engine_for(model).backward(model(torch.randn(B, 5, 3)))


def test_as_many_rows_as_samples_but_not_one_each_are_refused() -> None:
    class Turned(nn.Module):
        """Tokens first: [T, B, D] with T = B passes every check of shapes."""

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x.transpose(0, 1)).square().sum(dim=(0, 2))

    model = Turned()
    with pytest.raises(ValueError, match="coupled"):
        engine_for(model).backward(model(torch.randn(B, B, 3)))


def test_positions_without_a_batch_axis_are_refused() -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.places = nn.Embedding(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return (x + self.places(torch.arange(x.shape[1]))).square().sum(dim=(1, 2))

    model = Positions()
    with pytest.raises(ValueError, match=r"'places' saw a first axis of 6"):
        engine_for(model).backward(model(torch.randn(B, 6, 3)))
    with pytest.raises(ValueError, match="coupled"):  # also where the length happens to be the batch
        other = Positions()
        engine_for(other).backward(other(torch.randn(B, B, 3)))


def test_inputs_overwritten_after_the_layer_read_them_are_refused() -> None:
    class Overwriting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = x.clone()
            y = self.layer(x)
            x.zero_()
            return y.square().sum(dim=1) + x.sum(dim=1)

    model = Overwriting()
    with pytest.raises(ValueError, match=r"'layer' was changed in place"):
        engine_for(model).backward(model(torch.randn(B, 3)))


def test_reentrant_checkpointing_never_drops_a_gradient_silently() -> None:
    class Saved(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            return checkpoint(self.second, h, use_reentrant=True).square().sum(dim=1)

    model = Saved()
    with pytest.raises((ValueError, RuntimeError), match="heckpoint"):
        engine_for(model).backward(model(torch.randn(B, 3)))


def test_compiled_models_are_refused_by_name() -> None:
    model = Sums(nn.Linear(3, 2))
    with pytest.raises(ValueError, match=r"the model.*torch\.compile"):
        OneBackward(torch.compile(model, backend="eager"), FlatClip(1.0))
    model.layers[0].compile(backend="eager")
    with pytest.raises(ValueError, match=r"layers\.0.*torch\.compile"):
        OneBackward(model, FlatClip(1.0))


@pytest.mark.slow  # the compiler's import alone takes seconds
def test_compiling_after_the_engine_was_made_is_never_silently_wrong() -> None:
    model, x = Sums(nn.Linear(3, 2)), torch.randn(B, 4, 3)
    plain = OneBackward(model, FlatClip(1.0))
    plain.backward(model(x))
    expected = plain.take()
    compiled = torch.compile(model, backend="eager")
    try:
        plain.backward(compiled(x))
    except (ValueError, RuntimeError) as error:  # the compiler wraps what a hook raises
        assert "compil" in str(error)
    else:
        for p, total in plain.take().items():
            torch.testing.assert_close(total, expected[p])


def test_one_model_has_one_engine_at_a_time() -> None:
    model = Sums(nn.Linear(3, 3))
    first = engine_for(model)
    with pytest.raises(ValueError, match="another engine"):
        engine_for(model)
    first.close()
    engine_for(model)
    engine_for(copy.deepcopy(model))  # a copy is another model


def test_parameters_unfrozen_later_are_refused() -> None:
    model = Sums(nn.Linear(3, 3), nn.Linear(3, 3).requires_grad_(False))
    engine = engine_for(model)
    model.requires_grad_(True)
    with pytest.raises(ValueError, match=r"layers.1.weight.*became trainable"):
        engine.backward(model(torch.randn(B, 3)))


def test_a_layer_that_raises_leaves_its_parameters_trainable() -> None:
    model = Sums(nn.Linear(3, 3))
    engine = engine_for(model)
    with pytest.raises(RuntimeError):
        model(torch.randn(B, 4))
    assert model.layers[0].weight.requires_grad
    engine.backward(model(torch.randn(B, 3)))


def test_evaluation_is_not_recorded() -> None:
    model = Sums(nn.Linear(3, 3))
    engine = engine_for(model)
    with torch.no_grad():
        model(torch.randn(B, 3))
    assert not engine.recorder.calls
    model(torch.randn(7, 3))  # grad mode, never trained on: what lingers does not disturb the next batch
    assert engine.backward(model(torch.randn(B, 3))).examples == B
    assert not engine.recorder.calls


@pytest.mark.parametrize(
    "make",
    [
        lambda: FlatClip(0.0),
        lambda: FlatClip(math.inf),
        lambda: AutomaticClip(1.0, gamma=0.0),
        lambda: PerLayerClip({}),
        lambda: PerLayerClip({"a": -1.0}),
        lambda: PerLayerClip({"a": 1.0}).groups(["b.weight"]),
    ],
)
def test_impossible_clipping_is_refused(make) -> None:
    with pytest.raises(ValueError, match=r"expected|at least one|fits none"):
        make()


def test_equal_thresholds_add_up_to_the_norm() -> None:
    clip = PerLayerClip.equal(2.0, ["a", "b", "c", "d"])
    assert clip.clip_norm == pytest.approx(2.0) and clip.thresholds["a"] == pytest.approx(1.0)
    assert clip.describe()["thresholds"] == clip.thresholds and FlatClip(1.0).describe()["kind"] == "flat"


def test_rules_belong_to_one_engine() -> None:
    own = default_rules().register(Gain, lambda module, inputs, grad: affine_gain(module, inputs, grad))
    engine_for(Sums(nn.Linear(3, 3), Gain()), rules=own)
    with pytest.raises(ValueError, match="no rule covers"):
        engine_for(Sums(nn.Linear(3, 3), Gain()))
    with pytest.raises(TypeError, match="subclass"):
        own.register("Linear", linear_rule)  # type: ignore[arg-type]


def affine_gain(module: nn.Module, inputs: tuple[Tensor, ...], grad: Tensor):
    assert wanted(module) == ["gain"]
    # the gain of [B, 3] inputs is a diagonal: as a linear part it would be [3, 3], so form it
    parts = affine_parts(_Weight(module.gain), inputs[0], grad)
    return {"gain": parts["weight"]}


class _Weight(nn.Module):
    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight


def test_transposed_weights_swap_input_and_gradient() -> None:
    class Conv1D(nn.Module):
        """GPT-2's layer: the weight is [in, out]."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 5))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight

    rules = default_rules().register(
        Conv1D, lambda module, inputs, grad: {"weight": LinearPart(grad, inputs[0], module.weight.shape)}
    )
    model, x = Sums(Conv1D()), torch.randn(B, 4, 3)
    engine = OneBackward(model, FlatClip(1e9), rules=rules)
    engine.backward(model(x))
    expected = torch.autograd.grad((x @ model.layers[0].weight).square().sum(), model.layers[0].weight)[0]
    torch.testing.assert_close(engine.take()[model.layers[0].weight], expected)
