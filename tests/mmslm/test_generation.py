"""What people hear: streamed = generated = batched = transformers' own generate, and a kept picture is as good as new."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.optimize import minimize

from mmslm.data.scenes import public_photo
from mmslm.evaluation.calibration import reliability
from mmslm.generation import Calibration, Narrator, SlotCache
from mmslm.generation.int8 import fuse_int8, to_int8
from mmslm.generation.lean import LeanStep
from mmslm.model import MMSLMConfig, MMSLMForConditionalGeneration
from mmslm.processing import MMSLMProcessor
from mmslm.tokenizer import train_tokenizer

LINES = [
    f"{n} {c} {t} on the {p}."
    for n in ("one", "two")
    for c in ("red", "blue")
    for t in ("cup", "dog")
    for p in ("mat", "bus")
]
PROMPTS = ["What is it?", "How many cups are on the red mat?", "Where?", "What is it?"]


def build(seed: int = 0, experts: bool = True, spare: int = 0, **switches: Any) -> Narrator:
    tokenizer = train_tokenizer(LINES * 5, None, 400)
    torch.manual_seed(seed)
    config = MMSLMConfig(
        text_config={
            "vocab_size": len(tokenizer) + spare,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 160,
            "initializer_range": 0.3,
            **switches,
        },
        vision_config={
            "image_size": 32,
            "stem_channels": (6, 8),
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
        },
        initializer_range=0.3,
    )
    model = MMSLMForConditionalGeneration(config).eval()
    if experts:
        model.add_image_experts(2)
        with torch.no_grad():
            for parameter in model.adapter_parameters().values():
                parameter.normal_(0, 0.3, generator=torch.Generator().manual_seed(1))
    return Narrator(model, MMSLMProcessor.build(tokenizer, config))


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 56, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def narrator() -> Narrator:
    return build()


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    return [picture(seed) for seed in range(4)]


def by_transformers(narrator: Narrator, images: list[Image.Image], prompt: str, count: int) -> list[int]:
    """The oracle: the same conversation through the processor's chat template and transformers' generate."""
    tokenizer = narrator.processor.tokenizer
    content = [{"type": "image", "image": image} for image in images] + [{"type": "text", "text": prompt}]
    given = narrator.processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    silent = [i for i in tokenizer.all_special_ids if i != tokenizer.eos_token_id]
    out = narrator.model.generate(**given, max_new_tokens=count, do_sample=False, suppress_tokens=silent)
    said: list[int] = out[0, given["input_ids"].shape[1] :].tolist()
    return said[: said.index(tokenizer.eos_token_id)] if tokenizer.eos_token_id in said else said


@pytest.mark.parametrize("switches", [{}, {"linear_attention": True}])
def test_streamed_said_and_batched_replies_equal_transformers_generate(
    pictures: list[Image.Image], switches: dict[str, Any]
) -> None:
    narrator = build(**switches)
    batched = narrator.say_batch(pictures, PROMPTS, max_new_tokens=12)
    assert len({reply.tokens for reply in batched}) > 2, "different questions get different replies"
    for image, prompt, reply in zip(pictures, PROMPTS, batched, strict=True):
        encoded = narrator.look(image)
        pieces = list(narrator.stream(encoded, prompt, max_new_tokens=12))
        alone = narrator.say(encoded, prompt, max_new_tokens=12)
        expected = by_transformers(narrator, [image], prompt, 12)
        assert [piece.token_id for piece in pieces] == expected
        assert list(alone.tokens) == expected
        assert list(reply.tokens) == expected
        assert alone.confidence == pytest.approx(reply.confidence, abs=1e-5)
        assert [piece.confidence for piece in pieces] == pytest.approx(reply.token_confidences, abs=1e-5)


def test_streamed_text_is_the_replys_text(narrator: Narrator, pictures: list[Image.Image]) -> None:
    for seed in range(3):
        speaker = build(seed + 10)
        encoded = speaker.look(pictures[seed])
        pieces = list(speaker.stream(encoded, "What is it?", max_new_tokens=30))
        text = speaker.say(encoded, "What is it?", max_new_tokens=30).text
        streamed = "".join(piece.text for piece in pieces)
        assert len(streamed) > 5
        assert text.startswith(streamed)
        assert set(text[len(streamed) :]) <= {"\ufffd"}, "only an unfinished character at the very end is held back"


def test_a_second_question_neither_encodes_nor_changes_the_kept_picture(
    narrator: Narrator, pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = narrator.look(pictures[0])
    kept = [block.clone() for block in encoded.prefix.keys]
    first = narrator.say(encoded, "Where?", max_new_tokens=8)
    narrator.say(encoded, "What is it?", max_new_tokens=8)
    lengths: list[int] = []
    language = narrator.model.model.language_model
    run = language.run

    def spy(hidden: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        lengths.append(hidden.shape[1])
        return run(hidden, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(language, "run", spy)
    monkeypatch.setattr(narrator.model, "encode_images", None)
    assert narrator.say(encoded, "Where?", max_new_tokens=8) == first
    assert lengths[0] == len(narrator.processor.encode_prompt("Where?"))
    assert all(torch.equal(a, b) for a, b in zip(kept, encoded.prefix.keys, strict=True))
    assert encoded.bytes == sum(b.numel() * 4 for b in (*encoded.prefix.keys, *encoded.prefix.values))


def test_pictures_looked_at_together_are_as_alone(narrator: Narrator, pictures: list[Image.Image]) -> None:
    together = narrator.look_batch(pictures, batch_size=3)
    for image, encoded in zip(pictures, together, strict=True):
        for a, b in zip(encoded.prefix.values, narrator.look(image).prefix.values, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_several_pictures_and_none_are_understood(narrator: Narrator, pictures: list[Image.Image]) -> None:
    for images in ([], pictures[:2], pictures[:3]):
        encoded = narrator.look(images or None)
        expected = by_transformers(narrator, images, "Where?", 6)
        assert list(narrator.say(encoded, "Where?", max_new_tokens=6).tokens) == expected
    mixed = [narrator.look(None), narrator.look(pictures[:2]), narrator.look(pictures[0])]
    replies = narrator.say_batch(mixed, ["Where?"] * 3, max_new_tokens=6)
    assert [reply.tokens for reply in replies] == [narrator.say(e, "Where?", 6).tokens for e in mixed]


def test_a_history_is_the_conversation_that_training_saw(narrator: Narrator, pictures: list[Image.Image]) -> None:
    history = [("What is it?", "one red cup")]
    reply = narrator.say(narrator.look(pictures[0]), "Where?", max_new_tokens=5, history=history)
    ids = narrator.processor.encode_turns([*history, ("Where?", "x")]).input_ids
    cut = len(ids) - 1 - ids[::-1].index(narrator.processor.tokenizer.assistant_token_id) + 1
    given = torch.tensor([ids[:cut]])
    pixels = narrator.processor.pixels([pictures[0]])[None]
    tokenizer = narrator.processor.tokenizer
    silent = [i for i in tokenizer.all_special_ids if i != tokenizer.eos_token_id]
    out = narrator.model.generate(
        input_ids=given, pixel_values=pixels, max_new_tokens=5, do_sample=False, suppress_tokens=silent
    )
    assert list(reply.tokens) == [t for t in out[0, cut:].tolist() if t != tokenizer.eos_token_id]


def test_token_confidence_is_the_probability_of_the_token(narrator: Narrator, pictures: list[Image.Image]) -> None:
    encoded = narrator.look(pictures[0])
    reply = narrator.say(encoded, "Where?", max_new_tokens=4)
    ids = narrator.processor.encode_images_prefix() + narrator.processor.encode_prompt("Where?")
    with torch.no_grad():
        logits = narrator.model(
            input_ids=torch.tensor([ids + list(reply.tokens)]),
            pixel_values=narrator.processor.pixels([pictures[0]])[None],
        ).logits[0]
    silent = [i for i in narrator.processor.tokenizer.all_special_ids if i != narrator.processor.tokenizer.eos_token_id]
    logits[:, silent] = float("-inf")
    at = range(len(ids) - 1, len(ids) - 1 + len(reply.tokens))
    expected = [float(logits[i].softmax(-1)[t]) for i, t in zip(at, reply.tokens, strict=True)]
    assert list(reply.token_confidences) == pytest.approx(expected, rel=1e-3)
    assert reply.confidence == pytest.approx(math.exp(sum(map(math.log, expected)) / len(expected)), rel=1e-3)


def test_a_reply_ends_at_the_end_token_and_rows_leave_the_batch(
    pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A head that likes the end token makes replies stop early, at different steps."""
    narrator = build(3)
    bias = torch.zeros(narrator.model.config.text.vocab_size)
    bias[narrator.processor.tokenizer.eos_token_id] = 5.0
    head = narrator.model.lm_head
    narrator.model.lm_head = torch.nn.Linear(head.in_features, head.out_features)
    narrator.model.lm_head.weight, narrator.model.lm_head.bias = head.weight, torch.nn.Parameter(bias)
    prompts = ["Where?", "What is it?", "How many?", "A cup?"] * 3
    images = [pictures[i % 4] for i in range(12)]
    replies = narrator.say_batch(images, prompts, max_new_tokens=20)
    lengths = {len(reply.tokens) for reply in replies if reply.complete}
    assert len(lengths) > 1
    for image, prompt, reply in zip(images, prompts, replies, strict=True):
        alone = narrator.say(image, prompt, max_new_tokens=20)
        assert (reply.tokens, reply.complete) == (alone.tokens, alone.complete)


