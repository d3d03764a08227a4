"""Federated evaluation: the loss of the adapters on every device's own photos, and how unequal devices fare.

A mean hides whom a model serves badly, so the worst decile stands beside it: the mean loss of the tenth of the devices
(at least one) that fare worst.

What is refused: devices of a run that claims privacy. A loss on private photos is a number from private data, no
mechanism covers it, and the worst decile is nearly a single person's. Ask devices whose photos are public or that took
part in nothing (``public=True`` says so), or a run without a claim.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from flwr.serverapp import Grid
from torch import Tensor

from federated import wire
from federated.bench import Bench
from federated.roster import Roster
from federated.settings import FederatedConfig


@dataclass(frozen=True)
class Spread:
    """Losses over devices, nats per token. Each device counts once, however many photos it has.

    worst_decile, best_decile: mean over the ceil(n / 10) devices that fare worst, best.
    """

    devices: int
    mean: float
    median: float
    worst_decile: float
    best_decile: float


def spread(losses: Iterable[float]) -> Spread:
    """How losses, one a device, are spread. Raises ValueError where there is none, or one is not finite."""
    ordered = np.sort(np.asarray(list(losses), dtype=np.float64))
    if not len(ordered) or not np.isfinite(ordered).all():
        raise ValueError(f"{len(ordered)} losses, not all finite, were to be summed up; give at least one, all finite.")
    tenth = -(-len(ordered) // 10)
    return Spread(
        devices=len(ordered),
        mean=float(ordered.mean()),
        median=float(np.median(ordered)),
        worst_decile=float(ordered[-tenth:].mean()),
        best_decile=float(ordered[:tenth].mean()),
    )


def evaluate_devices(
    bench: Bench, devices: Iterable[int], vector: Tensor, *, round_number: int, public: bool = False
) -> Spread:
    """The spread of ``vector [d]`` (with personal adapters, where the bench has them) over ``devices``, in process.

    public: these devices' photos are public, or took part in no private run.
    """
    _may_ask(bench.settings, public)
    return spread(bench.evaluate(device, round_number, vector) for device in devices)


def ask_devices(
    grid: Grid,
    settings: FederatedConfig,
    vector: Tensor,
    layout: str,
    *,
    round_number: int,
    timeout: float | None = None,
) -> Spread:
    """The same over any grid: every connected device is asked. Who answers with nonsense, or not at all, is left out."""
    _may_ask(settings, public=False)
    roster = Roster(grid, settings.households)
    roster.refresh()
    content = wire.request(wire.to_array(vector), round_number, layout)
    nodes = [node for device in range(settings.households) if (node := roster.node(device)) is not None]
    questions = [
        grid.create_message(content, message_type=wire.EVALUATE, dst_node_id=node, group_id="evaluate")
        for node in nodes
    ]
    losses = []
    for reply in grid.send_and_receive(questions, timeout=timeout):
        facts = reply.content.metric_records.get(wire.FACTS) if reply.has_content() else None
        loss = facts.get("loss") if facts is not None else None
        if isinstance(loss, float) and np.isfinite(loss):
            losses.append(loss)
    return spread(losses)


def _may_ask(settings: FederatedConfig, public: bool) -> None:
    if settings.private and not public:
        raise ValueError(
            "this run promises privacy, and losses on its devices' photos are not covered by it; evaluate devices that "
            "took no part (public=True), or the same run without privacy."
        )
