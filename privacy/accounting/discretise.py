"""The privacy loss of a dominating pair on a grid, rounded so that every divergence can only rise.

For a grid l_i = i h, cut the outputs into cells where the loss log P/Q lies in [l_{i-1}, l_i]. A cell holds mass p
under P and r under Q, both exact from normal distribution functions. Put p on the cell's two ends so that p and r are
both kept: p = p_a + p_b, r = p_a e^{-l_a} + p_b e^{-l_b}. Under P this spreads the likelihood ratio Q/P without moving
its mean, and a hockey stick E_P[(1 - alpha Q/P)_+] is convex in that ratio, so it can only rise: an upper bound whose
error per step is of order h^2, not h. (Rounding every loss up to l_b would be as safe, but wrong by h / 2 per step:
0.7 after 14,000 steps.) The tails: outputs beyond the last cell get an infinite loss (their P mass is added to delta);
those before the first cell are rounded up to its end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import special

from privacy.accounting.mechanisms import Mechanism
from privacy.accounting.pairs import Mixture, Pair, Step, steps_of

Array = NDArray[np.float64]

_REACH = 11.0  # standard deviations beyond the outermost mean: 2e-28 of mass
MAX_CELLS = 1 << 23
_TINY = 1e-300


@dataclass(frozen=True)
class LossGrid:
    """mass [n] under P at the losses (first + 0 .. first + n - 1) * spacing; `infinite`: mass at an infinite loss."""

    spacing: float
    first: int
    mass: Array
    infinite: float

    @property
    def losses(self) -> Array:
        """The losses [n], ascending."""
        return np.arange(self.first, self.first + len(self.mass), dtype=np.float64) * self.spacing


def _log_density(mixture: Mixture, x: Array) -> tuple[Array, Array]:
    """log of the density over the standard normal's [n], and its derivative (the posterior mean) [n]."""
    if len(mixture.weights) == 1:
        mean = mixture.means[0]
        return math.log(mixture.weights[0]) + mean * x - 0.5 * mean * mean, np.full_like(x, mean)
    parts = [
        (math.log(weight) - 0.5 * mean * mean, mean)
        for weight, mean in zip(mixture.weights, mixture.means, strict=True)
    ]
    top = np.full_like(x, -np.inf)
    for offset, mean in parts:
        np.maximum(top, offset + mean * x, out=top)
    total, weighted = np.zeros_like(x), np.zeros_like(x)
    for offset, mean in parts:
        term = np.exp(offset + mean * x - top)
        total += term
        weighted += mean * term
    return top + np.log(total), weighted / total


def _loss(pair: Pair, x: Array) -> Array:
    """log P(x) / Q(x) [n]."""
    return _log_density(pair.p, x)[0] - _log_density(pair.q, x)[0]


def _log_excess(losses: Array, rate: float) -> Array:
    """log(e^loss - 1 + rate) [n], accurate where the loss is tiny and where it is huge."""
    small = np.log(np.maximum(np.expm1(np.minimum(losses, 1.0)) + rate, _TINY))
    return np.where(losses > 1.0, losses + np.log1p((rate - 1.0) * np.exp(-np.maximum(losses, 1.0))), small)


def _outputs_at(pair: Pair, losses: Array, low: float, high: float) -> Array:
    """x [n] with loss(x) = losses, in closed form where there is one, else by Newton's method from a table."""
    p, q = pair.p, pair.q
    if len(p.weights) == 1 and len(q.weights) == 1:
        slope = p.means[0] - q.means[0]
        return (losses - math.log(p.weights[0] / q.weights[0])) / slope + 0.5 * (p.means[0] + q.means[0])
    if q.weights == (1.0,) and q.means == (0.0,) and len(p.weights) == 2 and p.means[0] == 0.0:
        mean = p.means[1]
        return (_log_excess(losses, p.weights[1]) - math.log(p.weights[1])) / mean + 0.5 * mean
    if p.weights == (1.0,) and p.means == (0.0,) and len(q.weights) == 2 and q.means[0] == 0.0:
        mean = -q.means[1]
        return -((_log_excess(-losses, q.weights[1]) - math.log(q.weights[1])) / mean + 0.5 * mean)
    table = np.linspace(low, high, 20001)
    tabled = np.maximum.accumulate(_loss(pair, table))
    right = np.clip(np.searchsorted(tabled, losses, side="left"), 1, len(table) - 1)
    below, above = table[right - 1], table[right]
    x = 0.5 * (below + above)
    for _ in range(40):  # Newton, kept inside the bracket; quadratic once inside the table's cell
        (p_value, p_slope), (q_value, q_slope) = _log_density(p, x), _log_density(q, x)
        gap = p_value - q_value - losses
        below, above = np.where(gap < 0, x, below), np.where(gap < 0, above, x)
        with np.errstate(divide="ignore", invalid="ignore"):
            step = x - gap / (p_slope - q_slope)
        moved = np.where((step > below) & (step < above), step, 0.5 * (below + above))
        change, x = float(np.max(np.abs(moved - x), initial=0.0)), moved
        if change < 1e-13 * max(1.0, abs(low), abs(high)):
            break
    return x


