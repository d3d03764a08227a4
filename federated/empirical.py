"""Attacks on a federated run: canary households in the product's own rounds, and membership inference on its model.

``attack_rounds`` runs the same ServerApp, grid, gate, account, clipping and noise as the run did (and its secure sums), with
canary households in the place of real ones; the others stay silent. Whoever knows all other households can subtract them,
so their silence makes the attack stronger; and no private data is touched, so the attack costs no privacy. A canary asks
for more than the clipping norm, as a hostile device would. What is observed is what the run releases: the vector in each
round's checkpoint, the next clipping norm, and where participation is bounded also who took part.

``check_rounds`` looks at single promises of the same account: its noise, its clipping, its sampler.

``household_losses`` measures how much training lowered the loss of each household's photos, for membership inference. That
does look at private photos: its result must not be published for a real run.

What it refuses: a run without privacy, and rounds of devices that protect their own photos (their claim is about a photo).
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from flwr.app import Context, RecordDict
from numpy.typing import NDArray
from torch import Tensor, nn

from federated.account_checks import check_account
from federated.accounts import EVALUATION, LABEL, LEDGER
from federated.adaptive import update_noise
from federated.attack_scores import BoundedScores, PoissonScores, Scores
from federated.bench import Bench
from federated.checkpoint import Checkpoints
from federated.client_app import client_app
from federated.devices import PhotoFeeder, Population
from federated.grid import InProcessGrid
from federated.on_device import LABEL as LOCAL_STEP
from federated.secure_aggregation.keys import KeysInProcess
from federated.server_app import server_app
from federated.settings import FederatedConfig, PrivateEvaluationConfig, ServerOptimiserConfig
from federated.strategy import Job, Result, RoundFacts
from federated.vector import AdapterVector
from mmslm.processing import MMSLMProcessor
from privacy.audit.empirical.canaries import fair_coins
from privacy.audit.empirical.result import Finding
from privacy.correlated import Encoder
from privacy.events import CorrelatedGaussianRelease, GaussianRelease
from privacy.ledger import Ledger

LOUD = 4.0  # times the clipping norm: what a canary asks for
MOST_SILENT = 100_000  # messages to silent households that an attack sends before it leaves them out

Told = Callable[[int, int], None]


class CanaryBench:
    """A device's bench whose updates are fixed: canary i answers its own direction, everybody else zero.

    vectors: [m, d], the zero vector for a canary whose coin fell out. It stands where ``federated.bench.Bench`` does.
    asked: the devices that each round asked, by its number from 0.
    """

    def __init__(self, vectors: Tensor, settings: FederatedConfig, adapters: AdapterVector) -> None:
        self.vectors, self.settings, self.adapters = vectors, settings, adapters
        self.asked: dict[int, set[int]] = {}

    def train(self, device: int, round_number: int, start: Tensor) -> tuple[Tensor, float]:
        """The update that this device sends, [d], and no loss."""
        self.asked.setdefault(round_number, set()).add(device)
        update = self.vectors[device] if device < len(self.vectors) else torch.zeros(self.adapters.dimension)
        return update, 0.0

    def for_another_worker(self) -> CanaryBench:
        """Itself: what changes in it is asked for between rounds."""
        return self


def play(
    settings: FederatedConfig, vectors: Tensor, folder: Path, progress: Callable[[RoundFacts], None]
) -> CanaryBench:
    """All rounds of ``settings`` in ``folder``, whose device i sends vectors[i] [m, d] and the others zero."""
    adapters = AdapterVector({"adapters": nn.Parameter(torch.zeros(vectors.shape[1]))})
    bench = CanaryBench(vectors, settings, adapters)
    job = Job(settings, adapters.read(), adapters.layout(), folder, progress=progress)
    results: list[Result] = []
    server = server_app(lambda _context: job, lambda _context, _job, result: results.append(result))
    keys = KeysInProcess(settings.seed if settings.noise == "simulation" else None)
    devices = client_app(lambda _context: bench, lambda _context: keys)  # type: ignore[arg-type, return-value]
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
    with InProcessGrid(devices, devices=settings.households) as grid:
        server(grid, context)
    return bench


def attack_rounds(
    settings: FederatedConfig,
    ledger: Path,
    folder: Path,
    *,
    dimension: int,
    canaries: int = 1000,
    seed: int | None = None,
    progress: Told | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """(scores [m], coins [m]) of canary households in as many rounds as ``ledger`` lists.

    settings: the run's. folder: an empty one for the attack's own checkpoints and ledger. dimension: of the adapters.
    canaries: m; fewer with secure aggregation, where no more households come than the run's own cohorts hold.
    seed: for tests; without it coins, directions, cohorts and noise are drawn anew from the operating system, and never
    those of the run. progress(done, rounds) is called after every round.

    Raises ValueError where the run claims no privacy or its ledger holds releases that this attack does not know.
    """
    if not settings.private:
        raise ValueError("this run claims no privacy, so there is nothing that an attack could contradict.")
    if not attackable(settings):
        raise ValueError(
            "devices that protect their own photos are not attacked with canary households; attack the events "
            "(--mechanism-only)."
        )
    noise, rounds = _paid(settings, Ledger.open(ledger))
    fresh = secrets.randbits(62) if seed is None else seed
    attacked = _attack_settings(settings, noise, rounds=rounds, canaries=canaries, seed=fresh)
    canaries = min(canaries, attacked.households)
    coins = fair_coins(canaries, seed)
    directions = _directions(canaries, dimension, fresh)
    sent = directions * _loudness(attacked) * torch.from_numpy(coins)[:, None]
    scores = _scores(attacked, noise, canaries)
    run_dir = folder / "run"  # what belongs beside a run's folder then lies in `folder`
    checkpoints = Checkpoints(run_dir / "rounds", attacked.fingerprint())
    before, clip_norm = torch.zeros(dimension), settings.clip_norm
    rows: list[NDArray[np.float64]] = []

    def observe(facts: RoundFacts) -> None:
        nonlocal before, clip_norm
        state = checkpoints.latest()
        assert state is not None
        # The server's step is the released mean itself: plain averaging with rate 1.
        released = (state.vector.double() - before.double()).float()
        before = state.vector
        rows.append((directions @ released).double().numpy() * (attacked.divisor / clip_norm))
        if "clip_norm" in state.account:  # adaptive clipping tells the next round's
            clip_norm = float(state.account["clip_norm"])
        if progress is not None:
            progress(facts.round, attacked.rounds)

    bench = play(attacked, sent, run_dir, observe)
    for number, products in enumerate(rows):
        scores.add(products, bench.asked.get(number, ()))
    return scores.total(), coins


def check_rounds(settings: FederatedConfig, ledger: Path, folder: Path) -> list[Finding]:
    """The run's own account, checked promise by promise: noise, what one unit can move, who may take part and how often.

    folder: an empty one. Raises ValueError where the run claims no privacy, or its ledger is of another mode.
    """
    noise, _ = _paid(settings, Ledger.open(ledger))
    if settings.trust == "device":
        from federated.device_checks import check_device

        return check_device(settings, folder, noise=noise)
    if settings.trust == "secure_aggregation":
        from federated.secure_checks import check_secure_sums

        return check_secure_sums(settings, folder, noise=noise)
    return check_account(settings, folder, noise=noise)


def attackable(settings: FederatedConfig) -> bool:
    """Whether the run's rounds can be attacked with canary households: those whose claim is about a household."""
    return settings.private and settings.trust != "device"


