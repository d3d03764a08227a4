"""The account of a run: sampler, mechanism, budget and ledger bound together, so that none can drift from the others.

A private account pays for a round (the event is in the ledger, on the disk) and only then draws its noise; one object
gives both the noise and the event. The open account of the non-private ceiling averages the updates, writes no ledger
and states no epsilon.

What it refuses: a ledger that holds fewer rounds than the model has seen, a ledger of another run, and planned rounds
that would overspend the budget (before the first photo is touched).
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from federated.aggregators import aggregate
from federated.settings import FederatedConfig
from privacy.accounting.calibration import calibrate_noise
from privacy.budget import Budget, BudgetExceeded
from privacy.ledger import Ledger, LedgerTruncatedError
from privacy.mechanism import GaussianSum
from privacy.noise import SecureNoise, SeededNoise
from privacy.sampling import PoissonSampler

logger = logging.getLogger(__name__)

LEDGER = "ledger.jsonl"
LABEL = "federated round"


class AccountError(ValueError):
    """The run directory's ledger and model do not belong together; the message says how, and what to do."""


class Account(ABC):
    """What a round asks of the accounting. Rounds are numbered from 0."""

    noise_multiplier: float | None = None
    path: Path | None = None
    repeatable: bool = True  # computing a round twice gives the same release, bit for bit

    @abstractmethod
    def rounds_paid(self, rounds_done: int) -> int:
        """How many rounds are paid for, given that the model has seen ``rounds_done``."""

    @abstractmethod
    def ask(self, number: int) -> None:
        """Raise BudgetExceeded unless the round may be released."""

    @abstractmethod
    def cohort(self, number: int) -> list[int]:
        """The sampled devices, ascending."""

    @abstractmethod
    def release(self, number: int, updates: Mapping[int, Tensor], dimension: int) -> Tensor:
        """Pay for the round, then the mean update ``[d]`` float32 over the devices that were expected."""

    @abstractmethod
    def epsilon(self) -> float | None:
        """Spent so far; None where no privacy is claimed."""


def open_account(settings: FederatedConfig, run_dir: Path, *, fresh: bool) -> Account:
    """The account that the settings ask for. ``fresh``: the model has seen no round yet, so a ledger may be created."""
    if not settings.private:
        return OpenAccount(settings)
    return PrivateAccount(settings, run_dir / LEDGER, fresh=fresh)


def planned_noise(settings: FederatedConfig) -> float:
    """The noise multiplier of every round: the given one if it keeps the budget, else calibrated to it.

    Raises ValueError (BudgetExceeded) where the given one overspends, or where no noise keeps the budget.
    """
    sampling = PoissonSampler(settings.households, settings.sampling_rate, seed_or_generator=0).sampling
    if settings.noise_multiplier is None:
        return calibrate_noise(
            settings.epsilon,
            settings.delta,
            sampling=sampling,
            steps=settings.rounds,
            accountant=settings.accountant,
            unit="user",
        )
    probe = GaussianSum(
        clip_norm=settings.clip_norm,
        noise_multiplier=settings.noise_multiplier,
        sampling=sampling,
        divisor=settings.expected_cohort,
        noise=SeededNoise(0),
        unit="user",
    )
    budget = Budget(settings.epsilon, settings.delta, settings.accountant)
    affordable = budget.remaining_steps(probe.event(LABEL))
    if affordable < settings.rounds:
        raise BudgetExceeded(
            f"noise_multiplier {settings.noise_multiplier:g} affords {affordable} of the {settings.rounds} planned rounds "
            f"within epsilon {settings.epsilon:g} at delta {settings.delta:g}; leave it out to have it calibrated, plan "
            "fewer rounds, or grant a larger budget."
        )
    return settings.noise_multiplier


def open_ledger(path: Path) -> Ledger:
    """The run's ledger. A last line that a crash broke off is cut and recorded as such: its round was never released.

    AccountError where whole entries are missing, which no crash of ours does.
    """
    try:
        return Ledger.open(path)
    except LedgerTruncatedError:
        ledger = Ledger.repair(path)
    lost = ledger.entries[-1].body.get("lost_entries", 0)
    if lost:
        raise AccountError(
            f"the ledger {path} lacks {lost} entries that it once held, so no true "
            f"epsilon can be stated; put the whole "
            "ledger back, or begin anew in another run directory."
        )
    return ledger


