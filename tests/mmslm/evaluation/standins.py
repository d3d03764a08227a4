"""Narrators whose scores are known beforehand: one reads the truth, one is silent, one says the same to everything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image

from mmslm.data.photo import Photo
from mmslm.data.scenes import ScenePhoto, household, sentences

if TYPE_CHECKING:
    from mmslm.generation.narrator import Narrator

SIZE = 48
PROMPTS = {
    "short": "Describe the picture in a few words.",
    "detailed": "Describe the picture in detail.",
    "hazard": "Describe the picture, dangers first.",
}


@dataclass(frozen=True)
class Said:
    text: str
    confidence: float = 0.5


class Oracle:
    """Knows each photo by its pixels. Captions name every kind of the truth and nothing else; answers are right."""

    def __init__(self, photos: Sequence[Photo], size: int | None = SIZE) -> None:
        self.photos = {photo.image(size).tobytes(): photo for photo in photos}
        self.asked: list[tuple[int, int]] = []

    def caption(self, photo: Photo, prompt: str) -> str:
        assert photo.truth is not None
        return "there is a " + ", a ".join(sorted(photo.truth.kinds))

    def say_batch(self, images: Sequence[Image.Image], prompts: Sequence[str], max_new_tokens: int) -> list[Said]:
        self.asked.append((len(prompts), max_new_tokens))
        replies = []
        for image, prompt in zip(images, prompts, strict=True):
            photo = self.photos[image.tobytes()]
            answers = {question.question: question.answer for question in photo.questions}
            replies.append(Said(answers[prompt] if prompt in answers else self.caption(photo, prompt), 0.9))
        return replies


class Quoting(Oracle):
    """Says a reference caption of the style that the prompt asks for."""

    def caption(self, photo: Photo, prompt: str) -> str:
        assert isinstance(photo, ScenePhoto)
        style = next(name for name, text in PROMPTS.items() if text == prompt)
        return photo.references(style)[0]


class Constant:
    """Says one thing to everything."""

    def __init__(self, text: str) -> None:
        self.text = text

    def say_batch(self, images: Sequence[Image.Image], prompts: Sequence[str], max_new_tokens: int) -> list[Said]:
        return [Said(self.text) for _ in prompts]


class Mixed:
    """Gives the first narrator's reply to a fixed share of the questions and the second's to the others."""

    def __init__(self, first: Oracle, second: Constant, share: float) -> None:
        self.first, self.second, self.share = first, second, share

    def say_batch(self, images: Sequence[Image.Image], prompts: Sequence[str], max_new_tokens: int) -> list[Said]:
        good = self.first.say_batch(images, prompts, max_new_tokens)
        bad = self.second.say_batch(images, prompts, max_new_tokens)
        # The sum of a picture's bytes is as good as a die, and the same on every run.
        lots = [
            (sum(image.tobytes()[:999]) + 7 * len(prompt)) % 100 for image, prompt in zip(images, prompts, strict=True)
        ]
        return [g if lot < 100 * self.share else b for g, b, lot in zip(good, bad, lots, strict=True)]


def scenes(owners: int, each: int, seed: int = 7) -> list[ScenePhoto]:
    return [household(index, seed).photo(j) for index in range(owners) for j in range(each)]


def tiny_narrator() -> Narrator:
    """The real thing with few and untrained weights: it babbles."""
    # Imported here, so that tests that need no model do not wait for torch.
    import torch

    from mmslm.generation.narrator import Narrator
    from mmslm.model.configuration import MMSLMConfig
    from mmslm.model.modeling import MMSLMForConditionalGeneration
    from mmslm.processing import MMSLMProcessor
    from mmslm.tokenizer import train_tokenizer

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