def not_shown(settings: FederatedConfig) -> list[str]:
    """What neither canaries nor checks look at in a run of this mode, and why: one sentence each."""
    said = []
    if settings.trust == "secure_aggregation":
        said.append(
            "That the server sees no update alone was not attacked: it rests on the protocol's masks and keys, and an attack on "
            "released sums cannot see them."
        )
        said.append(
            "Leaks that only many canaries would show: there are as few as the run's own cohorts hold, on whose size the "
            "noise of a secure sum depends."
        )
    if settings.trust == "device":
        said.append(
            "No canary photos were planted into devices: their engine was checked on a small layer instead, and the canaries "
            "attacked the events alone."
        )
    if settings.private_evaluation.every:
        said.append(
            "Evaluations on the devices were left out of the canaries' rounds: a loss is one number, which tells canaries "
            "hardly apart; their noise and bound were checked."
        )
    return said


def _paid(settings: FederatedConfig, ledger: Ledger) -> tuple[float, int]:
    """(noise of each round over C, rounds) as the ledger lists them. ValueError where they are not of the run's mode."""
    events = ledger.events()
    if settings.participation == "bounded":
        whole = [event for event in events if isinstance(event, CorrelatedGaussianRelease)]
        if len(whole) != 1 or len(events) != 1 or whole[0].count != 1:
            raise ValueError("the ledger holds other releases than the one of the whole run; it is not this run's.")
        return whole[0].noise_multiplier, whole[0].steps
    label = LOCAL_STEP if settings.trust == "device" else LABEL
    found: list[float] = []
    for event in events:
        if isinstance(event, GaussianRelease) and event.label == EVALUATION:
            continue
        if (
            not isinstance(event, GaussianRelease)
            or not event.label.startswith(label)
            or event.sampling.scheme not in ("poisson", "full")
            or event.count != 1
        ):
            raise ValueError(
                "the ledger holds releases that are no sampled Gaussian sums of one round; attack them by their events alone "
                "(--mechanism-only)."
            )
        found.append(event.noise_multiplier)
    if not found:
        raise ValueError("the ledger records no release that could be attacked.")
    if len(set(found)) > 1:
        raise ValueError("the noise changes from round to round; attack the events alone (--mechanism-only).")
    return found[0], len(found)


