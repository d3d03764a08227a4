"""Keys for signing reports: made, kept readable by their owner alone, and read back; and the public halves.

A signing key is an ed25519 key in PEM (PKCS #8), as other tools write and read it. Its public half is 64 hexadecimal
digits in a file beside it (`.pub`), for whoever checks signatures. Refuses to overwrite a key, to read one that others
on the machine may read, and another kind of key. No message ever holds a key's content.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from privacy.canonical import UnreadableError, read_bytes

_MOST_BYTES = 10_000
_PUBLIC = re.compile(r"[0-9a-fA-F]{64}")


class KeyRefused(ValueError):
    """A key that cannot be used; the message says why and what to do, and never holds any of it."""


def new_key(path: Path) -> tuple[Path, str]:
    """Make a signing key in `path` (mode 0600) and its public half beside it; (the public file, its 64 digits).

    Raises:
        FileExistsError: one of the two files exists; nothing was written.
        OSError: the folder cannot be written.
    """
    beside = path.with_name(path.name + ".pub")
    for each in (path, beside):
        if os.path.lexists(each):
            raise FileExistsError(
                17, "there is a file already, and a key is never overwritten; give another name", str(each)
            )
    key = Ed25519PrivateKey.generate()
    public = public_half(key)
    write_private(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    beside.write_text(public + "\n", encoding="ascii")
    return beside, public


def write_private(path: Path, content: bytes) -> None:
    """A new file that its owner alone may read, from its first moment on. Raises FileExistsError, OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def read_private(path: Path) -> bytes:
    """The content of a secret file.

    Raises:
        UnreadableError: it is absent, a link, or no regular file.
        KeyRefused: others may read it.
    """
    content = read_bytes(path, max_bytes=_MOST_BYTES)
    if os.name == "posix" and stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise KeyRefused(
            f"{path} can be read by others on this machine; run `chmod 600 {path}` and take a new key if they may have."
        )
    return content


def load_key(path: Path) -> Ed25519PrivateKey:
    """The signing key in a file. Raises UnreadableError or KeyRefused."""
    content = read_private(path)
    try:
        key = load_pem_private_key(content, password=None)
    except TypeError:
        raise KeyRefused(
            f"{path} is encrypted with a password; give a key without one, kept by its file's mode."
        ) from None
    except ValueError:
        raise KeyRefused(f"{path} holds no private key in PEM; make one with `mmslm report keygen FILE`.") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyRefused(f"{path} holds a key of another kind; reports are signed with ed25519.")
    return key


def public_half(key: Ed25519PrivateKey) -> str:
    """64 hexadecimal digits."""
    return key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw).hex()


def read_public(given: str) -> str:
    """A public key, given as its 64 hexadecimal digits or as the name of a file that holds them.

    Raises:
        KeyRefused: it is neither.
    """
    if _PUBLIC.fullmatch(given):
        return given.lower()
    try:
        text = read_bytes(Path(given), max_bytes=_MOST_BYTES).decode("ascii", "replace").strip()
    except UnreadableError as error:
        raise KeyRefused(
            f"the public key is {given[:80]!r}, neither 64 hexadecimal digits nor a file of them: {error}"
        ) from None
    if not _PUBLIC.fullmatch(text):
        hint = " (that is a private key: give its .pub file)" if "PRIVATE KEY" in text else ""
        raise KeyRefused(f"{given} does not hold a public key of 64 hexadecimal digits{hint}.")
    return text.lower()
