"""The one-backward engine for people who use Opacus: a grad-sample module, a DPOptimizer and a PrivacyEngine.

    engine = OneBackwardPrivacyEngine(accountant="prv")
    model, optimizer, loader = engine.make_private(module=model, optimizer=optimizer, data_loader=loader,
                                                   noise_multiplier=1.0, max_grad_norm=1.0)
    loss.backward(); optimizer.step()               # the loop stays as it was: loss is a mean over the batch

`grad_sample_mode="one_backward"` is the default and "hooks" gives Opacus' own engine; nothing in Opacus is patched.
During the forward pass weights carry no gradient, so the user's loss.backward() is the one backward pass; the clipping
happens in optimizer.step().

What differs from Opacus, on purpose: noise comes from a CSPRNG unless a generator is given; an example that is not
finite contributes zero; an empty batch is a step of pure noise; `poisson_sampling=False` is refused, because Opacus
would still report the amplified epsilon; so is the "gdp" accountant, which is an approximation and no bound.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from opacus import PrivacyEngine
from opacus.grad_sample import AbstractGradSampleModule
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn

from privacy.clipping.engine import BatchCounts, OneBackward
from privacy.clipping.kinds import FlatClip
from privacy.clipping.recorder import Call
from privacy.clipping.rules import Rules
from privacy.noise import Noise, SecureNoise, SeededNoise

MODE = "one_backward"


class OneBackwardModule(AbstractGradSampleModule):
    """Wraps a model so that loss.backward() leaves what clipping needs. Arguments as in `OneBackward`.

    batch_first must be true. loss_reduction: "mean" or "sum", over the samples of the batch.
    """

    def __init__(
        self,
        m: nn.Module,
        *,
        batch_first: bool = True,
        loss_reduction: str = "mean",
        rules: Rules | None = None,
        folded: Sequence[str] = (),
        allow_buffers: Sequence[str] = (),
    ) -> None:
        if not batch_first:
            raise ValueError("batch_first is False; the one-backward engine needs the sample as the first axis.")
        if loss_reduction not in ("mean", "sum"):
            raise ValueError(f"loss_reduction is {loss_reduction!r}; expected 'mean' or 'sum'.")
        super().__init__(m, batch_first=batch_first, loss_reduction=loss_reduction)
        # Kept out of nn.Module's attributes: it holds no parameters of its own, and Opacus' clean-up walks modules.
        engine = OneBackward(
            m, FlatClip(1.0), rules=rules, folded=folded, allow_buffers=allow_buffers, check=False, hold_grads=True
        )
        object.__setattr__(self, "engine", engine)

    engine: OneBackward

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own forward."""
        return self._module(*args, **kwargs)

    def remove_hooks(self) -> None:
        """Removes the engine's hooks."""
        self.engine.close()

    def accumulate(self) -> BatchCounts:
        """Clips what backward passes have left since the last call and adds it to the engine's sums."""
        engine = self.engine
        engine.recorder.check()
        outside = [name for p, name in engine.names.items() if p.grad is not None]
        if outside:
            raise ValueError(
                f"parameters {outside} have a gradient from outside the layer that owns them; call the layer itself, "
                "call zero_grad() after each step, and do not use a parameter elsewhere."
            )
        passes: dict[int, list[Call]] = {}
        for call in engine.recorder.calls:
            if call.grad is not None:
                passes.setdefault(call.backward_id, []).append(call)
        total = BatchCounts()
        for calls in passes.values():
            sizes = {len(call.grad) for call in calls if call.grad is not None}
            batch = min(sizes)  # folded layers have more rows, none has fewer
            engine.recorder.calls = calls
            scale = float(batch) if self.loss_reduction == "mean" else 1.0
            if batch:
                total += engine.accumulate(torch.zeros(batch, device=next(iter(engine.names)).device), scale=scale)
        engine.recorder.drop()
        return total


