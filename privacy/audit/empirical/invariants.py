"""Direct checks of a mechanism's promises: its noise, its sensitivity, its unit, its sampler, and what else leaves it.

An audit with canaries sees how much leaks, whatever the reason, but needs many canaries to see a factor of two. These
checks look at one promise each and see small breaches at once. They need a step that can be run again: on the same
data with other noise, or on neighbouring data with the same noise (a seeded generator). The statistical ones fail a
correct mechanism with probability `significance` (1e-6); the others are exact up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import special

from privacy.audit.empirical.canaries import as_vector
from privacy.audit.empirical.result import Finding

Data = TypeVar("Data")

SIGNIFICANCE = 1e-6


def check_noise(
    release: Callable[[int], Any], *, std: float, repeats: int = 8, significance: float = SIGNIFICANCE
) -> Finding:
    """The released vector carries fresh Gaussian noise of exactly the stated standard deviation.

    Args:
        release: release(repeat) -> the released vector [d]; the same data each time, other noise each time.
        std: what each coordinate's noise should have, in the released vector's units (sigma C / divisor), > 0.
        repeats: >= 2. With n = (repeats - 1) d numbers a deviation of about 5 / sqrt(n) is seen.

    Under the promise the squared residuals over std^2 are chi-square with n degrees of freedom, and two repeats are
    uncorrelated.
    """
    if repeats < 2 or not std > 0.0:
        raise ValueError(f"repeats {repeats} and std {std} were given; expected at least 2, and a positive number.")
    drawn = np.stack([as_vector(release(repeat)) for repeat in range(repeats)])
    residual = drawn - drawn.mean(axis=0)
    n = (repeats - 1) * drawn.shape[1]
    total = float((residual**2).sum()) / std**2
    measured = std * math.sqrt(total / n)
    low = 2.0 * float(special.gammaincinv(0.5 * n, 0.5 * significance))
    high = 2.0 * float(special.gammainccinv(0.5 * n, 0.5 * significance))
    allowed = f"{std * math.sqrt(low / n):.4g} to {std * math.sqrt(high / n):.4g}"
    if not math.isfinite(total):
        return Finding("noise", False, total, allowed, "The released vector is not finite.")
    if total < low:
        share = f"{measured / std:.3g} times the stated {std:.4g}"
        return Finding("noise", False, measured, allowed, f"The noise is too small: {share}.")
    if total > high:
        share = f"{measured / std:.3g} times the stated {std:.4g}"
        return Finding("noise", False, measured, allowed, f"The noise is not what was stated: {share}.")
    reuse = _reuse(drawn, std, significance)
    if reuse is not None:
        return reuse
    return Finding("noise", True, measured, allowed, f"The noise has the stated standard deviation {std:.4g}.")


def _reuse(drawn: NDArray[np.float64], std: float, significance: float) -> Finding | None:
    """A failed finding where two repeats share their noise: their difference is then smaller than sqrt(2) std."""
    repeats, d = drawn.shape
    pairs = [(i, j) for i in range(repeats) for j in range(i)]
    least = 2.0 * float(special.gammaincinv(0.5 * d, significance / len(pairs)))
    for i, j in pairs:
        size = float(((drawn[i] - drawn[j]) ** 2).sum()) / (2.0 * std**2)
        if size < least:
            measured = std * math.sqrt(size / d)
            return Finding(
                "noise", False, measured, f"{std * math.sqrt(least / d):.4g}", "Two repeats share their noise."
            )
    return None


def check_sensitivity(
    release: Callable[[Data, int], Any],
    neighbours: Iterable[tuple[Data, Data]],
    *,
    bound: float,
    relative: float = 1e-3,
    seed: int = 0,
    check: str = "sensitivity",
) -> Finding:
    """No pair of neighbours moves the released vector by more than `bound`, noise apart.

    Args:
        release: release(data, seed) -> the released vector [d]; one seed, one noise, so that the noise cancels.
        neighbours: pairs of data. Give the hard ones: a record with an enormous gradient, one against all others, a
        long
            one, an empty data set.
        bound: C / divisor under add-or-remove, 2 C / divisor under replace-one. relative: allowance for rounding.

    Raises ValueError where no pair is given.
    """
    worst, pairs = 0.0, 0
    for one, other in neighbours:
        gap = as_vector(release(one, seed)) - as_vector(release(other, seed))
        size = float(np.linalg.norm(gap))
        worst = max(worst, size if math.isfinite(size) else math.inf)
        pairs += 1
    if pairs == 0:
        raise ValueError("no pair of neighbours was given; expected at least one.")
    allowed = f"at most {bound:.6g}"
    if worst > bound * (1.0 + relative):
        share = f"{worst / bound:.4g} times" if math.isfinite(worst) else "without limit beyond"
        return Finding(
            check, False, worst, allowed, f"One {_UNIT[check]} moves the release {share} what was accounted."
        )
    return Finding(
        check, True, worst, allowed, f"No {_UNIT[check]} of {pairs} moves the release by more than accounted."
    )


_UNIT = {"sensitivity": "record", "unit": "unit with all its records"}


def check_unit(
    release: Callable[[Data, int], Any],
    neighbours: Iterable[tuple[Data, Data]],
    *,
    bound: float,
    relative: float = 1e-3,
    seed: int = 0,
) -> Finding:
    """As `check_sensitivity`, for pairs that differ in ALL records of one unit (a household): is the unit what was
    claimed?
    """
    return check_sensitivity(release, neighbours, bound=bound, relative=relative, seed=seed, check="unit")


def check_sampler(
    draw: Callable[[int], Any],
    *,
    rate: float,
    population: int,
    steps: int = 400,
    significance: float = SIGNIFICANCE,
) -> Finding:
    """The batches look like Poisson samples: sizes, records' counts and overlaps vary as independent coins would.

    Args:
        draw: draw(step) -> record numbers of that step. rate in (0, 1), population: as the event states them.
        steps: more steps see smaller deviations; 400 tell a shuffled or fixed-size loader apart by 10 standard
        deviations.

    Four statistics are compared with their exact mean and variance under independent coins (normal approximation):
    the mean size, the spread of sizes, the spread of records' counts, and the overlap of consecutive steps.
    """
    if not 0.0 < rate < 1.0 or population < 1 or steps < 20:
        raise ValueError(
            f"rate {rate}, population {population}, steps {steps} were given; expected a rate between 0 and 1, a "
            "population of at least 1 and at least 20 steps."
        )
    inside = np.zeros((steps, population), dtype=bool)
    for step in range(steps):
        drawn = np.asarray(draw(step), dtype=np.int64).ravel()
        if len(drawn) and (drawn.min() < 0 or drawn.max() >= population or len(np.unique(drawn)) != len(drawn)):
            return Finding(
                "sampler", False, math.inf, "distinct records", f"Step {step} draws a record twice or none of ours."
            )
        inside[step, drawn] = True
    variance = rate * (1.0 - rate)

    def spread(counts: NDArray[np.int64], coins: int) -> float:
        """z of the sum of squared deviations of counts, each of `coins` coins."""
        squares = float(((counts - coins * rate) ** 2).sum()) / (coins * variance)
        one = 2.0 + (1.0 - 6.0 * variance) / (coins * variance)
        return (squares - len(counts)) / math.sqrt(len(counts) * one)

    sizes, counts = inside.sum(axis=1), inside.sum(axis=0)
    both = int((inside[1:] & inside[:-1]).sum())
    # Neighbouring overlaps share a step, which adds the covariance q^3 - q^4 for each of 2 (steps - 2) orderings.
    trials, shared = (steps - 1) * population, 2 * (steps - 2) * population
    overlap = trials * (rate**2 - rate**4) + shared * (rate**3 - rate**4)
    found = {
        "mean batch size": float(sizes.sum() - steps * population * rate) / math.sqrt(steps * population * variance),
        "spread of batch sizes": spread(sizes, population),
        "spread of the records' counts": spread(counts, steps),
        "overlap of consecutive batches": (both - trials * rate**2) / math.sqrt(overlap),
    }
    limit = -float(special.ndtri(0.5 * significance / len(found)))
    name, worst = max(found.items(), key=lambda item: abs(item[1]))
    allowed = f"at most {limit:.2f} standard deviations"
    if abs(worst) > limit:
        return Finding(
            "sampler", False, worst, allowed, f"The {name} is {worst:+.1f} standard deviations off Poisson's."
        )
    return Finding("sampler", True, worst, allowed, f"{steps} batches look like Poisson samples of rate {rate:g}.")


def check_isolation(
    run: Callable[[Data], Mapping[str, Any]],
    neighbours: Iterable[tuple[Data, Data]],
    *,
    noisy: Collection[str] = (),
) -> Finding:
    """Nothing that leaves the step depends on the data, except what the noise protects.

    Args:
        run: run(data) -> everything that survives the step, by name (parameters, buffers, optimiser state, a learning
        rate);
            the same seed each time.
        neighbours: pairs that differ in private data. To check that a validation set does not train, pairs that differ
            in the validation set only, and `noisy` empty.
        noisy: names that the noisy release accounts for. All others must be equal to the last bit.
    """
    moved: dict[str, float] = {}
    pairs = 0
    for one, other in neighbours:
        first, second = run(one), run(other)
        pairs += 1
        for name in sorted(set(first) | set(second)):
            if name in noisy:
                continue
            if name not in first or name not in second:
                moved[name] = math.inf
                continue
            left, right = as_vector(first[name]), as_vector(second[name])
            if left.shape != right.shape or not np.array_equal(left, right, equal_nan=True):
                gap = float(np.max(np.abs(left - right))) if left.shape == right.shape else math.inf
                moved[name] = max(moved.get(name, 0.0), gap)
    if pairs == 0:
        raise ValueError("no pair of neighbours was given; expected at least one.")
    worst = max(moved.values(), default=0.0)
    if moved:
        names = ", ".join(sorted(moved)[:5])
        return Finding("isolation", False, worst, "0", f"Private data moves {names}, which no noise protects.")
    return Finding("isolation", True, 0.0, "0", f"Nothing outside the noisy release moved in {pairs} pairs.")
