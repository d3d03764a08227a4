"""Who may attend to whom, where plain causality is not enough: prefix images, windows, packed samples.

It refuses nothing; the language model refuses the combinations that would let packed samples see each other.
"""

import torch
from torch import Tensor


def picture_runs(image: Tensor) -> Tensor:
    """image [B, S] boolean -> [B, S]: 0 for text, k for the k-th run of neighbouring image tokens."""
    before = torch.nn.functional.pad(image[:, :-1], (1, 0))
    return torch.cumsum(image & ~before, dim=1) * image


def attention_pattern(
    queries: Tensor,
    keys: int,
    *,
    visible: Tensor | None = None,
    image: Tensor | None = None,
    segments: Tensor | None = None,
    prefix_lm: bool = False,
    window: int | None = None,
) -> Tensor:
    """Boolean [B or 1, 1, T, S], true where query t may see key s.

    queries: [T], the index of each query among the `keys` S. visible: [B, S], false at padding. image: [B, S], true at
    image tokens. segments: [B, S], tokens of different segments never see each other. prefix_lm: image tokens of one
    run see each other in both directions. window: a key further back than this is hidden unless it is an image token.
    """
    position = torch.arange(keys, device=queries.device)
    allowed = (position[None, :] <= queries[:, None])[None]
    if window is not None:
        near = (queries[:, None] - position[None, :] < window)[None]
        allowed = allowed & (near if image is None else near | image[:, None, :])
    if prefix_lm and image is not None:
        runs = picture_runs(image)
        own = runs[:, queries][:, :, None]
        allowed = allowed | ((own == runs[:, None, :]) & (own > 0))
    if segments is not None:
        allowed = allowed & (segments[:, queries][:, :, None] == segments[:, None, :])
    if visible is not None:
        allowed = allowed & visible[:, None, :]
    return allowed[:, None]


__all__ = ["attention_pattern", "picture_runs"]
