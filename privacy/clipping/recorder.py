"""Watches a model's forward pass for the one-backward engine: inputs and gradient edges of every covered layer.

While a covered layer runs, its trained parameters carry no gradient, so autograd never forms a weight gradient, and a
parameter that is used outside its layer (a tied head written as F.linear(x, table.weight)) stays visible in the graph
as one that nobody covers. The output of the first covered layer becomes the graph's origin. Outputs are not kept, only
the edges at which their gradients appear, so in-place operations on them do no harm.

Refused, by name: trainable parameters in layers without a rule; BatchNorm that trains or moves statistics; buffers and
parameters that change during a forward pass (EMA codebooks); inputs changed in place after they were recorded; outputs
that are not one tensor; layers whose first axis is not the sample; compiled models.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from privacy.clipping.rules import Rule, Rules


@dataclass
class Call:
    """One call of one covered layer.

    inputs: its tensors, detached. edge: where its output's gradient appears. grad: filled in by the backward pass
    numbered backward_id.
    """

    name: str
    module: nn.Module
    rule: Rule
    inputs: tuple[Tensor, ...]
    versions: tuple[int, ...]
    edge: GradientEdge
    autocast: torch.dtype | None
    grad: Tensor | None = None
    backward_id: int = -1

    def check_unchanged(self) -> None:
        """Raises ValueError where an input was overwritten since the forward pass."""
        for tensor, version in zip(self.inputs, self.versions, strict=True):
            if tensor._version != version:
                raise ValueError(
                    f"the input of layer {self.name!r} was changed in place after the layer read it; per-sample "
                    "gradients would be wrong, so write the result to a new tensor."
                )


class _Origin(torch.autograd.Function):
    """Marks a tensor as where the graph begins. No copy, and no leaf: in-place activations may follow."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, _anchor: Tensor) -> Tensor:
        ctx.mark_dirty(output)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None]:
        return None, None


def _tensors(values: Sequence[Any]) -> list[Tensor]:
    return [value for value in values if isinstance(value, Tensor)]


def _is_compiled(module: nn.Module) -> bool:
    """Whether torch.compile(module) made it, or module.compile() was called."""
    wrapped = type(module).__module__.startswith("torch._dynamo")  # without importing the compiler
    return wrapped or getattr(module, "_compiled_call_impl", None) is not None