def _attack_settings(
    settings: FederatedConfig, noise: float, *, rounds: int, canaries: int, seed: int
) -> FederatedConfig:
    """The run's settings with what the attack needs: room for the canaries, and the released mean as the server's step."""
    households, rate = max(settings.households, canaries), settings.sampling_rate
    if settings.trust == "secure_aggregation":  # the run's own cohorts, on which its noise depends
        bound = settings.bounded
        needed = max(-(-rounds * settings.cohort // bound.max_participations), settings.cohort * bound.min_separation)
        households, rate = needed, settings.cohort / needed
    elif settings.participation == "bounded":  # every canary comes as often as it may
        cohort = max(1, canaries * settings.bounded.max_participations // rounds)
        households, rate = canaries, min(cohort, canaries) / canaries
    elif rounds * settings.sampling_rate * households > MOST_SILENT:
        households = canaries  # coins are independent: how many silent households there are changes nobody's
    return settings.model_copy(
        update={
            "households": households,
            "sampling_rate": rate,
            "rounds": rounds,
            "noise_multiplier": noise,
            "seed": seed,
            "codec": "fp32",
            "workers": 1,
            "private_evaluation": PrivateEvaluationConfig(),
            "server": ServerOptimiserConfig(name="sgd", learning_rate=1.0),
        }
    )


def _scores(attacked: FederatedConfig, noise: float, canaries: int) -> Scores:
    if attacked.participation == "bounded":
        return BoundedScores(canaries, noise, Encoder(attacked.rounds, attacked.bounded.bands).band)
    if attacked.adaptive.enabled:
        noise = update_noise(noise, attacked.adaptive.count_noise)
    return PoissonScores(canaries, noise, attacked.sampling_rate)


def _loudness(attacked: FederatedConfig) -> float:
    """How long a canary's update is: longer than any clipping norm of the run, and not so long that the gate drops it."""
    length = LOUD * attacked.clip_norm
    if attacked.adaptive.enabled:
        adaptive = attacked.adaptive
        length *= math.exp(min(50.0, adaptive.learning_rate * adaptive.quantile * attacked.rounds))
    return length if attacked.gate_norm is None else min(length, 0.999 * attacked.gate_norm)


def _directions(canaries: int, dimension: int, seed: int) -> Tensor:
    """Random unit directions [m, d] float32, nearly orthogonal where d is much larger than m."""
    drawn = torch.randn(canaries, dimension, generator=torch.Generator().manual_seed(seed))
    return drawn / torch.linalg.vector_norm(drawn, dim=1, keepdim=True)


# Membership inference -------------------------------------------------------------------------------------------------


def household_losses(
    model: nn.Module,
    processor: MMSLMProcessor,
    settings: FederatedConfig,
    population: Population,
    devices: Iterable[int],
    *,
    initial: Tensor,
    final: Tensor,
    progress: Callable[[], None] | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean loss of each household's photos under the initial and the final adapters, ([n], [n]), nats per token.

    model: with adapters, as ``federated.job.adapted_model`` gives it; initial, final: [d] float32.
    """
    bench = Bench(model, PhotoFeeder(population, processor, settings), settings)
    before, after = [], []
    for device in devices:
        # The draw of captions and questions is the same under both adapters; its number is that of the first round.
        before.append(bench.evaluate(int(device), 0, initial))
        after.append(bench.evaluate(int(device), 0, final))
        if progress is not None:
            progress()
    return np.array(before), np.array(after)


__all__ = ["LEDGER", "LOUD", "CanaryBench", "attack_rounds", "check_rounds", "household_losses"]
