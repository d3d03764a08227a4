"""Image experts: feed-forward paths that only image tokens take, by the token's kind and not by a learned router.

A learned router with a balance loss mixes the examples of a batch, which breaks the unit of privacy; hard routing by
modality does not. Where the image tokens of every sample lie in one span (a caption after its picture) they are sliced
out; otherwise each row is sorted by modality (a stable argsort), so that every tensor keeps the sample as its first
axis and per-sample gradients stay exact. `x[mask]` would merge the batch into one axis and is never used.

The low-rank delta expert (W + B A on image tokens, B = 0 at the start) follows LoRA (Hu et al. 2021,
arXiv:2106.09685); `train="b"` keeps a seeded random A frozen (FFA-LoRA, Sun et al. 2024, arXiv:2403.12313): half the
numbers to upload, and no product of two noisy factors under differential privacy. The full expert is a feed-forward of
its own that starts as a copy of the text's. Experts by modality follow VLMo (Bao et al. 2021, arXiv:2111.02358) and
Mono-InternVL (Luo et al. 2024, arXiv:2410.08202).
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

PARTS = ("decoder", "vision", "projector")


@dataclass(frozen=True)
class ExpertSpec:
    """What `add_image_experts` was asked for.

    kind: "low_rank" or "full". rank: columns of A and B, at least 1 (0 for full experts). layers: decoder blocks that
    carry an expert. train: "ab" trains both factors, "b" only B. seed: of the random A. include: which parts carry one
    ("decoder", "vision", "projector"; full experts only in the decoder).
    """

    rank: int
    layers: tuple[int, ...]
    train: str = "ab"
    seed: int = 0
    include: tuple[str, ...] = ("decoder",)
    kind: str = "low_rank"

    def __post_init__(self) -> None:
        if self.kind not in ("low_rank", "full"):
            raise ValueError(f'Image experts are "low_rank" or "full", not {self.kind!r}.')
        if self.kind == "low_rank" and self.rank < 1:
            raise ValueError(f"The rank of image experts is {self.rank}; give a whole number of at least 1.")
        if self.kind == "full" and (self.rank != 0 or self.train != "ab" or self.include != ("decoder",)):
            raise ValueError(
                f"Full image experts have no rank, train whole and stand in the decoder; got rank {self.rank}, train "
                f"{self.train!r}, include {list(self.include)}: give rank 0 and leave the others out."
            )
        if self.train not in ("ab", "b"):
            raise ValueError(f'Image experts train "ab" (both factors) or "b" (only B), not {self.train!r}.')
        unknown = [part for part in self.include if part not in PARTS]
        if unknown or not self.include:
            raise ValueError(f"Image experts can be included in {', '.join(PARTS)}; got {list(self.include)}.")

    @classmethod
    def make(
        cls,
        rank: int,
        layers: Sequence[int] | None,
        train: str,
        seed: int,
        include: Sequence[str],
        kind: str,
        blocks: int,
    ) -> "ExpertSpec":
        """A checked specification; `layers=None` means every decoder block. Raises ValueError."""
        chosen = tuple(range(blocks)) if layers is None else tuple(sorted({int(i) for i in layers}))
        if not chosen or chosen[0] < 0 or chosen[-1] >= blocks:
            raise ValueError(
                f"Image experts were asked for on layers {list(chosen)}; layers go from 0 to {blocks - 1}."
            )
        return cls(rank, chosen, train, seed, tuple(include), kind)

    @classmethod
    def from_dict(cls, value: dict[str, Any], blocks: int) -> "ExpertSpec":
        """From `config.image_experts`. Raises ValueError for unknown or missing keys."""
        extra = set(value) - {"rank", "layers", "train", "seed", "include", "kind"}
        if extra or "rank" not in value:
            raise ValueError(f"image_experts needs rank, layers, train, seed, include, kind; got {sorted(value)}.")
        return cls.make(
            int(value["rank"]),
            value.get("layers"),
            str(value.get("train", "ab")),
            int(value.get("seed", 0)),
            value.get("include", ("decoder",)),
            str(value.get("kind", "low_rank")),
            blocks,
        )

    def to_dict(self) -> dict[str, Any]:
        """For `config.json`."""
        return {key: list(item) if isinstance(item, tuple) else item for key, item in asdict(self).items()}


@dataclass(frozen=True)
class ImageTokens:
    """Where the image tokens of a batch are: one `span` for all rows, or `index` [B, M] with `valid` [B, M].

    `words` [B, K] are then the text tokens of each row, K of the row with most.
    """

    span: tuple[int, int] | None
    index: Tensor | None = None
    valid: Tensor | None = None
    words: Tensor | None = None

    @classmethod
    def locate(cls, mask: Tensor) -> "ImageTokens | None":
        """From `mask` [B, T], true at image tokens; None where there is none."""
        counts = mask.sum(dim=1)
        most = int(counts.max()) if mask.numel() else 0
        if most == 0:
            return None
        start = int(mask[0].to(torch.uint8).argmax())
        block = mask[:, start : start + most]
        if int(counts.min()) == most and bool(block.all()):
            return cls((start, start + most))
        # Stable: image tokens first, each kind in its own order, so nothing depends on the sort.
        order = torch.argsort((~mask).to(torch.uint8), dim=1, stable=True)
        index = order[:, :most]
        return cls(None, index, mask.gather(1, index), order[:, int(counts.min()) :])

    def take(self, x: Tensor) -> Tensor:
        """The image tokens of x [B, T, D] as [B, M, D]; rows with fewer are filled with other tokens of their own."""
        if self.span is not None:
            return x[:, self.span[0] : self.span[1]]
        assert self.index is not None
        return x.gather(1, self.index[..., None].expand(-1, -1, x.shape[-1]))

    def add(self, y: Tensor, delta: Tensor) -> Tensor:
        """y [B, T, F] plus delta [B, M, F] at the image tokens; every other element keeps its bits."""
        if self.span is not None:
            start, stop = self.span
            return torch.cat((y[:, :start], y[:, start:stop] + delta, y[:, stop:]), dim=1)
        return self.put(y, self.take(y) + delta)

    def put(self, y: Tensor, values: Tensor) -> Tensor:
        """y [B, T, F] with values [B, M, F] in place of the image tokens."""
        if self.span is not None:
            start, stop = self.span
            return torch.cat((y[:, :start], values, y[:, stop:]), dim=1)
        assert self.index is not None and self.valid is not None
        kept = torch.where(self.valid[..., None], values, self.take(y))
        return y.scatter(1, self.index[..., None].expand(-1, -1, y.shape[-1]), kept)

    def dispatch(self, x: Tensor, text: Callable[[Tensor], Tensor], image: Callable[[Tensor], Tensor]) -> Tensor:
        """x [B, T, D] -> [B, T, D]: every token through its own path and no other."""
        if self.span is not None:
            start, stop = self.span
            if stop - start == x.shape[1]:
                return image(x)
            said = text(torch.cat((x[:, :start], x[:, stop:]), dim=1))
            return torch.cat((said[:, :start], image(x[:, start:stop]), said[:, start:]), dim=1)
        assert self.words is not None
        said = text(x.gather(1, self.words[..., None].expand(-1, -1, x.shape[-1])))
        places = self.words[..., None].expand(-1, -1, said.shape[-1])
        out = said.new_zeros(*x.shape[:2], said.shape[-1]).scatter(1, places, said)
        # Rows with fewer words were filled with image tokens of their own, which are overwritten here.
        return self.put(out, image(self.take(x)))


class LowRankDelta(nn.Module):
    """x [B, T, in] -> B A x [B, T, out], where A is [rank, in] and B is [out, rank], B = 0 at the start.

    A's rows have variance 1 / in, so A x of a normalised x has variance about 1 and the step size does not depend on
    the width.
    """

    def __init__(self, in_features: int, out_features: int, rank: int, train: str) -> None:
        super().__init__()
        self.a = nn.Linear(in_features, rank, bias=False)
        self.b = nn.Linear(rank, out_features, bias=False)
        self.fixed = train == "b"
        self.freeze_fixed()

    def freeze_fixed(self) -> None:
        """Freeze A where only B is trained."""
        self.a.weight.requires_grad_(not self.fixed)

    def reset(self, generator: torch.Generator) -> None:
        """Draw A from the generator (on the CPU, so every device draws the same) and set B to zero."""
        rank, width = self.a.weight.shape
        drawn = torch.randn(rank, width, generator=generator) * width**-0.5
        with torch.no_grad():
            self.a.weight.copy_(drawn)
            self.b.weight.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x))


class SwiGLUDelta(nn.Module):
    """The low-rank image expert of one SwiGLU feed-forward: a delta for each of its three projections."""

    def __init__(self, hidden_size: int, intermediate_size: int, rank: int, train: str) -> None:
        super().__init__()
        self.gate_proj = LowRankDelta(hidden_size, intermediate_size, rank, train)
        self.up_proj = LowRankDelta(hidden_size, intermediate_size, rank, train)
        self.down_proj = LowRankDelta(intermediate_size, hidden_size, rank, train)


class MLPDelta(nn.Module):
    """The low-rank delta of a two-layer feed-forward whose tokens are all image tokens (front end, projector)."""

    def __init__(self, in_features: int, hidden: int, out_features: int, rank: int, train: str) -> None:
        super().__init__()
        self.fc1 = LowRankDelta(in_features, hidden, rank, train)
        self.fc2 = LowRankDelta(hidden, out_features, rank, train)


__all__ = ["ExpertSpec", "ImageTokens", "LowRankDelta", "MLPDelta", "SwiGLUDelta"]
