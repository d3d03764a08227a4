"""What Flower's SuperLink does for every request and need do now and then, or not at all.

A round of two nodes is dozens of requests, and on a small machine the SuperLink's CPU decides how long it takes. A profile
showed two things that need not be: each request passed four layers that are for Control and do nothing for others, and
nearly each one looked, in a transaction, for tasks whose worker is dead. So requests to Fleet and Runtime go around Control's
layers, and the dead are looked for once a second.

What it refuses: nothing. Control's own requests, and any path that is neither Fleet's nor Runtime's, pass every layer.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

OTHERS = ("/v1/fleet/", "/v1/runtime/")
SECONDS = 1.0  # between looks for tasks whose worker is dead; such a task has been silent for far longer


def spare_work() -> None:
    """Change Flower's SuperLink in this process."""
    from flwr.supercore.corestate.sql_corestate import SqlCoreState
    from flwr.superlink.routers.control import middlewares as control

    for layer in (
        control.ControlSensitiveResponseMiddleware,
        control.ControlEventLogMiddleware,
        control.ControlLicenseMiddleware,
        control.ControlAuthenticationMiddleware,
    ):
        layer.__call__ = around(layer.__call__)  # type: ignore[method-assign,assignment]
    SqlCoreState._cleanup_expired_task_tokens = seldom(SqlCoreState._cleanup_expired_task_tokens)  # type: ignore[method-assign,assignment]


def around(call: Callable[..., Any]) -> Callable[..., Any]:
    """An ASGI middleware's ``__call__`` that others than Control's requests pass by."""

    async def called(self: Any, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"].startswith(OTHERS):
            await self.app(scope, receive, send)
        else:
            await call(self, scope, receive, send)

    return called


def seldom(work: Callable[[Any], None], clock: Callable[[], float] = time.monotonic) -> Callable[[Any], None]:
    """``work``, done at most once in ``SECONDS``."""
    due = -float("inf")

    def done(self: Any) -> None:
        nonlocal due
        if (now := clock()) >= due:
            due = now + SECONDS
            work(self)

    return done
