"""Flower's own programs as child processes: started quietly, waited for, and always stopped.

They are told to open no connection but the ones that the deployment needs: no telemetry, no update check, no
installation of dependencies, no usage statistics. Each gets a home folder of its own, because they keep state there.

What it refuses: to return before a program answers, and to leave one behind.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from federated.deploy.family import die_with

QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",  # seconds; a run that waits for its turn should not wait for a clock
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


def free_port() -> int:
    """A port on loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Running(Protocol):
    """What is started, watched and stopped: a program, or a family of forked processes."""

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


class Program:
    """One running program and everything that it starts: they share a process group and end together."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], log: Path) -> None:
        self.name, self.process, self.log = name, process, log

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def last_words(self, lines: int = 3) -> str:
        """What it said last, for an error's sentence."""
        try:
            said = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        except OSError:
            return ""
        return " / ".join(line.strip() for line in said[-lines:])

    def stop(self, patience: float = 5.0) -> None:
        """Ask, wait, insist. Safe to call twice."""
        if self.alive:
            self._signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(patience)
        self._signal(signal.SIGKILL)  # its children too, whether or not it ended well
        self.process.wait()

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, number)


def start(name: str, command: Sequence[str], *, env: Mapping[str, str], log: Path) -> Program:
    """Start ``command`` in a process group of its own; its words go to ``log``."""
    log.parent.mkdir(parents=True, exist_ok=True)
    here = os.getpid()
    with log.open("ab") as words:
        process = subprocess.Popen(
            list(command),
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=words,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=lambda: die_with(here),
        )
    return Program(name, process, log)


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
