"""The equalities that the model promises: padded = alone, cached = uncached, several pictures = each for itself."""

from __future__ import annotations

import pytest
import torch
from tiny_models import EACH, IMAGE, alone, batch_of, row, tiny_model, train_randomly
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from mmslm.model import MMSLMForConditionalGeneration, per_sample_loss
from mmslm.model.vision import convolve_each

ROWS = [row(1, 9, 0), row(2, 5, 1, between=2), row(0, 6, 2), row(3, 4, 3)]
MODELS = ["plain", "experts"]


@pytest.fixture
def model() -> MMSLMForConditionalGeneration:
    return tiny_model()


def make(kind: str) -> MMSLMForConditionalGeneration:
    model = tiny_model()
    if kind == "experts":
        model.add_image_experts(2, include=("decoder", "vision", "projector"))
        train_randomly(model)
    return model


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_sample_gives_what_it_gives_alone(kind: str, side: str) -> None:
    model, batch = make(kind), batch_of(ROWS, side)
    with torch.no_grad():
        together = model(**batch)
        for index in range(len(ROWS)):
            by_itself = model(**alone(batch, index))
            real = batch["attention_mask"][index].bool()
            torch.testing.assert_close(together.logits[index, real], by_itself.logits[0], rtol=1e-4, atol=2e-5)
            torch.testing.assert_close(
                together.per_sample_loss[index], by_itself.per_sample_loss[0], rtol=1e-5, atol=1e-5
            )


@pytest.mark.parametrize("kind", MODELS)
def test_decoding_with_a_cache_gives_the_logits_of_the_whole_sequence(kind: str) -> None:
    model, batch = make(kind), batch_of([ROWS[1]])
    ids = batch["input_ids"]
    with torch.no_grad():
        whole = model(input_ids=ids, pixel_values=batch["pixel_values"]).logits
        cut = ids.shape[1] - 4
        out = model(input_ids=ids[:, :cut], pixel_values=batch["pixel_values"], use_cache=True)
        pieces = [out.logits]
        for at in range(cut, ids.shape[1]):
            out = model(input_ids=ids[:, at : at + 1], past_key_values=out.past_key_values, use_cache=True)
            pieces.append(out.logits)
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=1e-4, atol=2e-5)


def test_generation_with_a_static_cache_or_none_equals_the_dynamic_one() -> None:
    model, batch = make("experts"), batch_of([ROWS[0], ROWS[0]], seed=3)
    given = {name: batch[name] for name in ("input_ids", "attention_mask", "pixel_values")}
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    greedy = model.generate(**given, **options)
    assert greedy.shape[1] == batch["input_ids"].shape[1] + 8
    assert len(set(greedy[0, -8:].tolist())) > 1, "one token over and over would equal anything"
    assert torch.equal(model.generate(**given, **options, cache_implementation="static"), greedy)
    assert torch.equal(model.generate(**given, **options, use_cache=False), greedy)


def test_beams_find_a_sequence_at_least_as_likely_as_greedy_search() -> None:
    model, batch = make("experts"), batch_of([ROWS[0]])
    given = {name: batch[name] for name in ("input_ids", "attention_mask", "pixel_values")}
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}

    def likelihood(ids: Tensor) -> float:
        labels = ids.clone()
        labels[:, :-6] = -100
        with torch.no_grad():
            return -float(model(input_ids=ids, pixel_values=batch["pixel_values"], labels=labels).loss)

    greedy, beams = model.generate(**given, **options), model.generate(**given, **options, num_beams=8)
    assert likelihood(beams) > likelihood(greedy)


def test_a_streamer_gets_the_tokens_that_generate_returns_and_sampling_follows_its_seed() -> None:
    class Heard(BaseStreamer):
        def __init__(self) -> None:
            self.parts: list[Tensor] = []

        def put(self, value: Tensor) -> None:
            self.parts.append(value.reshape(-1))

        def end(self) -> None:
            self.parts.append(torch.tensor([], dtype=torch.long))

    model, batch = make("experts"), batch_of([ROWS[0]])
    given = {name: batch[name] for name in ("input_ids", "attention_mask", "pixel_values")}
    options = {"max_new_tokens": 8, "eos_token_id": None}
    heard = Heard()
    said = model.generate(**given, **options, do_sample=False, streamer=heard)
    assert torch.equal(torch.cat(heard.parts), said[0])
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(model.generate(**given, **options, do_sample=True, temperature=2.0))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_left_padded_batches_generate_what_each_sample_generates_alone() -> None:
    model, batch = make("experts"), batch_of(ROWS[:2], "left")
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    del batch["labels"]
    together = model.generate(**batch, **options)[:, -6:]
    for index in range(2):
        single = alone({**batch, "labels": batch["input_ids"]}, index)
        del single["labels"]
        assert torch.equal(model.generate(**single, **options)[0, -6:], together[index])


