"""Accounts for devices that come when they like: no amplification is claimed, and how often one takes part is bounded.

The whole run is ONE Gaussian release (``privacy.correlated``): its price depends on how often, and how soon again, a
device may take part, and not on who happens to come. So the bound is enforced: of the devices that are connected, those
that came too early or too often are turned away, and a device counts as having taken part when it is *asked*, whatever it
answers, so that the choice of devices depends on nobody's photos. Adjacency is zero-out: the neighbour has the same
devices, one of which always answers zero.

    BoundedAccount  the server adds the noise, correlated over the rounds where ``bands`` > 1 (DP-FTRL)
    SecureAccount   the devices add it, and the server sees sums only (``federated.secure_rounds``)

What the next round needs (who came when; the noise of the last rounds) is written to ``RUN-secret/`` BEFORE a round is
released, readable by the owner alone: whoever has the noise can take it away. It lies beside the run's folder, which is
what one hands to an auditor. After a crash, seeded noise repeats the round; with secure noise the round is lost, its
participations and its noise stay counted, and the run goes on.

What it refuses: secret state that is missing or damaged while the model has seen rounds.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from federated.accounts import LABEL, LEDGER, AccountError, LedgeredAccount, check_affordable
from federated.beside import SECRET, beside
from federated.checkpoint import write_atomically
from federated.modes import least_contributors
from federated.settings import FederatedConfig
from privacy.accounting import epsilon as price
from privacy.accounting.summary import gaussian_mu
from privacy.clipping.vector import clip_vector
from privacy.correlated import CorrelatedNoise, Encoder
from privacy.events import CorrelatedGaussianRelease, Participation
from privacy.noise import SecureNoise, SeededNoise, grid
from privacy.sampling import GuardedArrivals

logger = logging.getLogger(__name__)

KEPT = 2


def participation_of(settings: FederatedConfig) -> Participation:
    """The bound that the run keeps."""
    return Participation(settings.bounded.min_separation, settings.bounded.max_participations)


def correlated_noise(settings: FederatedConfig) -> CorrelatedNoise:
    """The run's noise: fresh in every round with one band."""
    source = SeededNoise(settings.seed) if settings.noise == "simulation" else SecureNoise()
    return CorrelatedNoise(Encoder(settings.rounds, settings.bounded.bands), participation_of(settings), source)


def run_event(settings: FederatedConfig, noise_multiplier: float) -> CorrelatedGaussianRelease:
    """What the whole run costs."""
    return correlated_noise(settings).event(noise_multiplier, unit="user", label=f"{LABEL}s")


def planned_bounded_noise(settings: FederatedConfig) -> float:
    """The noise multiplier of the white noise: the given one if it keeps the budget, else the least that does."""
    if settings.noise_multiplier is not None:
        check_affordable(settings, run_event(settings, settings.noise_multiplier), times=1)
        return settings.noise_multiplier
    # Exactly mu-GDP, so there is a closed form; the run's own accountant has the last word on rounding.
    noise = run_event(settings, 1.0).distance / gaussian_mu(settings.epsilon, settings.delta)
    for _ in range(200):
        if price([run_event(settings, noise)], settings.delta, settings.accountant) <= settings.epsilon:
            return noise
        noise *= 1.002
    raise ValueError(
        f"the accountant {settings.accountant!r} finds no noise for epsilon {settings.epsilon:g} at delta "
        f"{settings.delta:g}; use 'pld' or 'own', or give a noise_multiplier."
    )


