"""Example-level privacy on the device: DP-SGD over its own photos, and a ledger on its own disk that says what it cost.

The unit is one photo (with its captions and questions), for its device; whoever receives the update, the server included,
is trusted with nothing. Local steps draw photos by Poisson, clip each photo's gradient to C, add noise and divide by a
public constant: the engine of central training (``privacy.optimizer``). All that leaves is a function of those releases, so
what the server does with it is free.

Each device keeps a ledger of its own. It composes over rounds and runs in the same folder, its events are on the disk
before their noise is drawn, and a round that would take the device above its budget is refused before a photo is touched:
the server sees a device that declines. Budgets may differ from device to device. After a crash, a step that was paid for
and not sent stays paid; with seeded noise the same step is computed again, with the same release.

What it refuses: a run without a place for the ledgers, a ledger that lost entries, two processes with one ledger.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import torch
from flwr.app import Context
from torch import Tensor

from federated.accounts import open_ledger
from federated.bench import Bench
from federated.settings import FederatedConfig
from mmslm.training import Batch, bfloat16_products, sample_losses
from privacy.accounting.calibration import calibrate_noise
from privacy.budget import Budget, BudgetExceeded
from privacy.clipping.kinds import FlatClip
from privacy.events import GaussianRelease, Sampling
from privacy.ledger import Ledger
from privacy.noise import SecureNoise, SeededNoise
from privacy.optimizer import PrivateOptimizer, StepEvent, make_engine
from privacy.sampling import PoissonSampler

LABEL = "local step"
BOOK, BUDGET = "book", "epsilon"  # of a node's configuration
BOOKS = "devices"  # in a simulation's run directory: what devices would have on their own disks


def local_event(settings: FederatedConfig, noise_multiplier: float) -> GaussianRelease:
    """What one local step costs one photo of the device."""
    sampling = Sampling("poisson", rate=settings.on_device.sampling_rate)
    return GaussianRelease(noise_multiplier, sampling, unit="example", label=LABEL)


@lru_cache(maxsize=8)
def planned_noise_on_device(settings: FederatedConfig) -> float:
    """The noise multiplier of every local step: the given one, or that with which a device that is drawn as often as all
    but one in a million are keeps the budget to the end. (A device that is drawn more often, or has less budget, declines.)
    """
    from privacy.report.recompute import participations  # the report's package takes a second

    if settings.noise_multiplier is not None:
        event = local_event(settings, settings.noise_multiplier)
        steps = Budget(settings.epsilon, settings.delta, settings.accountant).remaining_steps(event)
        if steps < settings.local_steps:
            raise BudgetExceeded(
                f"noise_multiplier {settings.noise_multiplier:g} affords a device {steps} of the {settings.local_steps} steps "
                f"of one round within epsilon {settings.epsilon:g} at delta {settings.delta:g}; leave it out to have it "
                "calibrated, or take fewer local steps."
            )
        return settings.noise_multiplier
    return calibrate_noise(
        settings.epsilon,
        settings.delta,
        sampling=Sampling("poisson", rate=settings.on_device.sampling_rate),
        steps=participations(settings.sampling_rate, settings.rounds) * settings.local_steps,
        accountant=settings.accountant,
        unit="example",
    )


class DeviceBook:
    """One device's ledger and budget. Not for two threads at once: a device works on one message at a time."""

    def __init__(self, path: Path, settings: FederatedConfig, epsilon: float) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.repeatable = settings.noise == "simulation"
        if path.exists():
            self.ledger = open_ledger(path)
        else:
            self.ledger = Ledger.create(path, {"kind": "device", "unit": "example", "adjacency": "add_or_remove_one"})
        self.budget = Budget(epsilon, settings.delta, settings.accountant, events=self.ledger.events())
        self._run = settings.fingerprint()
        self._paid = {
            int(entry.body["step"])
            for entry in self.ledger.entries
            if entry.kind == "event" and entry.body["public"].get("run") == self._run
        }

    def ask(self, event: GaussianRelease, steps: list[int]) -> None:
        """BudgetExceeded unless all of ``steps`` can be paid for that are not paid for already."""
        due = len([step for step in steps if not self._settled(step)])
        if due:
            self.budget.allow(event.with_count(due))

    def pay(self, event: StepEvent, *, step: int, learning_rate: float) -> None:
        """The event into the ledger, on the disk; raises where it would overspend. Call it before the noise is drawn."""
        if self._settled(step):
            return
        self.budget.allow(event)
        self.ledger.append(event, step=step, run=self._run)
        self.budget.spend(event)
        self._paid.add(step)

    def _settled(self, step: int) -> bool:
        # Seeded noise gives the release of a step that was paid for again, number for number.
        return self.repeatable and step in self._paid


