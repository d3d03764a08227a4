"""The SuperLink's one door for strangers: other machines find Fleet and nothing else."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest

from federated.deploy.superlink import FleetOnlyFromOutside


def ask(path, peer, *, kind="http", headers=()):
    """The status that a peer gets, 200 where the app beneath was reached."""
    sent = []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message):
        sent.append(message)

    async def receive():
        return {"type": "http.request"}

    scope = {"type": kind, "path": path, "client": peer, "server": ("10.0.0.1", 8000), "headers": list(headers)}
    # In a thread: where a browser test ran before in this process, the main thread's loop is still running.
    with ThreadPoolExecutor(1) as alone:
        alone.submit(asyncio.run, FleetOnlyFromOutside(app)(scope, receive, send)).result()
    return sent[0].get("status", sent[0]["type"])


OUTSIDE = ["/v1/control/start-run", "/v1/control/register-node", "/v1/runtime/acquire-task", "/docs", "/", "/v1/fleet"]


@pytest.mark.parametrize("path", OUTSIDE)
def test_another_machine_reaches_neither_control_nor_runtime(path):
    assert ask(path, ("10.0.0.2", 5000)) == 403
    assert ask(path, None) == 403
    assert ask(path, ("not an address", 1)) == 403


@pytest.mark.parametrize("path", [*OUTSIDE, "/v1/fleet/pull-messages"])
def test_this_machine_reaches_everything(path):
    for peer in (("127.0.0.1", 5000), ("::1", 5000), ("10.0.0.1", 5000)):
        assert ask(path, peer) == 200


def test_another_machine_reaches_fleet():
    assert ask("/v1/fleet/pull-messages", ("10.0.0.2", 5000)) == 200


def test_a_forwarded_header_and_a_path_that_climbs_are_not_believed():
    forged = [(b"x-forwarded-for", b"127.0.0.1"), (b"forwarded", b"for=127.0.0.1")]
    assert ask("/v1/control/start-run", ("10.0.0.2", 5000), headers=forged) == 403
    assert ask("/v1/control/start-run", ("10.0.0.2", 5000), kind="websocket") == "websocket.close"
