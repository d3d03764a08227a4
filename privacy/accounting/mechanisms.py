"""From events to the few mechanisms that the accountants know how to price.

`resolve` reads the events of one run and returns a multiset of mechanisms: what depends on wording (a shuffled loader,
a sensitivity, a record bound) is settled here, once, for all accountants. It refuses what nobody here can prove.

Why the order of events does not matter: every mechanism below is described by a pair of distributions that dominates it
for all inputs, so adaptive composition is dominated by the product of the pairs (Zhu, Dong, Wang 2106.08567, Theorem
10), and products commute.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from privacy.events import (
    Adjacency,
    CorrelatedGaussianRelease,
    Event,
    GaussianRelease,
    PostProcessing,
    Unaccountable,
    Unit,
)


class AccountingError(ValueError):
    """The events, or the question asked about them, have no answer that could be defended."""


class UnsupportedEvent(AccountingError):
    """An accountant met an event that it cannot price. It never guesses."""


@dataclass(frozen=True)
class Gaussian:
    """Gaussian noise, nothing else: exactly mu-GDP (Dong, Roth, Su 1905.02383). mu = distance / standard deviation."""

    mu: float


@dataclass(frozen=True)
class Poisson:
    """One Gaussian sum over a Poisson sample. sigma: noise over the norm of one contribution; group: records per
    unit.
    """

    rate: float
    sigma: float
    group: int = 1
    replace: bool = False


@dataclass(frozen=True)
class TruncatedPoisson:
    """A Poisson sample of which at most `max_batch` records are kept. The data set has `population` records, a
    neighbour one more or one fewer (or as many, to replace)."""

    rate: float
    population: int
    max_batch: int
    sigma: float
    replace: bool = False


@dataclass(frozen=True)
class FixedSubset:
    """A uniformly random subset of `batch` out of `population` records, under replace_one."""

    population: int
    batch: int
    sigma: float

    @property
    def rate(self) -> float:
        """The chance that a record is in the subset."""
        return self.batch / self.population


Mechanism = Gaussian | Poisson | TruncatedPoisson | FixedSubset


@dataclass(frozen=True)
class Composition:
    """A multiset of mechanisms under one adjacency: the input of every accountant."""

    parts: tuple[tuple[Mechanism, int], ...]
    adjacency: Adjacency = "add_or_remove_one"
    unit: Unit = "example"

    @property
    def steps(self) -> int:
        """How many mechanisms, with their counts (the Gaussians are merged into one)."""
        return sum(count for _, count in self.parts)

    @property
    def empty(self) -> bool:
        """True where nothing private was released."""
        return not self.parts


def participations(steps: int, steps_per_epoch: int) -> int:
    """In how many of `steps` a record takes part at most, when a run that starts with an epoch shuffles every epoch."""
    return -(-steps // steps_per_epoch)


def _same(what: str, values: set[str]) -> None:
    if len(values) > 1:
        raise AccountingError(
            f"the events state {len(values)} values of {what} ({', '.join(sorted(values))}); a guarantee has one, "
            f"so account them apart, or restate every event under the same {what}."
        )


def _mechanism(event: GaussianRelease) -> Mechanism:
    """The mechanism of one release whose records are drawn anew at each step."""
    sampling, replaced = event.sampling, event.adjacency == "replace_one"
    sigma = event.noise_multiplier / event.sensitivity
    scheme, group = sampling.scheme, event.contributions_per_unit
    if scheme == "poisson" and sampling.probability < 1.0:
        return Poisson(sampling.probability, sigma, group, replaced)
    if scheme == "truncated_poisson":
        assert sampling.population is not None and sampling.max_batch is not None
        if sampling.max_batch >= sampling.population:  # nothing can be cut off
            if sampling.probability < 1.0:
                return Poisson(sampling.probability, sigma, group, replaced)
            return Gaussian(event.distance / event.noise_multiplier)
        if group > 1:
            raise UnsupportedEvent(
                f"truncated Poisson sampling with {group} records per unit has no proven bound here; sample units, "
                "or do not truncate."
            )
        return TruncatedPoisson(sampling.probability, sampling.population, sampling.max_batch, sigma, replaced)
    if scheme == "fixed_size_without_replacement":
        assert sampling.population is not None and sampling.batch is not None
        if sampling.batch < sampling.population:
            if not replaced:
                raise UnsupportedEvent(
                    f"fixed-size sampling was stated under {event.adjacency}; its batches have a size that only "
                    "replace_one leaves alone, so state replace_one."
                )
            if group > 1:
                raise UnsupportedEvent(
                    f"fixed-size sampling with {group} records per unit has no proven bound here; sample units."
                )
            return FixedSubset(sampling.population, sampling.batch, sigma)
    return Gaussian(event.distance / event.noise_multiplier)


def resolve(events: Iterable[Event]) -> Composition:
    """What the events of ONE run release, as mechanisms with counts.

    A run that shuffles counts its steps from the start of an epoch. For several runs on one data set use
    `privacy.accounting.compose_runs`, which settles each run's epochs before it joins them.

    Where a shuffled run changes its noise, every participation is charged at the run's worst ratio of distance to
    noise.

    Raises:
        UnsupportedEvent: an event is `Unaccountable`, or nobody here can price it.
        AccountingError: the events do not share one adjacency and one unit.
        TypeError: something is not an event.
    """
    counts: dict[Mechanism, int] = {}
    squared_mu = 0.0
    shuffled: dict[int, tuple[int, float]] = {}  # steps per epoch -> (steps, worst mu of one participation)
    adjacencies: set[str] = set()
    units: set[str] = set()
    merged: dict[Event, int] = {}
    for event in events:
        if isinstance(event, Unaccountable):
            raise UnsupportedEvent(
                f"an event cannot be accounted ({event.reason}); no accountant may put a number on it."
            )
        if isinstance(event, PostProcessing):
            continue
        if not isinstance(event, GaussianRelease | CorrelatedGaussianRelease):
            raise TypeError(f"an event is of type {type(event).__name__}; expected one of privacy.events.")
        merged[event] = merged.get(event, 0) + 1
    for event, times in merged.items():
        assert isinstance(event, GaussianRelease | CorrelatedGaussianRelease)
        adjacencies.add(event.adjacency)
        units.add(event.unit)
        count = times * event.count
        if isinstance(event, CorrelatedGaussianRelease):
            squared_mu += count * (event.distance / event.noise_multiplier) ** 2
        elif event.sampling.scheme == "shuffle":
            epoch = event.sampling.steps_per_epoch
            steps, worst = shuffled.get(epoch, (0, 0.0))
            # k records of one unit meet in at most k steps of an epoch, or all in one: the latter moves the sum
            # further.
            shuffled[epoch] = (steps + count, max(worst, event.distance / event.noise_multiplier))
        else:
            mechanism = _mechanism(event)
            if isinstance(mechanism, Gaussian):
                squared_mu += count * mechanism.mu**2
            else:
                counts[mechanism] = counts.get(mechanism, 0) + count
    for epoch, (steps, worst) in shuffled.items():
        # A second batch size must begin somewhere: its steps may start in the middle of an epoch and touch one more.
        most = participations(steps, epoch) if len(shuffled) == 1 else participations(steps - 1, epoch) + 1
        squared_mu += most * worst**2
    _same("adjacency", adjacencies)
    _same("unit", units)
    if squared_mu > 0:
        mu = math.sqrt(squared_mu)
        if not math.isfinite(mu):
            raise AccountingError(
                "the noise is so small that the privacy loss overflows; there is no guarantee to state."
            )
        counts[Gaussian(mu)] = 1
    parts = tuple(sorted(counts.items(), key=lambda item: repr(item[0])))
    adjacency: Adjacency = adjacencies.pop() if adjacencies else "add_or_remove_one"  # type: ignore[assignment]
    unit: Unit = units.pop() if units else "example"  # type: ignore[assignment]
    return Composition(parts, adjacency, unit)


def condense(composition: Composition, most: int = 64) -> Composition:
    """The composition with at most about `most` noise levels per kind of sampling; unchanged where it has no more.

    A run whose noise changes at every step would cost a numerical accountant one distribution per step. Steps that
    differ in their noise only are put into `most` classes of equal width in log sigma, and each class is charged at
    its own least
    noise: an upper bound, since less noise can only tell more (add the difference afterwards).
    """
    if len(composition.parts) <= most:
        return composition
    families: dict[Mechanism, list[tuple[float, int]]] = {}
    counts: dict[Mechanism, int] = {}
    for mechanism, count in composition.parts:
        if isinstance(mechanism, Gaussian):
            counts[mechanism] = counts.get(mechanism, 0) + count
        else:
            families.setdefault(replace(mechanism, sigma=1.0), []).append((mechanism.sigma, count))
    for family, members in families.items():
        assert not isinstance(family, Gaussian)
        low, high = min(sigma for sigma, _ in members), max(sigma for sigma, _ in members)
        width = math.log(high / low) / most
        classes: dict[int, tuple[float, int]] = {}
        for sigma, count in members:
            place = min(most - 1, int(math.log(sigma / low) / width)) if width > 0.0 else 0
            least, total = classes.get(place, (math.inf, 0))
            classes[place] = (min(least, sigma), total + count)
        for sigma, count in classes.values():
            charged = replace(family, sigma=sigma)
            counts[charged] = counts.get(charged, 0) + count
    parts = tuple(sorted(counts.items(), key=lambda item: repr(item[0])))
    return replace(composition, parts=parts)
