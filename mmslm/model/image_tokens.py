"""Pictures as words: an image tokenizer whose codes can stand in the language model's vocabulary.

Finite scalar quantisation (Mentzer et al. 2023, arXiv:2309.15505) rounds a few bounded numbers per cell; with levels
8, 5, 5, 5 there are 1,000 codes and no codebook. An EMA codebook would move with private statistics inside the forward
pass; here only projections train, by their gradients, per sample. Codes in the vocabulary make one model read and write
both (early fusion: Chameleon, arXiv:2405.09818). It refuses codes outside the codebook and pictures of another size.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mmslm.model.configuration import MMSLMVisionConfig
from mmslm.model.vision import ConvStem, VisionBlock, check_pixels

WEIGHTS, SETTINGS = "image_tokenizer.safetensors", "image_tokenizer.json"


class FSQ(nn.Module):
    """Finite scalar quantisation of z [..., k], k = len(levels); no parameters.

    `levels`: how many values each of the k numbers may take, each at least 2.
    """

    def __init__(self, levels: Sequence[int] = (8, 5, 5, 5)) -> None:
        super().__init__()
        if not levels or min(levels) < 2:
            raise ValueError(f"FSQ levels are {list(levels)}; give at least one level, each of at least 2 values.")
        self.levels = tuple(int(level) for level in levels)
        self.codes = math.prod(self.levels)

    def _constants(self, like: Tensor) -> tuple[Tensor, Tensor]:
        levels = torch.tensor(self.levels, dtype=torch.long, device=like.device)
        basis = torch.cumprod(torch.cat((levels.new_ones(1), levels[:-1])), dim=0)
        return levels, basis

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """z [..., k] -> quantised values in [-1, 1] [..., k] (gradients pass straight through the rounding) and their
        codes [...], 0 <= code < product of levels."""
        levels, basis = self._constants(z)
        half = (levels - 1) * (1 + 1e-3) / 2
        offset = torch.where(levels % 2 == 0, 0.5, 0.0)
        bounded = torch.tanh(z + torch.atanh(offset / half)) * half - offset
        rounded = bounded + (bounded.round() - bounded).detach()
        width = levels // 2
        codes = ((rounded.detach().round().long() + width) * basis).sum(dim=-1)
        return rounded / width, codes

    def values(self, codes: Tensor) -> Tensor:
        """codes [...] -> their values [..., k]. Raises ValueError for a code outside the codebook."""
        if codes.numel() and (int(codes.min()) < 0 or int(codes.max()) >= self.codes):
            raise ValueError(
                f"Image codes go from 0 to {self.codes - 1}; got {int(codes.min())} to {int(codes.max())}."
            )
        levels, basis = self._constants(codes)
        width = levels // 2
        return ((codes[..., None] // basis) % levels - width).to(torch.float32) / width


@dataclass(frozen=True)
class CodebookUse:
    """How a set of pictures uses the codes: the share that occurs at all, and the perplexity (1 to the number of codes)."""

    share: float
    perplexity: float


@dataclass(frozen=True)
class ImageTokenizerConfig:
    """Sizes: `image_size` in pixels (a multiple of 8; one code per 8 x 8 pixels), width and depth of both halves."""

    image_size: int = 96
    hidden_size: int = 128
    intermediate_size: int = 384
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    levels: tuple[int, ...] = (8, 5, 5, 5)

    def vision(self) -> MMSLMVisionConfig:
        """The same sizes as a front end's. Raises ValueError for shapes that cannot work."""
        return MMSLMVisionConfig(
            image_size=self.image_size,
            stem_channels=(32, 64),
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
        )


