"""What Flower's programs have in common here: a quiet environment, being waited for, and always being stopped.

They are told to open no connection but the ones that the deployment needs: no telemetry, no update check, no
installation of dependencies, no usage statistics. Each gets a home folder of its own, because they keep state there.

What it refuses: to return before a program answers, and to leave one behind.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_agent_register_timeout_ms": "300000",  # the raylet ends itself where its agents need longer than its 30 s
    "RAY_worker_register_timeout_seconds": "300",  # importing torch on a busy machine takes longer than its minute
}


class ProgramError(RuntimeError):
    """A program of Flower's that ended or did not answer; the message says which, and where its words are."""


def environment(home: Path, threads: int = 1) -> dict[str, str]:
    """The environment of Flower's programs. ``home`` becomes their FLWR_HOME."""
    found = dict(os.environ) | QUIET
    found["FLWR_HOME"] = str(home.absolute())
    found["OMP_NUM_THREADS"] = str(threads)
    # They start each other by name, and import this package by name: both from where this process has them.
    found["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), found.get("PATH", "")])
    package = str(Path(__file__).resolve().parents[2])
    found["PYTHONPATH"] = os.pathsep.join(filter(None, [package, found.get("PYTHONPATH", "")]))
    return found


def be_quiet() -> None:
    """Turn off in this process, and in those it starts, what calls elsewhere, also where Flower has been imported already.

    Flower reads its telemetry switch once, when it is imported; a fork of a process that has imported it never asks again.
    """
    os.environ.update(QUIET)
    from flwr.supercore import telemetry

    telemetry.FLWR_TELEMETRY_ENABLED = "0"


def free_port() -> int:
    """A port on loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Running(Protocol):
    """What is started, watched and stopped."""

    name: str
    log: Path

    @property
    def alive(self) -> bool: ...

    def last_words(self, lines: int = 3) -> str: ...

    def stop(self) -> None: ...


def require(program: Running) -> None:
    """Raise ProgramError where it has ended."""
    if not program.alive:
        raise ProgramError(f"{program.name} ended (see {program.log}): {program.last_words()}")


def wait_until(ready: Callable[[], bool], programs: Sequence[Running], *, seconds: float, what: str) -> None:
    """Return when ``ready()``; ProgramError where one of ``programs`` ends before, or time runs out."""
    deadline = time.monotonic() + seconds
    while not ready():
        for program in programs:
            require(program)
        if time.monotonic() > deadline:
            said = "; ".join(f"{program.name}: {program.last_words(1)}" for program in programs)
            raise ProgramError(f"{what} was not there after {seconds:.0f} s ({said}).")
        time.sleep(0.1)


@contextlib.contextmanager
def stopped_afterwards(programs: list[Running]) -> Iterator[list[Running]]:
    """Whatever was appended to ``programs`` is stopped when the block is left, last one first."""
    try:
        yield programs
    finally:
        for program in reversed(programs):
            program.stop()
