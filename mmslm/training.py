"""The training loop, written once: central or on a device, private or not.

What differs between the ways of training is the *update* that is plugged in, never the loop:

- :class:`AdamW` for central training on public data,
- :class:`SGD` for a few local steps on a device (no optimiser state, nothing to import),
- a private update (``privacy``) which sees one loss per sample and releases a noised sum.

The loop forms one loss per sample, hands it to the update, and reports. It refuses a non-finite loss of a public run:
training on would destroy the weights silently. (A private update handles non-finite samples itself: they contribute
zero.)
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from mmslm.model.losses import per_sample_loss
from mmslm.model.modeling import MMSLMForConditionalGeneration

logger = logging.getLogger(__name__)

Batch = Mapping[str, Tensor]


class Update(Protocol):
    """What turns the losses of one batch into a change of the parameters."""

    def __call__(self, losses: Tensor, step: int) -> None:
        """Apply one step. ``losses``: [B], one per sample, attached to the graph."""


@dataclass(frozen=True)
class Progress:
    """What the loop tells after each step. ``loss`` is the mean over the batch's samples, in nats per token."""

    step: int
    steps: int
    loss: float


def sample_losses(model: nn.Module, batch: Batch) -> Tensor:
    """One loss per sample, [B]: the mean over the sample's own reply tokens, so that no sample touches another's."""
    labels = batch["labels"]
    if isinstance(model, MMSLMForConditionalGeneration):
        # Our model forms logits only where a label follows: most of a sample is picture and prompt.
        losses: Tensor = model(**batch, logits_at="labels").per_sample_loss
        return losses
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    return per_sample_loss(model(**inputs).logits, labels)


def fit(
    model: nn.Module,
    batches: Iterable[Batch],
    update: Update,
    *,
    steps: int,
    first_step: int = 0,
    on_step: Callable[[Progress], None] | None = None,
    losses_of: Callable[[nn.Module, Batch], Tensor] = sample_losses,
) -> float:
    """Run ``steps - first_step`` updates over ``batches`` and return the mean loss of the last one.

    ``batches`` must yield at least as many batches as steps are asked for; a shortfall raises ValueError rather than
    training less than was said.
    """
    if steps < first_step:
        raise ValueError(f"asked to train up to step {steps}, but the run is already at step {first_step}.")
    source = iter(batches)
    loss = math.nan
    for step in range(first_step, steps):
        try:
            batch = next(source)
        except StopIteration:
            raise ValueError(
                f"the data ended after {step - first_step} of {steps - first_step} steps; "
                "give more data, more epochs or fewer steps."
            ) from None
        losses = losses_of(model, batch)
        update(losses, step)
        if on_step is not None or step == steps - 1:
            loss = float(losses.detach().mean())
        if on_step is not None:
            on_step(Progress(step=step + 1, steps=steps, loss=loss))
    return loss


class SGD:
    """Plain gradient descent on the mean loss, without state: what a device runs for its few local steps.

    It avoids ``torch.optim``, whose first use in a process imports a compiler (seconds and 150 MB on a small device).
    """

    def __init__(self, parameters: Sequence[Tensor], learning_rate: float) -> None:
        if not learning_rate > 0:
            raise ValueError(f"the learning rate is {learning_rate}; give a number above 0.")
        self.parameters = list(parameters)
        self.learning_rate = learning_rate

    def __call__(self, losses: Tensor, step: int) -> None:
        if not losses.requires_grad:  # no parameter had a part in them: text alone passes by the image experts
            return
        gradients = torch.autograd.grad(losses.mean(), self.parameters, allow_unused=True)
        with torch.no_grad():
            moved = [(p, g) for p, g in zip(self.parameters, gradients, strict=True) if g is not None]
            if moved:
                parameters, used = zip(*moved, strict=True)
                torch._foreach_add_(parameters, used, alpha=-self.learning_rate)


class AdamW:
    """AdamW with warm-up, cosine decay to a tenth and gradient clipping, for central training on public data."""

    def __init__(
        self,
        model: nn.Module,
        *,
        learning_rate: float,
        steps: int,
        warmup: int = 0,
        weight_decay: float = 0.05,
        betas: tuple[float, float] = (0.9, 0.98),
        max_gradient_norm: float = 1.0,
    ) -> None:
        trainable = [p for p in model.parameters() if p.requires_grad]
        if not trainable:
            raise ValueError("no parameter of this model is trainable; unfreeze some or add image experts first.")
        decayed = [p for p in trainable if p.ndim >= 2]
        plain = [p for p in trainable if p.ndim < 2]
        groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
        self.optimiser = torch.optim.AdamW(
            [g for g in groups if g["params"]], lr=learning_rate, betas=betas, fused=True
        )
        self.trainable = trainable
        self.learning_rate, self.steps, self.warmup = learning_rate, steps, warmup
        self.max_gradient_norm = max_gradient_norm

    def rate_at(self, step: int) -> float:
        """The learning rate of ``step`` (from 0): linear warm-up, then a cosine down to a tenth of the peak."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.learning_rate * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))

    def __call__(self, losses: Tensor, step: int) -> None:
        loss = losses.mean()
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"the loss became {float(loss)} at step {step}; resume from the last checkpoint with a lower learning rate."
            )
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate_at(step)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.trainable, self.max_gradient_norm)
        self.optimiser.step()

    def state_dict(self) -> dict[str, object]:
        return self.optimiser.state_dict()


@functools.lru_cache(maxsize=1)
def _cpu_emulates_bfloat16() -> bool:
    """Whether this x86 processor has no bfloat16 products; emulated, a training step takes ten times as long."""
    found = torch.cpu.get_capabilities()
    return found.get("architecture") == "x86_64" and not (found.get("avx512_bf16") or found.get("amx_bf16"))


def bfloat16_products(kind: str, wanted: bool) -> torch.autocast:
    """Products in bfloat16 on devices of ``kind`` ("cpu", "cuda"), where ``wanted`` and the processor has them."""
    return torch.autocast(kind, torch.bfloat16, enabled=wanted and not (kind == "cpu" and _cpu_emulates_bfloat16()))


def repeat(batches: Sequence[Batch]) -> Iterator[Batch]:
    """The batches of a device, again and again: local steps may outnumber its batches."""
    if not batches:
        raise ValueError("a device holds no batch to train on; it must be skipped before training.")
    while True:
        yield from batches


def local_update(
    model: nn.Module,
    batches: Sequence[Batch],
    parameters: Mapping[str, nn.Parameter],
    *,
    steps: int,
    learning_rate: float,
    autocast: bool = False,
) -> float:
    """Train ``parameters`` in place for ``steps`` SGD steps on one device's batches; returns the last loss.

    The rest of the model stays as it is, and nothing leaves the device: the caller forms the delta. ``autocast`` forms
    products in bfloat16 where the processor has them; parameters and updates stay float32.
    """

    def losses_of(module: nn.Module, batch: Batch) -> Tensor:
        with bfloat16_products(batch["labels"].device.type, autocast):
            return sample_losses(module, batch)

    update = SGD(list(parameters.values()), learning_rate)
    return fit(model, repeat(batches), update, steps=steps, losses_of=losses_of)
