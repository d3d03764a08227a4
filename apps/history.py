"""A conversation kept on this computer, only when the person asks for it: one encrypted file, and forgetting that is
true on the disk.

The key comes from a passphrase by scrypt and is held in memory for as long as the page wants it; the passphrase is
never stored. The file is AES-256-GCM (a fresh nonce for every writing, the header authenticated), readable by its owner
only. It holds questions and answers with personal data blacked out, never a photo. Rewriting replaces the whole file;
the replaced one, and a forgotten one, are overwritten before they are unlinked. On a disk that writes elsewhere (SSD,
copy-on-write, snapshots) old blocks may live on: what is in them is still encrypted.

It refuses a short passphrase, a wrong one, and a file that was changed by a single bit.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import threading
import unicodedata
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apps.sessions import Trouble

Turn = dict[str, Any]
MIN_PASSPHRASE = 8
MAX_PASSPHRASE = 200
MAX_TURNS = 500
MAX_FILE = 8 * 1024 * 1024
# OWASP's recommendation for scrypt (Password Storage Cheat Sheet): N = 2**17, r = 8, p = 1; 128 MB while it runs.
COST = 2**17
_R, _P = 8, 1
_FORMAT = "mmslm-history-1"


@dataclass(frozen=True)
class Key:
    """What opens one history file: its salt and the key made of the passphrase. Not shown in logs."""

    salt: bytes
    cost: int
    secret: bytes

    def __repr__(self) -> str:
        return "Key(...)"


def default_path() -> Path:
    """Where the history lies: ``$XDG_DATA_HOME/mmslm/history``, usually ``~/.local/share/mmslm/history``."""
    home = os.environ.get("XDG_DATA_HOME")
    return (Path(home) if home else Path.home() / ".local" / "share") / "mmslm" / "history"


class History:
    """One history file; safe to use from several threads of one process."""

    def __init__(self, path: Path, *, cost: int = COST) -> None:
        self.path, self._cost = path, cost
        self._lock = threading.Lock()

    def exists(self) -> bool:
        """Whether a history is kept."""
        return self.path.is_file()

    def unlock(self, passphrase: str) -> tuple[Key, list[Turn]]:
        """The key and the turns kept so far; begins an empty history where there is none. Raises Trouble."""
        word = unicodedata.normalize("NFKC", passphrase)
        if not MIN_PASSPHRASE <= len(word) <= MAX_PASSPHRASE:
            raise Trouble("history.short")
        with self._lock:
            if not self.exists():
                key = self._key(word, secrets.token_bytes(16), self._cost)
                self._write(key, [])
                return key, []
            header, _ = self._parts()
            key = self._key(word, base64.b64decode(header["salt"]), int(header["n"]))
            return key, self._read(key)

    def change(self, key: Key, edit: Callable[[list[Turn]], list[Turn]]) -> None:
        """Reads, edits and writes the turns; at most the last ``MAX_TURNS`` stay. A deleted file stays deleted."""
        with self._lock:
            if self.exists():
                self._write(key, edit(self._read(key))[-MAX_TURNS:])

    def delete(self) -> None:
        """The file, overwritten and gone."""
        with self._lock, suppress(FileNotFoundError):
            _fill(os.open(self.path, os.O_RDWR))
            self.path.unlink()

    def _key(self, word: str, salt: bytes, cost: int) -> Key:
        from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

        if not 2**10 <= cost <= 2**20 or cost & (cost - 1):
            raise Trouble("history.damaged")
        secret = Scrypt(salt=salt, length=32, n=cost, r=_R, p=_P).derive(word.encode("utf-8"))
        return Key(salt, cost, secret)

    def _parts(self) -> tuple[dict[str, Any], bytes]:
        """Header and sealed turns of the file. Raises Trouble."""
        try:
            if self.path.stat().st_size > MAX_FILE:
                raise ValueError("too large")
            first, _, rest = self.path.read_bytes().partition(b"\n")
            header = json.loads(first)
            base64.b64decode(header["salt"], validate=True), base64.b64decode(header["nonce"], validate=True)
            if header["format"] != _FORMAT or not isinstance(header["n"], int):
                raise ValueError("another format")
            return header, rest
        except (ValueError, KeyError, TypeError):
            raise Trouble("history.damaged") from None

    def _read(self, key: Key) -> list[Turn]:
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        header, sealed = self._parts()
        try:
            opened = AESGCM(key.secret).decrypt(base64.b64decode(header["nonce"]), sealed, _bound(header))
        except (InvalidTag, ValueError):
            raise Trouble("history.wrong") from None
        turns: list[Turn] = json.loads(opened)
        return turns

    def _write(self, key: Key, turns: list[Turn]) -> None:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        nonce = secrets.token_bytes(12)
        header = {
            "format": _FORMAT,
            "n": key.cost,
            "r": _R,
            "p": _P,
            "salt": base64.b64encode(key.salt).decode(),
            "nonce": base64.b64encode(nonce).decode(),
        }
        sealed = AESGCM(key.secret).encrypt(nonce, json.dumps(turns, ensure_ascii=False).encode(), _bound(header))
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        new = self.path.with_name(f"{self.path.name}.{os.getpid()}.new")
        old = None
        try:
            descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(json.dumps(header).encode() + b"\n" + sealed)
                file.flush()
                os.fsync(file.fileno())
            # Held open, the old file can be overwritten after the new one has taken its name: a crash loses neither.
            with suppress(FileNotFoundError):
                old = os.open(self.path, os.O_RDWR)
            new.replace(self.path)
        finally:
            new.unlink(missing_ok=True)
        if old is not None:
            _fill(old)


def _bound(header: dict[str, Any]) -> bytes:
    """The header as bytes that the seal vouches for."""
    return json.dumps(header, sort_keys=True).encode()


def _fill(descriptor: int) -> None:
    """Random bytes over the whole of an open file, forced to the disk; closes it."""
    with os.fdopen(descriptor, "r+b", buffering=0) as file:
        file.write(secrets.token_bytes(os.fstat(file.fileno()).st_size))
        os.fsync(file.fileno())
