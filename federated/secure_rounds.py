"""The server's side of a secure round over the Message API: five exchanges, and a sum that is revealed last.

Up to the fourth exchange nobody's vector can be told from noise; the fifth unmasks the sum and is made only after the
account has paid (``reveal``). Devices that are silent, or send what cannot be believed, are dropped at each stage and
named; with fewer than the plan's number there is no sum and nothing is revealed.

What it refuses: an identity that differs from the one a device showed before in this run. (The devices hold the true
directory and check each other; the server's own check keeps one bad device from spoiling a session.)
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from federated import secure_wire as sw
from federated import wire
from federated.gate import Rejection
from federated.roster import Roster
from federated.secure_aggregation import SecureAggregationError, Server
from federated.secure_aggregation.device import Advert, Unmasking, number_bytes, parcel, read_parcel
from federated.secure_aggregation.plan import SecurePlan


@dataclass
class Gathered:
    """A masked sum, not yet revealed. contributors: whose vectors are in it. reveal: the sum [d] float64; call it once,
    after paying. Raises SecureAggregationError where too few devices give their shares.
    """

    contributors: tuple[int, ...]
    reveal: Callable[[], Tensor]
    rejections: list[Rejection] = field(default_factory=list)
    bytes_up: int = 0
    bytes_down: int = 0


class SecureRounds:
    """Secure sums of one run."""

    def __init__(self, grid: Grid, roster: Roster, plan: SecurePlan, layout: str, timeout: float | None) -> None:
        self.grid, self.roster, self.plan, self.layout, self.timeout = grid, roster, plan, layout, timeout
        self._known: dict[int, bytes] = {}

    def gather(self, cohort: list[int], number: int, vector: Tensor) -> Gathered:
        """The first four stages over ``cohort``. Raises SecureAggregationError where too few stay."""
        plan, session = self.plan, secrets.token_bytes(32)
        plan.threshold(len(cohort))
        told = _Told()
        members = number_bytes(cohort)
        request = sw.content(session, number, members=members)
        adverts, identities = {}, {}
        for device, reply in self._ask(sw.ADVERTISE, dict.fromkeys(cohort, request), number, told).items():
            with told.dropping(device):
                fields = sw.fields_of(reply)
                identity, found = sw.of_bytes(fields, "identity"), sw.adverts_from(fields)
                if set(found) != {device}:
                    raise ValueError("it sent keys of another device")
                if self._known.setdefault(device, identity) != identity:
                    raise ValueError("it shows another identity than before")
                adverts[device], identities[device] = found[device], identity
        directory = {device: identities.get(device, bytes(32)) for device in cohort}
        server = Server(directory, session, plan.ring, plan.threshold(len(cohort)))
        try:
            return self._rest(server, adverts, number, vector, told)
        finally:
            told.rejections += [Rejection(device, why) for device, why in sorted(server.dropped.items())]

    def _rest(
        self, server: Server, adverts: Mapping[int, Advert], number: int, vector: Tensor, told: _Told
    ) -> Gathered:
        session = server.session
        keys = server.keys(adverts)
        asked = dict.fromkeys(keys, sw.content(session, number, **sw.adverts_to(keys)))
        sent = {}
        for device, reply in self._ask(sw.SHARE, asked, number, told).items():
            with told.dropping(device):
                sent[device] = read_parcel(sw.fields_of(reply), "post")
        post = server.posts(sent)
        base = wire.request(wire.to_array(vector), number, self.layout)
        asked = {
            device: RecordDict(
                {
                    wire.ADAPTERS: ArrayRecord(dict(base.array_records[wire.ADAPTERS])),
                    wire.ROUND: ConfigRecord(dict(base.config_records[wire.ROUND])),
                    sw.SECURE: ConfigRecord({"session": session, "number": number, **parcel("post", letters)}),
                }
            )
            for device, letters in post.items()
        }
        masked = {}
        for device, reply in self._ask(sw.MASKED, asked, number, told).items():
            with told.dropping(device):
                masked[device] = sw.words_from(reply, self.plan.dimension)
        survivors = server.survivors(masked)
        asked = dict.fromkeys(survivors, sw.content(session, number, survivors=number_bytes(survivors)))
        signatures = {}
        for device, reply in self._ask(sw.CONFIRM, asked, number, told).items():
            with told.dropping(device):
                signatures[device] = sw.of_bytes(sw.fields_of(reply), "signature")
        agreed = server.signatures(signatures)
        gathered = Gathered(
            tuple(sorted(survivors)), lambda: torch.zeros(0), told.rejections, told.bytes_up, told.bytes_down
        )

        def reveal() -> Tensor:
            content = sw.content(session, number, **parcel("signatures", agreed))
            answers: dict[int, Unmasking] = {}
            for device, reply in self._ask(sw.UNMASK, dict.fromkeys(agreed, content), number, told).items():
                with told.dropping(device):
                    answers[device] = sw.unmasking_from(sw.fields_of(reply))
            gathered.bytes_up, gathered.bytes_down = told.bytes_up, told.bytes_down
            return torch.from_numpy(server.total(answers))

        gathered.reveal = reveal
        return gathered

    def _ask(self, kind: str, contents: Mapping[int, RecordDict], number: int, told: _Told) -> dict[int, Message]:
        """One exchange: device -> its reply, of those that answered without an error. Others are named."""
        messages, devices = [], []
        for device, content in contents.items():
            node = self.roster.node(device)
            if node is None:
                told.rejections.append(Rejection(device, "it is not connected"))
                continue
            messages.append(
                self.grid.create_message(content, message_type=kind, dst_node_id=node, group_id=str(number + 1))
            )
            devices.append(device)
            told.bytes_down += _size(content)
        replies = self.grid.send_and_receive(messages, timeout=self.timeout) if messages else []
        asked = {message.metadata.message_id: device for message, device in zip(messages, devices, strict=True)}
        answered: dict[int, Message] = {}
        for reply in replies:
            device = asked.pop(reply.metadata.reply_to_message_id, -1)  # a second answer finds nobody
            if device < 0:
                continue
            if reply.has_error():
                told.rejections.append(Rejection(device, f"it failed: {reply.error.reason or reply.error.code}"))
                continue
            told.bytes_up += _size(reply.content)
            answered[device] = reply
        stage = kind.rpartition("_")[2]
        told.rejections += [Rejection(device, f"it did not answer in time ({stage})") for device in asked.values()]
        return answered


class _Told:
    """What the operator is told about a sum: who was dropped and why, and bytes each way."""

    def __init__(self) -> None:
        self.rejections: list[Rejection] = []
        self.bytes_up = self.bytes_down = 0

    def dropping(self, device: int) -> _Dropping:
        return _Dropping(self.rejections, device)


class _Dropping:
    """Drops and names the device where its reply cannot be read."""

    def __init__(self, rejections: list[Rejection], device: int) -> None:
        self._rejections, self._device = rejections, device

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, ValueError | KeyError | TypeError):
            self._rejections.append(Rejection(self._device, f"its reply cannot be used: {error}"))
            return True
        return False


def _size(content: RecordDict) -> int:
    arrays: Iterable[int] = (len(array.data) for record in content.array_records.values() for array in record.values())
    return sum(arrays) + sum(
        len(value)
        for record in content.config_records.values()
        for value in record.values()
        if isinstance(value, bytes)
    )


__all__ = ["Gathered", "SecureAggregationError", "SecureRounds"]
