"""The one-backward engine: exact clipped sums of per-sample gradients for little more than one backward pass.

    engine = OneBackward(model, FlatClip(1.0))
    losses = per_sample_losses(model(batch))        # [B], one loss per sample
    engine.backward(losses)                         # any number of times: micro-batches only save memory
    sums = engine.take()                            # {name: sum of clipped gradients}, then noise

One pass back to the layers' outputs gives every output gradient; norms come from inner products (`parts`), and the
clipped sum of a weight is one product (c G)^T X. So no gradient is computed twice and none is formed per sample where
it is large (cf. ghost clipping: Li et al. 2110.05679; book-keeping: Bu et al. 2210.00038).

A sample whose gradient or loss is not finite contributes zero and is counted. Samples masked out contribute zero and
are not counted. An empty batch is a batch. The first batch of two or more checks itself: every layer's parts are
compared with autograd's gradient of one sample, and that sample's loss must not reach the rows of any other.

Refuses: a loss that is not [B], losses that touch a trained parameter outside its layer (by name), examples that are
coupled, and all that `recorder` refuses.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from privacy.clipping.kinds import ClipKind
from privacy.clipping.parts import (
    FormedPart,
    LinearPart,
    Part,
    ScaledInputs,
    TablePart,
    cross_term,
    exact_squared_norms,
    formed_squared_norm,
    linear_squared_norms,
    merge,
)
from privacy.clipping.recorder import Call, Recorder
from privacy.clipping.rules import Rules, default_rules

# Rounding in an fp32 inner product is about 2**-24 of the size of its summands; beyond 10**-4 of the result, look
# again.
_CANCELLATION = 2.0**-24 * 1e4


@dataclass(frozen=True)
class BatchCounts:
    """What one batch held. It depends on the data: for the private annex, never for the report.

    examples: not masked. clipped: of those, scaled down. dropped: not finite, counted as zero.
    """

    examples: int = 0
    clipped: int = 0
    dropped: int = 0

    def __add__(self, other: BatchCounts) -> BatchCounts:
        return BatchCounts(self.examples + other.examples, self.clipped + other.clipped, self.dropped + other.dropped)


class ClippingEngine(Protocol):
    """What the private optimiser asks of an engine; `reference.HooksEngine` is the other one."""

    clip: ClipKind
    names: dict[nn.Parameter, str]

    def backward(self, losses: Tensor, sample_mask: Tensor | None = None) -> BatchCounts:
        """Adds the clipped gradients of losses [B] to the sums."""
        ...

    def take(self) -> dict[nn.Parameter, Tensor]:
        """The sums since the last `take`, zeros where there was nothing, and starts anew."""
        ...

    def close(self) -> None:
        """Leaves the model as it was."""
        ...


class OneBackward:
    """The engine on one model. See the module's docstring; arguments as in `Recorder`.

    clip: FlatClip, AutomaticClip or PerLayerClip. check: verify the first batch (costs one more backward pass, once).
    """

    def __init__(
        self,
        model: nn.Module,
        clip: ClipKind,
        *,
        rules: Rules | None = None,
        folded: Sequence[str] = (),
        allow_buffers: Sequence[str] = (),
        check: bool = True,
        hold_grads: bool = False,
    ) -> None:
        self.clip = clip
        self.recorder = Recorder(
            model, rules or default_rules(), folded=folded, allow_buffers=allow_buffers, hold_grads=hold_grads
        )
        self.names = self.recorder.names
        self._group = dict(zip(self.names, clip.groups(list(self.names.values())), strict=True))
        self._sums: dict[nn.Parameter, Tensor] = {}
        self._check = check
        self._checked: set[nn.Module] = set()
        self.last_norms: Tensor | None = None  # [groups, B] fp64 of the last backward: depends on the data

    def backward(self, losses: Tensor, sample_mask: Tensor | None = None) -> BatchCounts:
        """Clips the gradients of losses [B] and adds them up.

        sample_mask: [B], true (or 1) for samples that are real; a padded sample contributes nothing.
        Raises ValueError for a loss of another shape, and for whatever would make per-sample gradients wrong.
        """
        try:
            check_losses(losses, sample_mask)
            watched = self.recorder.watched
            self.recorder.check()
            calls = list(self.recorder.calls)
            if len(losses) == 0:
                return BatchCounts()
            if not losses.requires_grad and watched and not calls:
                # No trained layer ran: text alone passes by image experts. Such samples count and contribute zero; an
                # error here would depend on the data that was drawn.
                return self.accumulate(losses, sample_mask)
            if not losses.requires_grad:
                raise ValueError("the losses carry no gradient; compute them under grad mode from the engine's model.")
            if self._check and len(losses) > 1 and any(call.module not in self._checked for call in calls):
                self._check_batch(losses, calls)
            trained = list(self.names)
            origins: list[Any] = [*(call.edge for call in calls), *trained]
            grads = list(torch.autograd.grad(losses.sum(), origins, allow_unused=True))
            outside = [self.names[p] for p, g in zip(trained, grads[len(calls) :], strict=True) if g is not None]
            if outside:
                raise ValueError(
                    f"parameters {outside} are used outside the layer that owns them, where no per-sample gradient can "
                    "be had; call the layer itself, or register a rule for the module that uses them."
                )
            _hand_out(calls, grads)  # nothing here may outlive its use: accumulate frees what it has added
            return self.accumulate(losses.detach(), sample_mask)
        finally:
            self.recorder.drop()

    @torch.no_grad()
    def accumulate(
        self, losses: Tensor, sample_mask: Tensor | None = None, clip: bool = True, scale: float = 1.0
    ) -> BatchCounts:
        """The part after the backward pass: norms, factors and sums from the recorded calls that have gradients.

        losses: [B], only its length and finiteness count. scale: what the gradients are multiplied by first (the batch
        size, where a caller ran the backward pass of a mean).
        """
        batch = len(losses)
        calls = [call for call in self.recorder.calls if call.grad is not None]
        self.recorder.calls = []
        with torch.autocast(losses.device.type, enabled=False), _full_precision():
            parts = self._parts(calls, batch)
            del calls
            squared = self._squared_norms(parts, batch, losses.device) * scale**2
            finite = torch.isfinite(squared).all(dim=0) & torch.isfinite(losses)
            squared = torch.where(finite, squared, torch.inf)
            self.last_norms = squared.sqrt()
            factors = self.clip.factors(squared)
            real = torch.ones_like(finite) if sample_mask is None else sample_mask.to(finite.device).bool()
            factors = factors * real
            dropped, clipped, examples = torch.stack(
                [(~finite & real).sum(), ((factors < 1).any(dim=0) & finite & real).sum(), real.sum()]
            ).tolist()
            keep = None
            if dropped or examples < batch:  # NaN times zero is NaN: take the rows out
                keep = (finite & real).nonzero()[:, 0]
                factors = factors[:, keep]
            self._add(parts, factors * scale, keep)
        return BatchCounts(examples, clipped, dropped)

    def _parts(self, calls: list[Call], batch: int) -> dict[nn.Parameter, list[Part]]:
        parts: dict[nn.Parameter, list[Part]] = {}
        for call in calls:
            for parameter, part in self._parts_of(call, batch).items():
                parts.setdefault(parameter, []).append(part)
        return {parameter: _with_formed(merge(some)) for parameter, some in parts.items()}

    def _parts_of(self, call: Call, batch: int) -> dict[nn.Parameter, Part]:
        assert call.grad is not None
        grad = call.grad
        count = self.recorder.fold_of(call.name, len(grad) if grad.dim() else 0, batch)
        for x in call.inputs[:1]:
            if x.dim() == 0 or len(x) != len(grad):
                raise ValueError(
                    f"layer {call.name!r} saw an input of shape {list(x.shape)} for a batch of {batch}; the first axis "
                    "must be the sample, so expand shared inputs (positions) to [B, ...]."
                )
        try:
            with self.recorder.paused():
                found = call.rule(call.module, call.inputs, grad)
        except ValueError as error:
            raise ValueError(f"layer {call.name!r}: {error}") from error
        parts: dict[nn.Parameter, Part] = {}
        for name, parameter in call.module.named_parameters(recurse=False):
            if parameter not in self.names:
                continue
            if name not in found:
                raise ValueError(f"the rule of layer {call.name!r} gave nothing for its parameter {name!r}.")
            parts[parameter] = found[name].fold(count) if count > 1 else found[name]
        return parts

    def _squared_norms(self, parts: dict[nn.Parameter, list[Part]], batch: int, device: torch.device) -> Tensor:
        """[groups, B] fp64."""
        squared = torch.zeros(self.clip.group_count, batch, dtype=torch.float64, device=device)
        sharing: dict[tuple[int, int, object], list[LinearPart]] = {}
        for parameter, some in parts.items():
            group = self._group[parameter]
            for part in some:
                if not isinstance(part, LinearPart):
                    squared[group] += part.squared_norm()
                elif part.prefers_forming:
                    squared[group] += formed_squared_norm(part)
                else:
                    x = part.x
                    key = (group, x.data_ptr(), (x.shape, x.stride(), x.dtype))
                    sharing.setdefault(key, []).append(part)
            if len(some) == 2:
                head, table = some
                assert isinstance(head, LinearPart) and isinstance(table, TablePart)
                squared[group] += 2.0 * cross_term(head, table)
        found = {shared: linear_squared_norms(together) for shared, together in sharing.items()}
        sizes = torch.zeros_like(squared)
        for (group, *_), (norms, size) in found.items():
            squared[group] += norms
            sizes[group] += size
        # Where the tokens of a sample all but cancel, rounding in fp32 could hide a norm above C: those again in fp64.
        doubtful = (sizes * _CANCELLATION > squared) & torch.isfinite(squared)
        if bool(doubtful.any()):
            for shared, together in sharing.items():
                rows = doubtful[shared[0]].nonzero()[:, 0]
                squared[shared[0], rows] += exact_squared_norms(together, rows) - found[shared][0][rows]
        return squared.clamp_(min=0.0)  # keeps NaN

    def _add(self, parts: dict[nn.Parameter, list[Part]], factors: Tensor, keep: Tensor | None) -> None:
        inputs = ScaledInputs()
        while parts:
            parameter, some = parts.popitem()  # each part is freed once it is added
            for part in some:
                chosen = part if keep is None else part.select(keep)
                fresh = parameter not in self._sums
                if fresh:
                    self._sums[parameter] = torch.empty(
                        parameter.shape, dtype=_sum_type(parameter), device=parameter.device
                    )
                factor, total = factors[self._group[parameter]], self._sums[parameter]
                if isinstance(chosen, LinearPart):
                    chosen.weighted_sum_(factor, total, fresh, inputs)
                else:
                    chosen.weighted_sum_(factor, total, fresh)

    def take(self) -> dict[nn.Parameter, Tensor]:
        """The sums since the last `take` for every trained parameter, in fp32 or better, and starts anew."""
        sums, self._sums = self._sums, {}
        return {
            p: sums[p] if p in sums else torch.zeros(p.shape, dtype=_sum_type(p), device=p.device) for p in self.names
        }

    def close(self) -> None:
        """Removes all hooks."""
        self.recorder.close()

    def _check_batch(self, losses: Tensor, calls: list[Call]) -> None:
        """One sample's loss must not reach another sample's rows, and each rule must agree with autograd on it."""
        batch = len(losses)
        sound = torch.isfinite(losses.detach()).nonzero()[:, 0].tolist()
        if not sound:
            return  # nothing to compare with; the next batch will do
        one = int(sound[0])
        edges: list[GradientEdge] = [call.edge for call in calls]
        grads = torch.autograd.grad(losses[one], edges, retain_graph=True, allow_unused=True)
        for call, grad in zip(calls, grads, strict=True):
            if grad is None:
                continue
            count = self.recorder.fold_of(call.name, len(grad) if grad.dim() else 0, batch)
            mine = slice(one * count, (one + 1) * count)
            others = grad.clone()
            others[mine] = 0
            if bool((others.abs() > 0).any()):  # NaN, from a sample that is not finite itself, does not count
                raise ValueError(
                    f"the loss of sample {one} reaches the rows of other samples in layer {call.name!r}: examples are "
                    "coupled (a loss over the batch, batch statistics, rows that are not the sample), so no per-sample "
                    "clipping bounds them. Keep every example to itself."
                )
            if bool(torch.isfinite(grad[mine]).all()):
                self._check_rule(call, grad[mine], mine)
        self._checked.update(call.module for call in calls)

    def _check_rule(self, call: Call, grad: Tensor, mine: slice) -> None:
        """The parts of one sample (rows `mine`, output gradient `grad`) against autograd on the layer alone."""
        rows = len(call.inputs[0])
        inputs = tuple(x[mine] if x.dim() and len(x) == rows else x for x in call.inputs)
        names = [name for name, p in call.module.named_parameters(recurse=False) if p in self.names]
        parameters: list[Tensor] = [getattr(call.module, name) for name in names]
        mixed = call.autocast is not None
        autocast = torch.autocast(grad.device.type, dtype=call.autocast, enabled=mixed)
        with self.recorder.paused(), torch.enable_grad(), autocast:
            output = call.module(*inputs)
            expected = torch.autograd.grad(output, parameters, grad.to(output.dtype), allow_unused=True)
        alone = replace(call, inputs=inputs, grad=grad)
        tolerance = 1e-3 if not mixed and grad.dtype in (torch.float32, torch.float64) else 0.1
        with torch.no_grad():
            found = self._parts_of(alone, 1)
            for name, parameter, truth in zip(names, parameters, expected, strict=True):
                ours = found[parameter].formed()[0].double()  # type: ignore[index]
                true = torch.zeros_like(ours) if truth is None else truth.double()
                difference = float(torch.linalg.vector_norm(ours - true))
                if difference > tolerance * float(torch.linalg.vector_norm(true)) + 1e-12:
                    raise ValueError(
                        f"the rule of layer {call.name!r} gives another gradient for {name!r} than autograd does; the "
                        "layer computes something else than its type says, so register a rule for it."
                    )


@contextlib.contextmanager
def _full_precision() -> Iterator[None]:
    """fp32 products in fp32: TF32 and bf16 passes, which a user may have allowed for speed, would blur the norms."""
    before = torch.get_float32_matmul_precision()
    if before == "highest":
        yield
        return
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _sum_type(parameter: Tensor) -> torch.dtype:
    return torch.promote_types(parameter.dtype, torch.float32)


def _with_formed(some: list[Part]) -> list[Part]:
    """Small gradients are formed once, for the norm and the sum."""
    if len(some) == 1 and isinstance(some[0], LinearPart) and some[0].prefers_forming and some[0].worth_keeping:
        return [FormedPart(some[0].formed())]
    return some


def _hand_out(calls: list[Call], grads: list[Tensor]) -> None:
    """Gives each call its gradient and empties both lists."""
    for call, grad in zip(calls, grads, strict=False):
        call.grad = grad
    calls.clear()
    grads.clear()


def check_losses(losses: Tensor, sample_mask: Tensor | None) -> None:
    """Raises ValueError unless losses are [B], and the mask too."""
    if losses.dim() != 1:
        raise ValueError(
            f"the losses have shape {list(losses.shape)}; expected [B], one loss per sample: a mean over the batch or "
            "over all tokens couples examples."
        )
    if sample_mask is not None and sample_mask.shape != losses.shape:
        raise ValueError(f"sample_mask has shape {list(sample_mask.shape)}; expected {list(losses.shape)}.")
