"""What can be said without learning: the caption of the nearest training photo, and the consensus of ten neighbours.

Nearest by the frozen tower's features (mean over cells, each channel standardised on the training photos, cosine).
These baselines repeat people's captions word for word: they have no privacy, and are floors for a model to beat.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmslm.evaluation.captions import DocumentFrequency
from mmslm.photo_recipe.talking import consensus


def nearest(train: Tensor, asked: Tensor, count: int) -> list[list[int]]:
    """The `count` nearest of train [n, cells, d] to each of asked [m, cells, d], nearest first."""
    known, wanted = train.float().mean(1), asked.float().mean(1)
    mean, spread = known.mean(0), known.std(0).clamp(min=1e-3)
    known = torch.nn.functional.normalize((known - mean) / spread, dim=1)
    wanted = torch.nn.functional.normalize((wanted - mean) / spread, dim=1)
    found = (wanted @ known.T).topk(min(count, len(known)), dim=1).indices
    rows: list[list[int]] = found.tolist()
    return rows


def nearest_caption(neighbours: Sequence[Sequence[int]], captions: Sequence[Sequence[str]]) -> list[str]:
    """The first caption of the nearest photo."""
    return [captions[rows[0]][0] for rows in neighbours]


def neighbours_consensus(
    neighbours: Sequence[Sequence[int]], captions: Sequence[Sequence[str]], frequency: DocumentFrequency
) -> list[str]:
    """Of all captions of the neighbours, the one that agrees most with the others."""
    return [consensus([text for row in rows for text in captions[row]], frequency) for rows in neighbours]


__all__ = ["nearest", "nearest_caption", "neighbours_consensus"]