class BoundedAccount(LedgeredAccount):
    """User-level (epsilon, delta) under zero-out, by one correlated Gaussian release of the whole run."""

    adjacency = "zero_out"

    def __init__(self, settings: FederatedConfig, run_dir: Path, *, fresh: bool) -> None:
        super().__init__(settings, run_dir / LEDGER, fresh=fresh)
        assert self.noise_multiplier is not None
        self.event = run_event(settings, self.noise_multiplier)
        self.arrivals = GuardedArrivals(settings.households, settings.cohort, participation_of(settings))
        self.noise = correlated_noise(settings)
        self.store = SecretStates(beside(run_dir, SECRET), settings.fingerprint())
        self._paid = self.store.newest()
        self._chosen: list[int] = []
        if self.ledger.events() and self._paid == 0 and not self.repeatable:
            logger.warning("the run was paid for and no round was begun; going on with the first")
        if self._paid and not self.ledger.events():
            raise AccountError(
                f"the ledger {self.path} lists no release, but {self._paid} rounds were begun (says "
                f"{self.store.folder}); put the right ledger back, or begin anew in another run directory."
            )

    def rounds_paid(self, rounds_done: int) -> int:
        if rounds_done and not self.ledger.events():
            raise self._too_few_paid(0, rounds_done)
        if self._paid < rounds_done:
            raise AccountError(
                f"the folder {self.store.folder} knows {self._paid} rounds and the model has seen {rounds_done}; without it "
                "nobody knows who took part and which noise was added, so put it back, or begin anew."
            )
        start = rounds_done if self.repeatable else self._paid
        if start or self.store.has(start):
            self._load(*self.store.load(start))
        return self._paid

    def ask(self, number: int) -> None:
        if not self.ledger.events():
            self.budget.allow(self.event)

    def cohort(self, number: int, present: Sequence[int]) -> list[int]:
        self._chosen = self.arrivals.choose(present, number)
        return list(self._chosen)

    def release(self, number: int, updates: Mapping[int, Tensor], dimension: int) -> Tensor:
        strangers = set(updates) - set(self._chosen)
        if strangers:
            raise AccountError(f"devices {sorted(strangers)} answered and were not asked; this is a fault.")
        assert self.noise_multiplier is not None
        std = self.noise_multiplier * self.settings.clip_norm
        noise = self._begin(number, lambda: self.noise.normal(dimension, std, step=number, dtype=torch.float64))
        total = torch.zeros(dimension, dtype=torch.float64)
        for device in sorted(updates):
            total += clip_vector(updates[device], self.settings.clip_norm)[0]
        spacing = grid(std)  # only multiples of it leave: see privacy.noise about floating point
        noisy = noise.add_(total).mul_(1.0 / spacing).round_().mul_(spacing)
        return (noisy / self.settings.divisor).to(torch.float32)

    def _begin(self, number: int, draw: Callable[[], Tensor] | None = None) -> Tensor:
        """Pay, note who takes part, fix the noise; when this returns, all of it is on the disk. Returns the noise."""
        if number < self._paid and not self.repeatable:
            raise AccountError(f"round {number + 1} was begun once and would be released twice; this is a fault.")
        if not self.ledger.events():
            self.budget.allow(self.event)
            self.ledger.append(self.event, step=0)
            self.budget.spend(self.event)
        self.arrivals.guard.admit(self._chosen, number)
        noise = torch.zeros(0) if draw is None else draw()
        self._save(number + 1)
        self._paid = max(self._paid, number + 1)
        return noise

    def _save(self, rounds: int) -> None:
        guard = self.arrivals.guard.state_dict()
        table = torch.zeros(2, self.settings.households, dtype=torch.int64)
        table[0] = -1
        for row, name in enumerate(("last", "count")):
            for device, value in guard[name].items():
                table[row, device] = value
        noise = self.noise.state_dict()
        past = {f"noise.{i:04d}": value for i, value in enumerate(noise["history"].get(0, []))}
        self.store.save(rounds, {"participation": table, **past})

    def _load(self, state: dict[str, Tensor], rounds: int) -> None:
        table = state["participation"]
        came = [int(device) for device in torch.nonzero(table[1]).flatten()]
        self.arrivals.guard.load_state_dict(
            {
                "last": {device: int(table[0, device]) for device in came},
                "count": {device: int(table[1, device]) for device in came},
            }
        )
        past = [state[name] for name in sorted(state) if name.startswith("noise.")]
        self.noise.load_state_dict({"next": {0: rounds}, "history": {0: past}})


class SecureAccount(BoundedAccount):
    """The same price, with the noise drawn on the devices: the account never sees a sum without it.

    The sum that is revealed holds the noise of every device in it; the protocol reveals none with fewer than the
    planned number, for which the devices' shares were sized.
    """

    def release(self, number: int, updates: Mapping[int, Tensor], dimension: int) -> Tensor:
        raise AccountError("single updates came to an account that may see sums only; this is a fault.")

    def release_sum(self, number: int, contributors: Sequence[int], reveal: Callable[[], Tensor]) -> Tensor:
        """Pay for the round, then the mean of the sum [d] that ``reveal`` unmasks, float32."""
        least = least_contributors(self.settings)
        if len(contributors) < least or not set(contributors) <= set(self._chosen):
            raise AccountError(f"a sum over {len(contributors)} devices has less noise than was paid for ({least}).")
        self._begin(number)
        return (reveal() / self.settings.divisor).to(torch.float32)

    def spoilt(self, number: int) -> None:
        """A cohort's sum was given up: its devices sent masked vectors all the same, so they count as having come."""
        self.arrivals.guard.admit(self._chosen, number)
        self._save(number)


class SecretStates:
    """The last two states of an account, one file a round, complete or absent, readable by the owner alone."""

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self.folder = folder
        self.fingerprint = fingerprint

    def newest(self) -> int:
        """Rounds begun so far."""
        return max((self._rounds(path) for path in self._all()), default=0)

    def has(self, rounds: int) -> bool:
        """Whether there is a state with so many rounds begun."""
        return self._path(rounds).exists()

    def save(self, rounds: int, tensors: dict[str, Tensor]) -> None:
        """On return it is on the disk."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        tensors = {name: value.contiguous() for name, value in tensors.items()}
        metadata = {"fingerprint": self.fingerprint, "rounds": str(rounds)}
        metadata["checksum"] = _checksum(tensors, metadata)
        write_atomically(self._path(rounds), save(tensors, metadata), mode=0o600)
        for old in self._all()[:-KEPT]:
            old.unlink(missing_ok=True)

    def load(self, rounds: int) -> tuple[dict[str, Tensor], int]:
        """The state with so many rounds begun. AccountError where it is missing, damaged or another run's."""
        path = self._path(rounds)
        try:
            with safe_open(path, framework="pt") as file:
                metadata = dict(file.metadata() or {})
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            checksum = metadata.pop("checksum")
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise AccountError(
                f"{path} cannot be read ({error}); without it nobody knows who took part and which noise was added, so put "
                "it back, or begin anew."
            ) from None
        if checksum != _checksum(tensors, metadata) or metadata.get("fingerprint") != self.fingerprint:
            raise AccountError(f"{path} is damaged or of another configuration; put the right one back, or begin anew.")
        return tensors, rounds

    def _path(self, rounds: int) -> Path:
        return self.folder / f"round-{rounds:06d}.safetensors"

    def _all(self) -> list[Path]:
        return sorted(self.folder.glob("round-*.safetensors"))

    @staticmethod
    def _rounds(path: Path) -> int:
        return int(path.stem.removeprefix("round-"))


def _checksum(tensors: dict[str, Tensor], metadata: dict[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(f"{name}{tuple(tensors[name].shape)}{tensors[name].dtype}".encode())
        digest.update(tensors[name].numpy().tobytes())
    return digest.hexdigest()
