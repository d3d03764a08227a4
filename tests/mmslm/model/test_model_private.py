"""Our model under the one-backward engine: clipped sums equal an fp64 loop over samples, whatever is trained."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from tiny_models import batch_of, row, tiny_model, train_randomly
from torch import Tensor, nn

from privacy.clipping.engine import OneBackward
from privacy.clipping.kinds import FlatClip

# Two pictures and none, of different lengths: padding, several images, text alone.
ROWS = [row(2, 9, 0), row(1, 5, 1), row(0, 12, 2), row(1, 7, 3)]


def losses(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return model(**batch, logits_at="labels").per_sample_loss


def everything(model: nn.Module) -> nn.Module:
    return model


def experts(model: nn.Module) -> nn.Module:
    model.add_image_experts(2, include=("decoder", "vision", "projector"))
    train_randomly(model)
    model.freeze_base()
    return model


def experts_and_base(model: nn.Module) -> nn.Module:
    model.add_image_experts(2, train="b")
    train_randomly(model)
    return model


def lora(model: nn.Module) -> nn.Module:
    peft = pytest.importorskip("peft", reason="peft comes with the lora extra")
    settings = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj", "mlp.down_proj"], lora_dropout=0.0)
    adapted = peft.get_peft_model(model, settings)
    with torch.no_grad():  # B is zero at first, and A would have no gradient
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    return adapted


@pytest.mark.parametrize("prepare", [everything, experts, experts_and_base, lora], ids=lambda f: f.__name__)
def test_clipped_sums_equal_the_fp64_loop(prepare) -> None:
    torch.manual_seed(0)
    model, batch = prepare(tiny_model()), batch_of(ROWS)
    exact = copy.deepcopy(model).double()
    wide = {name: x.double() if x.is_floating_point() else x for name, x in batch.items()}
    samples = []
    for i in range(len(ROWS)):
        exact.zero_grad()
        losses(exact, wide)[i].backward()
        samples.append({n: p.grad.clone() for n, p in exact.named_parameters() if p.grad is not None})
    norms = [math.sqrt(sum(float(g.square().sum()) for g in sample.values())) for sample in samples]
    clip_norm = sorted(norms)[2]
    engine = OneBackward(model, FlatClip(clip_norm))
    counts = engine.backward(losses(model, batch))
    assert (counts.examples, counts.dropped) == (len(ROWS), 0)
    assert engine.last_norms is not None
    torch.testing.assert_close(engine.last_norms[0], torch.tensor(norms, dtype=torch.float64), rtol=1e-5, atol=1e-8)
    gap = size = 0.0
    for parameter, total in engine.take().items():
        name = engine.names[parameter]
        truth = torch.zeros_like(total, dtype=torch.float64)
        for n, sample in zip(norms, samples, strict=True):
            truth += min(1.0, clip_norm / max(n, 1e-300)) * sample.get(name, torch.zeros_like(truth))
        gap, size = gap + float((total - truth).square().sum()), size + float(truth.square().sum())
    assert math.sqrt(gap / size) < 2e-5


def test_samples_without_pictures_count_and_contribute_nothing_where_only_image_experts_train() -> None:
    model = experts(tiny_model())
    engine = OneBackward(model, FlatClip(1.0))
    counts = engine.backward(losses(model, batch_of([row(0, 8, 0), row(0, 5, 1)])))
    assert (counts.examples, counts.clipped, counts.dropped) == (2, 0, 0)
    assert engine.last_norms is not None and not engine.last_norms.any()
    assert not any(total.any() for total in engine.take().values())

    # Beside samples with pictures they change nothing.
    sums = []
    for rows in ([row(1, 7, 3)], [row(1, 7, 3), row(0, 8, 0), row(0, 5, 1)]):
        assert engine.backward(losses(model, batch_of(rows))).examples == len(rows)
        sums.append(engine.take())
    for parameter, alone in sums[0].items():
        torch.testing.assert_close(sums[1][parameter], alone, rtol=1e-4, atol=1e-6)

    # Losses that lost their gradient are still an error, not silence.
    with torch.no_grad():
        blind = losses(model, batch_of([row(0, 8, 0)]))
    with pytest.raises(ValueError, match="carry no gradient"):
        engine.backward(blind)
    with pytest.raises(ValueError, match="carry no gradient"):
        engine.backward(losses(model, batch_of([row(1, 7, 3)])).detach())
