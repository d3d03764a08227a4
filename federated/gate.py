"""The gate before aggregation: an update is admitted only if it can be summed; what is not is dropped and named.

A dropped device contributes zero, which the mechanism already accounts for (a device that is absent). The gate never
repairs: an update of the wrong length or with a NaN says that the device is broken or hostile, and a repaired one would
be a guess. Size is not judged here: the mechanism clips every update to C.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from flwr.app import Message
from flwr.common.constant import ErrorCode
from torch import Tensor

from federated.codecs import codec
from federated.settings import CodecName
from federated.vector import all_finite
from federated.wire import DELTA, FACTS, UPDATE, arrays_of, metrics_of, unpack, view


@dataclass(frozen=True)
class Rejection:
    """A device whose reply was not used, and why (one sentence, no content of the reply). absent: it was not there."""

    device: int
    reason: str
    absent: bool = False


@dataclass(frozen=True)
class Admitted:
    """What a round may sum: device -> update [d] float32, in the order of device numbers.

    ``losses`` is empty in a private run: devices do not send them.
    """

    updates: dict[int, Tensor]
    rejections: tuple[Rejection, ...]
    losses: tuple[float, ...]


def admit(
    replies: Sequence[Message],
    asked: Mapping[str, int],
    dimension: int,
    codec_name: CodecName = "fp32",
    *,
    most_norm: float | None = None,
) -> Admitted:
    """Sort replies into usable and not.

    ``asked``: message id -> device, as the server sent them. ``codec_name``: how the run's updates travel.
    ``most_norm``: L2 length above which an update is dropped; None judges no length.

    Replies are matched by the id of the message that they answer, never by a sender's own claim (Flower's error replies
    carry the server's id as their source). A second reply to one message, a reply to none, and a device that did not
    answer are named too.
    """
    updates: dict[int, Tensor] = {}
    rejections: list[Rejection] = []
    losses: dict[int, float] = {}
    answered: set[int] = set()
    for message in replies:
        device = asked.get(message.metadata.reply_to_message_id)
        if device is None:
            rejections.append(Rejection(-1, "it answers a message that this round did not send"))
            continue
        if device in answered:
            rejections.append(Rejection(device, "it answered twice; the first answer counts"))
            continue
        answered.add(device)
        reason, update = _judge(message, dimension, codec_name, most_norm)
        if update is None:
            rejections.append(Rejection(device, reason, absent=_absent(message)))
            continue
        updates[device] = update
        if (facts := metrics_of(message.content, FACTS)) is not None:
            loss = facts.get("loss")
            if isinstance(loss, float) and math.isfinite(loss):
                losses[device] = loss
    rejections.extend(
        Rejection(device, "it did not answer in time", absent=True)
        for device in asked.values()
        if device not in answered
    )
    return Admitted(
        updates={device: updates[device] for device in sorted(updates)},
        rejections=tuple(sorted(rejections, key=lambda rejection: rejection.device)),
        losses=tuple(losses[device] for device in sorted(losses)),
    )


def _absent(message: Message) -> bool:
    return message.has_error() and message.error.code == ErrorCode.NODE_UNAVAILABLE


def _judge(
    message: Message, dimension: int, codec_name: CodecName, most_norm: float | None
) -> tuple[str, Tensor | None]:
    """(reason, None) for a reply that cannot be used, ("", update) for one that can."""
    if message.has_error():
        return (
            f"{'it was not used' if _absent(message) else 'it failed'}: {message.error.reason or f'error {message.error.code}'}",
            None,
        )
    records = arrays_of(message.content, UPDATE)
    if records is None or set(records) != {DELTA}:
        held = sorted(records) if records is not None else "no update"
        return f"its reply holds {held} where exactly one array {DELTA!r} is expected", None
    if unasked := _unasked(message):
        return f"its reply carries {unasked}, which nobody asked for and nothing weighs", None
    try:
        if codec_name == "fp32":
            update = view(records[DELTA], dimension)
        else:
            update = codec(codec_name).decode(unpack(records[DELTA], "uint8"), dimension)
    except (ValueError, TypeError) as error:
        return f"its update cannot be used: {error}", None
    if not all_finite(update):
        return "its update holds values that are not finite", None
    if most_norm is not None:
        norm = float(torch.linalg.vector_norm(update, dtype=torch.float64))
        if norm > most_norm:
            return f"its update is {norm:.3g} long, and this run takes at most {most_norm:g}", None
    return "", update


def _unasked(message: Message) -> str:
    """Names of what a reply carries beside its update and its loss, "" where nothing."""
    extra = sorted(set(message.content) - {UPDATE, FACTS})
    facts = metrics_of(message.content, FACTS)
    if facts is not None:
        extra += sorted(set(facts) - {"loss"})
    elif FACTS in message.content:
        extra.append(FACTS)
    return ", ".join(repr(name[:40]) for name in extra[:3])
