"""Which layers the one-backward engine covers, and how each one's call becomes parts of per-sample gradients.

A rule is a function (module, inputs, grad) -> {parameter name: Part}: `inputs` are the tensors of one call, `grad` the
gradient of the loss with respect to its output; all have the sample as their first axis. Names are those of the
module's own parameters. Built in: Linear, Embedding, LayerNorm, RMSNorm, GroupNorm, Conv1d, Conv2d. More are
registered:

    rules = default_rules()
    rules.register(MyLayer, my_rule)                                     # anything
    rules.register_norm(MyRMSNorm, lambda module, x: x * rsqrt(...))     # y = xhat * weight (+ bias)
    rules.register(MyLayer, per_sample_by_vmap)                          # slow, but for any layer

A subclass is covered by its parent's rule only where it inherits the parent's `forward`: another forward may have
another gradient. Refused by name: whatever else owns a trainable parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from privacy.clipping.parts import FormedPart, LinearPart, Part, TablePart

Rule = Callable[[nn.Module, tuple[Tensor, ...], Tensor], Mapping[str, Part]]
Normalise = Callable[[nn.Module, Tensor], Tensor]


class Rules:
    """Layer types and their rules. Each engine has its own copy: registering changes nobody else's."""

    def __init__(self, rules: Mapping[type[nn.Module], Rule] | None = None) -> None:
        self._rules: dict[type[nn.Module], Rule] = dict(rules or {})

    def register(self, layer_type: type[nn.Module], rule: Rule) -> Rules:
        """Covers `layer_type` by `rule`, instead of the rule it had. Returns self."""
        if not (isinstance(layer_type, type) and issubclass(layer_type, nn.Module)):
            raise TypeError(f"{layer_type!r} is no subclass of torch.nn.Module; give the layer's class.")
        self._rules[layer_type] = rule
        return self

    def register_norm(self, layer_type: type[nn.Module], normalise: Normalise) -> Rules:
        """Covers a layer y = xhat * weight (+ bias) over the last axes, where xhat = normalise(module, x).

        An offset such as (1 + weight) changes nothing. Returns self.
        """

        def rule(module: nn.Module, inputs: tuple[Tensor, ...], grad: Tensor) -> dict[str, Part]:
            return affine_parts(module, normalise(module, inputs[0]), grad)

        return self.register(layer_type, rule)

    def find(self, module: nn.Module) -> Rule | None:
        """The rule for `module`, or None."""
        for base in type(module).__mro__:
            if base in self._rules:
                return self._rules[base] if type(module).forward is base.forward else None  # type: ignore[attr-defined]
        return None


def wanted(module: nn.Module) -> list[str]:
    """Names of the module's own parameters for which a rule must give parts: those that are trained."""
    return [name for name, p in module.named_parameters(recurse=False) if p.requires_grad]


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _tokens(x: Tensor) -> Tensor:
    """[B, ..., D] as [B, T, D]."""
    return x.flatten(1, -2) if x.dim() > 2 else x[:, None]


def linear_rule(module: nn.Module, inputs: tuple[Tensor, ...], grad: Tensor) -> dict[str, Part]:
    """y [B, ..., out] = x [B, ..., in] W^T + b."""
    assert isinstance(module, nn.Linear)
    x, g = _tokens(inputs[0]), _tokens(grad)
    parts: dict[str, Part] = {}
    for name in wanted(module):
        if name == "weight":
            parts[name] = LinearPart(x, g, module.weight.shape)
        else:
            parts[name] = FormedPart(_wide(g).sum(dim=1))
    return parts


def transposed_linear_rule(module: nn.Module, inputs: tuple[Tensor, ...], grad: Tensor) -> dict[str, Part]:
    """y [B, ..., out] = x [B, ..., in] W + b, with W [in, out]: `Conv1D` of transformers' GPT-2. Register it for yours."""
    x, g = _tokens(inputs[0]), _tokens(grad)
    parts: dict[str, Part] = {}
    for name in wanted(module):
        if name == "weight":
            parts[name] = LinearPart(g, x, getattr(module, name).shape)
        else:
            parts[name] = FormedPart(_wide(g).sum(dim=1))
    return parts


def embedding_rule(module: nn.Module, inputs: tuple[Tensor, ...], grad: Tensor) -> dict[str, Part]:
    """y [B, ..., D] = table[ids [B, ...]]; the padding row stays without a gradient."""
    assert isinstance(module, nn.Embedding)
    if module.max_norm is not None or module.scale_grad_by_freq:
        raise ValueError(
            "an Embedding has max_norm or scale_grad_by_freq, which change weights or gradients by who else is in the "
            "batch; make it without them."
        )
    ids = inputs[0].reshape(len(inputs[0]), -1)
    if module.padding_idx is not None:
        ids = ids.masked_fill(ids == module.padding_idx, -1)
    g = grad.reshape(ids.shape[0], ids.shape[1], grad.shape[-1])
    return {name: TablePart(ids, g, module.weight.shape) for name in wanted(module)}


def affine_parts(module: nn.Module, xhat: Tensor, grad: Tensor) -> dict[str, Part]:
    """Parts of y = xhat * weight + bias, whose parameters cover the last axes of y."""
    parts: dict[str, Part] = {}
    for name in wanted(module):
        parameter = getattr(module, name)
        batch, shape = len(grad), parameter.shape
        g = _wide(grad)
        product = g * _wide(xhat) if name == "weight" else g
        parts[name] = FormedPart(product.reshape(batch, _between(product, shape), *shape).sum(dim=1))
    return parts