class Recorder:
    """Hooks on a model; `calls` grows with every forward pass under grad mode until `drop` empties it.

    model: any module. rules: which layers are covered. folded: prefixes of module names where several rows in a row of
    the first axis belong to one sample ([B * k, ...], sample first), such as a vision tower over [B * images, ...].
    allow_buffers: prefixes of buffers that may change, because no data flows into them (a growing table of angles).
    hold_grads: also catch output gradients by tensor hooks, for callers that run loss.backward() themselves.
    Raises ValueError, naming all of them, for trainable parameters that no rule covers.
    """

    def __init__(
        self,
        model: nn.Module,
        rules: Rules,
        *,
        folded: Sequence[str] = (),
        allow_buffers: Sequence[str] = (),
        hold_grads: bool = False,
    ) -> None:
        self.model, self.rules, self.folded, self.hold_grads = model, rules, tuple(folded), hold_grads
        self.allow_buffers = tuple(allow_buffers)
        self.calls: list[Call] = []
        self.enabled = True
        self.names: dict[nn.Parameter, str] = {p: name for name, p in model.named_parameters() if p.requires_grad}
        if not self.names:
            raise ValueError(
                "no parameter of this model is trainable; unfreeze those that the private run shall train."
            )
        self._handles: list[RemovableHandle] = []
        self._state: dict[str, tuple[int, int]] | None = None
        compiled = [name or "the model" for name, module in model.named_modules() if _is_compiled(module)]
        if compiled:
            raise ValueError(
                f"{', '.join(compiled[:5])} went through torch.compile, whose graphs run without the hooks that watch a "
                "layer; give the engine the model as it was before."
            )
        try:
            covered = self._cover()
        except ValueError:
            self.close()
            raise
        missing = [name for p, name in self.names.items() if p not in covered]
        if missing:
            self.close()
            raise ValueError(
                f"no rule covers the trainable parameters {missing}; freeze them, register a rule for their layers, or "
                "use a covered layer (Linear, Embedding, LayerNorm, RMSNorm, GroupNorm, Conv1d, Conv2d)."
            )

        def before_model(module: nn.Module, _args: tuple[Any, ...]) -> None:
            if module is model and self.enabled and torch.is_grad_enabled() and self._state is None:
                self._state = self._snapshot()

        self._handles.append(model.register_forward_pre_hook(before_model, prepend=True))

    def _cover(self) -> set[nn.Parameter]:
        """Hooks every module that owns trained parameters; returns the parameters all of whose owners have rules."""
        covered: set[nn.Parameter] = set()
        uncovered: set[nn.Parameter] = set()
        for name, module in self.model.named_modules():
            if isinstance(module, _BatchNorm):
                self._refuse_batch_norm(name, module)
                self._handles.append(
                    module.register_forward_pre_hook(lambda m, _args, name=name: self._refuse_batch_norm(name, m))
                )
            own = [p for p in module.parameters(recurse=False) if p in self.names]
            if not own:
                continue
            rule = self.rules.find(module)
            if rule is None:
                uncovered.update(own)
                continue
            covered.update(own)
            self._hook(name, module, rule, own)
        return covered - uncovered

    @staticmethod
    def _refuse_batch_norm(name: str, module: nn.Module) -> None:
        assert isinstance(module, _BatchNorm)
        if module.training or module.running_mean is None:
            raise ValueError(
                f"layer {name!r} is a BatchNorm with batch statistics, which mixes examples and keeps statistics of "
                "private data; replace it by GroupNorm or LayerNorm, or freeze it and call .eval() on it."
            )

    def _hook(self, name: str, module: nn.Module, rule: Rule, own: list[nn.Parameter]) -> None:
        muted: list[list[nn.Parameter]] = []  # a stack: a layer may call itself

        # A deep copy of the model carries these hooks but not its own recorder: on it they do nothing.
        def before(caller: nn.Module, _args: tuple[Any, ...], _kwargs: dict[str, Any]) -> None:
            if torch.compiler.is_compiling():
                raise ValueError(
                    f"layer {name!r} is being compiled, but the engine's hooks must run with every call; use the model "
                    "without torch.compile."
                )
            asked = caller is module and self.enabled and torch.is_grad_enabled()
            active = [p for p in own if p.requires_grad] if asked else []
            for p in active:
                p.requires_grad_(False)
            muted.append(active)

        def after(caller: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            for p in muted.pop() if muted else []:
                p.requires_grad_(True)
            if output is None or caller is not module or not (self.enabled and torch.is_grad_enabled()):
                return None  # the layer raised, or nobody asks for gradients
            return self._record(name, module, rule, [*args, *kwargs.values()], output)

        if any(getattr(hook, "covers", None) is module for hook in module._forward_pre_hooks.values()):
            raise ValueError(f"layer {name!r} is watched by another engine already; close() that one first.")
        before.covers = module  # type: ignore[attr-defined]
        self._handles.append(module.register_forward_pre_hook(before, prepend=True, with_kwargs=True))
        self._handles.append(module.register_forward_hook(after, with_kwargs=True, always_call=True))

    def _record(self, name: str, module: nn.Module, rule: Rule, inputs: list[Any], output: Any) -> Tensor | None:
        if not isinstance(output, Tensor):
            raise ValueError(
                f"layer {name!r} returned a {type(output).__name__}; the engine covers layers that return one tensor."
            )
        replaced = None
        if not output.requires_grad:
            # nothing before this layer is trained: its output is where the graph begins
            output = replaced = _Origin.apply(output, torch.empty(0, requires_grad=True))
        if torch._C._current_graph_task_id() != -1:
            # activation checkpointing runs the forward again inside the backward: recorded by now, or never
            if not any(call.module is module for call in self.calls):
                raise ValueError(
                    f"layer {name!r} first runs with gradients inside the backward pass (re-entrant checkpointing); "
                    "use checkpoint(..., use_reentrant=False)."
                )
            return replaced
        if self._state is None:
            self._state = self._snapshot()
        tensors = tuple(x.detach() for x in _tensors(inputs))
        device = output.device.type
        call = Call(
            name=name,
            module=module,
            rule=rule,
            inputs=tensors,
            versions=tuple(x._version for x in tensors),
            edge=get_gradient_edge(output),
            autocast=torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None,
        )
        if self.hold_grads:
            output.register_hook(lambda grad: self._hold(call, grad))
        self.calls.append(call)
        return replaced

    @staticmethod
    def _hold(call: Call, grad: Tensor) -> None:
        if call.grad is not None:
            raise ValueError(
                f"two backward passes went through one call of layer {call.name!r}; add the losses up and call "
                "backward once."
            )
        call.grad, call.backward_id = grad.detach(), torch._C._current_graph_task_id()

    def _snapshot(self) -> dict[str, tuple[int, int]]:
        """Identity and version of everything a forward pass must leave alone."""
        state = {f"parameter {name!r}": (id(p), p._version) for name, p in self.model.named_parameters()}
        for name, buffer in self.model.named_buffers():
            if not name.startswith(self.allow_buffers or ("\0",)):
                state[f"buffer {name!r}"] = (id(buffer), buffer._version)
        return state

    def check(self) -> None:
        """Checks that the forward passes since the last `drop` changed nothing but activations.

        Raises ValueError naming a buffer or parameter that changed, or a parameter that became trainable.
        """
        before, self._state = self._state, None
        if before is not None:
            after = self._snapshot()
            changed = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
            if changed:
                raise ValueError(
                    f"{', '.join(changed[:5])} changed during the forward pass: statistics of private data would leave "
                    "without noise. Freeze what updates them (BatchNorm statistics, EMA codebooks), or name them in "
                    "allow_buffers where no data flows into them."
                )
        late = [name for name, p in self.model.named_parameters() if p.requires_grad and p not in self.names]
        if late:
            raise ValueError(f"parameters {late} became trainable after the engine was made; make a new engine.")
        for call in self.calls:
            call.check_unchanged()

    @property
    def watched(self) -> bool:
        """Whether the model's own forward pass ran under grad mode since the last `check` or `drop`."""
        return self._state is not None

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """A stretch in which layers run as if there were no hooks."""
        self.enabled, before = False, self.enabled
        try:
            yield
        finally:
            self.enabled = before

    def drop(self) -> None:
        """Forgets recorded calls: an evaluation under grad mode, or a batch that was given up."""
        self.calls, self._state = [], None

    def fold_of(self, name: str, rows: int, batch: int) -> int:
        """How many rows of the first axis belong to one sample. Raises ValueError where that is unclear."""
        if rows == batch:
            return 1
        inside = any(name == prefix or name.startswith(prefix + ".") for prefix in self.folded)
        if inside and batch and rows % batch == 0:
            return rows // batch
        raise ValueError(
            f"layer {name!r} saw a first axis of {rows} for a batch of {batch} losses. The first axis must be the "
            "sample: tokens gathered by a mask, or images flattened into the batch, would each count as a sample of "
            "their own. Keep [B, ...]"
            + ("." if inside else ", or name the module in `folded` where rows are [B * k, ...], sample first.")
        )

    def close(self) -> None:
        """Removes the hooks; the model is as it was before."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.drop()
