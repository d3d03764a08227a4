"""What travels in the five stages of a secure sum: one ConfigRecord of bytes each way, and the masked vector as an array.

Everything is of fixed size per device and in ascending order of device numbers. What it refuses: a field that is missing,
not bytes, or of another size than its devices.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from numpy.typing import NDArray

from federated import wire
from federated.secure_aggregation.device import Advert, Unmasking, parcel, read_parcel
from federated.secure_aggregation.ring import Words

SECURE = "secure"
ADVERTISE, SHARE, CONFIRM, UNMASK = (f"query.secure_{stage}" for stage in ("advertise", "share", "confirm", "unmask"))
MASKED = "train.secure_masked"
SIGNATURE_BYTES, KEY_BYTES = 64, 32

Fields = dict[str, Any]


def content(session: bytes, number: int, **fields: bytes) -> RecordDict:
    """A server's message of one stage. ``number``: the round, from 0."""
    return RecordDict({SECURE: ConfigRecord({"session": session, "number": number, **fields})})


def fields_of(message: Message) -> Fields:
    """The fields of a message of either side. ValueError where there are none."""
    record = message.content.config_records.get(SECURE)
    if record is None:
        raise ValueError("the message has no part for secure aggregation; both sides need the same trust setting.")
    return dict(record)


def of_bytes(fields: Mapping[str, Any], name: str) -> bytes:
    """One field. ValueError where it is missing or not bytes."""
    value = fields.get(name)
    if not isinstance(value, bytes):
        raise ValueError(f"the field {name!r} is missing, or not bytes.")
    return value


def reply(message: Message, **fields: bytes) -> Message:
    """A device's answer."""
    return Message(RecordDict({SECURE: ConfigRecord(dict(fields))}), reply_to=message)


def adverts_to(adverts: Mapping[int, Advert]) -> dict[str, bytes]:
    """Adverts as fields."""
    return parcel("adverts", {n: a.encryption + a.masking + a.signature for n, a in adverts.items()})


def adverts_from(fields: Mapping[str, Any]) -> dict[int, Advert]:
    """The inverse. ValueError for other sizes."""
    found = read_parcel(fields, "adverts")
    for number, data in found.items():
        if len(data) != 2 * KEY_BYTES + SIGNATURE_BYTES:
            raise ValueError(f"the keys of device {number} have {len(data)} bytes.")
    return {n: Advert(d[:KEY_BYTES], d[KEY_BYTES : 2 * KEY_BYTES], d[2 * KEY_BYTES :]) for n, d in found.items()}


def unmasking_to(given: Unmasking) -> dict[str, bytes]:
    """Shares as fields."""
    return {**parcel("own_masks", given.own_masks), **parcel("masking_keys", given.masking_keys)}


def unmasking_from(fields: Mapping[str, Any]) -> Unmasking:
    """The inverse."""
    return Unmasking(read_parcel(fields, "own_masks"), read_parcel(fields, "masking_keys"))


def words_to(words: Words) -> ArrayRecord:
    """A masked vector [d] as bytes."""
    return ArrayRecord({wire.DELTA: wire.pack(words.astype("<u4").view(np.uint8))})


def words_from(message: Message, dimension: int) -> Words:
    """The inverse. ValueError for another length or kind."""
    record = message.content.array_records.get(wire.UPDATE)
    if record is None or set(record) != {wire.DELTA}:
        raise ValueError("its reply holds no masked vector")
    data: NDArray[np.uint8] = wire.unpack(record[wire.DELTA], "uint8", 4 * dimension)
    return np.frombuffer(data.tobytes(), dtype="<u4").astype(np.uint32)
