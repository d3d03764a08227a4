"""Choosing the records of each step, and saying how: the sampler that draws also states the event's `Sampling`.

Every sampler draws step t from (key, t) alone, so a run that was stopped and resumed at t draws what it would have
drawn. The key is 256 bits. Amplification by sampling holds against those who do not know who was drawn: a real run
takes its key from the operating system (`seed_or_generator=None`) and stores `state()` where it keeps its other
secrets; an integer seed is for tests and simulations, and `kind` says which it was.

    PoissonSampler        every record by its own coin; with max_batch, truncated Poisson, a scheme of its own
    FixedSizeSampler      a uniformly random subset of fixed size, drawn anew each step
    ShuffledSampler       epochs of a random order: accounted without amplification
    FullSampler           every record in every step
    CyclicSampler         fixed batches in a fixed order: no amplification, but a bound on how soon a record comes back
    GuardedArrivals       whoever comes, but nobody too early or too often: no amplification, the bound enforced

Refuses: rates outside (0, 1], populations below 1, batches that do not fit.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable
from fractions import Fraction
from typing import Protocol

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from privacy.correlated import ParticipationGuard
from privacy.events import Participation, Sampling

Indices = NDArray[np.int64]
_CHUNK = 1 << 18  # 2 MiB of random words at a time


class Sampler(Protocol):
    """What a private optimiser and a federated server ask of a sampler."""

    @property
    def sampling(self) -> Sampling:
        """How the records are chosen, as the ledger will state it."""
        ...

    @property
    def kind(self) -> str:
        """ "csprng" or "seeded (simulation)"."""
        ...

    @property
    def expected_batch(self) -> float:
        """Expected records per step, a public constant: what a mean divides by."""
        ...

    def draw(self, step: int) -> Indices:
        """Sorted record numbers of the step, possibly none."""
        ...


class _Keyed:
    """A 256-bit key, and streams of random 64-bit words that are functions of (key, purpose, number)."""

    def __init__(self, population: int, seed_or_generator: int | bytes | np.random.Generator | torch.Generator | None):
        if isinstance(population, bool) or not isinstance(population, int | np.integer):
            raise TypeError(f"the population is of type {type(population).__name__}; expected an integer.")
        if population < 1:
            raise ValueError(f"the population is {population}; expected at least one record.")
        self.population = int(population)
        self.kind = "seeded (simulation)"
        if seed_or_generator is None:
            self._key, self.kind = os.urandom(32), "csprng"
        elif isinstance(seed_or_generator, bytes):
            if len(seed_or_generator) != 32:
                raise ValueError(f"the key has {len(seed_or_generator)} bytes; expected the 32 bytes of state().")
            self._key, self.kind = seed_or_generator, "csprng"
        elif isinstance(seed_or_generator, np.random.Generator):
            self._key = seed_or_generator.bytes(32)
        elif isinstance(seed_or_generator, torch.Generator):
            words = torch.randint(0, 256, (32,), generator=seed_or_generator, dtype=torch.uint8)
            self._key = bytes(words.tolist())
        elif isinstance(seed_or_generator, int) and not isinstance(seed_or_generator, bool):
            self._key = hashlib.sha256(f"sampler|{seed_or_generator}".encode()).digest()
        else:
            raise TypeError(
                f"the seed is of type {type(seed_or_generator).__name__}; expected an integer, a generator, the bytes "
                "of state(), or None for a fresh secret key."
            )

    def state(self) -> bytes:
        """The key, 32 bytes, to resume with. A secret: who has it knows who was drawn."""
        return self._key

    def _words(self, purpose: str, number: int, count: int) -> NDArray[np.uint64]:
        """`count` uniform 64-bit words."""
        if number < 0:
            raise ValueError(f"the step is {number}; expected at least 0.")
        key = hashlib.sha256(self._key + f"|{purpose}|{number}|{self.population}".encode()).digest()
        stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
        parts = [
            np.frombuffer(stream.update(bytes(8 * min(_CHUNK, count - start))), dtype="<u8")
            for start in range(0, count, _CHUNK)
        ]
        return np.concatenate(parts).astype(np.uint64, copy=False) if parts else np.zeros(0, np.uint64)

    def _order(self, purpose: str, number: int) -> Indices:
        """A uniformly random order of the records: they are sorted by random words (a tie has chance n**2 / 2**65)."""
        return np.argsort(self._words(purpose, number, self.population), kind="stable").astype(np.int64)


class PoissonSampler(_Keyed):
    """Each record is in each step with probability `rate`, independently of everything else.

    population: records (or users), >= 1. rate in (0, 1]. max_batch: a public cap; of more than that many drawn records
    a uniformly random subset of max_batch stays, and `sampling` says "truncated_poisson", which is accounted for
    itself.
    seed_or_generator: None for a secret key, or the bytes of state(); an int or generator for simulations.
    The chance is `rate` rounded down to a multiple of 2**-64: never more than what is accounted.
    """

    def __init__(
        self,
        population: int,
        rate: float,
        *,
        seed_or_generator: int | bytes | np.random.Generator | torch.Generator | None = None,
        max_batch: int | None = None,
    ) -> None:
        super().__init__(population, seed_or_generator)
        if not (math.isfinite(rate) and 0 < rate <= 1):
            raise ValueError(f"the sampling rate is {rate}; expected a number above 0 and at most 1.")
        if max_batch is not None and max_batch < 1:
            raise ValueError(f"max_batch is {max_batch}; expected at least 1, or None for no cap.")
        self.rate, self.max_batch = float(rate), max_batch
        # words below the threshold are in; at rate 1 it is 2**64 and every word is below it
        self._threshold = math.floor(Fraction(self.rate) * 2**64)

    @property
    def sampling(self) -> Sampling:
        """poisson, or truncated_poisson where max_batch was given."""
        if self.max_batch is None:
            return Sampling(scheme="poisson", rate=self.rate, population=self.population)
        return Sampling(
            scheme="truncated_poisson", rate=self.rate, population=self.population, max_batch=int(self.max_batch)
        )

    @property
    def expected_batch(self) -> float:
        """rate * population: truncation lowers the mean, not this public constant."""
        return self.rate * self.population

    def draw(self, step: int) -> Indices:
        """Sorted record numbers of the step, int64, possibly none."""
        words = self._words("poisson", step, self.population)
        if self._threshold >= 2**64:
            drawn = np.arange(self.population, dtype=np.int64)
        else:
            drawn = np.flatnonzero(words < np.uint64(self._threshold)).astype(np.int64)
        if self.max_batch is not None and len(drawn) > self.max_batch:
            # below the threshold the words are uniform, so the smallest ones are a uniformly random subset
            smallest = np.argpartition(words[drawn], self.max_batch - 1)[: self.max_batch]
            drawn = np.sort(drawn[smallest])
        return drawn


class FixedSizeSampler(_Keyed):
    """A uniformly random subset of `batch` records, drawn anew each step (1 <= batch <= population)."""

    def __init__(
        self,
        population: int,
        batch: int,
        *,
        seed_or_generator: int | bytes | np.random.Generator | torch.Generator | None = None,
    ) -> None:
        super().__init__(population, seed_or_generator)
        self.batch = _checked_batch(batch, self.population)

    @property
    def sampling(self) -> Sampling:
        """fixed_size_without_replacement."""
        return Sampling(scheme="fixed_size_without_replacement", population=self.population, batch=self.batch)

    @property
    def expected_batch(self) -> float:
        """The batch."""
        return float(self.batch)

    def draw(self, step: int) -> Indices:
        """Sorted record numbers, exactly `batch` of them."""
        return np.sort(self._order("fixed", step)[: self.batch])


class ShuffledSampler(_Keyed):
    """Epochs: a fresh random order of the records each epoch, cut into batches; the last of an epoch may be smaller.

    Its event says "shuffle", which is accounted without amplification: shuffling is not Poisson sampling, and calling
    it so understates epsilon several times over (Chua et al. 2403.17673).
    """

    def __init__(
        self,
        population: int,
        batch: int,
        *,
        seed_or_generator: int | bytes | np.random.Generator | torch.Generator | None = None,
    ) -> None:
        super().__init__(population, seed_or_generator)
        self.batch = _checked_batch(batch, self.population)
        self._epoch: tuple[int, Indices] | None = None  # the order of the last epoch asked for: a cache, not a state

    @property
    def sampling(self) -> Sampling:
        """shuffle."""
        return Sampling(scheme="shuffle", population=self.population, batch=self.batch)

    @property
    def expected_batch(self) -> float:
        """The batch."""
        return float(self.batch)

    def draw(self, step: int) -> Indices:
        """Sorted record numbers of the step; steps 0 .. steps_per_epoch - 1 are the first epoch."""
        epoch, place = divmod(step, self.sampling.steps_per_epoch)
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = (epoch, self._order("shuffle", epoch))
        return np.sort(self._epoch[1][place * self.batch : (place + 1) * self.batch])


class FullSampler:
    """Every record in every step."""

    kind = "none"

    def __init__(self, population: int) -> None:
        if population < 1:
            raise ValueError(f"the population is {population}; expected at least one record.")
        self.population = int(population)

    @property
    def sampling(self) -> Sampling:
        """full."""
        return Sampling(scheme="full", population=self.population)

    @property
    def expected_batch(self) -> float:
        """The population."""
        return float(self.population)

    def draw(self, step: int) -> Indices:
        """All record numbers."""
        return np.arange(self.population, dtype=np.int64)


class CyclicSampler(_Keyed):
    """Fixed batches, assigned once at random, visited in a fixed order: for correlated noise, without amplification.

    A record comes back every `cycle` = ceil(population / batch) steps and not before; `participation(steps)` says so to
    the event. batch: 1 .. population.
    """

    def __init__(
        self,
        population: int,
        batch: int,
        *,
        seed_or_generator: int | bytes | np.random.Generator | torch.Generator | None = None,
    ) -> None:
        super().__init__(population, seed_or_generator)
        self.batch = _checked_batch(batch, self.population)
        self.cycle = -(-self.population // self.batch)
        self._fixed = self._order("cyclic", 0)

    @property
    def sampling(self) -> Sampling:
        """none: nothing about the choice is secret."""
        return Sampling(scheme="none", population=self.population, batch=self.batch)

    @property
    def expected_batch(self) -> float:
        """The batch."""
        return float(self.batch)

    def participation(self, steps: int) -> Participation:
        """The participation bound that a run of `steps` steps keeps."""
        return Participation(min_separation=self.cycle, max_participations=-(-steps // self.cycle))

    def draw(self, step: int) -> Indices:
        """Sorted record numbers of the step."""
        if step < 0:
            raise ValueError(f"the step is {step}; expected at least 0.")
        place = step % self.cycle
        return np.sort(self._fixed[place * self.batch : (place + 1) * self.batch])


class GuardedArrivals:
    """Units that come when they like: of those present, at most `batch` that the participation bound lets in.

    Who waited longest goes first; a unit that comes too early or too often is turned away, so that the bound that the
    event states is kept whatever happens. Nothing about the choice is secret, and no amplification is claimed. It may
    depend on who came before, never on what they hold.
    """

    kind = "none"

    def __init__(self, population: int, batch: int, participation: Participation) -> None:
        if population < 1:
            raise ValueError(f"the population is {population}; expected at least one record.")
        self.population = int(population)
        self.batch = _checked_batch(batch, self.population)
        self.guard = ParticipationGuard(participation)

    @property
    def participation(self) -> Participation:
        """The bound that is kept."""
        return self.guard.participation

    @property
    def sampling(self) -> Sampling:
        """none: nothing about the choice is secret."""
        return Sampling(scheme="none", population=self.population, batch=self.batch)

    @property
    def expected_batch(self) -> float:
        """The batch."""
        return float(self.batch)

    def choose(self, present: Iterable[int], step: int) -> list[int]:
        """At most `batch` of the units `present` that may take part in `step`, ascending."""
        ready = [unit for unit in set(present) if 0 <= unit < self.population and self.guard.may(unit, step)]
        # among those who waited equally long, an order that differs by step, so that no number always goes first
        ready.sort(key=lambda unit: (self.guard.last(unit), hashlib.sha256(f"{step}|{unit}".encode()).digest()))
        return sorted(ready[: self.batch])


def _checked_batch(batch: int, population: int) -> int:
    if isinstance(batch, bool) or not isinstance(batch, int | np.integer):
        raise TypeError(f"the batch is of type {type(batch).__name__}; expected an integer.")
    if not 1 <= batch <= population:
        raise ValueError(f"the batch is {batch}; expected between 1 and the population, {population}.")
    return int(batch)