class OneBackwardOptimizer(DPOptimizer):
    """Opacus' optimiser over a OneBackwardModule. noise: a source of its own; else the generator's, else a CSPRNG."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        module: OneBackwardModule,
        noise_multiplier: float,
        max_grad_norm: float,
        expected_batch_size: int | None,
        loss_reduction: str = "mean",
        generator: torch.Generator | None = None,
        secure_mode: bool = False,
        noise: Noise | None = None,
    ) -> None:
        super().__init__(
            optimizer,
            noise_multiplier=noise_multiplier,
            max_grad_norm=max_grad_norm,
            expected_batch_size=expected_batch_size,
            loss_reduction=loss_reduction,
            generator=generator,
            secure_mode=secure_mode,
        )
        trained = set(module.engine.names)
        if {p for p in self.params if p.requires_grad} != trained:
            raise ValueError("the optimiser's parameters are not the module's trainable ones; give it exactly those.")
        self.module = module
        if noise is None:
            noise = SecureNoise() if generator is None else SeededNoise(_seed(generator))
        self.noise = noise
        self.steps_noised = 0
        self.last_counts = BatchCounts()  # depends on the data: for the private annex only

    @property
    def grad_samples(self) -> list[Tensor]:  # type: ignore[override]
        """No per-sample gradient is kept; the parameters stand in, so that Opacus knows there are some."""
        return self.params

    @property
    def accumulated_iterations(self) -> int:
        """One logical batch per step."""
        return 1

    def clip_and_accumulate(self) -> None:
        """Clips what backward left; several physical batches add up until the step that is not skipped."""
        self.module.engine.clip = FlatClip(float(self.max_grad_norm))
        counts = self.module.accumulate()
        self.last_counts = self.last_counts + counts if self._is_last_step_skipped else counts

    def add_noise(self) -> None:
        """The noisy sums become the gradients."""
        std = float(self.noise_multiplier) * float(self.max_grad_norm)
        for stream, (parameter, total) in enumerate(self.module.engine.take().items()):
            self.noise.add_(total, std, step=self.steps_noised, stream=stream)
            parameter.grad = total.to(parameter.dtype)
        self.steps_noised += 1

    def scale_grad(self) -> None:
        """Divides by the expected batch size, a constant, where the loss is a mean."""
        if self.loss_reduction == "mean":
            for parameter in self.module.engine.names:
                assert parameter.grad is not None and self.expected_batch_size is not None
                parameter.grad /= self.expected_batch_size

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step; gradients are cleared after it, so that none is used twice."""
        result = super().step(closure)
        if not self._is_last_step_skipped:
            self.original_optimizer.zero_grad(set_to_none=True)
        return result

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets unfinished passes; sums of skipped steps stay, as in Opacus."""
        self.module.engine.recorder.drop()
        self.original_optimizer.zero_grad(set_to_none=True)


def _seed(generator: torch.Generator) -> int:
    return int(torch.randint(0, 2**62, (1,), generator=generator, device=generator.device))


class OneBackwardPrivacyEngine(PrivacyEngine):
    """Opacus' PrivacyEngine with `grad_sample_mode="one_backward"` as its default. accountant: "prv" or "rdp"."""

    def __init__(self, *, accountant: str = "prv", secure_mode: bool = False) -> None:
        if accountant == "gdp":
            raise ValueError(
                'the "gdp" accountant approximates by a central limit and can state far less than the truth; use "prv" '
                'or "rdp".'
            )
        super().__init__(accountant=accountant, secure_mode=secure_mode)
        self._module: OneBackwardModule | None = None

    def make_private(self, *, grad_sample_mode: str = MODE, poisson_sampling: bool = True, **kwargs: Any) -> Any:
        """As in Opacus. Refuses poisson_sampling=False, and clipping other than "flat"."""
        if not poisson_sampling:
            raise ValueError(
                "poisson_sampling is False, but the accountant would report the epsilon of Poisson sampling; use "
                "privacy.sampling.ShuffledSampler with PrivateOptimizer, which is accounted as what it is."
            )
        return super().make_private(grad_sample_mode=grad_sample_mode, poisson_sampling=poisson_sampling, **kwargs)

    def make_private_with_epsilon(self, *, grad_sample_mode: str = MODE, **kwargs: Any) -> Any:
        """As in Opacus."""
        return super().make_private_with_epsilon(grad_sample_mode=grad_sample_mode, **kwargs)

    def _prepare_model(self, module: nn.Module, *, grad_sample_mode: str = MODE, **kwargs: Any) -> Any:
        if grad_sample_mode != MODE:
            return super()._prepare_model(module, grad_sample_mode=grad_sample_mode, **kwargs)
        if not kwargs.pop("wrap_model", True):
            raise ValueError("wrap_model is False; the one-backward engine wraps the model.")
        kwargs.pop("max_grad_norm", None)
        self.validate(module=module, optimizer=None, data_loader=None)
        self._module = module if isinstance(module, OneBackwardModule) else OneBackwardModule(module, **kwargs)
        return self._module

    def _prepare_optimizer(self, *, grad_sample_mode: str = MODE, **kwargs: Any) -> DPOptimizer:
        if grad_sample_mode != MODE:
            return super()._prepare_optimizer(grad_sample_mode=grad_sample_mode, **kwargs)
        clipping, distributed = kwargs.pop("clipping", "flat"), kwargs.pop("distributed", False)
        if clipping != "flat" or distributed:
            raise ValueError(
                f"clipping is {clipping!r}, distributed {distributed}; this pair clips flat, in one process."
            )
        optimizer = kwargs.pop("optimizer")
        if isinstance(optimizer, DPOptimizer):
            optimizer = optimizer.original_optimizer
        assert self._module is not None
        generator = kwargs.pop("noise_generator", None)
        return OneBackwardOptimizer(optimizer, module=self._module, generator=generator, **kwargs)
