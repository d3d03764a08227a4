"""Conversion keeps functions exactly: Llama's logits to the bit, a tower's features, and refuses the rest by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForImageTextToText, LlamaConfig, LlamaForCausalLM

import mmslm
from mmslm import conversion
from mmslm.generation import Narrator
from mmslm.model import MMSLMTextConfig
from mmslm.model.tower import FixedNorm, freeze_trunk, make_trunk, read_features
from mmslm.pretrained import init_model, load_model, new_model, save_model
from mmslm.processing import MMSLMProcessor
from mmslm.tokenizer import train_tokenizer

SHAPE = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}


def checkpoint(folder: Path, **changes: Any) -> LlamaForCausalLM:
    """A tiny Llama with a byte-level tokenizer, as SmolLM2 has, written the way transformers writes it."""
    torch.manual_seed(0)
    settings = {"tie_word_embeddings": True, "rope_theta": 100000.0, "initializer_range": 0.3, **SHAPE, **changes}
    model = LlamaForCausalLM(LlamaConfig(**settings)).eval()
    model.save_pretrained(folder)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(["a red cup on the table", "two dogs near the bus"] * 10, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return model


@pytest.fixture
def llama(tmp_path: Path) -> tuple[Path, LlamaForCausalLM]:
    folder = tmp_path / "llama"
    folder.mkdir()
    return folder, checkpoint(folder)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bias", [False, True])
def test_text_only_logits_are_transformers_to_the_bit_and_stay_so_under_trained_experts(
    tmp_path: Path, tied: bool, bias: bool
) -> None:
    (tmp_path / "llama").mkdir()
    oracle = checkpoint(tmp_path / "llama", tie_word_embeddings=tied, attention_bias=bias)
    model, processor = load_model(init_model(tmp_path / "llama", "conv_stem", tmp_path / "out", image_size=32))
    assert model.config.tie_word_embeddings is tied
    ids = torch.tensor([processor.tokenizer.encode_text("a red cup near the bus, and two dogs")])
    with torch.no_grad():
        expected = oracle(ids).logits
        assert torch.equal(model(input_ids=ids).logits[..., :320], expected)
        model.add_image_experts(4)
        for parameter in model.adapter_parameters().values():
            parameter.normal_()
        assert torch.equal(model(input_ids=ids).logits[..., :320], expected)


def test_the_converted_model_speaks_with_the_sources_tokenizer(
    tmp_path: Path, llama: tuple[Path, LlamaForCausalLM]
) -> None:
    folder = init_model(llama[0], "conv_stem", tmp_path / "out", image_size=32)
    narrator = Narrator.load(folder)
    tokenizer = narrator.processor.tokenizer
    source = Tokenizer.from_file(str(llama[0] / "tokenizer.json"))
    for text in ("two dogs near the bus", "ünseen 日本 😀", "<image> <user>"):
        assert tokenizer.encode_text(text) == source.encode(text).ids
        assert tokenizer.decode_text(tokenizer.encode_text(text)) == text
    # New tokens lie behind the source's vocabulary and their rows are the mean of all.
    rows = narrator.model.get_input_embeddings().weight
    assert len({tokenizer.image_token_id, tokenizer.user_token_id, tokenizer.assistant_token_id, 0}) == 4
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    reply = narrator.say(image, "What is it?", max_new_tokens=5)
    assert len(reply.tokens) <= 5
    features = narrator.model.encode_images(narrator.processor.pixels([image])[None])
    assert 0.5 < float(features.pow(2).mean().sqrt() / rows.pow(2).mean().sqrt()) < 2


def test_new_tokens_start_at_the_mean_of_the_old(tmp_path: Path) -> None:
    (tmp_path / "llama").mkdir()
    checkpoint(tmp_path / "llama")
    count = Tokenizer.from_file(str(tmp_path / "llama" / "tokenizer.json")).get_vocab_size()
    oracle = checkpoint(tmp_path / "llama", vocab_size=count)
    model, _ = load_model(init_model(tmp_path / "llama", "patch", tmp_path / "out", image_size=32))
    rows = model.get_input_embeddings().weight
    assert len(rows) == count + 5, "the source has no padding, unknown, image, user and assistant token"
    assert torch.equal(rows[:count], oracle.get_input_embeddings().weight)
    torch.testing.assert_close(rows[count:], rows[:count].mean(dim=0).expand_as(rows[count:]))


def edit(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"hidden_act": "gelu"}, "activation 'gelu'"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, "type 'llama3'"),
        ({"quantization_config": {"bits": 4}}, "quantised"),
        ({"layer_sharing": True}, "shared layers"),
        ({"sliding_window": 64}, "sliding window"),
        ({"model_type": "mistral"}, "'mistral' model"),
        ({"num_hidden_layers": 4}, "no parameter"),
        ({"num_hidden_layers": 2}, "the parameter"),
    ],
)
def test_what_cannot_be_converted_exactly_is_refused_by_name(
    tmp_path: Path, llama: tuple[Path, LlamaForCausalLM], changes: dict[str, Any], sentence: str
) -> None:
    edit(llama[0], **changes)
    with pytest.raises(ValueError, match=sentence):
        init_model(llama[0], "conv_stem", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_normed_queries_are_refused_by_name(tmp_path: Path, llama: tuple[Path, LlamaForCausalLM]) -> None:
    weights = load_file(llama[0] / "model.safetensors")
    weights["model.layers.0.self_attn.q_norm.weight"] = torch.ones(8)
    save_file(weights, llama[0] / "model.safetensors")
    with pytest.raises(ValueError, match="q_norm"):
        init_model(llama[0], "conv_stem", tmp_path / "out")


def test_pickled_weights_and_missing_files_are_refused(tmp_path: Path, llama: tuple[Path, LlamaForCausalLM]) -> None:
    (llama[0] / "model.safetensors").rename(llama[0] / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match="pickles are not read"):
        init_model(llama[0], "conv_stem", tmp_path / "out")
    (llama[0] / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        init_model(llama[0], "conv_stem", tmp_path / "out")


@pytest.mark.parametrize("name", ["test_efficientnet", "test_byobnet", "test_vit", "test_convnext"])
def test_a_frozen_tower_gives_timms_own_features(name: str) -> None:
    import timm

    torch.manual_seed(0)
    source = timm.create_model(name, pretrained=False, num_classes=0).eval()
    for module in source.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 2)
    pixels = torch.rand(2, 3, 160, 160)
    with torch.no_grad():
        expected = source.forward_features(pixels)
        if expected.dim() == 4:
            expected = expected.flatten(2).transpose(1, 2)
        else:
            expected = expected[:, source.num_prefix_tokens :]
        frozen = freeze_trunk(source)
        found = read_features(frozen, pixels, None)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert not [m for m in frozen.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert not [p for p in frozen.parameters() if p.requires_grad]


def test_a_fixed_norm_is_the_batch_norm_in_evaluation_mode() -> None:
    norm = torch.nn.BatchNorm2d(5).eval()
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.1, 3)
    norm.weight.data.normal_()
    x = torch.randn(2, 5, 3, 3)
    torch.testing.assert_close(FixedNorm(norm)(x), norm(x))


def test_a_tower_model_is_built_saved_and_reads_several_pictures(
    tmp_path: Path, llama: tuple[Path, LlamaForCausalLM]
) -> None:
    trunk = make_trunk("timm:test_efficientnet")
    save_file(
        {f"visual.trunk.{k}": v.contiguous() for k, v in trunk.state_dict().items()}, tmp_path / "tower.safetensors"
    )
    folder = init_model(
        llama[0],
        "timm:test_efficientnet",
        tmp_path / "out",
        vision_weights=tmp_path / "tower.safetensors",
        pixel_shuffle=1,
    )
    model, processor = load_model(folder)
    vision = model.config.vision
    assert (vision.kind, vision.image_size, processor.image_size) == ("tower", 160, 160)
    pixels = torch.rand(2, 3, 3, 160, 160) * 2 - 1
    scaled = ((pixels[:, 1] + 1) / 2 - torch.tensor(vision.tower_mean)[:, None, None]) / torch.tensor(vision.tower_std)[
        :, None, None
    ]
    with torch.no_grad():
        raw = model.model.vision_tower(pixels)
        expected = trunk.eval().forward_features(scaled).flatten(2).transpose(1, 2)
    each = vision.grid_size**2
    torch.testing.assert_close(raw[:, each : 2 * each], expected, rtol=1e-3, atol=1e-4)
    model.train()
    assert not model.model.vision_tower.trunk.training
    model.encode_images(pixels).sum().backward()
    assert all(p.grad is None for p in model.model.vision_tower.parameters())
    assert model.model.projector.fc1.weight.grad is not None


def test_a_new_tower_model_names_its_weights_and_is_the_same_by_every_way_of_loading(tmp_path: Path) -> None:
    lines = ["a red cup on the table", "two dogs near the bus"] * 10
    tokenizer = train_tokenizer(lines, None, 400)
    front = conversion.vision_config("timm:test_efficientnet")
    text = MMSLMTextConfig(**{**SHAPE, "vocab_size": len(tokenizer)})
    config = conversion.model_config(text, front, tokenizer, 1, True)
    with pytest.raises(ValueError, match="needs tower_weights"):
        new_model(config)
    config.image_experts = {"rank": 2, "train": "b", "include": ["decoder", "projector"]}
    model = new_model(config, tower_weights="random", seed=3)
    again = new_model(config, tower_weights="random", seed=3)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    folder = save_model(model, MMSLMProcessor.build(tokenizer, config), tmp_path / "model")
    mmslm.register()
    pixels = torch.rand(1, 1, 3, 160, 160) * 2 - 1
    with torch.no_grad():
        expected = model.encode_images(pixels)
        assert torch.equal(load_model(folder)[0].encode_images(pixels), expected)
        auto = AutoModelForImageTextToText.from_pretrained(folder).eval()
        # The same weights at other addresses: vectorised convolutions may round differently.
        torch.testing.assert_close(auto.encode_images(pixels), expected, rtol=1e-4, atol=1e-6)
    before, after = model.state_dict(), auto.state_dict()
    assert set(before) == set(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    # transformers makes loaded weights trainable; a tower, and the fixed factor of an expert, must not become so.
    trained = {name: p.requires_grad for name, p in model.named_parameters()}
    assert {name: p.requires_grad for name, p in auto.named_parameters()} == trained
    assert not [name for name, on in trained.items() if on and (".trunk." in name or name.endswith(".a.weight"))]


def test_an_early_exit_is_the_towers_own_intermediate(tmp_path: Path, llama: tuple[Path, LlamaForCausalLM]) -> None:
    folder = init_model(
        llama[0], "timm:test_vit", tmp_path / "out", vision_weights="random", vision_exit=1, pixel_shuffle=2
    )
    model, _ = load_model(folder)
    trunk: Any = model.model.vision_tower.trunk
    pixels = torch.rand(1, 1, 3, 160, 160) * 2 - 1
    with torch.no_grad():
        raw = model.model.vision_tower(pixels)
        _, maps = trunk.forward_intermediates(pixels[:, 0] * 0.5 / 0.5)
    assert raw.shape[1] == maps[1].shape[2] * maps[1].shape[3]
    with pytest.raises(ValueError, match="no stage 99"):
        init_model(llama[0], "timm:test_vit", tmp_path / "x", vision_weights="random", vision_exit=99)


@pytest.fixture
def clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Small CLIPs of open_clip's own kinds, as their library builds them, registered under names of their own."""
    import open_clip

    text = {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 2}
    kinds = {
        "vit": {"image_size": 32, "layers": 3, "width": 64, "head_width": 32, "patch_size": 8},
        "pooled_vit": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8}
        | {"pool_type": "avg", "final_ln_after_pool": True},
        "resnet": {"image_size": 64, "layers": [1, 2, 1, 1], "width": 16, "patch_size": None},
    }
    for name, vision in kinds.items():
        settings = {"embed_dim": 32, "vision_cfg": vision, "text_cfg": text, "quick_gelu": name == "vit"}
        (tmp_path / f"test-{name}.json").write_text(json.dumps(settings))
    open_clip.add_model_config(tmp_path)
    torch.manual_seed(0)
    found = {}
    for name in kinds:
        clip = open_clip.create_model(f"test-{name}", pretrained=None).eval()
        for module in clip.visual.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 2)
                module.weight.data.uniform_(0.5, 2)
        save_file({k: v.contiguous() for k, v in clip.state_dict().items()}, tmp_path / f"{name}.safetensors")
        found[name] = clip.visual
    return found


