"""The real narrator, tiny and untrained, is evaluated, measured and streamed through the same interfaces."""

from __future__ import annotations

import pytest
from standins import SIZE, scenes, tiny_narrator

from mmslm.data.scenes import ScenePhoto
from mmslm.evaluation.efficiency import measure_efficiency
from mmslm.evaluation.evaluate import ANSWER_TOKENS, CAPTION_TOKENS, evaluate
from mmslm.generation.narrator import Narrator
from mmslm.prompts import CAPTION_PROMPTS


@pytest.fixture(scope="module")
def narrator() -> Narrator:
    return tiny_narrator()


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
