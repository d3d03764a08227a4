"""The ledger's file: created whole, extended line by line, checked when opened, repaired only when asked.

See the package's description for what it promises and refuses.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from privacy.canonical import UnreadableError, canonical_bytes, parse_json, read_bytes
from privacy.events import Event
from privacy.ledger.entries import (
    MAX_LEDGER_BYTES,
    MAX_LINE,
    SCHEMA,
    ZERO_HASH,
    Entry,
    LedgerError,
    LedgerTamperedError,
    LedgerTruncatedError,
    LedgerWriteError,
    check_count,
    check_entry,
    check_public,
    entry_hash,
)
from privacy.ledger.files import head_path, locked, read_head, write_all, write_whole

logger = logging.getLogger(__name__)


class Ledger:
    """An open ledger. Make one with `Ledger.create`, continue one with `Ledger.open`.

    Attributes:
        path: the file. header: what `create` was given (the run's identity). entries: all entries, the header first.
        head: the last entry's hash. notes: what was unusual when the ledger was opened, in sentences.
    """

    def __init__(self, path: Path, entries: list[Entry], size: int, notes: tuple[str, ...] = ()) -> None:
        self.path = path
        self.notes = notes
        self._entries = entries
        self._size = size

    # ------------------------------------------------------------------------------------------------ opening

    @classmethod
    def create(cls, path: Path | str, header: Mapping[str, Any]) -> Ledger:
        """Start a ledger whose first entry is `header`: the run's identity (configuration hash, versions, data
        commitment), JSON values only. The file appears complete or not at all.

        Raises:
            FileExistsError: there is a ledger already; continue it with `Ledger.open`, or choose another directory.
            LedgerWriteError: the file could not be written.
        """
        path = Path(path)
        check_public(header)
        body = {"kind": "header", "index": 0, "schema": SCHEMA, "header": _plain(header)}
        entry = Entry(body, entry_hash(ZERO_HASH, body))
        line = canonical_bytes(entry.to_json()) + b"\n"
        if not path.exists():
            with suppress(OSError):
                head_path(path).unlink()  # left by a ledger that was removed
        write_whole(path, line, replace=False)
        ledger = cls(path, [entry], len(line))
        ledger._write_head()
        return ledger

    @classmethod
    def open(cls, path: Path | str) -> Ledger:
        """Read and check a ledger, ready to append.

        Raises:
            UnreadableError: it is absent, too large, or not a regular file.
            LedgerTruncatedError: its end is missing or broken off (a crash); `Ledger.repair` keeps the rest.
            LedgerTamperedError: an entry does not continue the chain.
        """
        path = Path(path)
        data = read_bytes(path, max_bytes=MAX_LEDGER_BYTES)
        entries, good, problem = _read_prefix(data, path)
        if problem is not None:
            raise problem
        recorded, notes = read_head(path)
        if recorded is not None:
            count, head = recorded
            if count > len(entries):
                raise LedgerTruncatedError(
                    f"{path} holds {len(entries)} entries where {count} were recorded: the last {count - len(entries)} "
                    "are missing; Ledger.repair keeps the rest and records the loss."
                )
            if entries[count - 1].hash != head:
                beside = head_path(path).name
                raise LedgerTamperedError(
                    f"{path} is not the ledger that {beside} describes: entry {count - 1} differs."
                )
        return cls(path, entries, good, notes)

    @classmethod
    def repair(cls, path: Path | str) -> Ledger:
        """Keep the good prefix of a truncated ledger and append an entry that says what was lost.

        The new file replaces the old one in one step. A line that was broken off lost no release, because releases
        come after their line is on the disk; whole entries that are missing did happen, and an audit will say that
        the epsilon can no longer be proven.

        Raises:
            LedgerTamperedError: the damage is not at the end, or not even the header survived: nothing to repair.
        """
        path = Path(path)
        data = read_bytes(path, max_bytes=MAX_LEDGER_BYTES)
        if data and not data.endswith(b"\n"):
            # The last line may be whole but for its end: then it is kept.
            whole = _read_prefix(data + b"\n", path)
            if whole[2] is None:
                data += b"\n"
        entries, good, problem = _read_prefix(data, path)
        if isinstance(problem, LedgerTamperedError):
            raise problem
        if not entries:
            raise LedgerTamperedError(
                f"{path} has no whole header, so nothing was recorded in it; remove it and start."
            )
        recorded, _ = read_head(path)
        lost_entries = max(0, recorded[0] - len(entries)) if recorded else 0
        if recorded and not lost_entries and entries[recorded[0] - 1].hash != recorded[1]:
            raise LedgerTamperedError(f"{path} is not the ledger that {head_path(path).name} describes.")
        if problem is None and not lost_entries and len(data) == path.stat().st_size:
            return cls.open(path)  # nothing to repair
        tail = data[good:]
        body = {
            "kind": "repair",
            "index": len(entries),
            "lost_bytes": len(tail),
            "lost_sha256": hashlib.sha256(tail).hexdigest(),
            "lost_entries": lost_entries,
        }
        entry = Entry(body, entry_hash(entries[-1].hash, body))
        kept = data[:good] + canonical_bytes(entry.to_json()) + b"\n"
        # The old head must go first: a crash in between leaves a ledger that opens, with or without the repair.
        with suppress(FileNotFoundError):
            head_path(path).unlink()
        write_whole(path, kept, replace=True)
        logger.warning("Repaired %s: %d entries kept, %d bytes dropped.", path, len(entries), len(tail))
        ledger = cls(path, [*entries, entry], len(kept))
        ledger._write_head()
        return ledger

    # ------------------------------------------------------------------------------------------------ reading

    @property
    def entries(self) -> tuple[Entry, ...]:
        """All entries, the header first."""
        return tuple(self._entries)

    @property
    def header(self) -> dict[str, Any]:
        """What `create` was given."""
        return dict(self._entries[0].body["header"])

    @property
    def head(self) -> str:
        """The hash of the last entry: it stands for the whole ledger."""
        return self._entries[-1].hash

    def __len__(self) -> int:
        return len(self._entries)

    def events(self) -> list[Event]:
        """The recorded releases, in order."""
        return [entry.event for entry in self._entries if entry.event is not None]

    def steps(self) -> list[int]:
        """The step of each recorded release, in order; a step taken again after a crash appears twice."""
        return [int(entry.body["step"]) for entry in self._entries if entry.kind == "event"]

    def remarks(self, topic: str | None = None) -> list[dict[str, Any]]:
        """The public fields of all remarks, or of those on one topic."""
        chosen = (entry for entry in self._entries if entry.kind == "remark")
        return [dict(entry.body["public"]) for entry in chosen if topic is None or entry.body["topic"] == topic]

    def to_json(self) -> list[dict[str, Any]]:
        """All entries as JSON objects, as a report embeds them."""
        return [entry.to_json() for entry in self._entries]

    def verify(self) -> None:
        """Read the file again and check that it is whole and says what this object says.

        Raises:
            LedgerTruncatedError, LedgerTamperedError, UnreadableError: as `Ledger.open`.
        """
        on_disk = Ledger.open(self.path)
        if on_disk.head != self.head or len(on_disk) != len(self):
            raise LedgerTamperedError(f"{self.path} was changed since it was opened: it ends in another entry.")

    # ------------------------------------------------------------------------------------------------ writing

    def append(self, event: Event, *, step: int, **public_fields: Any) -> Entry:
        """Record one release. Call it BEFORE the noise is drawn; it returns when the entry is on the disk.

        Args:
            event: what will be released.
            step: the step or round, from 0.
            public_fields: further public constants (JSON values).

        Raises:
            ValueError: a step below 0, or a field whose name says that it depends on private data.
            LedgerWriteError: the disk is full or fails; the entry is not recorded and the step must not be taken.
            LedgerError: another process wrote to the ledger.
        """
        check_count("step", step)
        check_public(public_fields)
        body = {
            "kind": "event",
            "index": len(self._entries),
            "step": step,
            "event": _plain(event.to_json()),
            "public": _plain(public_fields),
        }
        return self._append(body, event)

    def remark(self, topic: str, **public_fields: Any) -> Entry:
        """Record a public fact that is no release (a checkpoint kept, an evaluation, the run's end) in the same chain.

        Raises: as `append`.
        """
        if not topic:
            raise ValueError("A remark needs a topic, for instance 'checkpoint' or 'finished'.")
        check_public(public_fields)
        body = {"kind": "remark", "index": len(self._entries), "topic": topic, "public": _plain(public_fields)}
        return self._append(body, None)

    def _append(self, body: dict[str, Any], event: Event | None) -> Entry:
        entry = Entry(body, entry_hash(self.head, body), event)
        line = canonical_bytes(entry.to_json()) + b"\n"
        if len(line) > MAX_LINE:
            raise ValueError(f"An entry of {len(line)} bytes is too long; at most {MAX_LINE} are kept.")
        try:
            descriptor = os.open(self.path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0))
        except OSError as error:
            raise self._write_error(error) from error
        try:
            with locked(descriptor, self.path):
                if os.fstat(descriptor).st_size != self._size:
                    raise LedgerError(
                        f"{self.path} was changed by another process since it was opened; open it again to go on."
                    )
                self._write_line(descriptor, line)
        finally:
            os.close(descriptor)
        self._entries.append(entry)
        self._size += len(line)
        self._write_head()
        return entry

    def _write_line(self, descriptor: int, line: bytes) -> None:
        try:
            write_all(descriptor, line, self._size)
            os.fsync(descriptor)
        except OSError as error:
            # What was written of the line is taken back; making a file shorter needs no space.
            with suppress(OSError):
                os.ftruncate(descriptor, self._size)
                os.fsync(descriptor)
            raise self._write_error(error) from error

    def _write_error(self, error: OSError) -> LedgerWriteError:
        reason = error.strerror or "unknown reason"
        return LedgerWriteError(
            error.errno,
            f"The ledger {self.path} could not be extended ({reason.lower()}): the step was not taken and the "
            f"{len(self._entries)} entries recorded so far are intact; free some space and resume",
        )

    def _write_head(self) -> None:
        # One small write in place, not synced: after a power cut it may be older than the ledger, which is harmless.
        record = f"{len(self._entries):020d} {self.head}\n".encode()
        try:
            descriptor = os.open(head_path(self.path), os.O_WRONLY | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o644)
            try:
                write_all(descriptor, record, 0)
            finally:
                os.close(descriptor)
        except OSError as error:
            logger.warning("The head of %s could not be written (%s); the ledger is intact.", self.path, error.strerror)


def _plain(value: Any) -> Any:
    # The value as it will be read again, so that what memory holds and what the disk holds are equal.
    return parse_json(canonical_bytes(dict(value)))


def _read_prefix(data: bytes, path: Path) -> tuple[list[Entry], int, LedgerError | None]:
    """The entries of the longest good prefix, its length in bytes, and what is wrong after it, if anything."""
    entries: list[Entry] = []
    known: dict[bytes, Event] = {}
    good = 0
    while good < len(data):
        end = data.find(b"\n", good)
        if end < 0:
            what = (
                f"{len(entries)} entries are intact; Ledger.repair keeps them" if entries else "not even its header is"
            )
            problem = LedgerTruncatedError(f"{path} breaks off in the middle of line {len(entries) + 1}: {what}.")
            return entries, good, problem
        line = data[good:end]
        source = f"{path}, line {len(entries) + 1},"
        if len(line) > MAX_LINE:
            return entries, good, LedgerTamperedError(f"{source} is longer than any ledger line.")
        try:
            item = parse_json(line, source=source)
            entry = check_entry(item, len(entries), entries[-1].hash if entries else ZERO_HASH, known, str(path))
            if canonical_bytes(item) != line:
                raise LedgerTamperedError(f"{source} is not in the canonical spelling: it was edited.")
        except UnreadableError as error:
            return entries, good, LedgerTamperedError(str(error))
        except LedgerTamperedError as error:
            return entries, good, error
        entries.append(entry)
        good = end + 1
    if not entries:
        return entries, 0, LedgerTruncatedError(f"{path} is empty: not even its header is there.")
    return entries, good, None