def test_image_features_stand_for_the_picture_and_can_be_given_by_either_name(
    model: MMSLMForConditionalGeneration,
) -> None:
    batch = batch_of([ROWS[0]])
    pixels = batch.pop("pixel_values")
    with torch.no_grad():
        expected = model(**batch, pixel_values=pixels).logits
        features = model.encode_images(pixels)
        assert features.shape == (1, EACH, 32)
        assert torch.equal(model(**batch, image_features=features).logits, expected)
        named = {"image": model.get_image_features(pixels)}
        assert torch.equal(model(**batch, mm_encoder_outputs=named).logits, expected)


def test_several_pictures_are_encoded_each_for_itself(model: MMSLMForConditionalGeneration) -> None:
    pixels = torch.rand(2, 4, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        together = model.encode_images(pixels)
        apart = torch.cat([model.encode_images(pixels[:, k : k + 1]) for k in range(4)], dim=1)
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-5)


def test_stacked_convolution_equals_torch_on_each_picture() -> None:
    conv = torch.nn.Conv2d(3, 5, 3, stride=2, padding=1)
    x = torch.randn(2, 3, 8, 12, 3, generator=torch.Generator().manual_seed(0))
    expected = torch.stack([conv(x[:, k].permute(0, 3, 1, 2)).permute(0, 2, 3, 1) for k in range(3)], dim=1)
    torch.testing.assert_close(convolve_each(conv, x), expected, rtol=1e-5, atol=1e-6)


def test_logits_at_labels_are_the_logits_that_labels_need(model: MMSLMForConditionalGeneration) -> None:
    batch = batch_of(ROWS)
    with torch.no_grad():
        full, short = model(**batch), model(**batch, logits_at="labels")
    assert short.logits.shape[1] == 3 < full.logits.shape[1]
    torch.testing.assert_close(short.per_sample_loss, full.per_sample_loss)
    torch.testing.assert_close(short.loss, full.loss)
    again = per_sample_loss(short.logits, short.targets, aligned=True)
    torch.testing.assert_close(again, per_sample_loss(full.logits, batch["labels"]))


def test_the_loss_is_transformers_own_token_mean(model: MMSLMForConditionalGeneration) -> None:
    from transformers.loss.loss_utils import ForCausalLMLoss

    batch = batch_of(ROWS)
    out = model(**batch)
    torch.testing.assert_close(out.loss, ForCausalLMLoss(out.logits, batch["labels"], vocab_size=64))


def test_a_sample_without_labels_has_loss_and_gradient_zero(model: MMSLMForConditionalGeneration) -> None:
    batch = batch_of(ROWS[:2])
    batch["labels"][1] = -100
    out = model(**batch, logits_at="labels")
    assert out.per_sample_loss[1].item() == 0.0
    out.per_sample_loss[1].backward()
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("kind", MODELS)
def test_gradient_checkpointing_changes_no_gradient(kind: str) -> None:
    gradients: list[list[Tensor]] = []
    for checkpointed in (False, True):
        model = make(kind).train()
        if checkpointed:
            model.gradient_checkpointing_enable()
        model(**batch_of(ROWS)).loss.backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, again, rtol=1e-5, atol=1e-7)


def test_sixteen_bits_stay_near_full_precision_in_value_and_gradient() -> None:
    """The 16-bit path has its own attention arithmetic when training on a CPU; fp32 is its oracle."""
    model, batch = make("experts").train(), batch_of(ROWS, "left")
    model(**batch).per_sample_loss.sum().backward()
    exact = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(**batch).per_sample_loss
    losses.sum().backward()
    rounded = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert torch.nn.functional.cosine_similarity(exact, rounded, dim=0) > 0.995
    torch.testing.assert_close(losses, model(**batch).per_sample_loss, rtol=0.02, atol=0.05)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"pixel_values": None}, "image tokens but no picture"),
        ({"input_ids": torch.full((1, 8), 9)}, "no image token"),
        ({"input_ids": torch.tensor([[1, IMAGE, IMAGE, 9]])}, "every picture takes 4"),
        ({"input_ids": torch.tensor([[1] + [IMAGE] * 8 + [9]])}, "1 pictures were given"),
        ({"pixel_values": torch.zeros(1, 3, 32, 32)}, r"\[B, N, 3, 32, 32\]"),
        ({"input_ids": torch.tensor([[1] + [IMAGE] * 4 + [9] * 100])}, "at most 96"),
    ],
)
def test_what_does_not_fit_is_refused(
    model: MMSLMForConditionalGeneration, change: dict[str, Tensor | None], sentence: str
) -> None:
    given: dict[str, Tensor | None] = {
        "input_ids": torch.tensor([[1] + [IMAGE] * EACH + [9, 10]]),
        "pixel_values": torch.zeros(1, 1, 3, 32, 32),
    }
    with pytest.raises(ValueError, match=sentence):
        model(**{**given, **change})