class ImageTokenizer(nn.Module):
    """pixel_values [B, N, 3, H, W] in [-1, 1] <-> codes [B, N * (H/8)^2]; trained by reconstruction."""

    def __init__(self, config: ImageTokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.vision = config.vision()
        width, cells = config.hidden_size, self.vision.grid_size**2
        self.stem = ConvStem(self.vision)
        self.encoder = nn.ModuleList(VisionBlock(self.vision) for _ in range(config.num_hidden_layers))
        self.before_code = nn.LayerNorm(width)  # keeps the bounding tanh where it has a slope
        self.to_code = nn.Linear(width, len(config.levels))
        self.fsq = FSQ(config.levels)
        self.from_code = nn.Linear(len(config.levels), width)
        self.place = nn.Embedding(cells, width)
        self.decoder = nn.ModuleList(VisionBlock(self.vision) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(width)
        self.to_pixels = nn.Linear(width, 3 * 8 * 8)
        nn.init.normal_(self.place.weight, std=0.04)

    @property
    def tokens_per_image(self) -> int:
        """How many codes one picture takes."""
        return self.vision.grid_size**2

    def halves(self) -> tuple[int, int]:
        """Parameters of what turns pictures into codes, and of what turns codes into pictures."""
        first = (self.stem, self.encoder, self.before_code, self.to_code)
        second = (self.from_code, self.place, self.decoder, self.norm, self.to_pixels)
        return tuple(sum(p.numel() for m in half for p in m.parameters()) for half in (first, second))  # type: ignore[return-value]

    def quantise(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """Quantised values [B, N*P, k] and codes [B, N*P] of pictures. Raises ValueError for another size."""
        check_pixels(pixel_values, self.vision)
        x = self.stem(pixel_values)
        for block in self.encoder:
            x = block(x, pixel_values.shape[1])
        values, codes = self.fsq(self.to_code(self.before_code(x)))
        return values, codes

    def paint(self, values: Tensor) -> Tensor:
        """Values [B, N*P, k] -> pixels [B, N, 3, H, W]; not clamped, so that training has gradients everywhere."""
        batch, length, _ = values.shape
        each, grid = self.tokens_per_image, self.vision.grid_size
        if length % each:
            raise ValueError(f"Got {length} codes, but every picture takes {each}; give whole pictures.")
        count = length // each
        places = torch.arange(each, device=values.device).repeat(count).expand(batch, -1)
        x = self.from_code(values) + self.place(places)
        for block in self.decoder:
            x = block(x, count)
        patches = self.to_pixels(self.norm(x)).view(batch, count, grid, grid, 3, 8, 8)
        return patches.permute(0, 1, 4, 2, 5, 3, 6).reshape(batch, count, 3, grid * 8, grid * 8)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """The reconstruction loss of each sample, [B]: mean squared error over its own pixels."""
        values, _ = self.quantise(pixel_values)
        return (self.paint(values) - pixel_values).pow(2).flatten(1).mean(dim=1)

    @torch.no_grad()
    def encode(self, pixel_values: Tensor) -> Tensor:
        """Pictures -> codes [B, N*P]."""
        return self.quantise(pixel_values)[1]

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Codes [B, N*P] -> pixels [B, N, 3, H, W] in [-1, 1]. Raises ValueError for codes that do not exist."""
        return self.paint(self.fsq.values(codes).to(self.to_pixels.weight.dtype)).clamp(-1.0, 1.0)

    def codebook_use(self, codes: Tensor) -> CodebookUse:
        """How these codes use the codebook."""
        counts = torch.bincount(codes.flatten(), minlength=self.fsq.codes).double()
        shares = counts / counts.sum()
        entropy = -(shares * shares.clamp(min=1e-12).log()).sum()
        return CodebookUse(float((counts > 0).double().mean()), float(entropy.exp()))

    def save(self, folder: str | Path) -> None:
        """Write image_tokenizer.safetensors and image_tokenizer.json into a folder."""
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        save_file({name: value.contiguous() for name, value in self.state_dict().items()}, path / WEIGHTS)
        (path / SETTINGS).write_text(json.dumps(asdict(self.config), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> "ImageTokenizer":
        """From a folder. Raises FileNotFoundError with what is missing."""
        path = Path(folder)
        for name in (WEIGHTS, SETTINGS):
            if not (path / name).is_file():
                raise FileNotFoundError(f"{path} holds no {name}; train an image tokenizer first.")
        settings = json.loads((path / SETTINGS).read_text(encoding="utf-8"))
        settings["levels"] = tuple(settings["levels"])
        tokenizer = cls(ImageTokenizerConfig(**settings))
        tokenizer.load_state_dict(load_file(path / WEIGHTS))
        return tokenizer.eval()


@dataclass(frozen=True)
class ImageVocabulary:
    """Where image codes stand in a language model's vocabulary: code c is token `first + c`."""

    first: int
    codes: int

    def to_tokens(self, codes: Tensor) -> Tensor:
        """Codes -> token ids. Raises ValueError for a code outside the codebook."""
        if codes.numel() and (int(codes.min()) < 0 or int(codes.max()) >= self.codes):
            raise ValueError(
                f"Image codes go from 0 to {self.codes - 1}; got {int(codes.min())} to {int(codes.max())}."
            )
        return codes + self.first

    def to_codes(self, tokens: Tensor) -> Tensor:
        """Token ids -> codes. Raises ValueError for a token that is no image code."""
        codes = tokens - self.first
        if codes.numel() and (int(codes.min()) < 0 or int(codes.max()) >= self.codes):
            raise ValueError(f"Image tokens go from {self.first} to {self.first + self.codes - 1}; others are text.")
        return codes

    def tokens(self) -> list[int]:
        """All image tokens, for `generate(prefix_allowed_tokens_fn=...)` while a picture is written."""
        return list(range(self.first, self.first + self.codes))


__all__ = ["FSQ", "CodebookUse", "ImageTokenizer", "ImageTokenizerConfig", "ImageVocabulary"]
