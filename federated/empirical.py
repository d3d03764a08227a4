"""Attacks on a federated run: canary households in the product's own rounds, and membership inference on its model.

``attack_rounds`` runs the same ServerApp, grid, gate, account, clipping and noise as the run did, with canary households
in the place of real ones; the others stay silent. Whoever knows all other households can subtract them, so their silence
makes the attack stronger; and no private data is touched, so the attack costs no privacy. A canary asks for four times the
clipping norm, as a hostile device would. What is observed is what the run releases: the vector in each round's checkpoint.

``check_rounds`` looks at single promises of the same account: its noise, its clipping, its sampler.

``household_losses`` measures how much training lowered the loss of each household's photos, for membership inference. That
does look at private photos: its result must not be published for a real run.

What it refuses: a run without privacy, and releases other than independent Gaussian sums.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import Context, RecordDict
from numpy.typing import NDArray
from torch import Tensor, nn

from federated.accounts import LEDGER, open_account
from federated.bench import Bench
from federated.checkpoint import Checkpoints
from federated.client_app import client_app
from federated.devices import PhotoFeeder, Population
from federated.grid import InProcessGrid
from federated.server_app import server_app
from federated.settings import FederatedConfig, ServerOptimiserConfig
from federated.strategy import Job, Result, RoundFacts
from federated.vector import AdapterVector
from mmslm.processing import MMSLMProcessor
from privacy.audit.empirical.canaries import fair_coins
from privacy.audit.empirical.claim import participation_scores
from privacy.audit.empirical.release import check_coins, check_release
from privacy.audit.empirical.result import Finding
from privacy.events import GaussianRelease
from privacy.ledger import Ledger

LOUD = 4.0  # times the clipping norm: what a canary asks for
MOST_SILENT = 100_000  # messages to silent households that an attack sends before it leaves them out

Told = Callable[[int, int], None]


class CanaryBench:
    """A device's bench whose updates are fixed: canary i answers its own direction, everybody else zero.

    vectors: [m, d], the zero vector for a canary whose coin fell out. It stands where ``federated.bench.Bench`` does.
    """

    def __init__(self, vectors: Tensor, settings: FederatedConfig, adapters: AdapterVector) -> None:
        self.vectors, self.settings, self.adapters = vectors, settings, adapters

    def train(self, device: int, round_number: int, start: Tensor) -> tuple[Tensor, float]:
        """The update that this device sends, [d], and no loss."""
        update = self.vectors[device] if device < len(self.vectors) else torch.zeros(self.adapters.dimension)
        return update, 0.0

    def for_another_worker(self) -> CanaryBench:
        """Itself: nothing in it changes."""
        return self


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
    seed: for tests; without it coins, directions, cohorts and noise are drawn anew from the operating system, and never
    those of the run. progress(done, rounds) is called after every round.

    Raises ValueError where the run claims no privacy or its ledger holds releases that this attack does not know.
    """
    if not settings.private:
        raise ValueError("this run claims no privacy, so there is nothing that an attack could contradict.")
    if not attackable(settings):
        raise ValueError(
            "rounds of this mode are not attacked with canary households; attack the events (--mechanism-only)."
        )
    multipliers = _multipliers(Ledger.open(ledger))
    fresh = secrets.randbits(62) if seed is None else seed
    attacked = _attack_settings(settings, multipliers[0], rounds=len(multipliers), canaries=canaries, seed=fresh)
    coins = fair_coins(canaries, seed)
    directions = _directions(canaries, dimension, fresh)
    sent = directions * (LOUD * settings.clip_norm) * torch.from_numpy(coins)[:, None]
    holder = nn.Parameter(torch.zeros(dimension))
    adapters = AdapterVector({"adapters": holder})
    checkpoints = Checkpoints(folder / "rounds", attacked.fingerprint())
    scores, before = np.zeros(canaries), torch.zeros(dimension)

    def observe(facts: RoundFacts) -> None:
        nonlocal before, scores
        state = checkpoints.latest()
        assert state is not None
        # The server's step is the released mean itself: plain averaging with rate 1.
        released = (state.vector.double() - before.double()).float()
        before = state.vector
        products = (directions @ released).double().numpy() * (attacked.divisor / settings.clip_norm)
        scores = scores + participation_scores(products[None], [multipliers[facts.round - 1]], [settings.sampling_rate])
        if progress is not None:
            progress(facts.round, attacked.rounds)

    job = Job(attacked, adapters.read(), adapters.layout(), folder, progress=observe)
    results: list[Result] = []
    server = server_app(lambda _context: job, lambda _context, _job, result: results.append(result))
    bench = CanaryBench(sent, attacked, adapters)
    devices = client_app(lambda _context: bench)  # type: ignore[arg-type, return-value]  # stands where a Bench does
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
    with InProcessGrid(devices, devices=attacked.households) as grid:
        server(grid, context)
    return scores, coins


