"""The account of a run: sampler, mechanism, budget and ledger bound together, so that none can drift from the others.

A private account pays for a round (the event is in the ledger, on the disk) and only then draws its noise; one object
gives both the noise and the event. The open account averages the updates, writes no ledger and states no epsilon: it
serves the non-private ceiling, and runs whose devices protect their photos themselves. Participation that is bounded
instead of sampled has its accounts in ``federated.bounded``.

What it refuses: a ledger that holds fewer rounds than the model has seen, a ledger of another run, and planned rounds
that would overspend the budget (before the first photo is touched).
"""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from federated.aggregators import aggregate
from federated.settings import FederatedConfig
from privacy.accounting import epsilon
from privacy.accounting.calibration import calibrate_noise
from privacy.budget import Budget, BudgetExceeded
from privacy.events import Adjacency, Event, GaussianRelease, Sampling
from privacy.ledger import Ledger, LedgerTruncatedError
from privacy.mechanism import GaussianSum
from privacy.noise import SecureNoise, SeededNoise
from privacy.sampling import PoissonSampler

logger = logging.getLogger(__name__)

LEDGER = "ledger.jsonl"
LABEL = "federated round"
EVALUATION = "evaluation on the devices"


_EVALUATIONS = 1 << 32  # their coins and noise are those of steps that no training round has


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
    def cohort(self, number: int, present: Sequence[int]) -> list[int]:
        """The devices of a round, ascending. ``present``: those connected, which only bounded participation looks at."""

    @abstractmethod
    def release(self, number: int, updates: Mapping[int, Tensor], dimension: int) -> Tensor:
        """Pay for the round, then the mean update ``[d]`` float32 over the devices that were expected."""

    @abstractmethod
    def epsilon(self) -> float | None:
        """Spent so far; None where no privacy is claimed."""

    def state(self) -> dict[str, Tensor]:
        """What the account needs to go on after a round, a function of what was released: it goes into the checkpoint."""
        return {}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`. ValueError where it is another account's."""
        if state:
            raise ValueError(f"the checkpoint holds {sorted(state)}, which this run's mode does not know.")


def open_account(settings: FederatedConfig, run_dir: Path, *, fresh: bool) -> Account:
    """The account that the settings ask for. ``fresh``: the model has seen no round yet, so a ledger may be created."""
    if not settings.private or settings.trust == "device":
        return OpenAccount(settings)
    if settings.participation == "bounded":
        from federated.bounded import BoundedAccount, SecureAccount  # they build on this file

        kind = SecureAccount if settings.trust == "secure_aggregation" else BoundedAccount
        return kind(settings, run_dir, fresh=fresh)
    if settings.adaptive.enabled:
        from federated.adaptive import AdaptiveAccount

        return AdaptiveAccount(settings, run_dir / LEDGER, fresh=fresh)
    return PrivateAccount(settings, run_dir / LEDGER, fresh=fresh)


def planned_noise(settings: FederatedConfig) -> float:
    """The noise multiplier of every round: the given one if it keeps the budget, else calibrated to it.

    Raises ValueError (BudgetExceeded) where the given one overspends, or where no noise keeps the budget.
    """
    if settings.trust == "device":
        from federated.on_device import planned_noise_on_device

        return planned_noise_on_device(settings)
    if settings.participation == "bounded":
        from federated.bounded import planned_bounded_noise

        return planned_bounded_noise(settings)
    sampling = PoissonSampler(settings.households, settings.sampling_rate, seed_or_generator=0).sampling
    if settings.private_evaluation.every:
        noise = noise_beside_evaluations(settings, sampling)
        check_split(settings, noise)
        return noise
    if settings.noise_multiplier is None:
        noise = _calibrated(settings, sampling)
        check_split(settings, noise)
        return noise
    check_split(settings, settings.noise_multiplier)
    probe = GaussianSum(
        clip_norm=settings.clip_norm,
        noise_multiplier=settings.noise_multiplier,
        sampling=sampling,
        divisor=settings.divisor,
        noise=SeededNoise(0),
        unit="user",
    )
    check_affordable(settings, probe.event(LABEL))
    return settings.noise_multiplier


def _calibrated(settings: FederatedConfig, sampling: Sampling) -> float:
    """The least noise multiplier at which the rounds alone keep the budget."""
    return calibrate_noise(
        settings.epsilon,
        settings.delta,
        sampling=sampling,
        steps=settings.rounds,
        accountant=settings.accountant,
        unit="user",
    )


def noise_beside_evaluations(settings: FederatedConfig, sampling: Sampling) -> float:
    """The rounds' noise where evaluations are paid from the same budget: the given one if both fit, else the least."""
    evaluation = settings.private_evaluation
    beside = GaussianRelease(
        evaluation.noise_multiplier, sampling, count=max(1, settings.rounds // evaluation.every), unit="user"
    )

    def cost(noise: float) -> float:
        rounds = GaussianRelease(noise, sampling, count=settings.rounds, unit="user")
        return epsilon([rounds, beside], settings.delta, settings.accountant)

    if settings.noise_multiplier is not None:
        if (spent := cost(settings.noise_multiplier)) > settings.epsilon:
            raise BudgetExceeded(
                f"{settings.rounds} rounds and {beside.count} evaluations would cost epsilon {spent:.4g}, above the budget of "
                f"{settings.epsilon:g}; leave noise_multiplier out, evaluate less often, or grant a larger budget."
            )
        return settings.noise_multiplier
    if epsilon([beside], settings.delta, settings.accountant) >= 0.9 * settings.epsilon:
        raise BudgetExceeded(
            f"the {beside.count} evaluations alone take nine tenths of epsilon {settings.epsilon:g}; give "
            "private_evaluation.noise_multiplier a larger number, or evaluate less often."
        )
    low = _calibrated(settings, sampling)
    high = 2 * low
    while cost(high) > settings.epsilon:
        low, high = high, 2 * high
    while high / low > 1.001:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if cost(middle) > settings.epsilon else (low, middle)
    return high


def check_affordable(settings: FederatedConfig, event: Event, times: int | None = None) -> None:
    """BudgetExceeded unless ``times`` (all rounds) such events keep the budget."""
    times = settings.rounds if times is None else times
    affordable = Budget(settings.epsilon, settings.delta, settings.accountant).remaining_steps(event)
    if affordable < times:
        raise BudgetExceeded(
            f"noise_multiplier {settings.noise_multiplier:g} affords {affordable} of the {times} planned "
            f"{'rounds' if times > 1 else 'run'} within epsilon {settings.epsilon:g} at delta {settings.delta:g}; leave it "
            "out to have it calibrated, plan fewer rounds, or grant a larger budget."
        )


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


class LedgeredAccount(Account):
    """What accounts with a ledger share: opening it or beginning it, its header, the noise that it states, the budget."""

    adjacency: Adjacency = "add_or_remove_one"

    def __init__(self, settings: FederatedConfig, path: Path, *, fresh: bool) -> None:
        self.path = path
        self.settings = settings
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
        self.budget = Budget(settings.epsilon, settings.delta, settings.accountant, events=self.ledger.events())

    def epsilon(self) -> float | None:
        return self.budget.spent()

    def _too_few_paid(self, paid: int, rounds_done: int) -> AccountError:
        return AccountError(
            f"the ledger {self.path} lists {paid} rounds and the model has "
            f"seen {rounds_done}; the ledger was "
            "cut or replaced, so no true epsilon can be stated. Put the right ledger back, or begin anew."
        )

    def _header(self, settings: FederatedConfig) -> dict[str, object]:
        return {
            "kind": "federated",
            "trust": settings.trust,
            "unit": "user",
            "adjacency": self.adjacency,
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


class PrivateAccount(LedgeredAccount):
    """User-level (epsilon, delta) under add-or-remove-one of a device, by Poisson-sampled Gaussian sums."""

    def __init__(self, settings: FederatedConfig, path: Path, *, fresh: bool) -> None:
        super().__init__(settings, path, fresh=fresh)
        assert self.noise_multiplier is not None
        # The cohort must stay unknown to whoever sees the releases, or sampling amplifies nothing: a secure run takes
        # its key from the operating system and keeps it in memory only; after a restart a new key serves the rounds that
        # no key has served.
        seed = settings.seed if self.repeatable else None
        self.sampler = PoissonSampler(settings.households, settings.sampling_rate, seed_or_generator=seed)
        self.mechanism = GaussianSum(
            clip_norm=settings.clip_norm,
            noise_multiplier=self.noise_multiplier,
            sampling=self.sampler.sampling,
            divisor=settings.divisor,
            noise=SeededNoise(settings.seed) if self.repeatable else SecureNoise(),
            unit="user",
        )
        events = self.ledger.events()
        self._paid = sum(getattr(event, "label", "") == LABEL for event in events)
        self._evaluated = {
            step
            for event, step in zip(events, self.ledger.steps(), strict=True)
            if getattr(event, "label", "") == EVALUATION
        }

    def rounds_paid(self, rounds_done: int) -> int:
        if self._paid < rounds_done:
            raise self._too_few_paid(self._paid, rounds_done)
        return self._paid

    def ask(self, number: int) -> None:
        if number >= self._paid:
            self.budget.allow(self.mechanism.event(LABEL))

    def cohort(self, number: int, present: Sequence[int]) -> list[int]:
        return [int(device) for device in self.sampler.draw(number)]

    def release(self, number: int, updates: Mapping[int, Tensor], dimension: int) -> Tensor:
        self._pay(number)
        vectors = [updates[device] for device in sorted(updates)]
        return self.mechanism.release(vectors, step=number, dimension=dimension)

    def evaluates(self, number: int) -> bool:
        """Whether the round is followed by an evaluation that may still be released."""
        every = self.settings.private_evaluation.every
        due = every > 0 and (number + 1) % every == 0
        return due and (self.repeatable or number not in self._evaluated)

    def evaluation_cohort(self, number: int) -> list[int]:
        """A fresh Poisson cohort: the same rate, other coins."""
        return [int(device) for device in self.sampler.draw(_EVALUATIONS + number)]

    def release_losses(self, number: int, losses: Mapping[int, float]) -> float:
        """Pay, then the noisy mean loss over the devices that were expected, nats per token."""
        settings = self.settings.private_evaluation
        summed = GaussianSum(
            clip_norm=settings.loss_bound,
            noise_multiplier=settings.noise_multiplier,
            sampling=self.sampler.sampling,
            divisor=self.settings.divisor,
            noise=SeededNoise(self.settings.seed) if self.repeatable else SecureNoise(),
            unit="user",
        )
        if number not in self._evaluated:
            event = summed.event(EVALUATION)
            self.budget.allow(event)
            self.ledger.append(event, step=number)
            self.budget.spend(event)
            self._evaluated.add(number)
        vectors = [torch.tensor([losses[device]], dtype=torch.float64) for device in sorted(losses)]
        return float(summed.release(vectors, step=_EVALUATIONS + number, dimension=1))

    def _pay(self, number: int, **public_fields: float) -> None:
        """The event of a round into the ledger, on the disk, unless it is there (then only seeded noise goes on)."""
        if number >= self._paid:
            event = self.mechanism.event(LABEL)
            self.budget.allow(event)
            self.ledger.append(event, step=number, **public_fields)
            self.budget.spend(event)
            self._paid += 1
        elif not self.repeatable:
            raise AccountError(f"round {number + 1} was paid for once and would be released twice; this is a fault.")


def check_split(settings: FederatedConfig, noise_multiplier: float) -> None:
    """ValueError where adaptive clipping's count would take all the noise: count_noise must be above the whole's."""
    if settings.adaptive.enabled and settings.adaptive.count_noise <= noise_multiplier:
        raise ValueError(
            f"adaptive.count_noise is {settings.adaptive.count_noise:g} and the whole release has a noise multiplier of "
            f"{noise_multiplier:g}; the count's must be larger (ten times leaves the updates almost all), so raise it."
        )


class OpenAccount(Account):
    """No privacy: the mean, or a robust one, over the devices that answered. The ceiling of a private run."""

    def __init__(self, settings: FederatedConfig) -> None:
        self.settings = settings
        self.sampler = PoissonSampler(settings.households, settings.sampling_rate, seed_or_generator=settings.seed)

    def rounds_paid(self, rounds_done: int) -> int:
        return rounds_done

    def ask(self, number: int) -> None:
        return None

    def cohort(self, number: int, present: Sequence[int]) -> list[int]:
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
