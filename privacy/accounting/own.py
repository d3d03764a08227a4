"""Our own accountant: privacy-loss distributions composed by one exponentially tilted FFT.

It shares no code with the accountants it is compared with: the discretisation keeps two moments per cell, from
distribution functions (`discretise`; at grid points it agrees with connecting the dots, as it must), and the
composition multiplies characteristic functions of the *tilted* loss (the saddlepoint of the epsilon in question), so
that the numbers near that epsilon keep their relative precision even where delta is 1e-20.

Tilting. With mass p(l) and K(t) = log sum_l p(l) e^{t l}, the tilted mass p(l) e^{t l - K(t)} is a probability. T-fold
convolution and tilting commute, so p^{*T}(l) = (tilted p)^{*T}(l) e^{T K(t) - t l}. The t that minimises T K(t) - t
epsilon puts the tilted composition's centre at epsilon.

Upper bound. The FFT is cyclic over a window [lo, hi]. Mass that wraps in from outside only adds. Mass above hi that
wraps away is bounded by min over s of e^{T K(s) - s hi} and added to delta, as is the mass at infinity. The rounding
of the FFT is bounded by its size (see `_ROUNDING`) and added too. What remains is plain floating-point rounding of the
distribution functions (1e-12, relative).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from privacy.accounting.discretise import Array, LossGrid, loss_grids
from privacy.accounting.mechanisms import AccountingError, Composition, Gaussian, Mechanism, condense

_WIDTH = 14.0  # standard deviations of the tilted composition on either side of its centre
_MAX_FFT = 1 << 24
_ROUNDING = 8 * float(np.finfo(np.float64).eps)
_MAX_SCALE = 700.0
_MAX_TILT = 1e5
MOST_MU = 100.0


@dataclass(frozen=True)
class Curve:
    """delta as a function of epsilon for one direction, on a grid, valid for epsilon >= losses[0].

    Between grid points l_i <= epsilon <= l_{i+1} the curve is tail_p[i] - e^{epsilon} tail_q[i], exactly, with
    tail_p[i] = sum_{j > i} p_j and tail_q[i] = sum_{j > i} p_j e^{-l_j}. Both are kept divided by e^{scale}; tail_q
    also times e^{losses[i]}. `extra` is what truncation, infinity and rounding add to delta.
    """

    losses: Array
    tail_p: Array
    tail_q: Array
    scale: float
    extra: float

    def delta(self, epsilon: float) -> float:
        """Upper bound on delta; 1 where the grid does not reach."""
        if epsilon < self.losses[0]:
            return 1.0
        i = min(int(np.searchsorted(self.losses, epsilon, side="right")) - 1, len(self.losses) - 1)
        gap = max(0.0, self.tail_p[i] - math.exp(min(epsilon - self.losses[i], 1.0)) * self.tail_q[i])
        return min(1.0, gap * math.exp(self.scale) + self.extra)

    def epsilon(self, delta: float) -> float:
        """The least epsilon whose delta is at most `delta`; inf where none is, -inf where it lies left of the grid."""
        if delta <= self.extra:
            return math.inf
        target = (delta - self.extra) * math.exp(min(-self.scale, _MAX_SCALE))
        at_grid = self.tail_p - self.tail_q
        if at_grid[0] <= target:
            return -math.inf
        if at_grid[-1] > target:
            return math.inf
        i = int(np.argmax(at_grid <= target)) - 1
        if self.tail_q[i] <= 0.0 or self.tail_p[i] <= target:
            return float(self.losses[i + 1])
        inside = float(self.losses[i]) + math.log((self.tail_p[i] - target) / self.tail_q[i])
        return min(max(inside, float(self.losses[i])), float(self.losses[i + 1]))


@dataclass(frozen=True)
class _Part:
    """One mechanism's loss and how often; `coarse` is the same loss in fewer cells, to look for the tilt."""

    grid: LossGrid
    count: int
    coarse_losses: Array
    coarse_mass: Array