def _cell_mass(mixture: Mixture, edges: Array) -> Array:
    """Mass [n - 1] of the mixture between consecutive edges [n], accurate in both tails."""
    total = np.zeros(len(edges) - 1)
    for weight, mean in zip(mixture.weights, mixture.means, strict=True):
        z = edges - mean
        lower, upper = special.ndtr(z), special.ndtr(-z)
        total += weight * np.where(z[:-1] > 0, upper[:-1] - upper[1:], lower[1:] - lower[:-1])
    return np.maximum(total, 0.0)


def _tail_mass(mixture: Mixture, edge: float, sign: int) -> float:
    """Mass above (sign 1) or below (sign -1) the edge."""
    return math.fsum(
        weight * float(special.ndtr(-sign * (edge - mean)))
        for weight, mean in zip(mixture.weights, mixture.means, strict=True)
    )


def _range(pair: Pair) -> tuple[float, float]:
    """Outputs outside which P has at most 2e-28 of its mass."""
    return min(pair.p.means) - _REACH, max(pair.p.means) + _REACH


def discretise_pair(pair: Pair, spacing: float) -> LossGrid:
    """The loss of one pair on the grid of `spacing` > 0; see the module's docstring.

    Raises ValueError where the grid would need more than MAX_CELLS cells.
    """
    if pair.spliced:
        return _splice(discretise_pair(Pair(pair.p, pair.q), spacing), discretise_pair(pair.exchanged(), spacing))
    low, high = _range(pair)
    ends = _loss(pair, np.array([low, high]))
    first, last = math.ceil(ends[0] / spacing), math.ceil(ends[1] / spacing)
    if last - first > MAX_CELLS:
        raise ValueError(
            f"one step has privacy losses from {ends[0]:.3g} to {ends[1]:.3g}: too wide for a grid of {spacing:.3g}; "
            "the noise is too small for a useful guarantee."
        )
    inner = np.arange(first, last) * spacing
    edges = np.concatenate(([low], np.clip(_outputs_at(pair, inner, low, high), low, high), [high]))
    edges = np.maximum.accumulate(edges)
    p, r = _cell_mass(pair.p, edges), _cell_mass(pair.q, edges)
    # Cell i lies between the losses (first + i - 1) h and (first + i) h.
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        floor = (first - 1 + np.arange(len(p))) * spacing
        at_upper = (p - r * np.exp(floor)) / -math.expm1(
            -spacing
        )  # not finite where e^floor overflows: all to the upper end
    at_upper = np.where(np.isfinite(at_upper), np.clip(at_upper, 0.0, p), p)
    mass = np.zeros(len(p) + 1)
    mass[1:] += at_upper
    mass[:-1] += p - at_upper
    mass[1] += _tail_mass(pair.p, low, -1)
    return LossGrid(spacing, first - 1, mass, _tail_mass(pair.p, high, 1) + pair.p.missing + pair.q.missing)


def _splice(above: LossGrid, below: LossGrid) -> LossGrid:
    """The losses over 0 of one grid, those under 0 of the other, and what is left of the mass at 0."""
    upper = above.mass[above.losses > 0.5 * above.spacing]
    lower = below.mass[below.losses < -0.5 * below.spacing]
    infinite = above.infinite + below.infinite
    rest = max(0.0, 1.0 - infinite - math.fsum(upper) - math.fsum(lower))
    return LossGrid(above.spacing, -len(lower), np.concatenate((lower, [rest], upper)), infinite)


def _told(step: Step, spacing: float) -> LossGrid:
    """The loss when the adversary is told which of several pairs applies: the mixture of their losses."""
    grids = [(weight, discretise_pair(pair, spacing)) for weight, pair in step if weight > 0.0]
    if len(grids) == 1:
        return grids[0][1]
    first = min(grid.first for _, grid in grids)
    last = max(grid.first + len(grid.mass) for _, grid in grids)
    mass = np.zeros(last - first)
    for weight, grid in grids:
        start = grid.first - first
        mass[start : start + len(grid.mass)] += weight * grid.mass
    return LossGrid(spacing, first, mass, math.fsum(weight * grid.infinite for weight, grid in grids))


@lru_cache(maxsize=16)  # a grid can take tens of megabytes
def loss_grids(mechanism: Mechanism, spacing: float) -> tuple[LossGrid, ...]:
    """The discretised loss of a mechanism in each direction (one, or remove and add). Cached; do not write to it."""
    return tuple(_told(step, spacing) for step in steps_of(mechanism))
