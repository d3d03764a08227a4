"""Each switch of the language model against an oracle that is written the long way round."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tiny_models import EACH, IMAGE, alone, batch_of, row, tiny_config, tiny_model, train_randomly
from torch import Tensor

from mmslm.model import MMSLMForConditionalGeneration, load_tier
from mmslm.model.losses import per_segment_loss
from mmslm.model.masks import attention_pattern, picture_runs
from mmslm.model.tiers import tier_names

ROWS = [row(1, 9, 0), row(2, 7, 1, between=2), row(0, 6, 2)]
SWITCHES: dict[str, dict[str, Any]] = {
    "shared": {"text": {"num_hidden_layers": 4, "layer_repeats": 2}},
    "qk_norm": {"text": {"qk_norm": True}},
    "prefix": {"text": {"prefix_lm": True}},
    "window": {"text": {"text_window": 3}},
    "linear": {"text": {"linear_attention": True}},
    "linear_prefix": {"text": {"linear_attention": True, "prefix_lm": True, "qk_norm": True}},
    "patch": {"vision": {"kind": "patch", "patch_size": 8}},
    "everything": {
        "text": {"num_hidden_layers": 4, "layer_repeats": 2, "qk_norm": True, "prefix_lm": True, "text_window": 4}
    },
}


def make(name: str, experts: str | None = "low_rank") -> MMSLMForConditionalGeneration:
    model = tiny_model(**copy.deepcopy(SWITCHES[name]))
    if experts:
        model.add_image_experts(2 if experts == "low_rank" else 0, kind=experts)  # type: ignore[arg-type]
        train_randomly(model)
    return model


@pytest.mark.parametrize("name", SWITCHES)
@pytest.mark.parametrize("experts", ["low_rank", "full"])
def test_cached_equals_uncached_and_padded_equals_alone(name: str, experts: str) -> None:
    model, batch = make(name, experts), batch_of(ROWS, "left")
    with torch.no_grad():
        together = model(**batch).logits
        for index in range(len(ROWS)):
            single = alone(batch, index)
            real = batch["attention_mask"][index].bool()
            if "text_window" not in SWITCHES[name].get("text", {}) or real.all():
                whole = model(**single).logits
                torch.testing.assert_close(together[index, real], whole[0], rtol=1e-4, atol=3e-5)
            ids = single["input_ids"]
            out = model(input_ids=ids[:, :-4], pixel_values=single.get("pixel_values"), use_cache=True)
            pieces = [out.logits]
            for at in range(ids.shape[1] - 4, ids.shape[1]):
                out = model(input_ids=ids[:, at : at + 1], past_key_values=out.past_key_values, use_cache=True)
                pieces.append(out.logits)
            whole = model(input_ids=ids, pixel_values=single.get("pixel_values")).logits
            torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=1e-4, atol=3e-5)


@pytest.mark.parametrize("name", SWITCHES)
def test_every_samples_gradient_is_its_own(name: str) -> None:
    model, batch = make(name, "full"), batch_of(ROWS)
    parameters = [p for p in model.parameters() if p.requires_grad]
    losses = model(**batch).per_sample_loss
    for index in range(len(ROWS)):
        together = torch.autograd.grad(losses[index], parameters, retain_graph=True, allow_unused=True)
        single = torch.autograd.grad(model(**alone(batch, index)).per_sample_loss[0], parameters, allow_unused=True)
        for parameter, a, b in zip(parameters, together, single, strict=True):
            zero = torch.zeros_like(parameter)
            torch.testing.assert_close(zero if a is None else a, zero if b is None else b, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("name", SWITCHES)
def test_generate_with_a_static_cache_equals_without_a_cache(name: str) -> None:
    model, batch = make(name), batch_of([ROWS[1]])
    given = {key: batch[key] for key in ("input_ids", "attention_mask", "pixel_values")}
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    expected = model.generate(**given, **options, use_cache=False)
    assert torch.equal(model.generate(**given, **options), expected)
    assert torch.equal(model.generate(**given, **options, cache_implementation="static"), expected)


def test_shared_blocks_equal_an_unshared_copy() -> None:
    shared = make("shared")
    plain = tiny_model(text={"num_hidden_layers": 4})
    plain.add_image_experts(2)
    state = shared.state_dict()
    for slot in range(4):
        block = shared.model.language_model.layers[slot // 2]
        for name, value in block.state_dict().items():
            state[f"model.language_model.layers.{slot}.{name}"] = value
    plain.load_state_dict(state)
    batch = batch_of(ROWS)
    assert torch.equal(shared(**batch).logits, plain(**batch).logits)
    assert sum(p.numel() for p in shared.parameters()) < sum(p.numel() for p in plain.parameters())


def test_normed_queries_and_keys_equal_transformers_qwen3() -> None:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    model = make("qk_norm", None)
    text = model.config.text
    oracle = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=text.vocab_size,
            hidden_size=text.hidden_size,
            intermediate_size=text.intermediate_size,
            num_hidden_layers=text.num_hidden_layers,
            num_attention_heads=text.num_attention_heads,
            num_key_value_heads=text.num_key_value_heads,
            head_dim=text.head_dim,
            rms_norm_eps=text.rms_norm_eps,
            rope_theta=10000.0,
            tie_word_embeddings=True,
        )
    ).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("q_norm.weight", "k_norm.weight")):
                parameter.uniform_(0.5, 1.5)
    language = {f"model.{name}": value for name, value in model.model.language_model.state_dict().items()}
    oracle.load_state_dict({**language, "lm_head.weight": model.lm_head.weight})
    ids = torch.tensor([row(0, 20, 3)])
    torch.testing.assert_close(model(input_ids=ids).logits, oracle(ids).logits, rtol=1e-5, atol=1e-5)


def _pattern_the_long_way(image: list[bool], *, prefix: bool, window: int | None, segments: list[int]) -> Tensor:
    length = len(image)
    runs = []
    for at in range(length):
        runs.append(0 if not image[at] else runs[-1] if at and image[at - 1] else max([0, *runs]) + 1)
    table = torch.zeros(length, length, dtype=torch.bool)
    for query in range(length):
        for key in range(length):
            near = window is None or query - key < window or image[key]
            seen = key <= query and near
            together = prefix and runs[query] > 0 and runs[query] == runs[key]
            table[query, key] = (seen or together) and segments[query] == segments[key]
    return table


@pytest.mark.parametrize("prefix", [False, True])
@pytest.mark.parametrize("window", [None, 1, 3])
@pytest.mark.parametrize("packed", [False, True])
def test_the_pattern_is_what_its_words_say(prefix: bool, window: int | None, packed: bool) -> None:
    image = [False, True, True, False, False, True, False, False, True, True, True, False]
    segments = [1] * 7 + [2] * 5 if packed else [1] * 12
    found = attention_pattern(
        torch.arange(12),
        12,
        image=torch.tensor([image]),
        segments=torch.tensor([segments]),
        prefix_lm=prefix,
        window=window,
    )
    assert torch.equal(found[0, 0], _pattern_the_long_way(image, prefix=prefix, window=window, segments=segments))


def test_neighbouring_image_tokens_are_one_run() -> None:
    image = torch.tensor([[0, 1, 1, 0, 1, 0, 0, 1]]).bool()
    assert picture_runs(image).tolist() == [[0, 1, 1, 0, 2, 0, 0, 3]]


def test_an_image_token_feels_a_later_one_only_under_the_prefix_switch() -> None:
    for name, feels in (("shared", False), ("prefix", True)):
        model = make(name, None)
        ids = torch.tensor([[1] + [IMAGE] * EACH + [9]])
        features = torch.randn(1, EACH, 32, generator=torch.Generator().manual_seed(0))
        changed = features.clone()
        changed[:, -1] += 1.0
        with torch.no_grad():
            before, after = (model(input_ids=ids, image_features=f).logits[0, 1] for f in (features, changed))
        assert torch.equal(before, after) is not feels


def packed_batch() -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """Two rows of two and one samples, and the three samples alone."""
    rows = [ROWS[0], ROWS[2], ROWS[1]]
    single = [alone(batch_of([ids], seed=k), 0) for k, ids in enumerate(rows)]
    length = len(rows[0]) + len(rows[1]) + 2
    ids = torch.zeros(2, length, dtype=torch.long)
    labels, segments = torch.full((2, length), -100), torch.zeros(2, length, dtype=torch.long)
    pixels = torch.zeros(2, 2, 3, 32, 32)
    pixels[0, :1], pixels[1] = single[0]["pixel_values"][0], single[2]["pixel_values"][0]
    for at, start, number, sample in ((0, 0, 1, 0), (0, len(rows[0]), 2, 1), (1, 0, 1, 2)):
        stop = start + len(rows[sample])
        ids[at, start:stop] = torch.tensor(rows[sample])
        labels[at, start:stop] = single[sample]["labels"][0]
        segments[at, start:stop] = number
    return {"input_ids": ids, "labels": labels, "segment_ids": segments, "pixel_values": pixels}, single


@pytest.mark.parametrize("name", SWITCHES)
def test_packed_samples_are_as_alone(name: str) -> None:
    model = make(name)
    batch, single = packed_batch()
    with torch.no_grad():
        out = model(**batch)
        losses = per_segment_loss(out.logits, batch["labels"], batch["segment_ids"], 2)
        expected = [model(**sample).per_sample_loss[0] for sample in single]
    torch.testing.assert_close(losses[[0, 0, 1], [0, 1, 0]], torch.stack(expected), rtol=1e-4, atol=1e-5)
    assert losses[1, 1] == 0.0


def test_what_would_let_packed_samples_see_each_other_is_refused() -> None:
    model = tiny_model()
    batch, _ = packed_batch()
    with pytest.raises(ValueError, match="use_cache=False"):
        model(**batch, use_cache=True)
    with pytest.raises(ValueError, match="no attention_mask"):
        model(**batch, attention_mask=torch.ones_like(batch["input_ids"]))
    restarting = torch.tensor([[0, 1, 2, 0, 1, 2]])
    with pytest.raises(ValueError, match="would see each other"):
        model(input_ids=torch.full((1, 6), 9), position_ids=restarting)
    with pytest.raises(ValueError, match="leave position_ids out"):
        model(input_ids=torch.full((1, 6), 9), position_ids=restarting, segment_ids=torch.tensor([[1, 1, 2, 2, 2, 2]]))


def test_fresh_full_experts_are_the_dense_model_and_leave_text_alone_for_ever() -> None:
    model, batch, text = tiny_model(), batch_of(ROWS), batch_of([row(0, 11, 4)])
    with torch.no_grad():
        dense, words = model(**batch).logits, model(**text).logits
        model.add_image_experts(0, layers=[0, 2], kind="full")
        torch.testing.assert_close(model(**batch).logits, dense, rtol=1e-5, atol=1e-5)
        train_randomly(model)
        assert (model(**batch).logits - dense).abs().max() > 0.1
        assert torch.equal(model(**text).logits, words)
    adapters = model.adapter_parameters()
    assert len(adapters) == 2 * 3
    assert sum(p.numel() for p in adapters.values()) == 2 * 3 * 32 * 48


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"text": {"num_attention_heads": 5}}, "does not divide"),
        ({"text": {"head_dim": 7}}, "even number"),
        ({"text": {"layer_repeats": 2}}, "layer_repeats"),
        ({"text": {"text_window": 0}}, "text_window"),
        ({"text": {"text_window": 4, "linear_attention": True}}, "do not go together"),
        ({"text": {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}}, "yarn"),
        ({"text": {"max_position_embeddings": 5}}, "One picture takes 4 tokens"),
        ({"vision": {"image_size": 36}}, "multiple of 8"),
        ({"vision": {"kind": "patch", "patch_size": 7}}, "patch_size"),
        ({"vision": {"kind": "tower", "tower": "vit"}}, "open_clip:ARCHITECTURE"),
        ({"vision": {"kind": "tower", "tower": "timm:test_vit"}}, "tower_grid"),
        ({"pixel_shuffle": 3}, "pixel_shuffle"),
        ({"image_token_id": 64}, "outside the vocabulary"),
        ({"image_experts": {"rank": 2, "layers": [9]}}, "0 to 2"),
        ({"image_experts": {"rank": 2, "colour": 1}}, "image_experts needs"),
    ],
)
def test_shapes_that_cannot_work_are_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        tiny_config(**changes)


def test_tiers_are_read_and_unknown_ones_named(tmp_path: Any) -> None:
    assert "nano" in tier_names()
    assert load_tier("nano", 777).text.vocab_size == 777
    with pytest.raises(ValueError, match="nano"):
        load_tier("pico")
    (tmp_path / "mine.yaml").write_text("pixel_shufle: 2\n")
    with pytest.raises(ValueError, match="pixel_shufle"):
        load_tier(tmp_path / "mine.yaml")