def _part(grid: LossGrid, count: int) -> _Part:
    fold = max(1, len(grid.mass) // 4096)
    size = -(-len(grid.mass) // fold)
    padded = np.zeros(size * fold)
    padded[: len(grid.mass)] = grid.mass
    blocks = padded.reshape(size, fold)
    mass = blocks.sum(axis=1)
    positions = np.arange(size * fold).reshape(size, fold)
    with np.errstate(invalid="ignore", divide="ignore"):
        centre = np.where(mass > 0, (blocks * positions).sum(axis=1) / mass, positions.mean(axis=1))
    keep = mass > 0
    return _Part(grid, count, ((grid.first + centre) * grid.spacing)[keep], mass[keep])


def _cumulants(losses: Array, mass: Array, tilt: float) -> tuple[float, float, float]:
    """K, K', K'' of one loss at `tilt`."""
    exponent = tilt * losses
    top = float(exponent.max())
    weight = mass * np.exp(exponent - top)
    total = float(weight.sum())
    mean = float(weight @ losses) / total
    variance = float(weight @ (losses - mean) ** 2) / total
    return math.log(total) + top, mean, variance


def _total(parts: list[_Part], tilt: float, *, exact: bool = False) -> tuple[float, float, float]:
    value = mean = variance = 0.0
    for part in parts:
        losses, mass = (part.grid.losses, part.grid.mass) if exact else (part.coarse_losses, part.coarse_mass)
        k, k1, k2 = _cumulants(losses, mass, tilt)
        value, mean, variance = value + part.count * k, mean + part.count * k1, variance + part.count * k2
    return value, mean, variance


def _tilt_for(parts: list[_Part], *, delta: float | None, epsilon: float | None) -> tuple[float, float]:
    """The tilt where the Chernoff bound is best, and that bound.

    For a delta: min over t of (K - log delta) / t, an epsilon. For an epsilon: min over t of K - t epsilon, a log
    delta (not pursued below e^-90, which only a loss that cannot reach epsilon has).
    """

    def bound(log_tilt: float) -> float:
        tilt = math.exp(log_tilt)
        value = _total(parts, tilt)[0]
        if delta is not None:
            return (value - math.log(delta)) / tilt
        return max(value - tilt * float(epsilon or 0.0), -90.0)

    grid = np.linspace(math.log(1e-2), math.log(_MAX_TILT), 25)
    values = [bound(point) for point in grid]
    best = int(np.argmin(values))
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    for _ in range(12):  # golden section, to about 1e-2 in the logarithm: the tilt need not be exact
        a, b = high - 0.618 * (high - low), low + 0.618 * (high - low)
        low, high = (low, b) if bound(a) < bound(b) else (a, high)
    middle = 0.5 * (low + high)
    return math.exp(middle), bound(middle)


def _log_mass_above(parts: list[_Part], edge: float, tilt: float) -> float:
    """Chernoff: log of an upper bound on the mass of the composition above `edge`."""
    return min(_total(parts, factor * tilt, exact=True)[0] - factor * tilt * edge for factor in (1.0, 1.5, 2.0, 3.0))


def _fast_length(least: int) -> int:
    """The least even number 2^a 3^b 5^c that is at least `least`: an FFT of that length is fast."""
    best = 1 << max(4, (least - 1).bit_length())
    for five in (1, 5, 25, 125):
        for three in (1, 3, 9, 27, 81):
            odd = five * three
            best = min(best, odd << max(1, (-(-least // odd) - 1).bit_length()))
    return best


def _curve(parts: list[_Part], tilt: float, low: float, high: float, log_above: float) -> Curve:
    """The composition's hockey-stick curve on [low, high], tilted by `tilt`."""
    spacing = parts[0].grid.spacing
    first = math.floor(low / spacing)
    size = _fast_length(math.ceil(high / spacing) - first + 1)
    if size > _MAX_FFT:
        raise AccountingError(
            f"the composed privacy loss spans {size} cells, more than {_MAX_FFT}; the run is too long or its noise too "
            "small for a useful guarantee."
        )
    spectrum = np.ones(size // 2 + 1, dtype=np.complex128)
    shift, log_scale, log_finite = 0, 0.0, 0.0
    for part in parts:
        k, _, _ = _cumulants(part.grid.losses, part.grid.mass, tilt)
        tilted = part.grid.mass * np.exp(tilt * part.grid.losses - k)
        folded = np.zeros(-(-len(tilted) // size) * size)
        folded[: len(tilted)] = tilted
        spectrum *= np.fft.rfft(folded.reshape(-1, size).sum(axis=0)) ** part.count
        shift += part.grid.first * part.count
        log_scale += part.count * k
        log_finite += part.count * math.log1p(-min(part.grid.infinite, 0.5))
    size_of_spectrum = np.abs(spectrum)
    steps = sum(part.count for part in parts)
    # A power of T multiplies the relative error of each frequency by T; the inverse transform adds its own (Parseval).
    rounding = (
        _ROUNDING
        * math.log2(size)
        * float((1 + steps) * size_of_spectrum.mean() + np.sqrt((size_of_spectrum**2).mean()))
    )
    tilted = np.maximum(np.roll(np.fft.irfft(spectrum, size), (shift - first) % size), 0.0) + rounding
    losses = np.arange(first, first + size, dtype=np.float64) * spacing
    # p_j = tilted_j e^{log_scale - tilt l_j}; keep the exponent relative to the first loss, sum from the far end.
    scale = log_scale - tilt * float(losses[0])
    if scale > _MAX_SCALE:
        raise AccountingError(
            "the privacy loss is too large for double precision; there is no useful guarantee to state."
        )
    mass = tilted * np.exp(-tilt * (losses - losses[0]))
    tail_p = np.concatenate((np.cumsum(mass[::-1])[::-1][1:], [0.0]))
    extra = -math.expm1(log_finite) + math.exp(min(0.0, log_above))
    return Curve(losses, tail_p, _discounted_tail(mass, spacing), scale, extra)


def _discounted_tail(mass: Array, spacing: float) -> Array:
    """sum_{j > i} mass_j e^{-(j - i) spacing} for every i [n], from the far end, in blocks that cannot overflow."""
    size = len(mass)
    block = max(1, int(300.0 / spacing))
    result = np.zeros(size)
    carry = 0.0  # the sum seen from the first place of the block to the right, that place included
    for stop in range(size, 0, -block):
        start = max(0, stop - block)
        steps = np.arange(stop - start) * spacing
        inclusive = np.cumsum((mass[start:stop] * np.exp(-steps))[::-1])[::-1] * np.exp(steps)
        inclusive += carry * np.exp(-((stop - start) * spacing - steps))
        result[start:stop] = inclusive - mass[start:stop]
        carry = float(inclusive[0])
    return np.maximum(result, 0.0)


def _direction(parts: list[_Part], *, delta: float | None, epsilon: float | None) -> float:
    """epsilon at a delta, or delta at an epsilon, for one direction."""
    tilt, _ = _tilt_for(parts, delta=delta, epsilon=epsilon)
    value, mean, variance = _total(parts, tilt, exact=True)
    deviation = math.sqrt(variance)
    goal = math.log(delta) if delta is not None else min(-5.0, value - tilt * float(epsilon or 0.0))
    low = mean - _WIDTH * deviation - parts[0].grid.spacing
    if epsilon is not None:
        low = min(low, epsilon - parts[0].grid.spacing)
    high = mean + _WIDTH * deviation
    most = sum(part.count * float(part.grid.losses[-1]) for part in parts)
    for _ in range(40):
        if high >= most:
            high, log_above = most, -math.inf
            break
        log_above = _log_mass_above(parts, high, tilt)
        if log_above < goal - 18.0:  # 1e-8 of the answer
            break
        high += 4.0 * deviation
    while True:
        curve = _curve(parts, tilt, low, high, log_above)
        if epsilon is not None:
            return curve.delta(epsilon)
        assert delta is not None
        answer = curve.epsilon(delta)
        if answer == -math.inf:
            if low <= 0.0:
                return 0.0
            low = max(0.0, low - 2 * (high - low))
            continue
        return max(0.0, answer)


def _parts(composition: Composition, spacing: float) -> list[list[_Part]]:
    """The composition in each direction: 1, 2 (remove, add) or 4 (remove, add, for each of two sizes), so they
    repeat.
    """
    grids = [(loss_grids(mechanism, spacing), count) for mechanism, count in composition.parts]
    directions = max(len(found) for found, _ in grids)
    return [[_part(found[i % len(found)], count) for found, count in grids] for i in range(directions)]


def _spread(mechanism: Mechanism) -> float:
    """A rough size of one step's privacy loss, to choose a first grid."""
    if isinstance(mechanism, Gaussian):
        return mechanism.mu
    return max(mechanism.rate / mechanism.sigma, 1e-6)


def _spacing(composition: Composition, tolerance: float, *, delta: float | None, epsilon: float | None) -> float:
    """A power of two so fine that the discretisation moves epsilon by about `tolerance` at most (times epsilon / 4,
    over 4).

    Keeping two moments per cell adds at most h^2 / 4 (h^2 / 6 where the loss is smooth) to each step's variance, which
    moves K(t) by t (t + 1) h^2 / 12 and epsilon by steps (t + 1) h^2 / 12.
    """
    first = min(2.0**-9, max(2.0**-14, 2.0 ** math.floor(math.log2(min(_spread(m) for m, _ in composition.parts)))))
    directions = _parts(composition, first)
    tilt, bound = max(
        (_tilt_for(parts, delta=delta, epsilon=epsilon) for parts in directions), key=lambda found: found[1]
    )
    tolerance *= max(1.0, (bound if delta is not None else float(epsilon or 0.0)) / 4.0)
    wanted = math.sqrt(12.0 * tolerance / (composition.steps * (tilt + 1.0)))
    widest = max(len(part.grid.mass) for parts in directions for part in parts) * first
    return 2.0 ** math.floor(math.log2(min(max(wanted, 2.0**-20, widest * 2.0**-20), 2.0**-6)))


def _refuse_hopeless(composition: Composition) -> None:
    """Raises AccountingError where one step alone moves the output by a hundred standard deviations."""
    for mechanism, _ in composition.parts:
        reach = mechanism.mu if isinstance(mechanism, Gaussian) else 2.0 / mechanism.sigma
        if not reach <= MOST_MU:
            raise AccountingError(
                f"one step moves its output by {reach:.3g} standard deviations of its noise; expected at most "
                f"{MOST_MU:g}, beyond which there is no useful guarantee."
            )


def _check(delta: float | None, tolerance: float) -> None:
    if delta is not None and not 0.0 < delta < 1.0:
        raise AccountingError(f"delta is {delta}; expected a number between 0 and 1, well below 1 / (number of units).")
    if not tolerance > 0.0:
        raise AccountingError(f"tolerance is {tolerance}; expected a positive number.")


def own_epsilon(composition: Composition, delta: float, *, tolerance: float = 2e-5) -> float:
    """Upper bound on epsilon at `delta`, about `tolerance` above the truth. 0 for an empty composition.

    Raises AccountingError where the losses are too large to represent.
    """
    _check(delta, tolerance)
    if composition.empty:
        return 0.0
    composition = condense(composition)
    _refuse_hopeless(composition)
    spacing = _spacing(composition, tolerance, delta=delta, epsilon=None)
    return max(_direction(parts, delta=delta, epsilon=None) for parts in _parts(composition, spacing))


def own_delta(composition: Composition, epsilon: float, *, tolerance: float = 2e-5) -> float:
    """Upper bound on delta at `epsilon` >= 0, as at an epsilon about `tolerance` lower. 0 for an empty composition."""
    _check(None, tolerance)
    if not (math.isfinite(epsilon) and epsilon >= 0.0):
        raise AccountingError(f"epsilon is {epsilon}; expected a finite number of at least 0.")
    if composition.empty:
        return 0.0
    composition = condense(composition)
    _refuse_hopeless(composition)
    spacing = _spacing(composition, tolerance, delta=None, epsilon=epsilon)
    return max(_direction(parts, delta=None, epsilon=epsilon) for parts in _parts(composition, spacing))
