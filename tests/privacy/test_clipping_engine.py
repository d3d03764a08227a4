"""The one-backward engine is exact: norms and clipped sums equal an fp64 loop of one-sample backward passes.

Models here hold what breaks elsewhere: tied tables, layers called twice, norm layers, several pictures per sample,
low-rank adapters, in-place activations, activation checkpointing.
"""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from privacy.clipping.engine import BatchCounts, OneBackward
from privacy.clipping.kinds import AutomaticClip, ClipKind, FlatClip, PerLayerClip
from privacy.clipping.parts import HalfGram, ScaledInputs
from privacy.clipping.rules import default_rules, linear_rule, per_sample_by_vmap

B = 6


class Block(nn.Module):
    def __init__(self, width: int, inner: int, norm: type[nn.Module]) -> None:
        super().__init__()
        self.norm1, self.norm2 = norm(width), norm(width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=i == 3) for i in range(4))
        self.gate, self.up = nn.Linear(width, inner, bias=False), nn.Linear(width, inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        q, k, v = (f(h).unflatten(-1, (2, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        x = x + self.o(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        h = self.norm2(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Decoder(nn.Module):
    """Tied head, learned positions, 40 tokens: long enough for split Gram matrices."""

    def __init__(self, norm: type[nn.Module] = nn.RMSNorm, tied: bool = True, save_memory: bool = False) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(19, 48), nn.Embedding(40, 48)
        self.blocks = nn.ModuleList(Block(48, 60, norm) for _ in range(2))
        self.norm, self.head = norm(48), nn.Linear(48, 19, bias=False)
        self.save_memory = save_memory
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, ids: Tensor) -> Tensor:
        places = torch.arange(ids.shape[1]).expand(len(ids), -1)
        x = self.tokens(ids) + self.positions(places)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.save_memory else block(x)
        logits = self.head(self.norm(x))
        losses = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        return losses.view(len(ids), -1).mean(dim=1)


class Twice(nn.Module):
    """One linear layer, one norm and one table, each called several times in a sample."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.layer, self.norm = nn.Embedding(11, 8, padding_idx=3), nn.Linear(8, 8), nn.LayerNorm(8)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids) + self.table((ids * 2) % 11)
        for _ in range(3):
            x = x + self.layer(self.norm(x)).tanh()
        return x.square().mean(dim=(1, 2))


class Pictures(nn.Module):
    """Convolutions of every sort over [B, 3, 12, 12], then a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = nn.GroupNorm(2, 8)
        self.grouped = nn.Conv2d(8, 8, 3, padding="same", groups=4, bias=False)
        self.dilated = nn.Conv2d(8, 6, 3, dilation=2, padding=2, padding_mode="circular")
        self.patch = nn.Conv2d(6, 10, 2, stride=2)
        self.along = nn.Conv1d(10, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)), inplace=True)
        x = F.relu(self.grouped(x)) + x
        x = self.patch(torch.tanh(self.dilated(x))).flatten(2)
        return self.along(x).square().mean(dim=(1, 2))


class LowRank(nn.Module):
    """A frozen layer with a low-rank delta, over several pictures [B, N, T, D]."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(24, 30).requires_grad_(False)
        self.a, self.b = nn.Linear(24, 3, bias=False), nn.Linear(3, 30, bias=False)
        self.norm = nn.LayerNorm((5, 30))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.base(x) + self.b(self.a(x)))
        return h.relu().square().mean(dim=(1, 2, 3)) + h[:, 0, 0].sin().sum(dim=1)


class OwnRMSNorm(nn.Module):
    """A norm the engine does not know, with Gemma's offset."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * (1 + self.weight)


class Scale(nn.Module):
    """A layer without a built-in rule."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.rand(width))

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.factor).sin()


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.scale = nn.Linear(7, 9), OwnRMSNorm(9), Scale(9)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale(self.norm(self.first(x))).square().sum(dim=(1, 2))


class Vectors(nn.Module):
    """Inputs [B, D] without a token axis, an in-place activation, and a layer that this loss never uses."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.unused = nn.Linear(10, 12), nn.Linear(12, 5), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.relu_(self.first(x))).square().sum(dim=1)


def ids(length: int, high: int) -> Tensor:
    return torch.randint(0, high, (B, length))


MODELS = {
    "decoder": (lambda: Decoder(), lambda: ids(40, 19)),
    "decoder, LayerNorm, untied": (lambda: Decoder(nn.LayerNorm, tied=False), lambda: ids(24, 19)),
    "decoder, odd length": (lambda: Decoder(), lambda: ids(37, 19)),
    "decoder, checkpointed": (lambda: Decoder(save_memory=True), lambda: ids(40, 19)),
    "called twice": (lambda: Twice(), lambda: ids(9, 11)),
    "pictures": (lambda: Pictures(), lambda: torch.randn(B, 3, 12, 12)),
    "low rank": (lambda: LowRank(), lambda: torch.randn(B, 2, 5, 24)),
    "own layers": (lambda: Own(), lambda: torch.randn(B, 4, 7)),
    "vectors": (lambda: Vectors(), lambda: torch.randn(B, 10)),
}


def rules():
    own = default_rules()
    own.register_norm(OwnRMSNorm, lambda _m, x: x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6))
    return own.register(Scale, per_sample_by_vmap)


def make(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model, data = MODELS[name]
    return model(), data()


def loop(model: nn.Module, x: Tensor) -> list[dict[str, Tensor]]:
    """Per-sample gradients by one backward pass per sample, in fp64."""
    exact = copy.deepcopy(model).double()
    x = x.double() if x.is_floating_point() else x
    result = []
    for i in range(len(x)):
        exact.zero_grad()
        exact(x[i : i + 1]).sum().backward()
        result.append({n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in trained(exact)})
    return result


def trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def norm(gradient: dict[str, Tensor]) -> float:
    return math.sqrt(sum(float(g.square().sum()) for g in gradient.values()))


def clipped_sum(gradients: list[dict[str, Tensor]], factors: list[float]) -> dict[str, Tensor]:
    return {n: sum(f * g[n] for f, g in zip(factors, gradients, strict=True)) for n in gradients[0]}


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Relative distance of two sums over all parameters."""
    assert a.keys() == b.keys()
    return norm({n: a[n].double() - b[n].double() for n in a}) / norm({n: g.double() for n, g in b.items()})


def engine_sums(engine: OneBackward) -> dict[str, Tensor]:
    return {engine.names[p]: total for p, total in engine.take().items()}


@pytest.mark.parametrize("name", MODELS)
def test_norms_and_clipped_sums_equal_the_fp64_loop(name) -> None:
    model, x = make(name)
    truth = loop(model, x)
    norms = [norm(g) for g in truth]
    clip_norm = sorted(norms)[B // 2]  # some are clipped, some are not
    engine = OneBackward(model, FlatClip(clip_norm), rules=rules())
    counts = engine.backward(model(x))
    assert engine.last_norms is not None
    torch.testing.assert_close(engine.last_norms[0], torch.tensor(norms, dtype=torch.float64), rtol=1e-5, atol=0)
    factors = [min(1.0, clip_norm / n) for n in norms]
    assert distance(engine_sums(engine), clipped_sum(truth, factors)) < 1e-5
    assert counts.examples == B and counts.dropped == 0 and 2 <= counts.clipped <= 4
    assert all(p.grad is None for p in model.parameters())
    assert [n for n, _ in trained(model)] == list(truth[0])  # gradients are asked for again


@pytest.mark.parametrize("name", ["decoder", "called twice", "low rank", "pictures"])
def test_micro_batches_change_nothing(name) -> None:
    model, x = make(name)
    engine = OneBackward(model, FlatClip(0.05), rules=rules())
    engine.backward(model(x))
    whole = engine_sums(engine)
    total = BatchCounts()
    for rows in ([0], [1, 2, 3], [], [4, 5]):
        total += engine.backward(model(x[rows])) if rows else engine.backward(torch.zeros(0))
    assert distance(engine_sums(engine), whole) < 1e-6
    assert total.examples == B


@pytest.mark.parametrize("name", ["decoder", "vectors"])
def test_nothing_is_left_between_steps(name) -> None:
    model, x = make(name)
    engine = OneBackward(model, FlatClip(0.1))
    engine.backward(model(x))
    first = engine_sums(engine)
    assert all(not total.any() for total in engine_sums(engine).values())
    engine.backward(model(x))
    assert distance(engine_sums(engine), first) == 0
    engine.close()
    assert not engine.recorder.calls
    model(x).sum().backward()
    assert not engine.recorder.calls and any(p.grad is not None for p in model.parameters())


def test_no_example_moves_the_sum_by_more_than_c() -> None:
    # a tied table is where one example may contribute 1.66 C elsewhere
    model, x = make("decoder")
    for p in model.parameters():
        p.data.mul_(3.0)
    for clip in (FlatClip(1.0), AutomaticClip(1.0), PerLayerClip({"": 0.6, "blocks": 0.8})):
        engine = OneBackward(model, clip)
        for i in range(B):
            engine.backward(model(x[i : i + 1]))
            contribution = norm({n: t.double() for n, t in engine_sums(engine).items()})
            assert 0.99 < contribution <= 1.0
        engine.close()


def test_every_trainable_parameter_gets_a_gradient() -> None:
    # norm weights, biases and positions included: elsewhere RMSNorm weights are silently never trained
    model, x = make("decoder")
    engine = OneBackward(model, FlatClip(1.0))
    engine.backward(model(x))
    assert all(total.any() for total in engine_sums(engine).values())


@pytest.mark.parametrize(
    ("name", "bad"),
    [(name, bad) for name in ("pictures", "low rank", "vectors") for bad in (math.nan, math.inf)] + [("vectors", 1e38)],
)
def test_an_example_that_is_not_finite_contributes_zero_and_is_counted(name, bad) -> None:
    model, x = make(name)
    poisoned = x.clone()
    poisoned[2].view(-1)[3] = bad
    engine = OneBackward(model, FlatClip(0.1))
    counts = engine.backward(model(poisoned))
    got = engine_sums(engine)
    engine.backward(model(x[[0, 1, 3, 4, 5]]))
    assert counts == BatchCounts(examples=B, clipped=counts.clipped, dropped=1)
    assert all(torch.isfinite(total).all() for total in got.values())
    assert distance(got, engine_sums(engine)) < 1e-6


def test_a_batch_of_nothing_but_broken_examples_is_zero() -> None:
    model, x = make("vectors")
    engine = OneBackward(model, FlatClip(0.1))
    assert engine.backward(model(x * math.nan)) == BatchCounts(examples=B, dropped=B)
    assert all(not total.any() for total in engine_sums(engine).values())


@pytest.mark.parametrize("name", ["decoder", "pictures", "vectors"])
def test_masked_samples_contribute_nothing(name) -> None:
    model, x = make(name)
    mask = torch.tensor([True, False, True, True, False, True])
    if x.is_floating_point():
        x[1] = math.nan
    engine = OneBackward(model, FlatClip(0.1))
    counts = engine.backward(model(x), sample_mask=mask)
    masked = engine_sums(engine)
    engine.backward(model(x[mask]))
    assert distance(masked, engine_sums(engine)) < 1e-6
    assert (counts.examples, counts.dropped) == (4, 0)


def test_an_empty_batch_adds_nothing() -> None:
    model, x = make("vectors")
    engine = OneBackward(model, FlatClip(0.1))
    assert engine.backward(model(x[:0])) == BatchCounts()
    assert engine.backward(torch.zeros(0)) == BatchCounts()
    sums = engine_sums(engine)
    assert all(not total.any() for total in sums.values()) and len(sums) == 6


@pytest.mark.parametrize(
    ("clip", "bound"), [(AutomaticClip(0.7, gamma=0.05), 0.7), (PerLayerClip({"": 0.3, "blocks.0": 0.4}), 0.5)]
)
def test_other_ways_to_clip_follow_their_formula(clip: ClipKind, bound: float) -> None:
    model, x = make("decoder")
    truth = loop(model, x)
    engine = OneBackward(model, clip)
    engine.backward(model(x))
    got = engine_sums(engine)
    expected = {n: torch.zeros_like(g) for n, g in truth[0].items()}
    for gradient in truth:
        groups: dict[str, list[str]] = {}
        for n in gradient:
            groups.setdefault("blocks.0" if n.startswith("blocks.0") else "", []).append(n)
        for prefix, members in groups.items():
            size = norm({n: gradient[n] for n in members})
            if isinstance(clip, PerLayerClip):
                factor = min(1.0, clip.thresholds[prefix] / size)
            else:
                factor = 0.7 / (norm(gradient) + 0.05)
            for n in members:
                expected[n] += factor * gradient[n]
    assert distance(got, expected) < 1e-5
    assert clip.clip_norm == pytest.approx(bound) and clip.sensitivity == 1.0


def test_tokens_that_cancel_do_not_hide_a_norm_above_c() -> None:
    """Large equal inputs whose output gradients add up to almost nothing: in fp32 the norm drowns in rounding."""

    class Cancelling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(64, 64, bias=False)

        def forward(self, x: Tensor, direction: Tensor) -> Tensor:
            return (self.layer(x) * direction).sum(dim=(1, 2))

    torch.manual_seed(0)
    model = Cancelling()
    x = 1e3 + torch.randn(B, 8, 64)
    direction = 1e2 * torch.randn(B, 8, 64)
    direction[:, -1] = -direction[:, :-1].sum(dim=1)
    truth = torch.bmm(direction.double().transpose(1, 2), x.double()).flatten(1).norm(dim=1)
    x[0], direction[0] = x[0] * 1e-3, torch.randn(8, 64)  # one sample is harmless
    engine = OneBackward(model, FlatClip(1.0))
    for i in range(1, B):
        engine.backward(model(x[i : i + 1], direction[i : i + 1]))
        assert engine.last_norms is not None
        assert float(engine.last_norms[0, 0]) == pytest.approx(float(truth[i]), rel=1e-3)
        assert norm({n: t.double() for n, t in engine_sums(engine).items()}) <= 1.0 + 1e-3
    assert engine.backward(model(x, direction)).clipped == B


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("tokens", [1, 7, 40])
def test_half_grams_are_the_whole_product_on_any_number_of_threads(threads, tokens) -> None:
    before = torch.get_num_threads()
    generator = torch.Generator().manual_seed(0)
    a, b, c = (torch.randn(3, tokens, width, generator=generator) for width in (5, 64, 300))
    try:
        torch.set_num_threads(threads)
        one, other = HalfGram(a), HalfGram(b)
        other.add_(c.transpose(1, 2).contiguous().transpose(1, 2))  # as a convolution's windows come
        assert one.whole == (threads == 1)
        found, diagonal = one.dot(other), other.diagonal()
    finally:
        torch.set_num_threads(before)
    a, b, c = a.double(), b.double(), c.double()
    whole = b @ b.transpose(1, 2) + c @ c.transpose(1, 2)
    expected = ((a @ a.transpose(1, 2)) * whole).sum(dim=(1, 2))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(diagonal.double(), whole.diagonal(dim1=1, dim2=2), rtol=1e-5, atol=1e-5)


def test_layers_that_share_an_input_scale_it_once_and_others_do_not() -> None:
    inputs, x = ScaledInputs(), torch.randn(4, 3, 5)
    factor = torch.rand(4, dtype=torch.float64)
    first = inputs.times(x.detach(), factor)
    assert inputs.times(x.view(4, 3, 5), factor) is first
    torch.testing.assert_close(first, x * factor.float()[:, None, None])
    assert inputs.times(x.clone(), factor) is not first
    assert inputs.times(x[:, :2], factor).shape == (4, 2, 5)
    torch.testing.assert_close(inputs.times(x, 2 * factor), 2 * first)


def test_bf16_forward_with_fp32_norms_and_sums() -> None:
    model, x = make("decoder")
    truth = loop(model, x)
    clip_norm = sorted(norm(g) for g in truth)[2]
    engine = OneBackward(model, FlatClip(clip_norm))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(x)
    engine.backward(losses)
    sums = engine_sums(engine)
    assert all(total.dtype == torch.float32 for total in sums.values())
    factors = [min(1.0, clip_norm / norm(g)) for g in truth]
    assert distance(sums, clipped_sum(truth, factors)) < 0.03
    half = copy.deepcopy(model).bfloat16()
    engine = OneBackward(half, FlatClip(1e-3))
    for i in range(B):  # the bound itself holds to fp32, whatever the forward's rounding was
        engine.backward(half(x[i : i + 1]))
        assert norm({n: t.double() for n, t in engine_sums(engine).items()}) <= 1e-3 * (1 + 1e-6)


def test_norms_are_formed_in_full_precision_whatever_the_user_allowed() -> None:
    seen: list[str] = []

    def watched(module: nn.Module, inputs: tuple[Tensor, ...], grad: Tensor):
        seen.append(torch.get_float32_matmul_precision())
        return linear_rule(module, inputs, grad)

    model, x = make("vectors")
    engine = OneBackward(model, FlatClip(0.5), rules=default_rules().register(nn.Linear, watched), check=False)
    torch.set_float32_matmul_precision("medium")
    try:
        engine.backward(model(x))
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert set(seen) == {"highest"}


def test_fp64_models_stay_in_fp64() -> None:
    model, x = make("decoder")
    truth = loop(model, x)
    model.double()
    engine = OneBackward(model, FlatClip(1e9))
    engine.backward(model(x))
    assert distance(engine_sums(engine), clipped_sum(truth, [1.0] * B)) < 1e-12


def test_folded_rows_are_one_sample() -> None:
    class Folded(nn.Module):
        """Pictures flattened into the batch axis, sample first, then taken apart again."""

        def __init__(self) -> None:
            super().__init__()
            self.tower = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.Flatten(), nn.Linear(4 * 25, 6))
            self.head = nn.Linear(6, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.tower(x.flatten(0, 1)).view(len(x), x.shape[1], 6)).square().sum(dim=(1, 2))

    torch.manual_seed(0)
    model, x = Folded(), torch.randn(B, 3, 3, 12, 12)
    truth = loop(model, x)
    plain = OneBackward(model, FlatClip(1.0))
    with pytest.raises(ValueError, match=r"'tower\.[02]' saw a first axis of 18 for a batch of 6"):
        plain.backward(model(x))
    plain.close()
    clip_norm = sorted(norm(g) for g in truth)[3]
    engine = OneBackward(model, FlatClip(clip_norm), folded=["tower"])
    engine.backward(model(x))
    factors = [min(1.0, clip_norm / norm(g)) for g in truth]
    assert distance(engine_sums(engine), clipped_sum(truth, factors)) < 1e-5


def test_several_forward_passes_before_one_backward_are_one_batch() -> None:
    model, x = make("low rank")
    engine = OneBackward(model, FlatClip(1e9))
    engine.backward(model(x) + model(2 * x))
    together = engine_sums(engine)
    truth = [{n: a[n] + b[n] for n in a} for a, b in zip(loop(model, x), loop(model, 2 * x), strict=True)]
    assert distance(together, clipped_sum(truth, [1.0] * B)) < 1e-5
