"""Pictures and words into what the model takes: the image processor, the processor, and the conversation's tokens.

Pictures are resized to the model's square with antialiasing and without keeping their shape ("squash"). Cropping would
lose the edges of a picture that somebody cannot see to frame; padding would spend up to half of a small model's few
image tokens on bars. A squashed picture keeps everything in view and in its relative place, and the model learns the
distortion. Pixels become floats in [-1, 1].

It refuses what is not a picture. Files are opened elsewhere (`mmslm.data.open_image`); any mode of Pillow image is
accepted and read as RGB.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BatchFeature
from transformers.processing_utils import MultiModalData, ProcessorMixin

from mmslm.model.losses import IGNORED
from mmslm.tokenizer import MMSLMTokenizer

Picture = Image.Image | npt.NDArray[np.uint8] | Tensor


def to_pixels(picture: Picture, size: int) -> npt.NDArray[np.uint8]:
    """One picture as uint8 [size, size, 3]. Arrays are [H, W, 3] uint8 and need no resize when they fit.

    Raises TypeError for anything else than a Pillow image or such an array, ValueError for a picture without pixels.
    """
    if isinstance(picture, Tensor):
        picture = picture.numpy()
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise TypeError(f"A picture array has shape {picture.shape} of {picture.dtype}; give uint8 [H, W, 3].")
        if picture.shape[:2] == (size, size):
            return picture
        if 0 in picture.shape:
            raise ValueError(f"A picture has {picture.shape[1]} x {picture.shape[0]} pixels; give at least one.")
        picture = Image.fromarray(picture)
    if not isinstance(picture, Image.Image):
        raise TypeError(
            f"Got a {type(picture).__name__} for a picture; give a Pillow image (mmslm.data.open_image opens files)."
        )
    if 0 in picture.size:
        raise ValueError(f"A picture has {picture.width} x {picture.height} pixels; give at least one.")
    if picture.mode != "RGB":
        picture = picture.convert("RGB")
    if picture.size != (size, size):
        picture = picture.resize((size, size), Image.Resampling.BICUBIC, reducing_gap=3.0)
    return np.asarray(picture, dtype=np.uint8)


def normalise(pixels: npt.NDArray[np.uint8] | Tensor) -> Tensor:
    """uint8 [..., H, W, 3] -> float32 [..., 3, H, W] in [-1, 1]."""
    values = torch.from_numpy(np.ascontiguousarray(pixels)) if isinstance(pixels, np.ndarray) else pixels
    return values.movedim(-1, -3).to(torch.float32).div_(127.5).sub_(1.0)


class MMSLMImageProcessor(PilBackend):
    """transformers' image processor for mmslm: pictures -> pixel_values [n, 3, size, size] in [-1, 1]."""

    resample = Image.Resampling.BICUBIC
    size = {"height": 96, "width": 96}  # noqa: RUF012
    image_mean = [0.5, 0.5, 0.5]  # noqa: RUF012
    image_std = [0.5, 0.5, 0.5]  # noqa: RUF012
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    model_input_names = ["pixel_values"]  # noqa: RUF012

    @property
    def side(self) -> int:
        """Side of the model's square, in pixels."""
        return int(self.size["height"])

    def pixels(self, pictures: Sequence[Picture]) -> Tensor:
        """Pictures -> float32 [n, 3, size, size] in [-1, 1]: what training and generation call."""
        if not pictures:
            return torch.empty(0, 3, self.side, self.side)
        return normalise(np.stack([to_pixels(picture, self.side) for picture in pictures]))

    def preprocess(self, images: Any, *args: Any, **kwargs: Any) -> BatchFeature:
        """transformers' entry: one picture, a list, or a list of lists (flattened in order)."""
        pixels = self.pixels(_flatten(images))
        data: Any = pixels if kwargs.get("return_tensors") == "pt" else list(pixels.numpy())
        return BatchFeature(data={"pixel_values": data}, tensor_type=kwargs.get("return_tensors"))


def _flatten(images: Any) -> list[Picture]:
    if isinstance(images, list | tuple):
        return [picture for item in images for picture in _flatten(item)]
    return [images]


@dataclass(frozen=True)
class EncodedTurns:
    """A conversation as tokens. `labels` hold the ids of replies and their <eos>, -100 elsewhere."""

    input_ids: list[int]
    labels: list[int]


