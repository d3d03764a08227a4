"""What is kept is sealed, what is forgotten is gone from the disk, and a passphrase is never written."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from apps import history
from apps.history import History
from apps.sessions import Trouble

CANARY = "canary-4bd7"
WORD = "a long passphrase " + CANARY


@pytest.fixture()
def kept(tmp_path: Path) -> History:
    return History(tmp_path / "data" / "history", cost=2**10)


def disk(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_turns_come_back_with_the_passphrase_and_never_without(kept: History) -> None:
    key, turns = kept.unlock(WORD)
    assert turns == []
    kept.change(key, lambda turns: [*turns, {"id": "1", "question": CANARY}])
    assert History(kept.path).unlock(WORD)[1] == [{"id": "1", "question": CANARY}]
    with pytest.raises(Trouble) as trouble:
        kept.unlock("another passphrase")
    assert trouble.value.key == "history.wrong"


def test_the_disk_holds_neither_words_nor_passphrase_nor_key_and_only_the_owner_reads(
    kept: History, tmp_path: Path
) -> None:
    key, _ = kept.unlock(WORD)
    kept.change(key, lambda turns: [{"question": CANARY}])
    content = disk(tmp_path)
    assert CANARY.encode() not in content and key.secret not in content and WORD.encode() not in content
    assert stat.S_IMODE(kept.path.stat().st_mode) == 0o600 and stat.S_IMODE(kept.path.parent.stat().st_mode) == 0o700
    assert [path.name for path in kept.path.parent.iterdir()] == ["history"]
    assert repr(key) == "Key(...)"


def test_the_file_is_what_its_description_says(kept: History) -> None:
    """Opened by hand: scrypt of the standard library, AES-GCM with the header as associated data."""
    import base64
    import hashlib

    key, _ = kept.unlock(WORD)
    kept.change(key, lambda turns: [{"question": "why?"}])
    first, _, sealed = kept.path.read_bytes().partition(b"\n")
    header = json.loads(first)
    secret = hashlib.scrypt(
        WORD.encode(), salt=base64.b64decode(header["salt"]), n=header["n"], r=header["r"], p=header["p"], dklen=32
    )
    bound = json.dumps(header, sort_keys=True).encode()
    assert json.loads(AESGCM(secret).decrypt(base64.b64decode(header["nonce"]), sealed, bound)) == [
        {"question": "why?"}
    ]


def test_what_is_forgotten_is_overwritten_before_it_is_unlinked(kept: History, tmp_path: Path) -> None:
    """A second name of the same file still shows what became of its bytes."""
    key, _ = kept.unlock(WORD)
    kept.change(key, lambda turns: [{"question": CANARY}])
    sealed = kept.path.read_bytes()
    witness = tmp_path / "witness"
    os.link(kept.path, witness)
    kept.change(key, lambda turns: [])
    assert kept.path.read_bytes() != sealed and witness.read_bytes() != sealed
    assert len(witness.read_bytes()) == len(sealed) and sealed[-32:] not in disk(tmp_path)
    last = kept.path.read_bytes()
    second = tmp_path / "second"
    os.link(kept.path, second)
    kept.delete()
    assert not kept.exists() and second.read_bytes() != last and last[-32:] not in disk(tmp_path)
    kept.delete()


def test_a_deleted_history_is_not_written_again_by_a_page_that_still_has_its_key(kept: History) -> None:
    key, _ = kept.unlock(WORD)
    kept.delete()
    kept.change(key, lambda turns: [{"question": "late"}])
    assert not kept.exists()


@pytest.mark.parametrize("place", [5, -1])
def test_a_changed_bit_is_noticed(kept: History, place: int) -> None:
    key, _ = kept.unlock(WORD)
    kept.change(key, lambda turns: [{"question": "why?"}])
    blob = bytearray(kept.path.read_bytes())
    blob[place] ^= 1
    kept.path.write_bytes(bytes(blob))
    with pytest.raises(Trouble, match=r"passphrase|damaged"):
        kept.unlock(WORD)


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"no json\nx", b'{"format": "x", "salt": "", "nonce": "", "n": 1024}\n']
)
def test_a_file_that_is_no_history_is_refused_and_left_alone(kept: History, content: bytes) -> None:
    kept.path.parent.mkdir(parents=True)
    kept.path.write_bytes(content)
    with pytest.raises(Trouble) as trouble:
        kept.unlock(WORD)
    assert trouble.value.key == "history.damaged" and kept.path.read_bytes() == content


def test_a_file_cannot_ask_for_endless_work(kept: History) -> None:
    kept.unlock(WORD)
    first, _, rest = kept.path.read_bytes().partition(b"\n")
    kept.path.write_bytes(json.dumps({**json.loads(first), "n": 2**40}).encode() + b"\n" + rest)
    with pytest.raises(Trouble, match="damaged"):
        kept.unlock(WORD)


def test_every_writing_has_its_own_nonce_and_the_number_of_turns_is_bounded(
    kept: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "MAX_TURNS", 3)
    key, _ = kept.unlock(WORD)
    nonces = set()
    for number in range(6):
        kept.change(key, lambda turns, n=number: [*turns, {"id": n}])  # type: ignore[misc]
        nonces.add(json.loads(kept.path.read_bytes().partition(b"\n")[0])["nonce"])
    assert len(nonces) == 6 and [turn["id"] for turn in kept.unlock(WORD)[1]] == [3, 4, 5]


@pytest.mark.parametrize("word", ["", "short", "x" * 300])
def test_a_short_or_endless_passphrase_is_refused_and_nothing_is_written(kept: History, word: str) -> None:
    with pytest.raises(Trouble) as trouble:
        kept.unlock(word)
    assert trouble.value.key == "history.short" and not kept.exists()


def test_the_history_lies_in_the_persons_data_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert history.default_path() == tmp_path / "mmslm" / "history"
    assert history.COST >= 2**17
