"""What a private run did, as plain facts that an accountant can price.

An event states everything its price depends on (noise, sampling, adjacency, unit, sensitivity, how often) and nothing
else. Events are frozen, hashable, validated when made, and travel as strict JSON: every key present, no unknown key,
finite numbers only. Nothing here computes an epsilon; `privacy.accounting` does, and it refuses an event that it cannot
price. A release without noise has no event of its own: record it as `Unaccountable`, which no accountant accepts.

Words: a *unit* is what the guarantee protects (one example or one user). A *contribution* is the clipped vector that
one sampled record adds to a sum. `C` is the clipping norm; every `sensitivity` below is in units of C.

Adjacency:
    add_or_remove_one   the neighbour lacks one unit (or has one more).
    zero_out            the neighbour has a unit whose contributions are all zero; the number of units is public.
    replace_one         the neighbour has another unit in the place of one.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, get_args

Scheme = Literal["poisson", "truncated_poisson", "fixed_size_without_replacement", "shuffle", "none", "full"]
Adjacency = Literal["add_or_remove_one", "replace_one", "zero_out"]
Unit = Literal["example", "user"]

SCHEMES: tuple[str, ...] = get_args(Scheme)
ADJACENCIES: tuple[str, ...] = get_args(Adjacency)
UNITS: tuple[str, ...] = get_args(Unit)

MAX_COUNT = 10**12  # beyond any training run: a larger number in a file is an accident or an attack
MAX_TEXT = 2000

# Which fields of Sampling a scheme must state; fields it does not list must be None.
_REQUIRED: dict[str, tuple[str, ...]] = {
    "poisson": ("rate",),
    "truncated_poisson": ("rate", "population", "max_batch"),
    "fixed_size_without_replacement": ("population", "batch"),
    "shuffle": ("population", "batch"),
    "none": (),
    "full": (),
}
_OPTIONAL: dict[str, tuple[str, ...]] = {
    "poisson": ("population", "batch"),
    "truncated_poisson": ("batch",),
    "fixed_size_without_replacement": ("rate",),
    "shuffle": ("rate",),
    "none": ("rate", "population", "batch"),
    "full": ("rate", "population", "batch"),
}


class EventError(ValueError):
    """An event, or its JSON, states something impossible, unfinished or unknown."""


def _integer(name: str, value: object, low: int, high: int = MAX_COUNT) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise EventError(f"{name} is {value!r}; expected an integer between {low} and {high}.")
    if not low <= value <= high:
        raise EventError(f"{name} is {value}; expected an integer between {low} and {high}.")


def _real(name: str, value: object, *, above: float = 0.0, at_most: float = math.inf) -> None:
    bounds = f"above {above}" + (f" and at most {at_most}" if math.isfinite(at_most) else "")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise EventError(f"{name} is {value!r}; expected a finite number {bounds}.")
    try:  # a file may hold an integer too long for a float
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number) or not above < number <= at_most:
        raise EventError(f"{name} is {number}; expected a finite number {bounds}.")


def _text(name: str, value: object, *, empty: bool = True) -> None:
    if not isinstance(value, str):
        raise EventError(f"{name} is of type {type(value).__name__}; expected text.")
    if len(value) > MAX_TEXT:
        raise EventError(f"{name} has {len(value)} characters; expected at most {MAX_TEXT}.")
    if not empty and not value.strip():
        raise EventError(f"{name} is empty; say in words what happened.")


def _one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in allowed:
        raise EventError(f"{name} is {str(value)[:80]!r}; expected one of {', '.join(allowed)}.")


@dataclass(frozen=True)
class Sampling:
    """How the records of one step were chosen. Every number here is a public constant of the run.

    scheme:
        poisson             each record is in independently with probability `rate`.
        truncated_poisson   Poisson; a batch above `max_batch` keeps a uniformly random subset of `max_batch` records.
        fixed_size_without_replacement   a uniformly random subset of `batch` out of `population` records, drawn anew
                            each step.
        shuffle             epochs: a random order of `population` places cut into batches of `batch`. Accounted without
                            amplification: each record is in one step per epoch of ceil(population / batch) steps.
                            `population` is public, and add_or_remove_one is read as zero_out: an absent record leaves
                            its place empty and moves nobody else.
        none                any other choice of records: accounted as if every record were in every step.
        full                every record is in every step.

    rate in (0, 1]; population, batch, max_batch >= 1 records (users, when the unit that is sampled is a user).
    Raises EventError where a scheme lacks a number it needs, or carries one that means nothing to it.
    """

    scheme: Scheme = "full"
    rate: float | None = None
    population: int | None = None
    batch: int | None = None
    max_batch: int | None = None

    def __post_init__(self) -> None:
        _one_of("sampling scheme", self.scheme, SCHEMES)
        required, allowed = _REQUIRED[self.scheme], _REQUIRED[self.scheme] + _OPTIONAL[self.scheme]
        for name in ("rate", "population", "batch", "max_batch"):
            value = getattr(self, name)
            if value is None:
                if name in required:
                    raise EventError(f"{self.scheme} sampling lacks {name}; it is part of what the accountant prices.")
            elif name not in allowed:
                raise EventError(f"{self.scheme} sampling was given {name}={value!r}, which it does not use; drop it.")
            elif name == "rate":
                _real("sampling rate", value, at_most=1.0)
            else:
                _integer(f"sampling {name}", value, 1)
        if self.batch is not None and self.population is not None and self.batch > self.population:
            raise EventError(
                f"batch {self.batch} exceeds population {self.population}; expected at most the population."
            )
        if self.scheme in ("full", "none") and self.rate not in (None, 1, 1.0):
            raise EventError(
                f"{self.scheme} sampling was given rate {self.rate}; it has no amplification, so drop the rate."
            )
        if self.scheme in ("fixed_size_without_replacement", "shuffle") and self.rate is not None:
            assert self.batch is not None and self.population is not None
            if not math.isclose(self.rate, self.batch / self.population, rel_tol=1e-9):
                raise EventError(
                    f"rate {self.rate} is not batch / population = {self.batch / self.population}; drop the rate."
                )

    @property
    def probability(self) -> float:
        """The chance that a record is in a step (an upper bound for truncated Poisson); 1 without amplification."""
        if self.scheme in ("poisson", "truncated_poisson"):
            assert self.rate is not None
            return float(self.rate)
        if self.scheme == "fixed_size_without_replacement":
            assert self.batch is not None and self.population is not None
            return self.batch / self.population
        return 1.0

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which a shuffled loader shows every record once. Raises EventError for any other scheme."""
        if self.scheme != "shuffle":
            raise EventError(f"{self.scheme} sampling has no epochs; only shuffle has.")
        assert self.batch is not None and self.population is not None
        return -(-self.population // self.batch)

    def to_json(self) -> dict[str, Any]:
        """All five fields, None where they mean nothing."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: object) -> Sampling:
        """The inverse of `to_json`. Raises EventError on unknown or missing keys."""
        return cls(**_checked_keys("sampling", data, cls))


@dataclass(frozen=True)
class Participation:
    """How often one unit may take part in a run with correlated noise. Checked by the sampler, priced in `sensitivity`.

    min_separation: fewest steps from one participation to the next (>= 1). max_participations: in the whole run (>= 1).
    """

    min_separation: int
    max_participations: int

    def __post_init__(self) -> None:
        _integer("participation min_separation", self.min_separation, 1)
        _integer("participation max_participations", self.max_participations, 1)

    def to_json(self) -> dict[str, Any]:
        """Both fields."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: object) -> Participation:
        """The inverse of `to_json`. Raises EventError on unknown or missing keys."""
        return cls(**_checked_keys("participation", data, cls))


class _Kind:
    """What every event shares: a `kind` in its JSON, and JSON both ways."""

    kind: ClassVar[str]

    def to_json(self) -> dict[str, Any]:
        """A dict of JSON types with "kind" first; `event_from_json` gives an equal event back."""
        return {"kind": self.kind, **dataclasses.asdict(self)}  # type: ignore[call-overload]


@dataclass(frozen=True)
class GaussianRelease(_Kind):
    """`count` sums of clipped contributions, each with fresh Gaussian noise.

    noise_multiplier: standard deviation of the noise divided by C, > 0.
    sampling: how the records of each sum were chosen.
    count: how many such releases (run length), >= 1.
    unit: what the guarantee protects; stated, not converted. See contributions_per_unit.
    sensitivity: largest L2 norm of one contribution in units of C (1.0 for flat clipping to C). It is a bound on ONE
        contribution whatever the adjacency; under replace_one the accountant itself lets a contribution turn into its
        opposite, so do not double it here.
    contributions_per_unit: how many separately sampled records one unit may own, >= 1. A user who owns up to k records
        that are sampled one by one has k; a user sampled as a whole with one clipped update has 1.
    label: for people; no accountant reads it.
    """

    kind: ClassVar[str] = "gaussian"
    noise_multiplier: float
    sampling: Sampling = field(default_factory=Sampling)
    count: int = 1
    adjacency: Adjacency = "add_or_remove_one"
    unit: Unit = "example"
    label: str = ""
    sensitivity: float = 1.0
    contributions_per_unit: int = 1

    def __post_init__(self) -> None:
        _real("noise_multiplier", self.noise_multiplier)
        if not isinstance(self.sampling, Sampling):
            raise EventError(f"sampling is of type {type(self.sampling).__name__}; expected a Sampling.")
        _integer("count", self.count, 1)
        _one_of("adjacency", self.adjacency, ADJACENCIES)
        _one_of("unit", self.unit, UNITS)
        _text("label", self.label)
        _real("sensitivity", self.sensitivity)
        _integer("contributions_per_unit", self.contributions_per_unit, 1, 10**6)

    @property
    def distance(self) -> float:
        """Largest move of an un-sampled sum between neighbours, in units of C: k * sensitivity, twice to replace."""
        factor = 2.0 if self.adjacency == "replace_one" else 1.0
        return factor * self.contributions_per_unit * self.sensitivity

    def with_count(self, count: int) -> GaussianRelease:
        """The same release, `count` times."""
        return replace(self, count=count)


@dataclass(frozen=True)
class CorrelatedGaussianRelease(_Kind):
    """A whole run with correlated noise (matrix factorisation, DP-FTRL): ONE Gaussian release of all its steps.

    The run releases E G + Z with E the encoder matrix, G the clipped sums, Z white with standard deviation
    noise_multiplier * C; all else is post-processing (Denisov et al. 2202.08312, Choquette-Choo et al. 2306.08153).

    sensitivity: largest Frobenius norm of E G' in units of C, over all contributions G' of one unit that the
        participation allows: the matrix's own, computed by whoever built the matrix.
    participation, steps: the assumption behind `sensitivity`. No amplification by sampling is claimed.
    count: how many such whole runs, >= 1. Other fields as in GaussianRelease.
    """

    kind: ClassVar[str] = "correlated_gaussian"
    noise_multiplier: float
    sensitivity: float
    participation: Participation
    steps: int
    count: int = 1
    adjacency: Adjacency = "zero_out"
    unit: Unit = "example"
    label: str = ""

    def __post_init__(self) -> None:
        _real("noise_multiplier", self.noise_multiplier)
        _real("sensitivity", self.sensitivity)
        if not isinstance(self.participation, Participation):
            raise EventError(f"participation is of type {type(self.participation).__name__}; expected a Participation.")
        _integer("steps", self.steps, 1)
        _integer("count", self.count, 1)
        _one_of("adjacency", self.adjacency, ADJACENCIES)
        _one_of("unit", self.unit, UNITS)
        _text("label", self.label)
        most = -(-self.steps // self.participation.min_separation)
        if self.participation.max_participations > most:
            raise EventError(
                f"{self.participation.max_participations} participations do not fit into {self.steps} steps at least "
                f"{self.participation.min_separation} apart; expected at most {most}."
            )

    @property
    def distance(self) -> float:
        """Largest move of the released matrix between neighbours, in units of C."""
        return (2.0 if self.adjacency == "replace_one" else 1.0) * self.sensitivity

    def with_count(self, count: int) -> CorrelatedGaussianRelease:
        """The same run, `count` times."""
        return replace(self, count=count)


@dataclass(frozen=True)
class PostProcessing(_Kind):
    """Something that touched no private data (data-free quantisation, a public pre-training step): costs nothing.

    reason: why it costs nothing, in words. An auditor reads it; no accountant can check it.
    """

    kind: ClassVar[str] = "post_processing"
    reason: str

    def __post_init__(self) -> None:
        _text("reason", self.reason, empty=False)


@dataclass(frozen=True)
class Unaccountable(_Kind):
    """Something that used private data and has no price: no noise, or a query nobody analysed. Always refused.

    reason: what happened, in words.
    """

    kind: ClassVar[str] = "unaccountable"
    reason: str

    def __post_init__(self) -> None:
        _text("reason", self.reason, empty=False)


Event = GaussianRelease | CorrelatedGaussianRelease | PostProcessing | Unaccountable

EVENT_KINDS: dict[str, type[Event]] = {
    cls.kind: cls for cls in (GaussianRelease, CorrelatedGaussianRelease, PostProcessing, Unaccountable)
}


def _checked_keys(what: str, data: object, cls: type) -> dict[str, Any]:
    """`data` as keyword arguments of `cls`, after checking that it is a mapping with exactly its fields."""
    if not isinstance(data, Mapping):
        raise EventError(f"{what} is of type {type(data).__name__}; expected an object.")
    names = [item.name for item in dataclasses.fields(cls)]
    unknown = sorted(str(key)[:80] for key in data if key not in names)
    if unknown:
        raise EventError(f"{what} has the unknown keys {unknown[:5]}; expected only {names}.")
    missing = [name for name in names if name not in data]
    if missing:
        raise EventError(f"{what} lacks the keys {missing}; every key is stated, also where it has its usual value.")
    return dict(data)


def event_from_json(data: object) -> Event:
    """The event that `to_json` wrote.

    Raises EventError for an unknown kind, an unknown or missing key, a number that is not finite or out of range.
    """
    if not isinstance(data, Mapping):
        raise EventError(f"an event is of type {type(data).__name__}; expected an object with a kind.")
    kind = data.get("kind")
    if not isinstance(kind, str) or kind not in EVENT_KINDS:
        raise EventError(f"event kind is {str(kind)[:80]!r}; expected one of {', '.join(EVENT_KINDS)}.")
    cls = EVENT_KINDS[kind]
    fields = _checked_keys(f"event {kind}", {key: value for key, value in data.items() if key != "kind"}, cls)
    if "sampling" in fields:
        fields["sampling"] = Sampling.from_json(fields["sampling"])
    if "participation" in fields:
        fields["participation"] = Participation.from_json(fields["participation"])
    return cls(**fields)
