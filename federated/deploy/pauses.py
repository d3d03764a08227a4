"""Flower's pauses, shortened: a round of a deployed app should take as long as its work does.

A message is announced first and its parts follow a moment later. Who looks in between finds a part missing and waits a
whole second before it looks again, then two; a round has three such places (node, worker, server), and a node that asks
often meets them nearly always. Here the first pause is a fiftieth of that and doubles as Flower's does, up to its cap.

A node asks its SuperLink often when it has just had a message, because another may follow, and less and less the longer
none came: each question costs the SuperLink's CPU.

What it refuses: nothing. These are pauses only; what is asked stays Flower's.
"""

from __future__ import annotations

import time
from typing import Any

FIRST = 0.02  # seconds until a missing part is asked for again
WORKING = 0.05  # seconds between a node's looks for its worker's reply
QUICK = 0.1  # seconds between a node's questions after a message
SHARE = 0.1  # the pause is so much of the time since then


def shorten_pulls() -> None:
    """In this process and its forks: look sooner for the missing parts of a message. Safe to call twice."""
    from flwr.supercore.inflatable import inflatable_utils

    # Defaults of the functions, which every caller in Flower leaves as they are.
    for pull in (inflatable_utils.pull_objects, inflatable_utils.pull_and_inflate_object_from_tree):
        defaults: dict[str, Any] = pull.__kwdefaults__ or {}
        if "initial_backoff" not in defaults:
            raise RuntimeError("this Flower's pull_objects has no initial_backoff; install the flwr that mmslm names.")
        defaults["initial_backoff"] = FIRST


class NodeClock:
    """Stands for ``time`` in Flower's node loop, which sleeps 3 s when no message waits and 0.5 s while its worker works.

    longest: seconds between two questions of a node that nobody has written to.
    """

    def __init__(self, longest: float) -> None:
        self._longest = longest
        self._worked = time.monotonic()

    def sleep(self, seconds: float) -> None:
        """As Flower asks for it, and shorter."""
        if seconds <= 1:
            self._worked = time.monotonic()
            time.sleep(min(seconds, WORKING))
        else:
            time.sleep(min(seconds, self.pause(time.monotonic() - self._worked)))

    def pause(self, idle: float) -> float:
        """Seconds until the next question of a node that has had no message for ``idle`` seconds."""
        return min(self._longest, max(QUICK, SHARE * idle))