@pytest.mark.parametrize("name", ["vit", "pooled_vit", "resnet"])
def test_a_frozen_open_clip_tower_is_open_clips_own_forward(
    tmp_path: Path, llama: tuple[Path, LlamaForCausalLM], clips: dict[str, Any], name: str
) -> None:
    visual = clips[name]
    folder = init_model(
        llama[0], f"open_clip:test-{name}", tmp_path / "out", vision_weights=tmp_path / f"{name}.safetensors"
    )
    model, _ = load_model(folder)
    vision = model.config.vision
    side = vision.image_size
    pixels = torch.rand(2, 2, 3, side, side) * 2 - 1
    mean, std = (torch.tensor(v)[:, None, None] for v in (vision.tower_mean, vision.tower_std))
    scaled = ((pixels.flatten(0, 1) + 1) / 2 - mean) / std
    with torch.no_grad():
        ours = model.model.vision_tower(pixels).reshape(4, -1, vision.hidden_size)
        expected = visual(scaled)
        if name == "resnet":
            grid = ours.transpose(1, 2).reshape(4, -1, vision.grid_size, vision.grid_size)
            torch.testing.assert_close(visual.attnpool(grid), expected, rtol=1e-3, atol=1e-4)
        else:
            visual.output_tokens = True
            torch.testing.assert_close(ours, visual(scaled)[1], rtol=1e-4, atol=1e-5)
    assert not [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert not [n for n, p in model.named_parameters() if p.requires_grad and ".trunk." in n]


@pytest.mark.parametrize(("name", "exit_after"), [("vit", 1), ("resnet", 2)])
def test_a_tower_left_early_is_its_own_intermediate_and_keeps_nothing_behind_it(
    tmp_path: Path, llama: tuple[Path, LlamaForCausalLM], clips: dict[str, Any], name: str, exit_after: int
) -> None:
    weights = tmp_path / f"{name}.safetensors"
    folder = init_model(
        llama[0], f"open_clip:test-{name}", tmp_path / "out", vision_weights=weights, vision_exit=exit_after
    )
    model, _ = load_model(folder)
    side = model.config.vision.image_size
    pixels = torch.rand(1, 1, 3, side, side) * 2 - 1
    tower = model.model.vision_tower
    mean, std = (torch.tensor(v)[:, None, None] for v in (tower.config.tower_mean, tower.config.tower_std))
    with torch.no_grad():
        scaled = ((pixels[:, 0] + 1) / 2 - mean) / std
        found = clips[name].forward_intermediates(scaled, indices=[exit_after], intermediates_only=True)
        expected = found["image_intermediates"][0].flatten(2).transpose(1, 2)
        torch.testing.assert_close(tower(pixels), expected, rtol=1e-3, atol=1e-4)
    kept = sum(p.numel() for p in tower.parameters())
    whole = new_model(
        conversion.model_config(
            MMSLMTextConfig(**SHAPE),
            conversion.vision_config(f"open_clip:test-{name}"),
            conversion.convert_tokenizer(llama[0]),
            1,
            True,
        ),
        tower_weights="random",
    ).model.vision_tower
    assert kept < 0.8 * sum(p.numel() for p in whole.parameters())


def test_unknown_towers_and_missing_weights_are_refused(tmp_path: Path, llama: tuple[Path, LlamaForCausalLM]) -> None:
    for vision, weights, sentence in (
        ("timm:no_such_model", "random", "timm has no model"),
        ("open_clip:NoSuchModel", "random", "open_clip has no architecture"),
        ("open_clip:ViT-B-32", "openai", "choose ViT-B-32-quickgelu"),
        ("open_clip:ViT-B-32", "no-such-tag", "neither a file nor a pretrained tag"),
        ("clip", "random", "open_clip:ARCHITECTURE"),
        ("timm:test_vit", None, "needs vision_weights"),
        ("timm:test_vit", "no-such-tag", "is no file"),
    ):
        with pytest.raises(ValueError, match=sentence):
            init_model(llama[0], vision, tmp_path / "out", vision_weights=weights)


@pytest.mark.slow
def test_mobileclips_tower_gives_open_clips_own_embedding(tmp_path: Path, llama: tuple[Path, LlamaForCausalLM]) -> None:
    import open_clip

    torch.manual_seed(0)
    clip = open_clip.create_model("MobileCLIP2-S0", pretrained=None).eval()
    trunk = clip.visual.trunk
    for module in trunk.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.05)
            module.running_var.uniform_(0.8, 1.2)
    state = {k.removeprefix("trunk."): v.contiguous() for k, v in clip.visual.state_dict().items()}
    save_file(state, tmp_path / "tower.safetensors")
    folder = init_model(
        llama[0], "open_clip:MobileCLIP2-S0", tmp_path / "out", vision_weights=tmp_path / "tower.safetensors"
    )
    model, _ = load_model(folder)
    pixels = torch.rand(1, 1, 3, 256, 256) * 2 - 1
    vision = model.config.vision
    mean, std = (torch.tensor(v)[:, None, None] for v in (vision.tower_mean, vision.tower_std))
    with torch.no_grad():
        ours = model.model.vision_tower(pixels)
        features = trunk.forward_features(((pixels[:, 0] + 1) / 2 - mean) / std)
        expected = features.flatten(2).transpose(1, 2)
        theirs = clip.encode_image(((pixels[:, 0] + 1) / 2 - mean) / std)
        ours_pooled = trunk.forward_head(ours.transpose(1, 2).reshape(features.shape))
    scale = expected.abs().max()
    torch.testing.assert_close(ours / scale, expected / scale, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(ours_pooled / theirs.abs().max(), theirs / theirs.abs().max(), rtol=1e-3, atol=1e-3)
