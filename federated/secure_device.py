"""A device's side of a secure round over the Message API: the five stages of ``federated.secure_aggregation.Device``.

Between two stages a device's secrets lie in Flower's ``context.state``: in process and under Flower's runtimes alike,
because a deployed node starts a new process for every message. That state is the SuperNode's memory: a node that restarts
in the middle of a sum has lost it, fails the next stage, and counts as dropped.

Ring, threshold and noise follow from the run's settings (``SecurePlan``), never from a message. The device also keeps its
own count of the sums that it sent a vector to, and refuses more, or sooner, than the settings allow: the server's word is
not taken for it. (That count, too, lives as long as the SuperNode does.)
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Context, Message, RecordDict

from federated import secure_wire as sw
from federated import wire
from federated.bench import Bench
from federated.bounded import planned_bounded_noise
from federated.roster import device_number
from federated.secure_aggregation.device import Device, number_bytes, parcel, read_numbers, read_parcel
from federated.secure_aggregation.errors import SecureAggregationError
from federated.secure_aggregation.keys import Keys
from federated.secure_aggregation.plan import SecurePlan
from federated.settings import FederatedConfig

SESSION, BOOK = "secure.session", "secure.book"


@lru_cache(maxsize=8)
def _noise(settings: FederatedConfig) -> float:
    return planned_bounded_noise(settings)


class SecureDevice:
    """The handlers of one process; everything that belongs to one device is in its context."""

    def __init__(self, bench: Bench, keys: Keys, context: Context) -> None:
        if bench.settings.trust != "secure_aggregation":
            raise ValueError("a secure sum was asked for, and this run's trust is another; not answered.")
        self.settings, self.bench, self.keys, self.context = bench.settings, bench, keys, context
        self.number = device_number(context)
        self.plan = SecurePlan.of(self.settings, _noise(self.settings), bench.adapters.dimension)

    def advertise(self, message: Message) -> Message:
        """Stage 1: members -> this device's signed session keys."""
        fields = sw.fields_of(message)
        session, members = sw.of_bytes(fields, "session"), read_numbers(sw.of_bytes(fields, "members"))
        rounds, sessions = self._book()
        if session in sessions:
            raise SecureAggregationError(
                "this session was used before; a replayed one would give two sums of one mask."
            )
        self._may(int(fields["number"]), rounds)
        device = self._device(session, members)
        advert = device.advertise()
        self._write_book(rounds, [*sessions, session])
        self._keep(device, session, members, int(fields["number"]))
        return sw.reply(
            message, identity=self.keys.identity(self.number).public, **sw.adverts_to({self.number: advert})
        )

    def share(self, message: Message) -> Message:
        """Stage 2: everybody's keys -> shares for each."""
        device, session, members, number = self._resume(message)
        post = device.share(sw.adverts_from(sw.fields_of(message)))
        self._keep(device, session, members, number)
        return sw.reply(message, **parcel("post", post))

    def masked(self, message: Message, train: Callable[[Message], np.ndarray]) -> Message:
        """Stage 3: post and the round's vector -> the update, clipped, rounded, noised, masked. Counts as a participation."""
        device, session, members, number = self._resume(message)
        vector = train(message)
        rounds, sessions = self._book()
        self._may(number, rounds)
        self._write_book([*rounds, number], sessions)
        simulated = (self.settings.seed, self.number, number) if self.settings.noise == "simulation" else None
        words = device.masked(vector, read_parcel(sw.fields_of(message), "post"), self.plan.noise(simulated))
        self._keep(device, session, members, number)
        return Message(RecordDict({wire.UPDATE: sw.words_to(words)}), reply_to=message)

    def confirm(self, message: Message) -> Message:
        """Stage 4: who is still there -> a signature under it."""
        device, session, members, number = self._resume(message)
        survivors = frozenset(read_numbers(sw.of_bytes(sw.fields_of(message), "survivors")))
        signature = device.confirm(survivors)
        self._keep(device, session, members, number)
        return sw.reply(message, signature=signature)

    def unmask(self, message: Message) -> Message:
        """Stage 5: signatures -> shares. Afterwards nothing of the session is kept."""
        device, _, _, _ = self._resume(message)
        given = device.unmask(read_parcel(sw.fields_of(message), "signatures"))
        return sw.reply(message, **sw.unmasking_to(given))

    def _device(self, session: bytes, members: list[int]) -> Device:
        return Device(
            self.number,
            self.keys.identity(self.number),
            self.keys.public(members),
            session,
            self.plan.ring,
            self.plan.threshold(len(members)),
        )

    def _keep(self, device: Device, session: bytes, members: list[int], number: int) -> None:
        kept: dict[str, Any] = {
            "session": session,
            "members": number_bytes(members),
            "number": number,
            **device.freeze(),
        }
        self.context.state[SESSION] = ConfigRecord(kept)

    def _resume(self, message: Message) -> tuple[Device, bytes, list[int], int]:
        fields = sw.fields_of(message)
        kept = self.context.state.config_records.get(SESSION)
        if kept is None or kept["session"] != fields.get("session") or kept["number"] != fields.get("number"):
            raise SecureAggregationError("the message belongs to a session that this device is not in.")
        session, members = kept["session"], kept["members"]
        assert isinstance(session, bytes) and isinstance(members, bytes)
        numbers = read_numbers(members)
        device = self._device(session, numbers)
        device.thaw({name: value for name, value in kept.items() if isinstance(value, bytes)})
        # Until the stage succeeds it counts as refused: what fails halfway must not be tried again with the same masks.
        del self.context.state[SESSION]
        return device, session, numbers, int(kept["number"])  # type: ignore[arg-type]

    def _book(self) -> tuple[list[int], list[bytes]]:
        """Rounds that this device sent a vector in, and sessions that it has seen."""
        record = self.context.state.config_records.get(BOOK)
        if record is None:
            return [], []
        rounds, sessions = record["rounds"], record["sessions"]
        assert isinstance(rounds, bytes) and isinstance(sessions, bytes)
        return read_numbers(rounds), [sessions[i : i + 32] for i in range(0, len(sessions), 32)]

    def _write_book(self, rounds: list[int], sessions: list[bytes]) -> None:
        self.context.state[BOOK] = ConfigRecord({"rounds": number_bytes(rounds), "sessions": b"".join(sessions)})

    def _may(self, number: int, rounds: list[int]) -> None:
        bound = self.settings.bounded
        if len(rounds) >= bound.max_participations or any(abs(number - r) < bound.min_separation for r in rounds):
            raise SecureAggregationError(
                f"this device has taken part in {len(rounds)} of {bound.max_participations} sums, and "
                f"{bound.min_separation} rounds must lie between two; it takes no part in round {number + 1}."
            )
