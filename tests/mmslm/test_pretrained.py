"""Model directories: what was written is what is read, and what is damaged is refused with its name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText

import mmslm
from mmslm.model import MMSLMConfig, MMSLMForConditionalGeneration
from mmslm.pretrained import load_model, save_model
from mmslm.processing import MMSLMProcessor
from mmslm.tokenizer import train_tokenizer

TOKENIZER = train_tokenizer(["A red cup on the mat.", "Two blue dogs near a bus."] * 5, None, 400)


def build(experts: bool = True) -> tuple[MMSLMForConditionalGeneration, MMSLMProcessor, dict[str, Tensor]]:
    torch.manual_seed(0)
    text = {"vocab_size": len(TOKENIZER), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    vision = {"image_size": 32, "stem_channels": (6, 8), "hidden_size": 16, "intermediate_size": 24}
    vision |= {"num_hidden_layers": 1, "num_attention_heads": 2}
    config = MMSLMConfig(text_config=text, vision_config=vision)
    model = MMSLMForConditionalGeneration(config).eval()
    if experts:
        model.add_image_experts(2, train="b", include=("decoder", "vision"), seed=3)
        with torch.no_grad():
            for parameter in model.adapter_parameters().values():
                parameter.normal_()
    batch = {"input_ids": torch.tensor([[1, 4, 4, 4, 4, 9, 10, 11]]), "pixel_values": torch.rand(1, 1, 3, 32, 32)}
    return model, MMSLMProcessor.build(TOKENIZER, config), batch


def test_a_saved_model_gives_the_same_bits_by_every_way_of_loading(tmp_path: Path) -> None:
    model, processor, batch = build()
    folder = save_model(model, processor, tmp_path / "model")
    names = {path.name for path in folder.iterdir()}
    assert {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "processor_config.json",
        "chat_template.jinja",
    } <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl"))]
    mmslm.register()
    expected = model(**batch).logits
    ours, _ = load_model(folder)
    theirs = AutoModelForImageTextToText.from_pretrained(folder)
    for again in (ours, theirs):
        assert torch.equal(again(**batch).logits, expected)
        assert again.config.image_experts == model.config.image_experts
        assert list(again.adapter_parameters()) == list(model.adapter_parameters())
        assert again.lm_head.weight is again.get_input_embeddings().weight
    frozen = [name for name, p in ours.named_parameters() if not p.requires_grad]
    assert frozen
    assert all(name.endswith(".a.weight") for name in frozen)
    assert isinstance(AutoConfig.from_pretrained(folder), MMSLMConfig)


def test_saving_over_a_model_keeps_other_files_and_leaves_no_parts(tmp_path: Path) -> None:
    model, processor, batch = build()
    folder = save_model(model, processor, tmp_path / "model")
    (folder / "README.md").write_text("card")
    with torch.no_grad():
        model.model.projector.fc1.weight.zero_()
    save_model(model, processor, folder)
    assert (folder / "README.md").read_text() == "card"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert torch.equal(load_model(folder)[0](**batch).logits, model(**batch).logits)


def test_sixteen_bit_weights_are_read_as_full_precision_of_the_rounded_numbers(tmp_path: Path) -> None:
    model, processor, batch = build()
    rounded = model.to(torch.bfloat16)
    save_model(rounded, processor, tmp_path / "model")
    again, _ = load_model(tmp_path / "model")
    assert again.lm_head.weight.dtype == torch.float32
    assert torch.equal(again(**batch).logits, rounded.float()(**batch).logits)


def test_pickles_are_neither_written_nor_read(tmp_path: Path) -> None:
    model, processor, _ = build(experts=False)
    with pytest.raises(ValueError, match="pickle"):
        model.save_pretrained(tmp_path / "x", safe_serialization=False)
    folder = save_model(model, processor, tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin, a pickle"):
        load_model(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "processor_config.json"])
def test_a_missing_part_is_named(tmp_path: Path, name: str) -> None:
    model, processor, _ = build(experts=False)
    folder = save_model(model, processor, tmp_path / "model")
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=name.replace(".", r"\.")):
        load_model(folder)


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no model directory"):
        load_model(tmp_path / "nowhere")


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    model, processor, _ = build(experts=False)
    folder = save_model(model, processor, tmp_path / "model")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="damaged or cut short"):
        load_model(folder)
    with torch.no_grad():
        model.model.projector.fc1.weight[0, 0] = float("nan")
    save_model(model, processor, folder)
    with pytest.raises(ValueError, match=r"not finite in model\.projector\.fc1\.weight"):
        load_model(folder)


def test_weights_of_another_configuration_are_refused(tmp_path: Path) -> None:
    model, processor, _ = build(experts=False)
    folder = save_model(model, processor, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["intermediate_size"] = 64
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="does not fit its config"):
        load_model(folder)
    config["model_type"] = "llama"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="mmslm model is expected"):
        load_model(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="no configuration"):
        load_model(folder)
