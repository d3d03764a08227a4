"""What a device keeps to itself between rounds: personal adapters, and the rests of its compressed updates.

One folder per device, one safetensors file per thing and round, written atomically, the newest two kept. A device that
was killed in a round and is asked for the same round again starts from what it held *before* that round, so it answers
the same, bit for bit.

These files are private: they come from one person's photos, and nothing noised them. On a real device they lie on that
device, where ``mmslm deploy supernode --store`` says, one folder for each run (``store_of_node``). In a simulation they
lie together in a folder beside the run's, which is not handed to an auditor. What is refused: a file that is damaged or
was made for adapters of another length.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from federated.checkpoint import write_atomically

KEPT = 2
STORE = "store"  # of a node's configuration


class DeviceStoreError(ValueError):
    """A device's file that cannot be used; the message says which, why, and what to do."""


class DeviceStore:
    """Vectors of devices, in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, device: int, name: str, round_number: int, vector: Tensor) -> None:
        """Keep ``vector [d]`` as what ``device`` holds after ``round_number``; on return it is on the disk."""
        home = self._home(device)
        home.mkdir(parents=True, exist_ok=True)
        home.chmod(0o700)
        write_atomically(home / f"{name}-{round_number:06d}.safetensors", save({"vector": vector.contiguous()}))
        # What is of later rounds belongs to a run that was begun anew in the same place.
        held = self._all(device, name)
        ours = [path for path in held if self._round(path) <= round_number]
        for old in [*ours[:-KEPT], *held[len(ours) :]]:
            old.unlink(missing_ok=True)

    def load(self, device: int, name: str, *, before: int, dimension: int) -> Tensor | None:
        """What ``device`` held before round ``before``, [dimension] float32; None where it held nothing.

        Raises DeviceStoreError for a damaged file or another dimension.
        """
        paths = [path for path in self._all(device, name) if self._round(path) < before]
        return self._read(paths[-1], dimension) if paths else None

    def _read(self, path: Path, dimension: int) -> Tensor:
        try:
            with safe_open(path, framework="pt") as file:
                vector: Tensor = file.get_tensor("vector")
        except (SafetensorError, OSError) as error:
            raise DeviceStoreError(
                f"{path} cannot be read ({error}); remove it, and this device begins anew from the shared adapters."
            ) from None
        if tuple(vector.shape) != (dimension,) or vector.dtype != torch.float32:
            raise DeviceStoreError(
                f"{path} holds {tuple(vector.shape)} of {vector.dtype} and this run's adapters need ({dimension},) of "
                "float32: it belongs to another run; give another folder, or remove it."
            )
        return vector

    def _home(self, device: int) -> Path:
        return self.folder / f"{device:06d}"

    def _all(self, device: int, name: str) -> list[Path]:
        return sorted(self._home(device).glob(f"{name}-[0-9]*.safetensors"), key=self._round)

    @staticmethod
    def _round(path: Path) -> int:
        return int(path.stem.rpartition("-")[2])


def store_of_node(node_config: Mapping[str, object], fingerprint: str, run_dir: str) -> DeviceStore | None:
    """Where a node was told to keep what is its own; None where it was told nothing, and has only its memory.

    A run is known by its settings (``fingerprint``) and its directory on the server (``run_dir``), so that one that is
    resumed finds what it had, and another run finds nothing. ValueError for a relative path.
    """
    place = node_config.get(STORE)
    if place is None:
        return None
    if not isinstance(place, str) or not Path(place).is_absolute():
        raise ValueError(
            f"this node's {STORE} is {place!r}; give an absolute path (mmslm deploy supernode --store DIR)."
        )
    run = hashlib.sha256(f"{fingerprint}|{run_dir}".encode()).hexdigest()[:16]
    return DeviceStore(Path(place) / "runs" / run)
