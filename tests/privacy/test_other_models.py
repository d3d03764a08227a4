"""Models that have nothing to do with mmslm: transformers' GPT-2 trains privately, and what is not covered is named."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from privacy.clipping.kinds import FlatClip
from privacy.clipping.rules import Rules, default_rules, transposed_linear_rule
from privacy.noise import SeededNoise
from privacy.optimizer import DPAdamW, PrivateOptimizer, make_engine, micro_batches
from privacy.sampling import PoissonSampler

gpt2 = pytest.importorskip("transformers.models.gpt2.modeling_gpt2", reason="needs transformers")
VOCABULARY, LENGTH = 31, 10


def tiny_gpt2() -> nn.Module:
    torch.manual_seed(0)
    config = gpt2.GPT2Config(vocab_size=VOCABULARY, n_positions=16, n_embd=12, n_layer=2, n_head=2, use_cache=False)
    return gpt2.GPT2LMHeadModel(config).eval()  # no dropout: the comparison runs every sample twice


def gpt2_rules() -> Rules:
    return default_rules().register(gpt2.Conv1D, transposed_linear_rule)


def losses(model: nn.Module, ids: Tensor) -> Tensor:
    """[B]: positions are given per sample, and the loss is formed per sample."""
    positions = torch.arange(ids.shape[1], device=ids.device).expand(len(ids), -1)
    logits = model(input_ids=ids, position_ids=positions).logits
    each = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return each.view(len(ids), -1).mean(dim=1)


def test_gpt2_clipped_sums_equal_the_fp64_loop() -> None:
    model, ids = tiny_gpt2(), torch.randint(0, VOCABULARY, (5, LENGTH))
    exact = copy.deepcopy(model).double()
    samples = []
    for i in range(len(ids)):
        exact.zero_grad()
        losses(exact, ids[i : i + 1]).sum().backward()
        samples.append({name: p.grad.clone() for name, p in exact.named_parameters() if p.grad is not None})
    norms = [math.sqrt(sum(float(g.square().sum()) for g in sample.values())) for sample in samples]
    clip_norm = sorted(norms)[2]
    engine = make_engine(model, FlatClip(clip_norm), rules=gpt2_rules())
    engine.backward(losses(model, ids))
    sums = {engine.names[p]: total.double() for p, total in engine.take().items()}
    assert sums.keys() == samples[0].keys()
    for name, total in sums.items():
        expected = sum(min(1.0, clip_norm / n) * sample[name] for n, sample in zip(norms, samples, strict=True))
        torch.testing.assert_close(total, expected, rtol=1e-4, atol=1e-6)


def test_gpt2_learns_privately() -> None:
    model, data = tiny_gpt2(), torch.arange(LENGTH).repeat(64, 1)
    private = PrivateOptimizer(
        make_engine(model, FlatClip(1.0), rules=gpt2_rules()),
        DPAdamW(model.parameters(), lr=0.02),
        noise_multiplier=0.3,
        sampler=PoissonSampler(64, 0.25, seed_or_generator=0),
        noise=SeededNoise(0),
    )
    before = float(losses(model, data[:1]).detach())
    for _ in range(12):
        for rows in micro_batches(private.draw()):
            private.backward(losses(model, data[rows]))
        private.step()
    assert float(losses(model, data[:1]).detach()) < 0.7 * before


def test_gpt2_without_a_rule_or_with_shared_positions_is_refused_by_name() -> None:
    model, ids = tiny_gpt2(), torch.randint(0, VOCABULARY, (3, LENGTH))
    with pytest.raises(ValueError, match=r"transformer\.h\.0\.attn\.c_attn\.weight"):
        make_engine(model, FlatClip(1.0))
    engine = make_engine(model, FlatClip(1.0), rules=gpt2_rules())
    with pytest.raises(ValueError, match=r"transformer\.wpe"):
        engine.backward(model(input_ids=ids).logits.mean(dim=(1, 2)))


def test_layers_of_torch_that_use_bare_weights_are_named() -> None:
    with pytest.raises(ValueError, match=r"self_attn\.in_proj_weight"):
        make_engine(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), FlatClip(1.0))
