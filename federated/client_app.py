"""The ClientApp: what a device does when the server calls. Message API, the same object in every runtime.

- ``train``: load the round's adapters into the resident model, train them on this device's photos, answer the update.
- ``evaluate``: the loss of the round's adapters on this device's photos. Only runs that claim no privacy may ask: the
  answer is a number from private data.
- ``query.identity``: which device this is.

Nothing else leaves: see ``federated.wire``.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor

from federated import wire
from federated.bench import Bench, Benches
from federated.codecs import TopK, codec
from federated.roster import device_number, introduce

RESIDUAL = "residual"


class BenchesByRun:
    """The benches of the runs that this process has served; one process may serve several runs."""

    def __init__(self, open_bench: Callable[[Context], Bench]) -> None:
        self._open_bench = open_bench
        self._benches: dict[int, Benches] = {}

    def of(self, context: Context) -> Bench:
        if context.run_id not in self._benches:
            # setdefault is atomic: two threads that come first together get one object.
            self._benches.setdefault(context.run_id, Benches(lambda: self._open_bench(context)))
        return self._benches[context.run_id].mine()


def client_app(open_bench: Callable[[Context], Bench]) -> ClientApp:
    """The app over benches that ``open_bench`` opens; it is asked once per run and process."""
    benches = BenchesByRun(open_bench)
    flower_app = ClientApp()

    @flower_app.train()
    def train(message: Message, context: Context) -> Message:
        vector, round_number, layout = wire.read_request(message)
        bench = benches.of(context)
        _check_layout(bench, layout)
        device = device_number(context)
        delta, loss = bench.train(device, round_number, vector)
        update = _encode(delta, bench, device, round_number, context)
        return wire.reply(update, message, loss=None if bench.settings.private else loss)

    @flower_app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        vector, round_number, layout = wire.read_request(message)
        bench = benches.of(context)
        _check_layout(bench, layout)
        if bench.settings.private:
            raise ValueError(
                "this run promises privacy, and a loss on private photos is not covered by it; not answered."
            )
        loss = bench.evaluate(device_number(context), round_number, vector)
        return Message(RecordDict({wire.FACTS: MetricRecord({"loss": loss})}), reply_to=message)

    @flower_app.query("identity")
    def identity(message: Message, context: Context) -> Message:
        return introduce(message, context)

    return flower_app


def _encode(delta: Tensor, bench: Bench, device: int, round_number: int, context: Context) -> Array:
    """The update as it travels. What top-k leaves out stays on the device, for its next update."""
    settings = bench.settings
    if settings.codec == "fp32":
        return wire.to_array(delta)
    rest = _load_rest(bench, device, round_number, len(delta), context) if settings.codec == "topk" else None
    way = codec(settings.codec, rest)
    # Rounding needs no secrecy; drawn from (seed, device, round), it is the same in every runtime.
    payload = way.encode(delta, np.random.default_rng([settings.seed, device, round_number]))
    if isinstance(way, TopK) and way.residual is not None:
        if bench.store is not None:
            bench.store.save(device, RESIDUAL, round_number, way.residual)
        else:
            context.state[RESIDUAL] = ArrayRecord({wire.DELTA: wire.to_array(way.residual)})
    return wire.pack(payload)


def _load_rest(bench: Bench, device: int, round_number: int, dimension: int, context: Context) -> Tensor | None:
    """What earlier updates of this device left out: from its disk, where it has a store, else from its memory."""
    if bench.store is not None:
        return bench.store.load(device, RESIDUAL, before=round_number, dimension=dimension)
    kept = context.state.array_records.get(RESIDUAL)
    return wire.from_array(kept[wire.DELTA], dimension) if kept is not None else None


def _check_layout(bench: Bench, layout: str) -> None:
    if layout != bench.adapters.layout():
        raise ValueError(
            "the server's adapters have other names or shapes than this device's; "
            "both need the same base model and the "
            "same adapters section."
        )


def _open_from_run_config(context: Context) -> Bench:
    # Imported here: the in-process runtime brings its own model, and must not load one to learn the app's shape.
    from federated.job import open_bench

    return open_bench(context)


app = client_app(_open_from_run_config)
