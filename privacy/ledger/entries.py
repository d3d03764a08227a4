"""What a ledger's entries are, how they are chained, and how a chain is checked; no files here.

Refuses an entry with a key too many or too few, out of its place, with a hash that does not continue the chain, or with
an event that is impossible. The hash of entry i is SHA-256 over the schema's name, the hash of entry i - 1 (64 zeros
before the header) and the canonical encoding of the entry without its hash.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from privacy.canonical import canonical_bytes
from privacy.events import Event, EventError, event_from_json

SCHEMA: Final = "mmslm.ledger/1"
MAX_LINE: Final = 1 << 20
MAX_LEDGER_BYTES: Final = 512 * 1024 * 1024
ZERO_HASH: Final = "0" * 64
_KINDS: Final = frozenset({"header", "event", "remark", "repair"})
_KEYS: Final = {
    "header": frozenset({"kind", "index", "schema", "header", "hash"}),
    "event": frozenset({"kind", "index", "step", "event", "public", "hash"}),
    "remark": frozenset({"kind", "index", "topic", "public", "hash"}),
    "repair": frozenset({"kind", "index", "lost_bytes", "lost_sha256", "lost_entries", "hash"}),
}
# Names of quantities that depend on the data. They are no part of a public ledger, whatever their value.
DATA_DEPENDENT: Final = frozenset(
    {"loss", "losses", "accuracy", "batch_size", "actual_batch_size", "cohort", "cohort_size", "participants"}
    | {
        "members",
        "users",
        "norm",
        "norms",
        "gradient_norm",
        "update_norm",
        "clipped",
        "clipped_count",
        "clipped_fraction",
    }
    | {"non_finite", "dropped", "examples", "examples_seen"}
)


class LedgerError(ValueError):
    """The ledger cannot be used as asked; the message says why and what to do."""


class LedgerTruncatedError(LedgerError):
    """The ledger's end is missing or broken off; the entries before are intact and `Ledger.repair` keeps them."""


class LedgerTamperedError(LedgerError):
    """An entry inside the ledger does not continue the chain: it was edited, reordered or removed."""


class LedgerWriteError(OSError):
    """An entry could not be put on the disk; nothing that was recorded before is lost."""


@dataclass(frozen=True)
class Entry:
    """One line of a ledger. `body` is the JSON object without its hash; `hash` is 64 hexadecimal characters."""

    body: dict[str, Any]
    hash: str
    event: Event | None = field(default=None, compare=False, repr=False)

    @property
    def kind(self) -> str:
        """header, event, remark or repair."""
        return str(self.body["kind"])

    @property
    def index(self) -> int:
        """Its place in the ledger; the header has 0."""
        return int(self.body["index"])

    @property
    def step(self) -> int | None:
        """The step or round of an event, else None."""
        return self.body.get("step")

    def to_json(self) -> dict[str, Any]:
        """The object that its line encodes."""
        return {**self.body, "hash": self.hash}


def entry_hash(previous: str, body: Mapping[str, Any]) -> str:
    """SHA-256 over the schema's name, the previous entry's hash (hexadecimal) and the canonical body, line by line."""
    digest = hashlib.sha256(f"{SCHEMA}\n{previous}\n".encode())
    digest.update(canonical_bytes(dict(body)))
    return digest.hexdigest()


def read_entries(objects: Iterable[Any], *, source: str = "the ledger") -> list[Entry]:
    """Check a whole chain given as JSON objects (as a report embeds it) and return its entries.

    Raises:
        LedgerTamperedError: an entry is malformed, out of place, or does not continue the chain.
    """
    entries: list[Entry] = []
    previous = ZERO_HASH
    known: dict[bytes, Event] = {}  # thousands of entries repeat one event
    for index, item in enumerate(objects):
        entry = check_entry(item, index, previous, known, source)
        entries.append(entry)
        previous = entry.hash
    if not entries:
        raise LedgerTamperedError(f"{source} has no entries; expected at least its header.")
    return entries


def check_entry(item: Any, index: int, previous: str, known: dict[bytes, Event], source: str) -> Entry:
    """The entry that a JSON object stands for, if it is well formed and continues the chain after `previous`.

    `known` keeps the events seen so far, by their canonical encoding. Raises LedgerTamperedError.
    """
    where = f"{source}, entry {index},"
    if not isinstance(item, dict) or item.get("kind") not in _KINDS:
        raise LedgerTamperedError(f"{where} is no ledger entry (a header, event, remark or repair).")
    if frozenset(item) != _KEYS[item["kind"]]:
        raise LedgerTamperedError(f"{where} does not have exactly the keys of a {item['kind']} entry.")
    body = {key: value for key, value in item.items() if key != "hash"}
    if body["index"] != index or isinstance(body["index"], bool):
        raise LedgerTamperedError(f"{where} says that its index is {str(body['index'])[:20]}: entries were moved.")
    if (body["kind"] == "header") != (index == 0):
        raise LedgerTamperedError(f"{where} is out of place: a ledger has one header, and it comes first.")
    try:
        _check_fields(body)
        wanted = entry_hash(previous, body)
    except (TypeError, ValueError) as error:
        raise LedgerTamperedError(f"{where} is malformed: {error}") from error
    if item["hash"] != wanted:
        raise LedgerTamperedError(f"{where} does not continue the hash chain: it, or one before it, was changed.")
    event = None
    if body["kind"] == "event":
        try:
            key = canonical_bytes(body["event"])
            event = known.get(key) or event_from_json(body["event"])
            known[key] = event
        except EventError as error:
            raise LedgerTamperedError(f"{where} holds an impossible event: {error}") from error
    return Entry(body, wanted, event)


def _check_fields(body: dict[str, Any]) -> None:
    kind = body["kind"]
    if kind == "header" and (body["schema"] != SCHEMA or not isinstance(body["header"], dict)):
        raise ValueError(f"its schema is {str(body['schema'])[:40]!r}, expected {SCHEMA!r} with a header object.")
    if kind == "event":
        check_count("step", body["step"])
    if kind in ("event", "remark") and not isinstance(body["public"], dict):
        raise ValueError("its public fields are no object.")
    if kind == "remark" and not (isinstance(body["topic"], str) and body["topic"]):
        raise ValueError("its topic is not a text.")
    if kind == "repair":
        check_count("lost_bytes", body["lost_bytes"])
        check_count("lost_entries", body["lost_entries"])
        if not isinstance(body["lost_sha256"], str):
            raise ValueError("its lost_sha256 is not a text.")


def check_count(name: str, value: object) -> None:
    """Raises ValueError unless the value is a whole number from 0."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{name} is {str(value)[:40]!r}, expected a whole number from 0.")


def check_public(fields: Mapping[str, Any]) -> None:
    """Raises ValueError if a field's name says that it depends on private data."""
    leaking = sorted(DATA_DEPENDENT.intersection(fields))
    if leaking:
        raise ValueError(
            f"The ledger is public and was given {', '.join(leaking)}, which depend on private data; "
            "keep them for the private annex."
        )
