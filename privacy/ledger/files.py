"""How a ledger reaches the disk: whole files in one step, one writer at a time, and the head beside the file.

Refuses to overwrite, and to write while another process does.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from privacy.canonical import read_bytes
from privacy.ledger.entries import LedgerError, LedgerWriteError

try:
    import fcntl
except ImportError:  # not a POSIX system: the check of the file's size still refuses a second writer
    fcntl = None  # type: ignore[assignment]


def head_path(path: Path) -> Path:
    """Where the number of entries and the last hash of a ledger lie."""
    return path.with_name(path.name + ".head")


def read_head(path: Path) -> tuple[tuple[int, str] | None, tuple[str, ...]]:
    """(number of entries, last hash), or None with a sentence that says why it is not known."""
    beside = head_path(path)
    if not beside.exists():
        return None, (f"{beside.name} is absent, so a cut between two lines cannot be seen.",)
    try:
        words = read_bytes(beside, max_bytes=200).decode("ascii").split()
        count, head = int(words[0]), words[1]
        if count < 1 or len(head) != 64 or len(words) != 2:
            raise ValueError
    except (ValueError, IndexError):
        return None, (f"{beside.name} is unreadable, so a cut between two lines cannot be seen.",)
    return (count, head), ()


@contextmanager
def locked(descriptor: int, path: Path) -> Iterator[None]:
    """Hold the file's exclusive lock. Raises LedgerError while another process holds it."""
    if fcntl is not None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            # A file system without locks leaves the check of the file's size.
            if error.errno in (errno.EAGAIN, errno.EACCES):
                message = f"{path} is being written by another process; let it finish, or stop it."
                raise LedgerError(message) from error
    try:
        yield
    finally:
        if fcntl is not None:
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_UN)


def write_all(descriptor: int, data: bytes, offset: int) -> None:
    """Write all bytes from an offset on, however little the system takes at a time."""
    os.lseek(descriptor, offset, os.SEEK_SET)
    view = memoryview(data)
    while view:
        written = os.write(descriptor, view)
        view = view[written:]


def write_whole(path: Path, data: bytes, *, replace: bool) -> None:
    """Put a whole file in its place in one step, or leave everything as it was."""
    if not replace and (path.exists() or path.is_symlink()):
        raise FileExistsError(f"{path} exists; continue it with Ledger.open, or choose another directory.")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            write_all(descriptor, data, 0)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.replace(path)
        _sync_directory(path.parent)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise LedgerWriteError(error.errno, f"The ledger {path} could not be written ({error.strerror})") from error


def _sync_directory(folder: Path) -> None:
    # A new name is durable only when its directory is; systems that cannot sync directories are left as they are.
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
