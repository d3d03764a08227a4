"""Losses per sample: what per-sample clipping needs, formed here and nowhere else.

A batch loss that averages over all tokens gives a long caption more weight and makes one sample's gradient depend on
the others' lengths. Here each sample's loss is the mean over its own tokens, and the batch loss is formed from these.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = -100


def token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each position: logits [B, M, V], targets [B, M] -> [B, M] in nats, 0 where target is -100."""
    batch, length, width = logits.shape
    flat = F.cross_entropy(
        logits.reshape(batch * length, width).float(),
        targets.reshape(batch * length),
        ignore_index=IGNORED,
        reduction="none",
    )
    return flat.view(batch, length)


def mean_over_own_tokens(losses: Tensor, targets: Tensor) -> Tensor:
    """losses [B, M] -> [B], the mean over the positions whose target is not -100 (0 for a sample without any)."""
    counts = (targets != IGNORED).sum(dim=1).clamp(min=1)
    return losses.sum(dim=1) / counts


def per_sample_loss(logits: Tensor, labels: Tensor, *, aligned: bool = False) -> Tensor:
    """Next-token loss of each sample: logits [B, T, V], labels [B, T] (-100 = no loss) -> [B] in nats per token.

    With `aligned`, position t of the labels is the target of position t of the logits (what the model returns with
    `logits_at="labels"`); otherwise labels are the input shifted by one, as transformers has it. A sample without a
    target has loss 0 and gradient 0. Raises ValueError where shapes do not fit.
    """
    if logits.dim() != 3 or labels.shape != logits.shape[:2]:
        raise ValueError(
            f"Logits of shape {tuple(logits.shape)} and labels of shape {tuple(labels.shape)} do not fit; "
            "give [B, T, V] and [B, T]."
        )
    if not aligned:
        logits, labels = logits[:, :-1], labels[:, 1:]
    return mean_over_own_tokens(token_loss(logits, labels), labels)


def per_segment_loss(logits: Tensor, labels: Tensor, segment_ids: Tensor, segments: int) -> Tensor:
    """Next-token loss of each packed sample: logits [B, T, V], labels and segment_ids [B, T] -> [B, segments].

    Segment k (from 1) of a row is entry k - 1; 0 is padding. A label that belongs to another segment than the token
    before it has no loss, and a segment without labels has loss 0.
    """
    same = segment_ids[:, 1:] == segment_ids[:, :-1]
    targets = torch.where(same, labels[:, 1:], IGNORED)
    losses = token_loss(logits[:, :-1], targets)
    member = segment_ids[:, 1:, None] == torch.arange(1, segments + 1, device=labels.device)
    member = member & (targets != IGNORED)[..., None]
    return (losses[..., None] * member).sum(dim=1) / member.sum(dim=1).clamp(min=1)


def label_positions(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Positions whose next token has a label: labels [B, T] -> index [B, M] and targets [B, M].

    M is the largest count of a sample (at least 1); samples with fewer are filled with target -100. The sample stays
    the first axis.
    """
    targets = F.pad(labels[:, 1:], (0, 1), value=IGNORED)
    wanted = targets != IGNORED
    most = max(int(wanted.sum(dim=1).max()), 1)
    index = torch.argsort((~wanted).to(torch.uint8), dim=1, stable=True)[:, :most]
    return index, targets.gather(1, index)


__all__ = ["IGNORED", "label_positions", "mean_over_own_tokens", "per_sample_loss", "per_segment_loss", "token_loss"]
