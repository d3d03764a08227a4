"""The image front end from scratch and the projector into the language model.

Three strided 3x3 convolutions bring a picture to a grid of image_size / 8 (an early convolutional stem trains better
than a patch embedding: Xiao et al. 2021, arXiv:2106.14881), then pre-norm transformer blocks. Every normalisation is
LayerNorm: BatchNorm would mix the examples of a batch. The first axis of every trainable module is the sample, also
with several pictures: [B, N*cells, d], never [B*N, cells, d]. It refuses pictures of another size than configured.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmslm.model.attention import attend, compute_type
from mmslm.model.configuration import MMSLMConfig, MMSLMVisionConfig
from mmslm.model.experts import MLPDelta


def convolve_each(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """A 3x3 convolution of stride 2 and padding 1 over pictures x [B, N, H, W, C] -> [B, N, H/2, W/2, C'], H even.

    Several pictures are stacked along the height with two rows of zeros after each, so that the convolution sees the
    sample as its batch axis and no window touches two pictures; the one row in between is dropped.
    """
    batch, count, height, width, channels = x.shape
    if count > 1:
        x = F.pad(x, (0, 0, 0, 0, 0, 2))
    tall = x.reshape(batch, -1, width, channels)
    # Channels stay last in memory: fast convolutions on CPUs, and the LayerNorm over channels needs no copy.
    y = conv(tall.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    if count > 1:
        y = y.reshape(batch, count, height // 2 + 1, width // 2, -1)[:, :, : height // 2]
    return y.reshape(batch, count, height // 2, width // 2, -1)


class ConvStem(nn.Module):
    """pixel_values [B, N, 3, H, W] -> [B, N * (H/8)^2, d]."""

    def __init__(self, config: MMSLMVisionConfig) -> None:
        super().__init__()
        first, second = config.stem_channels
        self.conv1 = nn.Conv2d(config.num_channels, first, 3, stride=2, padding=1)
        self.norm1 = nn.LayerNorm(first, eps=config.layer_norm_eps)
        self.conv2 = nn.Conv2d(first, second, 3, stride=2, padding=1)
        self.norm2 = nn.LayerNorm(second, eps=config.layer_norm_eps)
        self.conv3 = nn.Conv2d(second, config.hidden_size, 3, stride=2, padding=1)

    def forward(self, pixel_values: Tensor) -> Tensor:
        x = pixel_values.permute(0, 1, 3, 4, 2).contiguous()
        x = F.gelu(compute_type(self.norm1(convolve_each(self.conv1, x))), approximate="tanh")
        x = F.gelu(compute_type(self.norm2(convolve_each(self.conv2, x))), approximate="tanh")
        return convolve_each(self.conv3, x).flatten(1, 3)


class VisionBlock(nn.Module):
    """Full attention within each picture, then a GELU feed-forward: x [B, N*P, d] -> [B, N*P, d]."""

    def __init__(self, config: MMSLMVisionConfig) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.heads = config.num_attention_heads
        self.norm1 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)
        self.image_expert: MLPDelta | None = None

    def forward(self, x: Tensor, count: int) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(compute_type(self.norm1(x)))
        # Attention has no parameters, so pictures may stand on the batch axis here.
        qkv = qkv.view(batch * count, length // count, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        mixed = attend(query, key, value, None, False).transpose(1, 2).reshape(batch, length, width)
        x = x + self.proj(mixed)
        return x + feed_forward(self.fc1, self.fc2, self.image_expert, compute_type(self.norm2(x)))


def feed_forward(fc1: nn.Linear, fc2: nn.Linear, expert: MLPDelta | None, x: Tensor) -> Tensor:
    """Linear, GELU, linear on x [B, T, D], with the low-rank expert's deltas where there is one."""
    inner = fc1(x) if expert is None else fc1(x) + expert.fc1(x)
    inner = F.gelu(inner, approximate="tanh")
    return fc2(inner) if expert is None else fc2(inner) + expert.fc2(inner)


class NanoVisionEncoder(nn.Module):
    """The nano front end: pixel_values [B, N, 3, H, W] in [-1, 1] -> features [B, N*P, d], P = (H/8)^2."""

    def __init__(self, config: MMSLMVisionConfig) -> None:
        super().__init__()
        self.config = config
        cells = config.grid_size**2
        self.stem = ConvStem(config)
        self.position = nn.Embedding(cells, config.hidden_size)
        self.blocks = nn.ModuleList(VisionBlock(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, pixel_values: Tensor) -> Tensor:
        check_pixels(pixel_values, self.config)
        batch, count = pixel_values.shape[:2]
        x = self.stem(pixel_values)
        places = torch.arange(self.position.num_embeddings, device=x.device).repeat(count).expand(batch, -1)
        x = x + self.position(places)
        for block in self.blocks:
            x = block(x, count)
        return self.norm(x)


class PatchEmbedding(nn.Module):
    """No encoder: pixel_values [B, N, 3, H, W] -> [B, N*P, d], a linear map of each patch plus its place."""

    def __init__(self, config: MMSLMVisionConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Linear(config.num_channels * config.patch_size**2, config.hidden_size)
        self.position = nn.Embedding(config.grid_size**2, config.hidden_size)

    def forward(self, pixel_values: Tensor) -> Tensor:
        check_pixels(pixel_values, self.config)
        batch, count, channels = pixel_values.shape[:3]
        grid, size = self.config.grid_size, self.config.patch_size
        patches = pixel_values.view(batch, count, channels, grid, size, grid, size).permute(0, 1, 3, 5, 2, 4, 6)
        x = self.embed(patches.reshape(batch, count * grid * grid, channels * size * size))
        places = torch.arange(grid * grid, device=x.device).repeat(count).expand(batch, -1)
        return F.gelu(x + self.position(places), approximate="tanh")


def check_pixels(pixel_values: Tensor, config: MMSLMVisionConfig) -> None:
    """Raises ValueError where pixel_values are not [B, N, 3, H, W] of the configured size."""
    side = config.image_size
    if pixel_values.dim() != 5 or pixel_values.shape[2:] != (config.num_channels, side, side):
        raise ValueError(
            f"pixel_values has shape {tuple(pixel_values.shape)}; expected [B, N, 3, {side}, {side}]: "
            "prepare pictures with the processor."
        )


def build_front_end(config: MMSLMVisionConfig) -> nn.Module:
    """The front end that `config.kind` names: pixel_values [B, N, 3, H, W] in [-1, 1] -> features [B, N*P, d]."""
    if config.kind == "conv_stem":
        return NanoVisionEncoder(config)
    if config.kind == "patch":
        return PatchEmbedding(config)
    from mmslm.model.tower import FrozenTower  # open_clip and timm load only where a tower is asked for

    return FrozenTower(config)


class Projector(nn.Module):
    """Front-end features [B, N*P, d] -> image tokens [B, N*P/s^2, D]: fold s x s cells, norm, linear, GELU, linear."""

    def __init__(self, config: MMSLMConfig) -> None:
        super().__init__()
        self.fold = config.pixel_shuffle
        self.grid = config.vision.grid_size
        width = config.vision.hidden_size * self.fold**2
        self.norm = nn.LayerNorm(width, eps=config.vision.layer_norm_eps)
        self.fc1 = nn.Linear(width, config.text.hidden_size)
        self.fc2 = nn.Linear(config.text.hidden_size, config.text.hidden_size)
        self.image_expert: MLPDelta | None = None

    def forward(self, features: Tensor) -> Tensor:
        batch, _, width = features.shape
        side, fold = self.grid // self.fold, self.fold
        x = features.view(batch, -1, side, fold, side, fold, width).transpose(3, 4)
        x = x.reshape(batch, -1, fold * fold * width)
        return feed_forward(self.fc1, self.fc2, self.image_expert, compute_type(self.norm(x)))


__all__ = [
    "ConvStem",
    "NanoVisionEncoder",
    "PatchEmbedding",
    "Projector",
    "VisionBlock",
    "build_front_end",
    "check_pixels",
    "convolve_each",
    "feed_forward",
]
