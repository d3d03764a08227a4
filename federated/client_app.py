"""The ClientApp: what a device does when the server calls. Message API, the same object in every runtime.

- ``train``: load the round's adapters into the resident model, train them on this device's photos, answer the update.
- ``evaluate``: the loss of the round's adapters on this device's photos. Only runs that claim no privacy may ask, or such
  as pay for it (``private_evaluation``: the server adds losses up with noise): it is a number from private data.
- ``query.identity``: which device this is.
- ``query.secure_*`` and ``train.secure_masked``: the five stages of a secure sum (``federated.secure_device``).

A run with ``trust: secure_aggregation`` answers ``train`` with an error: a device never sends it an update of its own.

Nothing else leaves: see ``federated.wire``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from numpy.typing import NDArray
from torch import Tensor

from federated import wire
from federated.bench import Bench, Benches
from federated.codecs import TopK, codec
from federated.on_device import Books, books_of_node, train_privately
from federated.roster import device_number, introduce
from federated.secure_aggregation.keys import Keys, keys_of_node
from federated.secure_device import SecureDevice

RESIDUAL = "residual"
T = TypeVar("T")


class ByRun(Generic[T]):
    """One object for each run that this process serves, made when it is first asked for."""

    def __init__(self, make: Callable[[Context], T]) -> None:
        self._make = make
        self._made: dict[int, T] = {}
        self._lock = threading.Lock()

    def of(self, context: Context) -> T:
        with self._lock:
            if context.run_id not in self._made:
                self._made[context.run_id] = self._make(context)
            return self._made[context.run_id]


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


def client_app(
    open_bench: Callable[[Context], Bench],
    open_keys: Callable[[Context], Keys] | None = None,
    open_books: Callable[[Context], Books] | None = None,
) -> ClientApp:
    """The app over benches that ``open_bench`` opens; it is asked once per run and process.

    ``open_keys``: identities for secure aggregation, ``open_books``: the devices' own privacy ledgers, where one process
    plays all devices; None: each node's own.
    """
    benches = BenchesByRun(open_bench)
    keys = None if open_keys is None else ByRun(open_keys)
    books = None if open_books is None else ByRun(open_books)
    flower_app = ClientApp()

    @flower_app.train()
    def train(message: Message, context: Context) -> Message:
        vector, round_number, layout = wire.read_request(message)
        bench = benches.of(context)
        if bench.settings.trust == "secure_aggregation":
            raise ValueError("this run sums securely, and an update of one device alone was asked for; not answered.")
        _check_layout(bench, layout)
        device = device_number(context)
        if bench.settings.trust == "device":
            own = books_of_node(context, bench.settings) if books is None else books.of(context)
            delta = _privately(bench, device, round_number, vector, own)
            return wire.reply(_encode(delta, bench, device, round_number, context), message)
        delta, loss = bench.train(device, round_number, vector)
        update = _encode(delta, bench, device, round_number, context)
        return wire.reply(update, message, loss=None if bench.settings.private else loss)

    @flower_app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        vector, round_number, layout = wire.read_request(message)
        bench = benches.of(context)
        _check_layout(bench, layout)
        if bench.settings.private and not bench.settings.private_evaluation.every:
            raise ValueError(
                "this run promises privacy, and a loss on private photos is not covered by it; not answered."
            )
        loss = bench.evaluate(device_number(context), round_number, vector)
        return Message(RecordDict({wire.FACTS: MetricRecord({"loss": loss})}), reply_to=message)

    @flower_app.query("identity")
    def identity(message: Message, context: Context) -> Message:
        return introduce(message, context)

    def secure(context: Context) -> SecureDevice:
        bench = benches.of(context)
        own = keys_of_node(context, bench.settings) if keys is None else keys.of(context)
        return SecureDevice(bench, own, context)

    @flower_app.query("secure_advertise")
    def secure_advertise(message: Message, context: Context) -> Message:
        return secure(context).advertise(message)

    @flower_app.query("secure_share")
    def secure_share(message: Message, context: Context) -> Message:
        return secure(context).share(message)

    @flower_app.train("secure_masked")
    def secure_masked(message: Message, context: Context) -> Message:
        bench = benches.of(context)

        def trained(request: Message) -> NDArray[np.float64]:
            vector, round_number, layout = wire.read_request(request)
            _check_layout(bench, layout)
            update, _ = bench.train(device_number(context), round_number, vector)
            return update.to(torch.float64).numpy()

        return secure(context).masked(message, trained)

    @flower_app.query("secure_confirm")
    def secure_confirm(message: Message, context: Context) -> Message:
        return secure(context).confirm(message)

    @flower_app.query("secure_unmask")
    def secure_unmask(message: Message, context: Context) -> Message:
        return secure(context).unmask(message)

    return flower_app


def _privately(bench: Bench, device: int, round_number: int, vector: Tensor, books: Books) -> Tensor:
    try:
        return train_privately(bench, device, round_number, vector, books.of(device, bench.settings))
    except BaseException:
        books.forget(device)
        raise


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