def check_rounds(settings: FederatedConfig, ledger: Path, folder: Path) -> list[Finding]:
    """The run's own account, checked promise by promise: sampler, noise, and what one household can move.

    folder: an empty one. Raises ValueError as `attack_rounds`.
    """
    noise = _multipliers(Ledger.open(ledger))[0]
    kinds: dict[str, Any] = {}
    for kind in (settings.noise, "simulation"):
        fresh = settings.model_copy(update={"noise": kind, "seed": secrets.randbits(62), "noise_multiplier": noise})
        place = folder / kind
        place.mkdir(parents=True, exist_ok=True)
        if kind not in kinds:
            kinds[kind] = open_account(fresh, place, fresh=True)
    real, seeded = kinds[settings.noise], kinds["simulation"]
    return check_release(
        real.mechanism,
        seeded.mechanism,
        clip_norm=settings.clip_norm,
        noise_multiplier=noise,
        divisor=settings.divisor,
    ) + check_coins(real.sampler, rate=settings.sampling_rate, population=settings.households)


def attackable(settings: FederatedConfig) -> bool:
    """Whether the run's rounds are those that canary households know how to attack: Poisson cohorts, a trusted server, one
    clipping norm, one release a round. Other modes are attacked by their events alone, as far as those can be made again.
    """
    return (
        settings.private
        and settings.trust == "central"
        and settings.participation == "poisson"
        and not settings.adaptive.enabled
        and not settings.private_evaluation.every
    )


def _multipliers(ledger: Ledger) -> list[float]:
    """The noise of each round, over C."""
    found: list[float] = []
    for event in ledger.events():
        if not isinstance(event, GaussianRelease) or event.sampling.scheme != "poisson" or event.count != 1:
            raise ValueError(
                "the ledger holds releases that are no Poisson-sampled Gaussian sums of one round; attack them by their "
                "events alone (--mechanism-only)."
            )
        found.append(event.noise_multiplier)
    if not found:
        raise ValueError("the ledger records no release that could be attacked.")
    if len(set(found)) > 1:
        raise ValueError("the noise changes from round to round; attack the events alone (--mechanism-only).")
    return found


def _attack_settings(
    settings: FederatedConfig, noise: float, *, rounds: int, canaries: int, seed: int
) -> FederatedConfig:
    """The run's settings with what the attack needs: room for the canaries, and the released mean as the server's step."""
    households = max(settings.households, canaries)
    if rounds * settings.sampling_rate * households > MOST_SILENT:
        households = canaries  # coins are independent: how many silent households there are changes nobody's
    return settings.model_copy(
        update={
            "households": households,
            "rounds": rounds,
            "noise_multiplier": noise,
            "seed": seed,
            "codec": "fp32",
            "workers": 1,
            "server": ServerOptimiserConfig(name="sgd", learning_rate=1.0),
        }
    )


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
