"""Linear attention: parallel, chunked and recurrent forms are one function; its state is the whole memory."""

from __future__ import annotations

import pytest
import torch
from tiny_models import alone, batch_of, row, tiny_config, tiny_model, train_randomly
from torch import Tensor
from transformers import DynamicCache, StaticCache

from mmslm.generation.cache import SumCache
from mmslm.model import describe
from mmslm.model.attention import RotaryTable, rotate
from mmslm.model.linear import linear_attend
from privacy.clipping.engine import OneBackward
from privacy.clipping.kinds import FlatClip

LENGTH = 21
LINEAR = {"linear_attention": True}


def drawn(heads: int, seed: int) -> Tensor:
    return torch.randn(2, heads, LENGTH, 8, generator=torch.Generator().manual_seed(seed))


def the_long_way(query: Tensor, key: Tensor, value: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Token by token from the definition, in fp64."""
    query, key, value, cos, sin = (x.double() for x in (query, key, value, cos, sin))
    asked, stored = torch.nn.functional.elu(query) + 1, torch.nn.functional.elu(key) + 1
    turned_q, turned_k = rotate(asked, cos, sin), rotate(stored, cos, sin)
    out = torch.zeros_like(query)
    for b in range(query.shape[0]):
        for head in range(query.shape[1]):
            shared = head * key.shape[1] // query.shape[1]
            for t in range(query.shape[2]):
                weights = turned_k[b, shared, : t + 1] @ turned_q[b, head, t]
                total = (stored[b, shared, : t + 1] @ asked[b, head, t]).sum()
                out[b, head, t] = weights @ value[b, shared, : t + 1] / total
    return out


def test_parallel_chunked_and_recurrent_forms_are_the_definition() -> None:
    query, key, value = drawn(4, 0), drawn(2, 1), drawn(2, 2)
    cos, sin = RotaryTable(8, 10000.0, 64).span(0, LENGTH, torch.device("cpu"))
    expected = the_long_way(query, key, value, cos, sin)
    for chunk in (1, 4, 64):  # recurrent, chunked, parallel
        found = linear_attend(query, key, value, cos, sin, None, chunk=chunk)
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)
    cache = SumCache.empty(1, 2, 2, 0, 8, query)
    steps = []
    for start, stop in ((0, 9), *((t, t + 1) for t in range(9, LENGTH))):
        part = slice(start, stop)
        given = (x[:, :, part] for x in (query, key, value, cos, sin))
        steps.append(linear_attend(*given, None, cache, 0))
        cache.advance(stop - start)
    torch.testing.assert_close(torch.cat(steps, dim=2).double(), expected, rtol=1e-4, atol=1e-5)
    assert cache.length == LENGTH


def test_no_token_adds_memory_and_describe_says_so() -> None:
    model = tiny_model(text=LINEAR)
    ids = torch.tensor([row(0, 30, 1)])
    for cache in (DynamicCache(config=model.config), StaticCache(config=model.config, max_cache_len=64)):
        sizes = []
        for part in (ids[:, :3], ids[:, 3:30], ids[:, 30:]):
            with torch.no_grad():
                model(input_ids=part, past_key_values=cache, use_cache=True)
            sizes.append(
                sum(x.numel() * x.element_size() for layer in cache.layers for x in (layer.keys, layer.values))
            )
        assert cache.get_seq_length() == ids.shape[1]
        facts = describe(tiny_config(text=LINEAR))["cache_bytes"]
        assert sizes == [facts["full_context"]] * 3
        assert facts["token"] == 0


def test_the_private_engine_sees_each_samples_own_gradient() -> None:
    model = tiny_model(text=LINEAR)
    model.add_image_experts(2)
    train_randomly(model)
    model.freeze_base()
    batch = batch_of([row(1, 9, 0), row(2, 7, 1, between=2), row(0, 6, 2)], "left")
    engine = OneBackward(model, FlatClip(1e9))
    engine.backward(model(**batch, logits_at="labels").per_sample_loss)
    norms, sums = engine.last_norms, {engine.names[p]: g for p, g in engine.take().items()}
    engine.close()
    assert norms is not None
    total = {name: torch.zeros_like(value) for name, value in sums.items()}
    for index in range(3):
        model.zero_grad()
        loss = model(**alone(batch, index)).per_sample_loss[0]
        assert loss.requires_grad is (index < 2), "text alone feels no image expert"
        if loss.requires_grad:
            loss.backward()
        grads = {
            n: p.grad if p.grad is not None else torch.zeros_like(p) for n, p in model.adapter_parameters().items()
        }
        length = torch.cat([g.flatten() for g in grads.values()]).double().norm()
        assert float(norms[0, index]) == pytest.approx(float(length), rel=1e-4, abs=1e-6)
        for name in total:
            total[name] += grads[name]
    for name, value in total.items():
        torch.testing.assert_close(sums[name], value, rtol=1e-3, atol=1e-5)


def test_beams_carry_their_own_sums() -> None:
    model, ids = tiny_model(text=LINEAR), torch.tensor([row(0, 9, 4)])
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "num_beams": 4}
    kept = model.generate(input_ids=ids, **options)
    assert torch.equal(kept, model.generate(input_ids=ids, **options, use_cache=False))
