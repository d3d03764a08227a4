"""`mmslm init`, walked as a person does: a checkpoint and a tower in, a model that speaks out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

from apps import cli


@pytest.fixture
def language(tmp_path: Path) -> Path:
    folder = tmp_path / "language"
    torch.manual_seed(0)
    sizes = {"vocab_size": 320, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}
    LlamaForCausalLM(LlamaConfig(**sizes, **heads, tie_word_embeddings=True)).save_pretrained(folder)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(["a red cup on the table", "two dogs near the bus"] * 10, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return folder


def test_a_checkpoint_and_a_tower_become_a_model_that_speaks(
    tmp_path: Path, language: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import timm

    from mmslm.generation import Narrator

    trunk = timm.create_model("test_vit", pretrained=False, num_classes=0)
    save_file({k: v.contiguous() for k, v in trunk.state_dict().items()}, tmp_path / "tower.safetensors")
    argv = ["init", "--language", str(language), "--vision", "timm:test_vit", "--out", str(tmp_path / "new")]
    assert cli.main([*argv, "--weights", str(tmp_path / "tower.safetensors"), "--exit", "3"]) == 0
    said = capsys.readouterr().out
    assert "its projector is new" in said
    assert "fetching" not in said
    reply = Narrator.load(tmp_path / "new").say(torch.zeros(40, 40, 3, dtype=torch.uint8).numpy(), "What is it?", 4)
    assert len(reply.tokens) <= 4
    # What is finished is not overwritten.
    assert cli.main([*argv, "--weights", "random"]) == 2
    assert "is not empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (["--vision", "timm:test_vit"], "needs vision_weights"),
        (["--vision", "timm:test_vit", "--weights", "random", "--exit", "99"], "no stage 99"),
        (["--vision", "timm:test_vit", "--weights", "random", "--image-size", "17"], "does not take pictures of 17"),
        (["--vision", "clip"], "open_clip:ARCHITECTURE"),
        (["--vision", "open_clip:ViT-B-32", "--weights", "openai"], "ViT-B-32-quickgelu"),
    ],
)
def test_what_cannot_be_built_is_said_in_one_sentence(
    tmp_path: Path, language: Path, capsys: pytest.CaptureFixture[str], change: list[str], says: str
) -> None:
    assert cli.main(["init", "--language", str(language), *change, "--out", str(tmp_path / "new")]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_name_asks_for_the_hub_and_offline_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("apps.commands.init._WISHED_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # tests never reach the network
    argv = ["init", "--language", "someone/no-such-model", "--vision", "conv_stem", "--out", str(tmp_path / "new")]
    assert cli.main(argv) == 2
    said = capsys.readouterr()
    assert "no directory someone/no-such-model" in said.err
    assert "fetching" not in said.out
