"""A tiny real model with the model's own interface, so that the federated room is tested without waiting for photos."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from federated.settings import FederatedConfig, ServerOptimiserConfig

VOCABULARY, WIDTH, RANK = 11, 8, 2


class TinyModel(nn.Module):
    """Predicts the next token from this one: frozen table and head, a low-rank adapter between."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        self.table = nn.Parameter(torch.randn(VOCABULARY, WIDTH, generator=generator), requires_grad=False)
        self.head = nn.Parameter(torch.randn(WIDTH, VOCABULARY, generator=generator) / 3, requires_grad=False)
        self.a = nn.Parameter(torch.randn(WIDTH, RANK, generator=generator) / 3)
        self.b = nn.Parameter(torch.zeros(RANK, WIDTH))
        self.register_buffer("shift", torch.ones(WIDTH) / 10)

    def adapter_parameters(self) -> dict[str, nn.Parameter]:
        return {"a": self.a, "b": self.b}

    def freeze_base(self) -> None:
        self.table.requires_grad_(False)

    def forward(self, input_ids: Tensor) -> SimpleNamespace:
        hidden = self.table[input_ids] + self.shift
        return SimpleNamespace(logits=(hidden + hidden @ self.a @ self.b) @ self.head)


class TinyFeeder:
    """Device i holds sequences that prefer token i; what it trains on differs by round."""

    def batches(self, model: nn.Module, device: int, round_number: int) -> list[dict[str, Tensor]]:
        generator = torch.Generator().manual_seed(1000 * device + round_number)
        tokens = torch.randint(VOCABULARY, (3, 6), generator=generator)
        tokens[:, 1::2] = device % VOCABULARY
        return [{"input_ids": tokens, "labels": tokens}]


@pytest.fixture
def tiny_model() -> TinyModel:
    return TinyModel()


@pytest.fixture
def tiny_feeder() -> TinyFeeder:
    return TinyFeeder()


@pytest.fixture
def tiny_settings() -> FederatedConfig:
    """A run of a fraction of a second. The noise is given, so that no test waits for a calibration."""
    return FederatedConfig(
        households=20,
        rounds=5,
        sampling_rate=0.5,
        local_steps=2,
        local_learning_rate=0.5,
        clip_norm=0.5,
        epsilon=50.0,
        delta=1e-3,
        accountant="rdp",
        noise_multiplier=1.0,
        server=ServerOptimiserConfig(name="adam", learning_rate=0.05),
        noise="simulation",
        seed=3,
        workers=2,
    )


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory):
    """A model directory as ``mmslm`` writes them, two layers wide as a hand: real tokenizer, processor and weights."""
    from mmslm.data.scenes import sentences
    from mmslm.model.configuration import MMSLMConfig, MMSLMTextConfig, MMSLMVisionConfig
    from mmslm.model.modeling import MMSLMForConditionalGeneration
    from mmslm.processing import MMSLMProcessor
    from mmslm.tokenizer import train_tokenizer

    folder = tmp_path_factory.mktemp("tiny_base")
    tokenizer = train_tokenizer([line for i in range(60) for line in sentences(i)], None, vocab_size=500)
    text = MMSLMTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    vision = MMSLMVisionConfig(
        image_size=32,
        stem_channels=(8, 12),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    config = MMSLMConfig(text_config=text, vision_config=vision)
    torch.manual_seed(0)
    MMSLMForConditionalGeneration(config).save_pretrained(folder)
    MMSLMProcessor.build(tokenizer, config).save_pretrained(folder)
    return folder
