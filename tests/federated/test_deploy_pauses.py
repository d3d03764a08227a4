"""A deployment waits for its work and not for Flower's pauses; its SuperLink does per request what is needed."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from flwr.supercore.inflatable import inflatable_utils
from flwr.supercore.inflatable.inflatable_utils import ObjectUnavailableError

from federated.deploy.pauses import QUICK, NodeClock, shorten_pulls
from federated.deploy.thrift import SECONDS, around, seldom


@pytest.fixture
def flowers_own(monkeypatch):
    """Flower's defaults, put back afterwards."""
    for pull in (inflatable_utils.pull_objects, inflatable_utils.pull_and_inflate_object_from_tree):
        monkeypatch.setattr(pull, "__kwdefaults__", dict(pull.__kwdefaults__) | {"initial_backoff": 1})


def pull(missing):
    """Seconds that Flower takes for an object which is not there the first ``missing`` times."""
    asked = []

    def look(identifier):
        asked.append(identifier)
        if len(asked) <= missing:
            raise ObjectUnavailableError(identifier)
        return b"content"

    began = time.monotonic()
    assert inflatable_utils.pull_objects(["a"], look) == {"a": b"content"}
    assert len(asked) == missing + 1
    return time.monotonic() - began


def test_the_parts_of_a_message_are_looked_for_again_at_once(flowers_own):
    shorten_pulls()
    shorten_pulls()
    assert pull(missing=2) < 0.5  # Flower's own would take 1 s and 2 s


def test_a_node_asks_often_after_a_message_and_seldom_when_nobody_writes():
    clock = NodeClock(longest=0.5)
    assert clock.pause(0.0) == QUICK
    pauses = [clock.pause(idle) for idle in (0.0, 0.5, 1.0, 2.0, 4.0, 60.0)]
    assert pauses == sorted(pauses) and pauses[-1] == 0.5
    assert NodeClock(longest=0.05).pause(0.0) == 0.05  # never longer than its owner said
    began = time.monotonic()
    clock.sleep(0.5)  # while its worker works
    clock.sleep(3)  # no message
    assert time.monotonic() - began < 0.45


def passed(path, kind="http"):
    """Which layers a request went through."""
    seen = []

    async def app(scope, receive, send):
        seen.append("app")

    class Layer:
        def __init__(self):
            self.app = app

        async def __call__(self, scope, receive, send):
            seen.append("layer")
            await self.app(scope, receive, send)

    Layer.__call__ = around(Layer.__call__)
    with ThreadPoolExecutor(1) as alone:  # a browser test may have left a loop in this thread
        alone.submit(asyncio.run, Layer()({"type": kind, "path": path}, None, None)).result()
    return seen


@pytest.mark.parametrize("path", ["/v1/control/start-run", "/v1/fleetx", "/", "//v1/fleet/x", "/v1/control/v1/fleet/"])
def test_whatever_is_not_plainly_fleets_or_runtimes_passes_controls_layers(path):
    assert passed(path) == ["layer", "app"]
    assert passed("/v1/fleet/pull-messages", kind="websocket") == ["layer", "app"]


@pytest.mark.parametrize("path", ["/v1/fleet/pull-messages", "/v1/runtime/push-object"])
def test_fleet_and_runtime_go_around_them(path):
    assert passed(path) == ["app"]


def test_controls_layers_do_nothing_for_others_in_this_flower():
    """What makes going around them right: each looks at the path first, and hands others on."""
    import inspect

    from flwr.superlink.routers.control import middlewares as control

    assert control._is_control_path("/v1/control/list-runs")
    assert not any(control._is_control_path(path) for path in ("/v1/fleet/pull-messages", "/v1/runtime/push-object"))
    for layer in (
        control.ControlEventLogMiddleware,
        control.ControlLicenseMiddleware,
        control.ControlAuthenticationMiddleware,
    ):
        assert "_is_control_path(request.url.path)" in inspect.getsource(layer.dispatch)


def test_the_dead_are_looked_for_once_a_second():
    now, looked = [0.0], []
    look = seldom(looked.append, clock=lambda: now[0])
    for moment in (0.0, 0.1, 0.9 * SECONDS, SECONDS, 1.5 * SECONDS, 2.1 * SECONDS):
        now[0] = moment
        look(moment)
    assert looked == [0.0, SECONDS, 2.1 * SECONDS]
