"""Processes that are forked from one warm parent, watched, revived when they die, and ended together.

Importing torch and the model's code costs ten to twenty CPU seconds a process; a fork costs a hundredth of one. So every
part of a deployment that needs them is forked from a process that has them.

What it refuses: to leave a process behind. Parts end with their parent, even when that is ended by kill -9 (Linux).
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType

from federated.deploy.programs import be_quiet

logger = logging.getLogger(__name__)

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 60.0  # seconds before a part that died is started again
NEW_NETWORK = 0x40000000  # CLONE_NEWNET


class Part:
    """A forked process that runs ``work``, and is forked again when it ends.

    tries: how often it may end badly before its family is given up; None for always again.
    """

    def __init__(self, name: str, work: Callable[[], None], tries: int | None = None) -> None:
        self.name, self._work, self._tries = name, work, tries
        self._failures = 0
        self.pid = 0
        self._pause, self._due = FIRST_PAUSE, 0.0

    def keep_alive(self) -> None:
        """Start it if it is not running and its pause is over."""
        now = time.monotonic()
        if self.pid:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            if not ended:
                return
            self.pid = 0
            # One that lasted is not failing over and over.
            self._pause = FIRST_PAUSE if now - self._due > 2 * LONGEST_PAUSE else min(2 * self._pause, LONGEST_PAUSE)
            self._due = now + self._pause
            code = os.waitstatus_to_exitcode(status)
            self._failures += code != 0
            if self._tries is not None and self._failures >= self._tries:
                raise RuntimeError(f"{self.name} ended badly {self._failures} times")
            logger.warning("%s ended with code %d; started again in %.1f s", self.name, code, self._pause)
        if now >= self._due:
            self._fork()

    def _fork(self) -> None:
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid:
            return
        status = 1
        try:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell starts with &
            die_with(parent)
            logger.info("%s is process %d", self.name, os.getpid())
            self._work()
            status = 0
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else 1
        except BaseException:
            logger.exception("%s failed", self.name)
        finally:
            os._exit(status)

    def end(self) -> None:
        if self.pid:
            os.kill(self.pid, signal.SIGTERM)
            deadline = time.monotonic() + 3
            while time.monotonic() < deadline:
                if os.waitpid(self.pid, os.WNOHANG)[0]:
                    break
                time.sleep(0.02)
            else:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
            self.pid = 0


def supervise(parts: Sequence[Part]) -> None:
    """Keep ``parts`` running until SIGTERM or Ctrl-C, then end them, last one first."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    try:
        while True:
            for part in parts:
                part.keep_alive()
            time.sleep(0.1)
    except KeyboardInterrupt:
        logger.info("stopping")
    finally:
        for part in reversed(parts):
            part.end()


def die_with(parent: int) -> None:
    """End this process when its parent ends, even by kill -9 (Linux; elsewhere whoever is killed leaves its children)."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)


class Family:
    """A forked process with a process group of its own, and everything that it starts.

    environment: of the process. log: takes its words. network: path of a network namespace to live in (Linux, as root).
    """

    def __init__(
        self,
        name: str,
        work: Callable[[], None],
        *,
        environment: Mapping[str, str],
        log: Path,
        network: Path | None = None,
    ) -> None:
        self.name, self.log = name, log
        self.code: int | None = None
        log.parent.mkdir(parents=True, exist_ok=True)
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid:
            return
        try:
            os.setsid()
            die_with(parent)
            words = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            nothing = os.open(os.devnull, os.O_RDONLY)
            for number, target in ((nothing, 0), (words, 1), (words, 2)):
                os.dup2(number, target)
            # A test runner or a notebook may have put other objects there; in this process they are in the way.
            sys.stdout, sys.stderr = (os.fdopen(os.dup(n), "w", buffering=1) for n in (1, 2))
            if network is not None:
                with network.open() as place:
                    if ctypes.CDLL(None, use_errno=True).setns(place.fileno(), NEW_NETWORK):
                        raise OSError(ctypes.get_errno(), "cannot enter the network namespace", str(network))
            os.environ.update(environment)
            be_quiet()
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.default_int_handler)
            speak()
            work()
        except KeyboardInterrupt:
            pass
        except BaseException:
            logger.exception("%s failed", name)
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(0)

    @property
    def alive(self) -> bool:
        if self.code is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            if ended:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code is None

    def last_words(self, lines: int = 3) -> str:
        """What it said last, for an error's sentence."""
        try:
            said = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        except OSError:
            return ""
        return " / ".join(line.strip() for line in said[-lines:])

    def children(self) -> list[int]:
        """The process ids of its parts (Linux)."""
        try:
            return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]
        except OSError:
            return []

    def kill(self) -> None:
        """All of it at once, as a power cut would."""
        self._signal(signal.SIGKILL)
        self._wait(10.0)

    def stop(self, patience: float = 8.0) -> None:
        """Ask, wait, insist. Safe to call twice."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)
            self._wait(patience)
        self._signal(signal.SIGKILL)
        self._wait(10.0)

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def _wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self.alive and time.monotonic() < deadline:
            time.sleep(0.02)


def speak() -> None:
    """Log to standard error what matters of our own; Flower prints its own words, the others say each request."""
    for handler in list(logging.getLogger().handlers):
        logging.getLogger().removeHandler(handler)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    # Flower's logger was made with its parent's standard error, which a test runner may have closed since.
    for handler in logging.getLogger("flwr").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setStream(sys.stderr)
    for chatty in ("flwr", "httpx", "httpcore", "alembic"):
        logging.getLogger(chatty).propagate = False
