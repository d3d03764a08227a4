"""lmms-eval finds our model, and gets from it what the narrator says itself. Needs lmms-eval, an extra."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("lmms_eval", reason="lmms-eval is not installed (an extra for those who want it)")

import torch
from lmms_eval.api.instance import Instance
from lmms_eval.models.registry_v2 import ModelRegistryV2
from standins import SIZE, scenes, tiny_narrator

from mmslm.data.scenes import ScenePhoto
from mmslm.evaluation.lmms_adapter import MMSLMForLmmsEval, manifest
from mmslm.generation.narrator import Narrator


@pytest.fixture(scope="module")
def narrator() -> Narrator:
    return tiny_narrator()


@pytest.fixture(scope="module")
def photos() -> list[ScenePhoto]:
    return scenes(5, 1)


@pytest.fixture(scope="module")
def model(narrator: Narrator, photos: list[ScenePhoto]) -> MMSLMForLmmsEval:
    model = MMSLMForLmmsEval(narrator=narrator, batch_size=2)
    model.task_dict = {"scenes": {"test": photos}}
    return model


def request(kind: str, context: str, second: Any, document: int, pictures: int = 1) -> Instance:
    def visual(photo: ScenePhoto) -> list[Any]:
        return [photo.image(SIZE)] * pictures

    arguments = (context, second, visual, document, "scenes", "test")
    metadata = {"task": "scenes", "doc_id": document, "repeats": 1}
    return Instance(request_type=kind, arguments=arguments, idx=0, metadata=metadata)


def test_the_registry_finds_and_accepts_our_class() -> None:
    registry = ModelRegistryV2()
    registry.register_manifest(manifest())
    assert registry.get_model_class("mmslm") is MMSLMForLmmsEval


def test_replies_are_the_narrators_own(model: MMSLMForLmmsEval, narrator: Narrator, photos: list[ScenePhoto]) -> None:
    asked = [
        request("generate_until", f"<image>\nis there a {word}?", {"max_new_tokens": tokens}, place)
        for place, (word, tokens) in enumerate([("cup", 8), ("bus", 5), ("cat", 8), ("dog", 8), ("key", 900)])
    ]
    said = model.generate_until(asked)
    for place, (word, tokens) in enumerate([("cup", 8), ("bus", 5), ("cat", 8), ("dog", 8), ("key", 64)]):
        assert said[place] == narrator.say(photos[place].image(SIZE), f"is there a {word}?", tokens).text.strip()


def test_replies_end_before_a_stop_string(model: MMSLMForLmmsEval) -> None:
    [whole] = model.generate_until([request("generate_until", "what is this?", {"max_new_tokens": 12}, 0)])
    stop = whole[len(whole) // 2]
    options = {"max_new_tokens": 12, "until": [stop]}
    [cut] = model.generate_until([request("generate_until", "what is this?", options, 0)])
    assert cut == whole.split(stop)[0].strip()


def test_likelihoods_follow_from_the_tokens_probabilities(
    model: MMSLMForLmmsEval, narrator: Narrator, photos: list[ScenePhoto]
) -> None:
    """Oracle: what the model itself decodes greedily, whose token probabilities the narrator reports."""
    image, prompt = photos[1].image(SIZE), "is there a cup?"
    reply = narrator.say(image, prompt, 6)
    ids = narrator.processor.tokenizer.encode_text(" " + reply.text)
    [(score, greedy)] = model.loglikelihood([request("loglikelihood", prompt, lambda photo: reply.text, 1)])
    if tuple(ids) == reply.tokens:  # babble may be cut into other pieces than it was said in
        assert greedy
        # The narrator silences roles and pictures after the softmax's sum was formed without them.
        assert score <= float(torch.tensor(reply.token_confidences).log().sum()) + 1e-4
    [(likely, _), (other, is_greedy)] = model.loglikelihood(
        [request("loglikelihood", prompt, text, 1) for text in (reply.text, "zebra zebra zebra zebra zebra zebra")]
    )
    assert likely > other
    assert not is_greedy


def test_several_pictures_reach_the_model(model: MMSLMForLmmsEval) -> None:
    options = {"max_new_tokens": 6}
    [one] = model.loglikelihood([request("loglikelihood", "what is this?", "a cup", 0)])
    [two] = model.loglikelihood([request("loglikelihood", "what is this?", "a cup", 0, pictures=2)])
    assert one[0] != two[0]
    assert len(model.generate_until([request("generate_until", "what?", options, 0, pictures=2)])) == 1


def test_what_cannot_be_had_again_is_refused(model: MMSLMForLmmsEval) -> None:
    with pytest.raises(ValueError, match="greedily"):
        model.generate_until([request("generate_until", "what?", {"temperature": 0.7}, 0)])
    with pytest.raises(NotImplementedError, match="one round"):
        model.generate_until_multi_round([])
    with pytest.raises(ValueError, match="'speed' is unknown"):
        MMSLMForLmmsEval(narrator=model.narrator, speed=3)
