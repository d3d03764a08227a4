"""What ``mmslm devices`` and ``mmslm partition`` do.

``run_devices`` trains on a virtual clock, tells a line a round, writes the metrics, and says what the run took in
simulated time, bytes and joules, and how the model fares on households that took no part (mean and worst decile). It
refuses a folder that holds a run of other settings.

``deal`` deals photos to devices; ``Dealt.picture`` draws who holds what.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from pydantic import Field

from apps.run_config import DataConfig
from federated.clock import ClockFacts, SimulatorConfig
from federated.fleet import FleetConfig
from federated.holdings import HoldingsConfig
from federated.partition import Partition, by_class, by_owner, by_quantity, check_partition, dirichlet, picture
from federated.personal import PersonalConfig
from federated.settings import FederatedConfig
from federated.strategy import RoundFacts
from mmslm.config import ConfigError, Section, load_config
from mmslm.data.photo import Photo

HELD_OUT = 2_000_000  # households from here on never train


class HeldOutConfig(Section):
    """Households that took no part; their loss costs no privacy."""

    households: int = Field(40, ge=1, le=10_000)


class DevicesConfig(Section):
    """The settings of ``mmslm devices``."""

    name: str = Field("devices", pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$")
    base: str = Field("base", description="a model directory, or 'base' for the one in the package")
    data: DataConfig = DataConfig()
    fleet: str = Field("phones", description="a YAML file of device profiles, or the name of a shipped one")
    simulator: SimulatorConfig = SimulatorConfig()
    federated: FederatedConfig
    holdings: HoldingsConfig | None = Field(None, description="devices that train only some adapters, or lower ranks")
    personal: PersonalConfig | None = Field(None, description="adapters that stay on the device")
    evaluation: HeldOutConfig | None = HeldOutConfig()
    tensorboard: bool = Field(False, description="also write TensorBoard's event files")


def find_fleet(name: str) -> Path:
    """The file of device profiles that ``name`` means: a path, or one that ships with the package."""
    if Path(name).is_file():
        return Path(name)
    shipped = Path(str(resources.files("mmslm"))) / "configs" / "devices"
    checkout = Path(__file__).parents[1] / "configs" / "devices"
    for folder in (shipped, checkout):
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    known = sorted({path.stem for folder in (shipped, checkout) for path in folder.glob("*.yaml")})
    raise ConfigError(f"there are no device profiles at {name}; give a YAML file, or one of {', '.join(known)}.")


def run_devices(
    config: str, overrides: dict[str, Any], *, out: Path | None = None, tell: Callable[[str], None] = lambda line: None
) -> list[str]:
    """Train on the clock, beginning or resuming; returns what there is to say at the end."""
    settings = load_config(config, DevicesConfig, overrides)
    fleet = load_config(find_fleet(settings.fleet), FleetConfig)
    folder = out or Path("runs") / settings.name

    from federated.bench import Bench
    from federated.beside import DEVICES, beside
    from federated.clock_run import over_selected, simulate_on_clock
    from federated.device_store import DeviceStore
    from federated.devices import PhotoFeeder, check_population
    from federated.evaluation import evaluate_devices
    from federated.job import adapted_model
    from federated.personal import Personal
    from federated.tracking import Tracker
    from federated.vector import AdapterVector

    federated = settings.federated
    population = _population(settings)
    check_population(population, federated)
    model, processor = adapted_model(Path(settings.base), federated)
    adapters = AdapterVector(model.adapter_parameters())  # type: ignore[operator]
    feeder = PhotoFeeder(population, processor, federated)
    holdings = settings.holdings.open(adapters, seed=federated.seed) if settings.holdings else None
    # What devices keep to themselves is private, and the run's folder is what one hands to an auditor.
    store = DeviceStore(beside(folder, DEVICES))
    personal = Personal(settings.personal, store, adapters) if settings.personal else None
    work = settings.simulator.work(federated, adapters.dimension)
    tracker = Tracker(
        folder, federated, device_bytes=(work.up_bytes, work.down_bytes), tensorboard=settings.tensorboard
    )

    def told(facts: RoundFacts, clock: ClockFacts | None) -> None:
        tracker(facts, clock)
        tell(round_line(facts, clock))

    sampled = over_selected(federated, settings.simulator)
    done = simulate_on_clock(
        federated,
        settings.simulator,
        fleet,
        model=model,
        feeder=feeder,
        run_dir=folder,
        progress=told,
        bench=lambda: Bench(model, feeder, sampled, holdings=holdings, personal=personal, store=store),
        after_release=holdings.rescale if holdings is not None else None,
    )
    tracker.close()
    lines = [summary(done.rounds, done.result.epsilon, folder)]
    if settings.evaluation is not None and settings.data.source == "scenes":
        from federated.devices import SceneHouseholds

        others = SceneHouseholds(
            settings.evaluation.households, federated.photos_per_household, seed=settings.data.seed, first=HELD_OUT
        )
        bench = Bench(model, PhotoFeeder(others, processor, federated), federated)
        after = evaluate_devices(bench, range(others.size), done.result.vector, round_number=0, public=True)
        lines.append(
            f"{after.devices} households that took no part: loss {after.mean:.3f} on the mean, {after.worst_decile:.3f} "
            f"for the worst tenth of them, {after.best_decile:.3f} for the best"
        )
    return lines


def _population(settings: DevicesConfig) -> Any:
    from federated.devices import PhotosByOwner, SceneHouseholds

    federated, data = settings.federated, settings.data
    if data.source == "scenes":
        return SceneHouseholds(federated.households, federated.photos_per_household, seed=data.seed)
    from mmslm.data.coco import CocoPhotos

    assert data.folder is not None
    return PhotosByOwner(CocoPhotos(data.folder, owner=data.owner_key), federated.photos_per_household)


def round_line(facts: RoundFacts, clock: ClockFacts | None) -> str:
    """One round for the terminal (the operator sees what no file of a private run on real data may hold)."""
    parts = [f"round {facts.round} of {facts.rounds}"]
    if clock is not None:
        parts.append(f"{_clock(clock.start_s)} + {clock.seconds:,.1f} s")
        parts.append(
            f"{clock.arrived} of {clock.asked} devices ({clock.late} late, {clock.away} away, {clock.lost} lost)"
        )
        if clock.staleness:
            parts.append(f"{clock.staleness:.1f} steps old")
        parts.append(
            f"{clock.bytes_down / 1e6:.2f} MB down, {clock.bytes_up / 1e6:.2f} MB up, {clock.joules:,.0f} J (model)"
        )
    else:
        parts.append("nobody was asked")
    if facts.epsilon is not None:
        parts.append(f"epsilon {facts.epsilon:.2f}")
    if facts.loss is not None:
        parts.append(f"loss {facts.loss:.3f}")
    return "; ".join(parts)


def summary(rounds: Sequence[ClockFacts], epsilon: float | None, folder: Path) -> str:
    """The whole run in one sentence."""
    if not rounds:
        return f"no round asked anybody; results are in {folder}"
    arrived, asked = sum(r.arrived for r in rounds), sum(r.asked for r in rounds)
    down, up, joules = (sum(getattr(r, name) for r in rounds) for name in ("bytes_down", "bytes_up", "joules"))
    spent = "no privacy claimed" if epsilon is None else f"epsilon {epsilon:.3f} spent (a simulation: seeded)"
    return (
        f"{len(rounds)} rounds took {_clock(rounds[-1].end_s)} of simulated time; {arrived:,} of {asked:,} updates were "
        f"used; {down / 1e6:.1f} MB down, {up / 1e6:.1f} MB up, {joules / 3600:,.2f} Wh by the profiles' watts (a model, "
        f"not a measurement); {spent}; results are in {folder}"
    )


def _clock(seconds: float) -> str:
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours}:{minutes:02d}:{rest:04.1f}"


# Partitions


@dataclass(frozen=True)
class Dealt:
    """Photos, the class of each, and the indices that each device holds."""

    photos: Sequence[Photo]
    labels: list[str]
    partition: Partition

    def picture(self) -> Image.Image:
        return picture(self.partition, self.labels)

    def ids(self) -> list[list[str]]:
        """Photo ids by device."""
        return [[self.photos[index].id for index in part] for part in self.partition]


def deal(
    data: str,
    by: Literal["owner", "dirichlet", "quantity", "class"],
    *,
    devices: int,
    concentration: float = 0.3,
    spread: float = 1.0,
    classes_each: int = 2,
    owner: str | None = None,
    label: str | None = None,
    photos: int = 400,
    seed: int = 0,
) -> Dealt:
    """Deal the photos of 'scenes' or of a COCO folder. Raises ValueError for what cannot be dealt so."""
    held, labels = _scenes(photos, seed) if data == "scenes" else _coco(Path(data), owner, label)
    if by == "owner":
        partition = by_owner([photo.owner for photo in held])
    elif by == "dirichlet":
        partition = dirichlet(labels, devices, concentration=concentration, seed=seed)
    elif by == "quantity":
        partition = by_quantity(len(held), devices, spread=spread, seed=seed)
    else:
        partition = by_class(labels, devices, classes_each=classes_each, seed=seed)
    check_partition(partition, len(held))
    return Dealt(held, labels, partition)


def _scenes(photos: int, seed: int) -> tuple[Sequence[Photo], list[str]]:
    from mmslm.data.scenes import household

    if photos < 1:
        raise ValueError(f"--photos is {photos}; ask for at least 1.")
    held = [household(number // 4, seed=seed).photo(number % 4) for number in range(photos)]
    return held, [photo.truth.place for photo in held]


def _coco(folder: Path, owner: str | None, label: str | None) -> tuple[Sequence[Photo], list[str]]:
    from mmslm.data.coco import CocoPhotos

    held = CocoPhotos(folder, owner=owner)
    if label is None:
        return held, [photo.owner for photo in held]
    known = sorted({key for photo in held for key in photo.details})
    if label not in known:
        raise ValueError(f"no image has the key {label!r}; there are {', '.join(known) or 'none'}.")
    return held, [str(photo.details.get(label, "unknown")) for photo in held]
