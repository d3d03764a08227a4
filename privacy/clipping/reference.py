"""Opacus' hooks engine behind the same interface as the one-backward engine: the reference to compare with.

It forms every per-sample gradient, so it takes about twice the time and much memory, but shares no code with `engine`.
Opacus' hooks compute the gradients; the norms (fp64), the factors and the sums are formed here, and a sample that is
not finite is taken out (Opacus' own optimiser would turn every parameter NaN).

Refuses: a loss that is not [B], BatchNorm, and, like the other engine, a first axis that is not the sample.
"""

from __future__ import annotations

import torch
from opacus.grad_sample import GradSampleModule
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from privacy.clipping.engine import BatchCounts, check_losses
from privacy.clipping.kinds import ClipKind


class HooksEngine:
    """Per-sample gradients by Opacus. The model must be in training mode: Opacus records nothing otherwise."""

    def __init__(self, model: nn.Module, clip: ClipKind) -> None:
        self.clip = clip
        self.names = {p: name for name, p in model.named_parameters() if p.requires_grad}
        if not self.names:
            raise ValueError(
                "no parameter of this model is trainable; unfreeze those that the private run shall train."
            )
        mixing = [name for name, module in model.named_modules() if isinstance(module, _BatchNorm)]
        if mixing:
            raise ValueError(
                f"layers {mixing} are BatchNorm, which mixes examples; replace them by GroupNorm or LayerNorm."
            )
        self._group = dict(zip(self.names, clip.groups(list(self.names.values())), strict=True))
        self._hooks = GradSampleModule(model, loss_reduction="sum", strict=False)
        self._sums: dict[nn.Parameter, Tensor] = {}
        self.last_norms: Tensor | None = None

    def backward(self, losses: Tensor, sample_mask: Tensor | None = None) -> BatchCounts:
        """As `OneBackward.backward`."""
        check_losses(losses, sample_mask)
        batch = len(losses)
        if batch == 0:
            self._clear()
            return BatchCounts()
        losses.sum().backward()
        with torch.no_grad():
            samples = {p: g for p in self.names if (g := getattr(p, "grad_sample", None)) is not None}
            self._clear()
            squared = torch.zeros(self.clip.group_count, batch, dtype=torch.float64, device=losses.device)
            for p, g in samples.items():
                if isinstance(g, list) or len(g) != batch:
                    rows = [len(part) for part in g] if isinstance(g, list) else len(g)
                    raise ValueError(
                        f"parameter {self.names[p]!r} has per-sample gradients of {rows} rows for a batch of {batch}; "
                        "the first axis must be the sample, and each forward pass needs its backward pass."
                    )
                squared[self._group[p]] += torch.linalg.vector_norm(g.flatten(1), dim=1, dtype=torch.float64).square()
            finite = torch.isfinite(squared).all(dim=0) & torch.isfinite(losses.detach())
            squared = torch.where(finite, squared, torch.inf)
            self.last_norms = squared.sqrt()
            factors = self.clip.factors(squared)
            real = torch.ones_like(finite) if sample_mask is None else sample_mask.to(finite.device).bool()
            keep = finite & real
            for p, g in samples.items():
                wide = g[keep].to(torch.promote_types(g.dtype, torch.float32))
                factor = factors[self._group[p], keep].to(wide.dtype)
                total = torch.einsum("b,b...->...", factor, wide)
                self._sums[p] = self._sums[p] + total if p in self._sums else total
            clipped = int(((factors < 1).any(dim=0) & keep).sum())
            return BatchCounts(int(real.sum()), clipped, int((real & ~finite).sum()))

    def take(self) -> dict[nn.Parameter, Tensor]:
        """As `OneBackward.take`."""
        sums, self._sums = self._sums, {}
        wide = {p: torch.promote_types(p.dtype, torch.float32) for p in self.names}
        return {p: sums[p] if p in sums else torch.zeros(p.shape, dtype=wide[p], device=p.device) for p in self.names}

    def _clear(self) -> None:
        for p in self.names:
            p.grad = None
            p.grad_sample = None  # type: ignore[attr-defined]

    def close(self) -> None:
        """Removes Opacus' hooks."""
        self._hooks.to_standard_module()
