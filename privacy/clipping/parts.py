"""What one call of a layer adds to the per-sample gradient of one of its parameters, kept in factored form.

A per-sample gradient is rarely formed. A linear layer's is sum_t g_t x_t^T, and its norm needs only inner products:
    |sum_t g_t x_t^T|^2 = sum_{s,t} (x_s . x_t) (g_s . g_t) = <X X^T, G G^T>           (Goodfellow 1510.01799)
    2 <embedding, head> = 2 sum_{s,t} G_head[t, id_s] (x_t . g_s)                      for a table tied to the head
A parameter that several calls use has the sum of their parts; the norm is that of the sum, never the sum of the norms.

Shapes: B samples, T tokens (any axes between the first and the last, flattened). Norms are returned squared, in fp64;
products run in fp32 (fp64 for fp64 inputs), whatever the forward's dtype was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_MIN_SPLIT = 32  # tokens below which half a Gram matrix costs as much as the whole


def _wide(x: Tensor) -> Tensor:
    """x in at least fp32."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _joined(x: Tensor, count: int) -> Tensor:
    """[B * k, T, ...] as [B, k * T, ...]."""
    return x.reshape(len(x) // count, count * x.shape[1], *x.shape[2:])


def same_tensor(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are one view of one memory: q, k and v were given the same input."""
    return (a.data_ptr(), a.shape, a.stride(), a.dtype) == (b.data_ptr(), b.shape, b.stride(), b.dtype)


class ScaledInputs:
    """The last input that was scaled by the samples' factors: layers that share their input scale it once."""

    def __init__(self) -> None:
        self._last: tuple[Tensor, Tensor, Tensor] | None = None  # x is kept alive, so that nothing takes its memory

    def times(self, x: Tensor, factor: Tensor) -> Tensor:
        """x [B, T, D] times factor [B], in at least fp32."""
        if self._last is None or not (same_tensor(self._last[0], x) and same_tensor(self._last[1], factor)):
            wide = _wide(x)
            self._last = (x, factor, wide * factor.to(wide.dtype)[:, None, None])
        return self._last[2]


@dataclass
class LinearPart:
    """Gradient sum_t g_t x_t^T of a weight [out, in]. x: [B, T, in], g: [B, T, out]. `shape` is the weight's own."""

    x: Tensor
    g: Tensor
    shape: torch.Size

    @property
    def tokens(self) -> int:
        """T."""
        return self.x.shape[1]

    @property
    def numel(self) -> int:
        """Entries of the weight."""
        return self.x.shape[2] * self.g.shape[2]

    @property
    def prefers_forming(self) -> bool:
        """Whether the per-sample gradient is smaller than the two Gram matrices: LoRA, long sequences."""
        return 2 * self.tokens**2 > self.numel

    @property
    def worth_keeping(self) -> bool:
        """Whether all samples' gradients take no more memory than x and g do."""
        return self.numel <= self.tokens * (self.x.shape[2] + self.g.shape[2])

    def formed(self) -> Tensor:
        """[B, *shape]."""
        return torch.bmm(_wide(self.g).transpose(1, 2), _wide(self.x)).view(-1, *self.shape)

    def weighted_sum_(
        self, factor: Tensor, total: Tensor, fresh: bool = False, inputs: ScaledInputs | None = None
    ) -> None:
        """total [*shape] += sum_b factor_b * gradient_b; = where `fresh`. The narrower of x and g takes the factor.

        inputs: what the layer before this one scaled; give one object to layers in a row.
        """
        x, g = _wide(self.x), _wide(self.g)
        if x.shape[2] <= g.shape[2]:
            x = (inputs or ScaledInputs()).times(self.x, factor)
        else:
            g = g * factor.to(g.dtype)[:, None, None]
        matrix = total.view(g.shape[2], x.shape[2])
        matrix.addmm_(g.reshape(-1, g.shape[2]).t(), x.reshape(-1, x.shape[2]), beta=0 if fresh else 1)

    def select(self, keep: Tensor) -> LinearPart:
        """The samples `keep` [K] only."""
        return LinearPart(self.x[keep], self.g[keep], self.shape)

    def fold(self, count: int) -> LinearPart:
        """`count` rows of the first axis as one sample."""
        return LinearPart(_joined(self.x, count), _joined(self.g, count), self.shape)


@dataclass
class TablePart:
    """Gradient of a table [rows, D] that was looked up. ids: [B, T] int64, g: [B, T, D]; ids below 0 count for
    nothing."""

    ids: Tensor
    g: Tensor
    shape: torch.Size

    def squared_norm(self) -> Tensor:
        """[B] fp64: rows that one sample looked up several times are added before they are squared."""
        batch, tokens = self.ids.shape
        g = _wide(self.g)
        rows = self.shape[0] + 1
        keys = (self.ids + 1 + rows * torch.arange(batch, device=g.device)[:, None]).view(-1)
        unique, place = torch.unique(keys, return_inverse=True)
        sums = g.new_zeros(len(unique), g.shape[2]).index_add_(0, place, g.reshape(batch * tokens, -1))
        squares = torch.linalg.vecdot(sums, sums).double() * (unique % rows != 0)
        return squares.new_zeros(batch).index_add_(0, unique // rows, squares)

    def formed(self) -> Tensor:
        """[B, rows, D]."""
        g = _wide(self.g)
        batch = len(g)
        result = g.new_zeros(batch, self.shape[0] + 1, g.shape[2])
        where = (self.ids + 1)[..., None].expand_as(g)
        return result.scatter_add_(1, where, g)[:, 1:]

    def weighted_sum_(self, factor: Tensor, total: Tensor, fresh: bool = False) -> None:
        """total [rows, D] += sum_b factor_b * gradient_b; = where `fresh`."""
        if fresh:
            total.zero_()
        g = _wide(self.g) * factor.to(_wide(self.g).dtype)[:, None, None]
        ids, g = self.ids.reshape(-1), g.reshape(-1, g.shape[2])
        if bool((ids < 0).any()):
            ids, g = ids[ids >= 0], g[ids >= 0]
        total.index_add_(0, ids, g)

    def select(self, keep: Tensor) -> TablePart:
        """The samples `keep` [K] only."""
        return TablePart(self.ids[keep], self.g[keep], self.shape)

    def fold(self, count: int) -> TablePart:
        """`count` rows of the first axis as one sample."""
        return TablePart(_joined(self.ids, count), _joined(self.g, count), self.shape)


@dataclass
class FormedPart:
    """A per-sample gradient as it is: gradient [B, *shape]."""

    gradient: Tensor

    def squared_norm(self) -> Tensor:
        """[B] fp64."""
        flat = self.gradient.flatten(1)
        return torch.linalg.vector_norm(flat, dim=1, dtype=torch.float64).square()

    def formed(self) -> Tensor:
        """[B, *shape]."""
        return _wide(self.gradient)

    def weighted_sum_(self, factor: Tensor, total: Tensor, fresh: bool = False) -> None:
        """total [*shape] += sum_b factor_b * gradient_b; = where `fresh`."""
        flat = _wide(self.gradient).flatten(1)
        total.view(-1).addmv_(flat.t(), factor.to(flat.dtype), beta=0 if fresh else 1)

    def select(self, keep: Tensor) -> FormedPart:
        """The samples `keep` [K] only."""
        return FormedPart(self.gradient[keep])

    def fold(self, count: int) -> FormedPart:
        """`count` rows of the first axis as one sample."""
        rows = self.gradient
        return FormedPart(rows.view(len(rows) // count, count, *rows.shape[1:]).sum(dim=1))


Part = LinearPart | TablePart | FormedPart


def merge(parts: Sequence[Part]) -> list[Part]:
    """Parts of ONE parameter as at most one of each kind, with the same sum.

    Calls of a linear layer (or a table) are joined along the tokens; formed gradients are added. What remains mixed is
    at most a linear part and a table (tied head) or is formed.
    """
    if len(parts) == 1:
        return list(parts)
    linear = [part for part in parts if isinstance(part, LinearPart)]
    tables = [part for part in parts if isinstance(part, TablePart)]
    formed = [part for part in parts if isinstance(part, FormedPart)]
    merged: list[Part] = []
    if len(linear) > 1:
        x, g = torch.cat([part.x for part in linear], dim=1), torch.cat([part.g for part in linear], dim=1)
        merged.append(LinearPart(x, g, linear[0].shape))
    else:
        merged.extend(linear)
    if len(tables) > 1:
        ids, g = torch.cat([part.ids for part in tables], dim=1), torch.cat([part.g for part in tables], dim=1)
        merged.append(TablePart(ids, g, tables[0].shape))
    else:
        merged.extend(tables)
    if formed:
        shape = formed[0].gradient.shape
        total = sum((part.formed().view(shape) for part in (*formed, *merged)), torch.zeros((), device=_device(parts)))
        return [FormedPart(total)]
    return merged


def _device(parts: Sequence[Part]) -> torch.device:
    part = parts[0]
    return part.gradient.device if isinstance(part, FormedPart) else part.g.device


def cross_term(head: LinearPart, table: TablePart) -> Tensor:
    """<gradient of the head, gradient of the table it is tied to> per sample, [B] fp64."""
    g_head, x, g_table = _wide(head.g), _wide(head.x), _wide(table.g)
    picked = table.ids.clamp(min=0)[:, None, :].expand(-1, head.tokens, -1)
    at_ids = g_head.gather(2, picked)  # [B, T, S]: the head's gradient of token t at the id looked up at s
    products = torch.bmm(x, g_table.transpose(1, 2))  # [B, T, S]
    if bool((table.ids < 0).any()):
        products = products * (table.ids >= 0)[:, None, :]
    return (at_ids * products).sum(dim=(1, 2), dtype=torch.float64)


class HalfGram:
    """A symmetric product Z Z^T of [B, T, D], of which little more than one half is computed.

    On one CPU thread numpy multiplies (its BLAS knows symmetric products, torch's batched one does not, and strips of
    rows are too thin to be fast there). Elsewhere the matrix is cut into three strips of rows of which only the part
    from the diagonal on is kept: 2/3 of the whole. `add_` accumulates another tensor of the same B and T; `dot` is the
    inner product of the two whole matrices per sample.
    """

    def __init__(self, z: Tensor) -> None:
        self.batch, tokens = z.shape[:2]
        self.whole = z.device.type == "cpu" and torch.get_num_threads() == 1
        count = 3 if tokens >= _MIN_SPLIT and not self.whole else 1
        self.cuts = [tokens * i // count for i in range(count + 1)]
        z = _wide(z)
        self.pieces = [_symmetric(z)] if self.whole else [torch.bmm(left, right) for left, right in self._strips(z)]

    def _strips(self, z: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Factors of the strips."""
        return [
            (z[:, start:stop], z[:, start:].transpose(1, 2))
            for start, stop in zip(self.cuts, self.cuts[1:], strict=False)
        ]

    def add_(self, z: Tensor) -> None:
        """Adds Z Z^T of another z [B, T, D']."""
        z = _wide(z)
        if self.whole:
            self.pieces[0] += _symmetric(z)
            return
        for piece, (left, right) in zip(self.pieces, self._strips(z), strict=True):
            piece.baddbmm_(left, right)

    def diagonal(self) -> Tensor:
        """[B, T]."""
        return torch.cat([piece.diagonal(dim1=1, dim2=2) for piece in self.pieces], dim=1)

    def dot(self, other: HalfGram) -> Tensor:
        """[B] fp64: blocks on the diagonal once, the others twice."""
        result = torch.zeros(self.batch, dtype=torch.float64, device=self.pieces[0].device)
        for mine, theirs in zip(self.pieces, other.pieces, strict=True):
            product = mine * theirs
            rows = product.shape[1]
            whole = product.flatten(1).sum(dim=1, dtype=torch.float64)
            if rows == product.shape[2]:
                result += whole
            else:
                result += 2.0 * whole - product[:, :, :rows].flatten(1).sum(dim=1, dtype=torch.float64)
        return result


def _symmetric(z: Tensor) -> Tensor:
    """Z Z^T [B, T, T] of z [B, T, D] on the CPU."""
    result = torch.empty(z.shape[0], z.shape[1], z.shape[1], dtype=z.dtype)
    with np.errstate(all="ignore"):  # a sample that overflows is counted, not told to whoever reads warnings
        for rows, product in zip(z.numpy(), result.numpy(), strict=True):
            np.matmul(rows, rows.T, out=product)
    return result


def linear_squared_norms(parts: Sequence[LinearPart]) -> tuple[Tensor, Tensor]:
    """Sum of the squared norms of linear parts that share one x (q, k, v; gate and up), and the size of its summands.

    Both [B] fp64. The second is (sum_t |x_t| |g_t|)^2: times the fp32 unit it is the size of the first one's rounding
    error, which matters where tokens cancel.
    """
    inputs = HalfGram(parts[0].x)
    outputs = HalfGram(parts[0].g)
    for part in parts[1:]:
        outputs.add_(part.g)
    size = (inputs.diagonal() * outputs.diagonal()).sqrt().sum(dim=1, dtype=torch.float64).square()
    return inputs.dot(outputs), size


def exact_squared_norms(parts: Sequence[LinearPart], rows: Tensor) -> Tensor:
    """As `linear_squared_norms`, in fp64, for the samples `rows` [K] only: [K]."""
    total = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
    x = parts[0].x[rows].double()
    inputs = torch.bmm(x, x.transpose(1, 2))
    for part in parts:
        g = part.g[rows].double()
        total += (inputs * torch.bmm(g, g.transpose(1, 2))).sum(dim=(1, 2))
    return total


def formed_squared_norm(part: LinearPart) -> Tensor:
    """Squared norm by forming the gradients of a few samples at a time, [B] fp64: none is kept."""
    step = max(1, part.tokens * (part.x.shape[2] + part.g.shape[2]) * len(part.x) // max(part.numel, 1) // 4)
    pieces = [
        FormedPart(LinearPart(part.x[i : i + step], part.g[i : i + step], part.shape).formed()).squared_norm()
        for i in range(0, len(part.x), step)
    ]
    return torch.cat(pieces) if pieces else torch.zeros(0, dtype=torch.float64, device=part.x.device)
