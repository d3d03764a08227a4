"""Round checkpoints: everything the server needs to go on after a round, in one safetensors file, written atomically.

A file is complete or absent: it is written beside its place, flushed to the disk, renamed, and the folder is flushed
too. The last two are kept. A checksum over the numbers finds a flipped bit, which safetensors alone would let pass.
What it refuses: a damaged file, a file of another configuration, numbers of another shape; each with what to do.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

KEPT = 2
_STATE, _ACCOUNT = "optimiser.", "account."

Facts = dict[str, float | int | None]


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message says which, why, and what to do."""


@dataclass(frozen=True)
class RoundState:
    """The server after ``rounds_done`` rounds (= the number of the next one).

    vector: [d] float32. optimiser: name -> [d] float32. optimiser_steps: updates that it made (less than rounds_done
    where a round was lost in a crash). account: what the account goes on from, a function of releases. lost: numbers of
    the rounds that were spent without moving the model. history: the public facts of the rounds so far.
    """

    rounds_done: int
    vector: Tensor
    optimiser: dict[str, Tensor]
    optimiser_steps: int
    fingerprint: str
    lost: tuple[int, ...] = ()
    history: tuple[Facts, ...] = ()
    account: dict[str, Tensor] = field(default_factory=dict)


class Checkpoints:
    """The checkpoints of one run, in ``folder``."""

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self.folder = folder
        self.fingerprint = fingerprint

    def save(self, state: RoundState) -> Path:
        """Write ``state``; on return it is on the disk. OSError where the disk is full, the old ones being untouched."""
        self.folder.mkdir(parents=True, exist_ok=True)
        tensors = {"vector": state.vector.contiguous()}
        tensors |= {_STATE + name: value.contiguous() for name, value in state.optimiser.items()}
        tensors |= {_ACCOUNT + name: value.contiguous() for name, value in state.account.items()}
        metadata = {
            "rounds_done": str(state.rounds_done),
            "optimiser_steps": str(state.optimiser_steps),
            "fingerprint": state.fingerprint,
            "lost": json.dumps(list(state.lost)),
            "history": json.dumps(list(state.history)),
        }
        metadata["checksum"] = _checksum(tensors, metadata)
        path = self._path(state.rounds_done)
        write_atomically(path, save(tensors, metadata))
        for old in self._all()[:-KEPT]:
            old.unlink(missing_ok=True)
        return path

    def latest(self) -> RoundState | None:
        """The newest state, or None where no round was finished. CheckpointError where it is damaged or not ours."""
        paths = self._all()
        return self.load(paths[-1]) if paths else None

    def load(self, path: Path) -> RoundState:
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            state = RoundState(
                rounds_done=int(metadata["rounds_done"]),
                vector=tensors["vector"],
                optimiser={
                    name.removeprefix(_STATE): value for name, value in tensors.items() if name.startswith(_STATE)
                },
                account={name.removeprefix(_ACCOUNT): v for name, v in tensors.items() if name.startswith(_ACCOUNT)},
                optimiser_steps=int(metadata["optimiser_steps"]),
                fingerprint=metadata["fingerprint"],
                lost=tuple(int(number) for number in json.loads(metadata["lost"])),
                history=tuple(dict(facts) for facts in json.loads(metadata["history"])),
            )
            checksum = metadata.pop("checksum")
        except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
            raise CheckpointError(self._damaged(path, f"it cannot be read ({error})")) from None
        if checksum != _checksum(tensors, metadata):
            raise CheckpointError(self._damaged(path, "its numbers do not match its checksum"))
        if state.fingerprint != self.fingerprint:
            raise CheckpointError(
                f"{path} was written under another configuration; resume with the configuration that began the run, "
                "or give a new run directory."
            )
        return state

    def _damaged(self, path: Path, why: str) -> str:
        older = [other for other in self._all() if other != path]
        then = (
            f"the run goes on from {older[-1].name}"
            if older
            else "the run begins again, and its spent rounds stay spent"
        )
        return f"checkpoint {path} is damaged: {why}; move it away and {then}."

    def _path(self, rounds_done: int) -> Path:
        return self.folder / f"round-{rounds_done:06d}.safetensors"

    def _all(self) -> list[Path]:
        return sorted(self.folder.glob("round-*.safetensors"))


def write_atomically(path: Path, data: bytes, *, mode: int = 0o666) -> None:
    """Replace ``path`` by ``data`` so that a crash at any moment leaves the old or the new file, never a part.

    ``mode``: permissions of the file, before the process's umask; 0o600 for secrets.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _checksum(tensors: dict[str, Tensor], metadata: dict[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(tensors):
        value = tensors[name].contiguous()
        digest.update(f"{name}{tuple(value.shape)}".encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()
