"""Gradio's scratch folder and switches: nothing of a person's photo outlives the program on a disk.

The folder lies in memory where the system allows it, only this user can open it, and it goes when we go; what a killed
process left is swept at the next start. The switches keep Gradio and the hub from calling anybody. It refuses nothing.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

SCRATCH_PREFIX = "mmslm-scratch-"
SWITCHES = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_SHARE": "False",
    "GRADIO_MCP_SERVER": "False",
    "GRADIO_CACHE_EXAMPLES": "False",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
}


def scratch_parent() -> Path:
    """Where scratch folders go: memory (tmpfs) where the system has it, else the temporary folder."""
    memory = Path("/dev/shm")
    return memory if memory.is_dir() and os.access(memory, os.W_OK) else Path(tempfile.gettempdir())


def sweep(parent: Path) -> int:
    """Removes scratch folders of processes that are no more (killed without a chance to clean up); how many."""
    removed = 0
    for folder in parent.glob(f"{SCRATCH_PREFIX}*"):
        owner = folder.name[len(SCRATCH_PREFIX) :].partition("-")[0]
        if owner.isdigit() and not _alive(int(owner)) and folder.stat().st_uid == os.getuid():
            shutil.rmtree(folder, ignore_errors=True)
            removed += 1
    return removed


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@contextlib.contextmanager
def scratch(parent: Path | None = None) -> Iterator[Path]:
    """A scratch folder for Gradio that only this user can open, removed at the end; sets the switches of this process."""
    parent = parent or scratch_parent()
    sweep(parent)
    folder = Path(tempfile.mkdtemp(prefix=f"{SCRATCH_PREFIX}{os.getpid()}-", dir=parent))
    before = {name: os.environ.get(name) for name in (*SWITCHES, "GRADIO_TEMP_DIR")}
    os.environ.update(SWITCHES, GRADIO_TEMP_DIR=str(folder))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


__all__ = ["SCRATCH_PREFIX", "SWITCHES", "scratch", "scratch_parent", "sweep"]
