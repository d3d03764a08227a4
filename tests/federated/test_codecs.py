"""Codecs: what comes back is what was sent up to the stated error, unbiased; hostile payloads are refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from federated.codecs import BLOCK, CodecError, TopK, codec

D = 5000
VECTOR = torch.randn(D, generator=torch.Generator().manual_seed(1)) * torch.logspace(-4, 0, D)
NAMES = ["fp32", "bf16", "int8", "topk"]


def dice(seed=0):
    return np.random.default_rng(seed)


def round_trip(name, vector=VECTOR, seed=0):
    return codec(name).decode(codec(name).encode(vector, dice(seed)), len(vector))


def test_fp32_is_exact_and_bf16_is_torchs_rounding():
    assert torch.equal(round_trip("fp32"), VECTOR)
    assert torch.equal(round_trip("bf16"), VECTOR.to(torch.bfloat16).float())


def test_int8_is_within_one_level_and_right_on_average():
    copies = torch.stack([round_trip("int8", seed=seed) for seed in range(400)])
    levels = torch.nn.functional.pad(VECTOR, (0, -D % BLOCK)).view(-1, BLOCK).abs().amax(1).div(127)
    level = levels.repeat_interleave(BLOCK)[:D]
    assert ((copies - VECTOR).abs() <= level * 1.001).all()
    standard_error = level / 2 / 400**0.5
    assert ((copies.mean(0) - VECTOR).abs() < 5.5 * standard_error + 1e-9).all()


@pytest.mark.parametrize("name", ["fp32", "bf16", "int8", "topk"])
@pytest.mark.parametrize("dimension", [1, BLOCK, BLOCK + 1, 3000])
def test_zeros_and_every_length_travel(name, dimension):
    assert torch.equal(round_trip(name, torch.zeros(dimension)), torch.zeros(dimension))
    assert round_trip(name, VECTOR[:dimension].contiguous()).shape == (dimension,)


def test_bytes_are_those_stated():
    sizes = {name: len(codec(name).encode(VECTOR, dice())) / D for name in NAMES}
    assert sizes["fp32"] == 4 and sizes["bf16"] == 2
    assert sizes["int8"] == pytest.approx(1, abs=0.01) and sizes["topk"] == pytest.approx(0.08)


def test_topk_keeps_the_largest_and_error_feedback_loses_nothing():
    sender, received, sent = TopK(), torch.zeros(D), torch.zeros(D)
    for step in range(5):
        update = torch.randn(D, generator=torch.Generator().manual_seed(step))
        payload = sender.encode(update, dice())
        decoded = TopK().decode(payload, D)
        assert int((decoded != 0).sum()) == TopK.kept(D)
        received, sent = received + decoded, sent + update
        assert torch.allclose(received + sender.residual, sent, rtol=1e-5, atol=1e-5)
    first = TopK().decode(TopK().encode(VECTOR, dice()), D)
    assert first.abs().max() == VECTOR.abs().max()


@pytest.mark.parametrize("name", NAMES)
def test_another_length_is_refused(name):
    payload = codec(name).encode(VECTOR, dice())
    for bad in (payload[:-1], np.append(payload, payload[:1]), payload[:0], payload.view(np.int8)):
        with pytest.raises(CodecError, match="bytes"):
            codec(name).decode(bad, D)


@pytest.mark.parametrize("name", NAMES)
def test_values_that_are_not_finite_are_refused(name):
    poisoned = codec(name).encode(VECTOR, dice()).copy()
    if name == "bf16":
        poisoned[:2] = [0xC0, 0x7F]
    elif name == "topk":
        poisoned[-4:] = [0, 0, 0xC0, 0x7F]
    else:
        poisoned[:4] = [0, 0, 0xC0, 0x7F]
    with pytest.raises(CodecError, match="not finite"):
        codec(name).decode(poisoned, D)


@pytest.mark.parametrize("how", ["outside", "twice", "descending"])
def test_places_that_no_device_would_send_are_refused(how):
    payload = TopK().encode(VECTOR, dice()).copy()
    count = TopK.kept(D)
    places = payload[: 4 * count].view("<u4")
    if how == "outside":
        places[-1] = D
    elif how == "twice":
        places[1] = places[0]
    else:
        places[:] = places[::-1].copy()
    with pytest.raises(CodecError, match="ascending"):
        TopK().decode(payload, D)


def test_adapters_are_at_most_a_fortieth_of_the_model_at_the_default_tier():
    from mmslm.model.configuration import MMSLMConfig
    from mmslm.model.modeling import MMSLMForConditionalGeneration

    with torch.device("meta"):  # shapes alone
        model = MMSLMForConditionalGeneration(MMSLMConfig())
        whole = sum(parameter.numel() for parameter in model.parameters())
        model.add_image_experts(4, train="b")
    travels = sum(parameter.numel() for parameter in model.adapter_parameters().values())
    assert 0 < travels <= whole / 40


@pytest.mark.parametrize("name", ["bf16", "int8"])
def test_rounding_may_lengthen_a_vector_so_it_never_stands_between_clipping_and_noise(name):
    from privacy.clipping.vector import clip_vector

    vectors = [torch.randn(64, generator=torch.Generator().manual_seed(seed)) for seed in range(20)]
    clipped = [clip_vector(vector, 1.0)[0].float() for vector in vectors]
    travelled = [round_trip(name, vector, seed) for seed, vector in enumerate(clipped)]
    assert max(float(vector.norm()) for vector in travelled) > 1.0001  # more than C: noise for C would be too little
    # What the server does: it clips what it decoded.
    assert max(float(clip_vector(vector, 1.0)[0].norm()) for vector in travelled) <= 1.0