def test_rows_of_the_vocabulary_without_a_token_are_never_said(pictures: list[Image.Image]) -> None:
    narrator = build(4, spare=2000)
    reply = narrator.say(pictures[0], "Where?", max_new_tokens=20)
    assert reply.tokens
    assert max(reply.tokens) < len(narrator.processor.tokenizer)


def test_what_leaves_no_room_is_refused(narrator: Narrator, pictures: list[Image.Image]) -> None:
    encoded = narrator.look(pictures[0])
    with pytest.raises(ValueError, match="ask a shorter question"):
        narrator.say(encoded, "cup " * 300)
    with pytest.raises(ValueError, match="at least 1"):
        narrator.say(encoded, "Where?", max_new_tokens=0)
    with pytest.raises(ValueError, match="at least 1"):
        list(narrator.stream(encoded, "Where?", max_new_tokens=0))
    with pytest.raises(ValueError, match="one prompt per image"):
        narrator.say_batch(pictures, ["Where?"])
    with pytest.raises(ValueError, match="give fewer pictures"):
        narrator.look([pictures[0]] * 60)
    long = narrator.say(encoded, "Where?", max_new_tokens=10_000)
    assert len(long.tokens) <= 160


def test_a_saved_narrator_says_the_same(narrator: Narrator, pictures: list[Image.Image], tmp_path: Path) -> None:
    from mmslm.pretrained import save_model

    save_model(narrator.model, narrator.processor, tmp_path / "model")
    halves = Calibration(0.5, -1.0)
    halves.save(tmp_path / "model")
    again = Narrator.load(tmp_path / "model")
    before, after = (n.say(n.look(pictures[1]), "Where?", max_new_tokens=9) for n in (narrator, again))
    assert (after.text, after.tokens, after.token_confidences) == (before.text, before.tokens, before.token_confidences)
    assert after.confidence == halves(before.confidence)