class MMSLMProcessor(ProcessorMixin):
    """Pictures and text for the model, as transformers expects it, and the conversation layout for training.

    `tokens_per_image`: how many <image> tokens stand for one picture.
    """

    return_mm_token_type_ids = True

    def __init__(
        self,
        image_processor: MMSLMImageProcessor | None = None,
        tokenizer: MMSLMTokenizer | None = None,
        tokens_per_image: int = 36,
        chat_template: str | None = None,
        **kwargs: Any,
    ) -> None:
        if tokenizer is None or image_processor is None:
            raise ValueError("A processor needs an image processor and a tokenizer; load both from a model directory.")
        self.tokens_per_image = tokens_per_image
        self.image_token = tokenizer.image_token
        self.image_token_id = tokenizer.image_token_id
        super().__init__(image_processor, tokenizer, chat_template=chat_template or tokenizer.chat_template)

    @classmethod
    def build(cls, tokenizer: MMSLMTokenizer, config: Any) -> "MMSLMProcessor":
        """The processor of a model with this configuration (an MMSLMConfig)."""
        side = config.vision.image_size
        return cls(MMSLMImageProcessor(size={"height": side, "width": side}), tokenizer, config.tokens_per_image)

    @classmethod
    def load(cls, folder: str | Path) -> "MMSLMProcessor":
        """From a model directory, without the network. Raises FileNotFoundError with what is missing."""
        path = Path(folder)
        for name in ("processor_config.json", "tokenizer.json"):
            if not (path / name).is_file():
                raise FileNotFoundError(f"{path} holds no {name}; give a model directory that mmslm wrote.")
        loaded = cls.from_pretrained(path, local_files_only=True)
        assert isinstance(loaded, cls)
        return loaded

    @property
    def image_size(self) -> int:
        """Side of the square that the model sees, in pixels."""
        return int(self.image_processor.side)

    def replace_image_token(self, image_inputs: dict[str, Any], image_idx: int, **kwargs: Any) -> str:
        """One <image> in a prompt becomes `tokens_per_image` of them."""
        return self.image_token * self.tokens_per_image

    def _get_num_multimodal_tokens(self, image_sizes: Any = None, **kwargs: Any) -> MultiModalData:
        count = len(image_sizes) if image_sizes is not None else 0
        return MultiModalData(num_image_tokens=[self.tokens_per_image] * count, num_image_patches=[1] * count)

    def __call__(self, images: Any = None, text: Any = None, **kwargs: Any) -> BatchFeature:
        """Text with one <image> per picture and the pictures in order -> input_ids, attention_mask, mm_token_type_ids,
        pixel_values [B, N, 3, H, W] (N = most pictures of a sample; samples with fewer are filled with grey).

        images: one picture, or a list in the order of the <image> tokens, or one list per sample. Raises ValueError
        where the counts differ.
        """
        texts = [text] if isinstance(text, str) else text
        features = super().__call__(images=_flatten(images) if images is not None else None, text=text, **kwargs)
        if "pixel_values" not in features or texts is None:
            return features
        flat = features["pixel_values"]
        flat = flat if isinstance(flat, Tensor) else torch.from_numpy(np.stack(flat))
        counts = [sample.count(self.image_token) for sample in texts]
        stacked = flat.new_zeros(len(counts), max(counts), *flat.shape[1:])
        start = 0
        for row, count in enumerate(counts):
            stacked[row, :count] = flat[start : start + count]
            start += count
        features["pixel_values"] = stacked if kwargs.get("return_tensors") == "pt" else stacked.numpy()
        return features

    def pixels(self, pictures: Sequence[Picture]) -> Tensor:
        """Pictures -> float32 [n, 3, size, size] in [-1, 1]."""
        return self.image_processor.pixels(pictures)

    def encode_prompt(self, prompt: str) -> list[int]:
        """<user> PROMPT <assistant>: what follows the pictures, and every earlier turn, before a reply."""
        tokenizer = self.tokenizer
        return [tokenizer.user_token_id, *tokenizer.encode_text(" " + prompt.strip()), tokenizer.assistant_token_id]

    def encode_images_prefix(self, images: int = 1) -> list[int]:
        """<bos> and the image tokens: the part of a conversation that only depends on how many pictures there are."""
        return [self.tokenizer.bos_token_id] + [self.image_token_id] * (images * self.tokens_per_image)

    def encode_turns(self, turns: Sequence[tuple[str, str]], images: int = 1) -> EncodedTurns:
        """A conversation about `images` pictures: <bos> <image>... then per turn <user> PROMPT <assistant> REPLY <eos>.

        Text is taken literally: a caption that contains "<image>" stays text. Raises ValueError without turns.
        """
        if not turns:
            raise ValueError("A conversation needs at least one turn of prompt and reply; got none.")
        ids = self.encode_images_prefix(images)
        labels = [IGNORED] * len(ids)
        for prompt, reply in turns:
            asked = self.encode_prompt(prompt)
            said = [*self.tokenizer.encode_text(" " + reply.strip()), self.tokenizer.eos_token_id]
            ids += asked + said
            labels += [IGNORED] * len(asked) + said
        return EncodedTurns(ids, labels)


__all__ = ["EncodedTurns", "MMSLMImageProcessor", "MMSLMProcessor", "Picture", "normalise", "to_pixels"]