class PrivateAccount(Account):
    """User-level (epsilon, delta) under add-or-remove-one of a device, by Poisson-sampled Gaussian sums."""

    def __init__(self, settings: FederatedConfig, path: Path, *, fresh: bool) -> None:
        self.path = path
        self.repeatable = settings.noise == "simulation"
        if path.exists():
            self.ledger = open_ledger(path)
            self.noise_multiplier = self._multiplier_of(settings)
        elif fresh:
            self.noise_multiplier = planned_noise(settings)
            self.ledger = Ledger.create(path, self._header(settings))
        else:
            raise AccountError(
                f"{path} is missing, but the model has seen rounds that it must list; "
                f"put the ledger back, or begin anew in "
                "another run directory."
            )
        # The cohort must stay unknown to whoever sees the releases, or sampling amplifies nothing: a secure run takes
        # its
        # key from the operating system and keeps it in memory only; after a restart a new key serves the rounds that no
        # key has served.
        seed = settings.seed if self.repeatable else None
        self.sampler = PoissonSampler(settings.households, settings.sampling_rate, seed_or_generator=seed)
        self.mechanism = GaussianSum(
            clip_norm=settings.clip_norm,
            noise_multiplier=self.noise_multiplier,
            sampling=self.sampler.sampling,
            divisor=settings.expected_cohort,
            noise=SeededNoise(settings.seed) if self.repeatable else SecureNoise(),
            unit="user",
        )
        spent = self.ledger.events()
        self.budget = Budget(settings.epsilon, settings.delta, settings.accountant, events=spent)
        self._paid = len(spent)

    def rounds_paid(self, rounds_done: int) -> int:
        if self._paid < rounds_done:
            raise AccountError(
                f"the ledger {self.path} lists {self._paid} rounds and the model has "
                f"seen {rounds_done}; the ledger was "
                "cut or replaced, so no true epsilon can be stated. Put the right ledger back, or begin anew."
            )
        return self._paid

    def ask(self, number: int) -> None:
        if number >= self._paid:
            self.budget.allow(self.mechanism.event(LABEL))

    def cohort(self, number: int) -> list[int]:
        return [int(device) for device in self.sampler.draw(number)]

    def release(self, number: int, updates: Mapping[int, Tensor], dimension: int) -> Tensor:
        if number >= self._paid:
            event = self.mechanism.event(LABEL)
            self.budget.allow(event)
            self.ledger.append(event, step=number)
            self.budget.spend(event)
            self._paid += 1
        elif not self.repeatable:
            raise AccountError(f"round {number + 1} was paid for once and would be released twice; this is a fault.")
        vectors = [updates[device] for device in sorted(updates)]
        return self.mechanism.release(vectors, step=number, dimension=dimension)

    def epsilon(self) -> float | None:
        return self.budget.spent()

    def _header(self, settings: FederatedConfig) -> dict[str, object]:
        return {
            "kind": "federated",
            "unit": "user",
            "adjacency": "add_or_remove_one",
            "epsilon": settings.epsilon,
            "delta": settings.delta,
            "accountant": settings.accountant,
            "noise_multiplier": self.noise_multiplier,
            "clip_norm": settings.clip_norm,
            "rounds": settings.rounds,
            "noise": "seeded (simulation)" if self.repeatable else "csprng",
            "configuration": settings.fingerprint(),
        }

    def _multiplier_of(self, settings: FederatedConfig) -> float:
        header = self.ledger.header
        if header.get("configuration") != settings.fingerprint():
            raise AccountError(
                f"the ledger {self.path} belongs to a run of another configuration; "
                f"resume with the configuration that began "
                "the run, or give a new run directory."
            )
        return float(header["noise_multiplier"])


class OpenAccount(Account):
    """No privacy: the mean, or a robust one, over the devices that answered. The ceiling of a private run."""

    def __init__(self, settings: FederatedConfig) -> None:
        self.settings = settings
        self.sampler = PoissonSampler(settings.households, settings.sampling_rate, seed_or_generator=settings.seed)

    def rounds_paid(self, rounds_done: int) -> int:
        return rounds_done

    def ask(self, number: int) -> None:
        return None

    def cohort(self, number: int) -> list[int]:
        return [int(device) for device in self.sampler.draw(number)]

    def release(self, number: int, updates: Mapping[int, Tensor], dimension: int) -> Tensor:
        settings = self.settings
        return aggregate(
            updates,
            dimension,
            name=settings.aggregator,
            hostile_share=settings.hostile_share,
            clip_norm=settings.clip_norm,
        )

    def epsilon(self) -> float | None:
        return None