def _between(x: Tensor, shape: torch.Size) -> int:
    """How many places lie between the first axis and the last `len(shape)` axes."""
    count = 1
    for size in x.shape[1 : x.dim() - len(shape)]:
        count *= size
    return count


def layer_norm_rule(module: nn.Module, inputs: tuple[Tensor, ...], grad: Tensor) -> dict[str, Part]:
    """torch's LayerNorm."""
    assert isinstance(module, nn.LayerNorm)
    if wanted(module) == ["bias"]:
        return affine_parts(module, grad, grad)
    return affine_parts(module, F.layer_norm(_wide(inputs[0]), module.normalized_shape, eps=module.eps), grad)


def rms_norm_rule(module: nn.Module, inputs: tuple[Tensor, ...], grad: Tensor) -> dict[str, Part]:
    """torch's RMSNorm."""
    assert isinstance(module, nn.RMSNorm)
    # the default eps is that of the input's own type, also where we compute in a wider one
    eps = torch.finfo(inputs[0].dtype).eps if module.eps is None else module.eps
    x, g = _wide(inputs[0]), _wide(grad)
    width = len(module.normalized_shape)
    x, g = (
        x.reshape(len(x), -1, *x.shape[x.dim() - width :]).flatten(2),
        g.reshape(len(g), -1, *g.shape[-width:]).flatten(2),
    )
    # sum_t r_t x_t g_t, with r_t the root: one pass over x and one product, no xhat in memory
    root = torch.linalg.vecdot(x, x).div_(x.shape[2]).add_(eps).rsqrt_()
    gradient = torch.bmm(root[:, None], x * g)
    return {name: FormedPart(gradient.view(-1, *module.weight.shape)) for name in wanted(module)}


def group_norm_rule(module: nn.Module, inputs: tuple[Tensor, ...], grad: Tensor) -> dict[str, Part]:
    """torch's GroupNorm: channels are the second axis."""
    assert isinstance(module, nn.GroupNorm)
    g = _wide(grad)
    parts: dict[str, Part] = {}
    for name in wanted(module):
        product = g * F.group_norm(_wide(inputs[0]), module.num_groups, eps=module.eps) if name == "weight" else g
        parts[name] = FormedPart(product.flatten(2).sum(dim=2) if product.dim() > 2 else product)
    return parts


def conv_rule(module: nn.Module, inputs: tuple[Tensor, ...], grad: Tensor) -> dict[str, Part]:
    """Conv2d and Conv1d as a linear layer on unfolded windows: patch embeddings and strided stems."""
    assert isinstance(module, nn.Conv1d | nn.Conv2d)
    x, g = inputs[0], grad
    kernel: tuple[int, ...] = module.kernel_size
    stride: tuple[int, ...] = module.stride
    dilation: tuple[int, ...] = module.dilation
    # The lengths torch itself pads by, last axis first: "same" may pad one side more than the other.
    if module.padding == "valid":
        padding = [0, 0] * len(kernel)
    else:
        padding = list(module._reversed_padding_repeated_twice)
    if any(padding):
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        x = F.pad(x, padding, mode=mode)
    if isinstance(module, nn.Conv1d):
        x = x[:, :, None]
        kernel, stride, dilation = (1, *kernel), (1, *stride), (1, *dilation)
    parts: dict[str, Part] = {}
    g = g.flatten(2)  # [B, out, L]
    for name in wanted(module):
        if name == "bias":
            parts[name] = FormedPart(_wide(g).sum(dim=2))
            continue
        windows = F.unfold(_wide(x), kernel, dilation=dilation, stride=stride)  # [B, C * kernel, L]
        if module.groups == 1:
            parts[name] = LinearPart(windows.transpose(1, 2), g.transpose(1, 2), module.weight.shape)
        else:
            batch, groups = len(x), module.groups
            windows = windows.view(batch, groups, -1, windows.shape[2])
            grouped = _wide(g).view(batch, groups, -1, g.shape[2])
            gradient = torch.einsum("bgol,bgil->bgoi", grouped, windows)
            parts[name] = FormedPart(gradient.reshape(batch, *module.weight.shape))
    return parts


def per_sample_by_vmap(module: nn.Module, inputs: tuple[Tensor, ...], grad: Tensor) -> dict[str, Part]:
    """Any layer whose forward torch.func can differentiate: its call is run again for every sample.

    Slow and memory-hungry; for small layers, and for checking a rule of one's own.
    """
    names = wanted(module)
    own = dict(module.named_parameters(recurse=False))
    trained = {name: own[name].detach() for name in names}

    def one(sample: tuple[Tensor, ...], g: Tensor) -> dict[str, Tensor]:
        def call(parameters: dict[str, Tensor]) -> Tensor:
            batched = tuple(x[None] for x in sample)
            return torch.func.functional_call(module, parameters, batched)[0]

        pull_back = torch.func.vjp(call, trained)[1]
        return pull_back(g)[0]

    if len(grad) == 0:
        return {name: FormedPart(grad.new_zeros(0, *trained[name].shape)) for name in names}
    gradients = torch.func.vmap(one, randomness="error")(inputs, grad)
    return {name: FormedPart(gradients[name]) for name in names}


def default_rules() -> Rules:
    """A fresh copy of the built-in rules."""
    return Rules(
        {
            nn.Linear: linear_rule,
            nn.Embedding: embedding_rule,
            nn.LayerNorm: layer_norm_rule,
            nn.RMSNorm: rms_norm_rule,
            nn.GroupNorm: group_norm_rule,
            nn.Conv1d: conv_rule,
            nn.Conv2d: conv_rule,
        }
    )