class Books:
    """The ledgers of the devices that this process plays: ``folder/device-N.jsonl``, with a budget for each.

    epsilon: budget by device number; those that are not in it have the settings' epsilon.
    """

    def __init__(self, folder: Path, epsilon: Mapping[int, float] | None = None) -> None:
        self.folder = folder
        self._epsilon = dict(epsilon or {})
        self._open: dict[int, DeviceBook] = {}
        self._lock = threading.Lock()

    def path(self, device: int) -> Path:
        """Where the device's ledger is, or will be."""
        return self.folder / f"device-{device:06d}.jsonl"

    def of(self, device: int, settings: FederatedConfig) -> DeviceBook:
        """The device's book, opened once a process."""
        with self._lock:
            if device not in self._open:
                epsilon = self._epsilon.get(device, settings.epsilon)
                self._open[device] = DeviceBook(self.path(device), settings, epsilon)
            return self._open[device]

    def forget(self, device: int) -> None:
        """Open it anew the next time: what a failed write left is read again."""
        with self._lock:
            self._open.pop(device, None)


def books_of_node(context: Context, settings: FederatedConfig) -> Books:
    """Where this node was told to keep its ledger, and its own budget; a simulated one keeps it in the run directory.

    ValueError where it was told nothing.
    """
    folder, epsilon = context.node_config.get(BOOK), context.node_config.get(BUDGET)
    if folder is None and settings.noise == "simulation" and context.run_config.get("run-dir"):
        folder = str(Path(str(context.run_config["run-dir"])) / BOOKS)
    if not isinstance(folder, str) or not Path(folder).is_absolute():
        raise ValueError(
            f"this node has no place for its privacy ledger ({BOOK} is {folder!r}); start it with --node-config "
            f"\"{BOOK}='/home/you/ledger' ...\", an absolute path that outlives the run."
        )
    if epsilon is None:
        return Books(Path(folder))
    if isinstance(epsilon, bool) or not isinstance(epsilon, int | float) or epsilon <= 0:
        raise ValueError(f"this node's budget ({BUDGET}) is {epsilon!r}; give a number above 0.")
    from federated.roster import device_number

    return Books(Path(folder), {device_number(context): float(epsilon)})


def train_privately(bench: Bench, device: int, round_number: int, start: Tensor, book: DeviceBook) -> Tensor:
    """DP-SGD from ``start`` [d] on the device's photos; returns the update [d], a function of paid releases only.

    Raises BudgetExceeded, before a photo is touched, where the round would overspend the device's budget.
    """
    settings = bench.settings
    if bench.holdings is not None or bench.personal is not None:
        raise ValueError(
            "trust is device together with partial or personal adapters, whose own steps nothing would pay for; leave them "
            "out, or choose trust: central."
        )
    noise_multiplier = planned_noise_on_device(settings)
    steps = [round_number * settings.local_steps + i for i in range(settings.local_steps)]
    book.ask(local_event(settings, noise_multiplier), steps)
    batches = bench.feeder.batches(bench.model, device, round_number)
    bench.adapters.write(start)
    simulated = settings.noise == "simulation"
    seed = int.from_bytes(hashlib.sha256(f"device|{settings.seed}|{device}".encode()).digest()[:7], "big")
    parameters = list(bench.adapters.parameters.values())
    engine = make_engine(bench.model, FlatClip(settings.clip_norm))
    try:
        private = PrivateOptimizer(
            engine,
            torch.optim.SGD(parameters, lr=settings.local_learning_rate),
            noise_multiplier=noise_multiplier,
            # The sampling that is stated must not tell how many photos there are; the coins are the same.
            sampler=PhotoCoins(sum(map(_rows, batches)), settings, seed if simulated else None),
            noise=SeededNoise(seed) if simulated else SecureNoise(),
            divisor=settings.on_device.sampling_rate * settings.photos_per_household,  # public, unlike the true number
            before_release=book.pay,
            label=LABEL,
        )
        private.next_step = steps[0]
        for _ in steps:
            drawn = torch.from_numpy(private.draw())
            first = 0
            for batch in batches:
                rows = drawn[(drawn >= first) & (drawn < first + _rows(batch))] - first
                first += _rows(batch)
                if len(rows):
                    part = {name: value[rows] for name, value in batch.items()}
                    with bfloat16_products(part["labels"].device.type, settings.autocast):
                        losses = sample_losses(bench.model, part)
                    private.backward(losses)
            private.step()
    finally:
        engine.close()
    return bench.adapters.read() - start


class PhotoCoins(PoissonSampler):
    """Poisson sampling of a device's own photos, whose number the stated sampling leaves out."""

    def __init__(self, photos: int, settings: FederatedConfig, seed: int | None) -> None:
        super().__init__(photos, settings.on_device.sampling_rate, seed_or_generator=seed)

    @property
    def sampling(self) -> Sampling:
        """poisson, with its rate alone."""
        return Sampling("poisson", rate=self.rate)


def _rows(batch: Batch) -> int:
    return int(batch["labels"].shape[0])
