"""The real narrator, tiny and untrained, is evaluated, measured and streamed through the same interfaces."""

from __future__ import annotations

import pytest
import torch
from standins import SIZE, scenes

from mmslm.data.scenes import ScenePhoto, sentences
from mmslm.evaluation.efficiency import measure_efficiency
from mmslm.evaluation.evaluate import ANSWER_TOKENS, CAPTION_TOKENS, evaluate
from mmslm.generation.narrator import Narrator
from mmslm.model.configuration import MMSLMConfig
from mmslm.model.modeling import MMSLMForConditionalGeneration
from mmslm.processing import MMSLMProcessor
from mmslm.prompts import CAPTION_PROMPTS
from mmslm.tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def narrator() -> Narrator:
    tokenizer = train_tokenizer((line for index in range(120) for line in sentences(index)), None, 500)
    torch.manual_seed(0)
    config = MMSLMConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 128,
            "initializer_range": 0.2,
        },
        vision_config={
            "image_size": SIZE,
            "stem_channels": (6, 8),
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
        },
        image_token_id=tokenizer.image_token_id,
    )
    model = MMSLMForConditionalGeneration(config).eval()
    return Narrator(model, MMSLMProcessor.build(tokenizer, config))


@pytest.fixture(scope="module")
def photos() -> list[ScenePhoto]:
    return scenes(3, 1)


def test_rows_hold_what_the_narrator_says_when_asked_alone(narrator: Narrator, photos: list[ScenePhoto]) -> None:
    result = evaluate(narrator, photos, styles=("short", "detailed"), image_size=SIZE, questions_per_photo=2)
    by_id = {photo.id: photo for photo in photos}
    for row in result.captions:
        alone = narrator.say(by_id[row.photo].image(SIZE), CAPTION_PROMPTS[row.style], CAPTION_TOKENS)
        assert row.caption == alone.text
        assert row.confidence == pytest.approx(alone.confidence, abs=1e-4)
    for answer in result.answers:
        assert answer.given == narrator.say(by_id[answer.photo].image(SIZE), answer.question, ANSWER_TOKENS).text
    assert len({row.caption for row in result.captions}) > 1  # an untrained model babbles, but not always the same


def test_a_streaming_narrator_is_measured(narrator: Narrator, photos: list[ScenePhoto]) -> None:
    cost = measure_efficiency(narrator, [photo.image(SIZE) for photo in photos], ("what is this?", "is there a cup?"))
    assert 0 < cost.first_token_seconds <= cost.caption_seconds
    assert cost.tokens <= 24
    assert cost.joules > 0