@pytest.mark.parametrize("switches", [{}, {"qk_norm": True, "num_hidden_layers": 4, "layer_repeats": 2}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_lean_step_is_the_language_models_own(switches: dict[str, Any], dtype: torch.dtype) -> None:
    narrator = build(**switches)
    model = narrator.model.to(dtype)
    ids = torch.randint(8, 300, (1, 12), generator=torch.Generator().manual_seed(0))
    cache = SlotCache.empty(model.config.text.num_hidden_layers, 1, 2, 12, 8, model.lm_head.weight)
    lean = LeanStep(model)
    with torch.inference_mode():
        whole = model(input_ids=ids).logits[0]
        stepped = torch.cat([lean(int(token), cache) for token in ids[0]])
    scale = float(whole.float().std())
    torch.testing.assert_close(
        stepped.float() / scale, whole.float() / scale, rtol=0, atol=2e-5 if dtype == torch.float32 else 0.2
    )
    assert not LeanStep.serves(build(linear_attention=True).model)


def test_eight_bit_weights_say_nearly_the_same() -> None:
    whole, small = Narrator.load("base"), Narrator.load("base", int8=True)
    scenes = [public_photo(50_000_000 + index).image(96) for index in range(4)]
    prompt = "Describe the picture in one short sentence."
    before, after = ([n.say(scene, prompt, max_new_tokens=16) for scene in scenes] for n in (whole, small))
    assert sum(a.text == b.text for a, b in zip(before, after, strict=True)) >= 3
    for a, b in zip(before, after, strict=True):
        assert a.token_confidences[0] == pytest.approx(b.token_confidences[0], abs=0.05)
    kept = sum(p.numel() for p in small.model.parameters())
    assert kept < sum(p.numel() for p in whole.model.parameters()) - 2_000_000, "the language model is no longer fp32"
    with pytest.raises(ValueError, match="starts from fp32"):
        to_int8(Narrator.load("base", dtype=torch.bfloat16).model)


def test_joined_eight_bit_matrices_give_each_ones_bits() -> None:
    narrator = Narrator.load("base", int8=True)
    attention = narrator.model.model.language_model.layers[0].self_attn
    parts = [attention.q_proj, attention.k_proj, attention.v_proj]
    x = torch.randn(1, 192, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(fuse_int8(parts)(x), torch.cat([part(x) for part in parts], dim=-1))
    with pytest.raises(TypeError, match="quantise the model first"):
        fuse_int8([narrator.model.model.projector])

    # Step by step and all at once differ by the activations' quantisation alone: one scale a call.
    ids = torch.tensor([narrator.processor.encode_prompt("Describe the picture in detail.")])
    cache = narrator._cache(1, 40, torch.zeros(1))
    lean = LeanStep(narrator.model)
    with torch.inference_mode():
        stepped = torch.cat([lean(int(token), cache) for token in ids[0]])
        rows = torch.cat([narrator.model(input_ids=ids[:, : n + 1]).logits[:, -1] for n in range(ids.shape[1])])
    assert float((stepped - rows).abs().max() / rows.std()) < 0.5


def test_the_cache_refuses_to_be_overfilled_and_mixed_lengths() -> None:
    like = torch.zeros(1)
    cache = SlotCache.empty(1, 1, 1, 3, 2, like)
    cache.update(torch.zeros(1, 1, 3, 2), torch.zeros(1, 1, 3, 2), 0)
    cache.advance(3)
    with pytest.raises(IndexError, match="holds 3 positions, but 4"):
        cache.update(torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1, 2), 0)
    with pytest.raises(ValueError, match="group them"):
        SlotCache.from_prefixes([cache, SlotCache.empty(1, 1, 1, 3, 2, like)], 5)


def test_a_calibration_makes_confidence_mean_what_it_says() -> None:
    rng = np.random.default_rng(0)
    raw = rng.uniform(0.02, 0.98, 4000)
    logit = np.log(raw / (1 - raw))
    right = rng.uniform(size=4000) < 1 / (1 + np.exp(-(0.5 * logit - 1.0)))  # over-confident, and differently so
    fitted = Calibration.fit(raw[:2000].tolist(), right[:2000].tolist())
    assert (fitted.slope, fitted.intercept) == pytest.approx((0.5, -1.0), abs=0.12)
    held_out = [fitted(value) for value in raw[2000:]]
    before = reliability(raw[2000:].tolist(), right[2000:].tolist())
    after = reliability(held_out, right[2000:].tolist())
    assert before.ece > 0.15
    assert after.ece < 0.05
    assert after.brier < before.brier


def test_the_fit_is_the_minimum_that_scipy_finds() -> None:
    rng = np.random.default_rng(1)
    raw = rng.uniform(0.01, 0.99, 300)
    right = rng.uniform(size=300) < raw**2
    fitted = Calibration.fit(raw.tolist(), right.tolist())
    hits = int(right.sum())
    target = np.where(right, (hits + 1) / (hits + 2), 1 / (300 - hits + 2))

    def loss(w: np.ndarray) -> float:
        z = w[0] * np.log(raw / (1 - raw)) + w[1]
        return float(np.sum(np.logaddexp(0, z) - target * z))

    found = minimize(loss, [1.0, 0.0], tol=1e-12).x
    assert [fitted.slope, fitted.intercept] == pytest.approx(found.tolist(), abs=1e-3)


@pytest.mark.parametrize("text", ["{", '{"slope": 1.0}', '{"slope": -1.0, "intercept": 0.0}', "[]"])
def test_a_damaged_calibration_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "calibration.json").write_text(text)
    with pytest.raises(ValueError, match="calibration"):
        Calibration.load(tmp_path)


def test_a_calibration_is_kept_and_what_says_nothing_is_not_fitted(tmp_path: Path) -> None:
    Calibration(0.7, -0.2).save(tmp_path)
    assert Calibration.load(tmp_path) == Calibration(0.7, -0.2)
    assert Calibration(1.0, 0.0)(0.37) == pytest.approx(0.37)
    with pytest.raises(ValueError, match="at least 200"):
        Calibration.fit([0.5], [True])
    with pytest.raises(ValueError, match="the same"):
        Calibration.fit([0.5] * 200, [True] * 200)
    with pytest.raises(ValueError, match="not more often right"):
        Calibration.fit([0.1] * 150 + [0.9] * 150, [True] * 150 + [False] * 150)
