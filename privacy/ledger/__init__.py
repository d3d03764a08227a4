"""The ledger: an append-only file that says what a private run released, written before each release.

One entry per line, canonical JSON (see `privacy.canonical`), each carrying the SHA-256 of the entry before it, so that
an edit, a reordering or a removal anywhere changes every later hash. `append` returns only when the line is on the disk
(fsync), and the caller draws noise only after that: a crash can lose a release that never happened, never one that did.

Beside the ledger lies `<name>.head`, the number of entries and the last hash. It tells a file that was cut exactly
between two lines from one that is whole. It is a convenience for crashes, not a defence: who edits one file can edit
both; an auditor compares with the head hash that the report, or a signature over it, recorded elsewhere.

What it refuses: to overwrite a ledger, to continue one that is damaged (`Ledger.repair` is explicit and leaves a record
of itself in the chain), to be written by two processes at once, and public fields whose names say that they depend on
private data (losses, batch sizes, norms).
"""

from privacy.ledger.book import Ledger
from privacy.ledger.entries import (
    DATA_DEPENDENT,
    SCHEMA,
    Entry,
    LedgerError,
    LedgerTamperedError,
    LedgerTruncatedError,
    LedgerWriteError,
    entry_hash,
    read_entries,
)

__all__ = [
    "DATA_DEPENDENT",
    "SCHEMA",
    "Entry",
    "Ledger",
    "LedgerError",
    "LedgerTamperedError",
    "LedgerTruncatedError",
    "LedgerWriteError",
    "entry_hash",
    "read_entries",
]
