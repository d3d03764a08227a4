"""The SuperLink of a deployment: Flower's own, with TLS, registered keys only, and one door for strangers.

Flower serves three things on one port: Fleet (for nodes, each request signed with a registered key), Control (start runs,
register keys) and Runtime (for the SuperLink's own parts). Without accounts, Control asks nobody who they are: whoever
reaches the port could register a key of their own. So here Control, Runtime and the rest answer to this machine only, and
other machines find Fleet alone. The ServerApp runs in a worker of ours (``federated.deploy.server_worker``).

What it refuses: to start without the deployment's certificate and key.
"""

from __future__ import annotations

import contextlib
import importlib
import ipaddress
import logging
import os
import secrets
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flwr.supercore.constant import TaskType

from federated.deploy import server_worker, simulator
from federated.deploy.called_off import stop_the_dead
from federated.deploy.credentials import Deployment
from federated.deploy.family import Part, supervise
from federated.deploy.pauses import shorten_pulls
from federated.deploy.thrift import spare_work

logger = logging.getLogger(__name__)

FLEET = "/v1/fleet/"
LOCK_MILLISECONDS = 60_000
PATIENCE = 10  # signs of life, 30 s apart, that a run may miss


class FleetOnlyFromOutside:
    """ASGI middleware: other machines may ask for Fleet and nothing else."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] in ("http", "websocket") and not scope["path"].startswith(FLEET) and not _from_here(scope):
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
                return
            body = b"Only this SuperLink's own machine may ask for this.\n"
            headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(body)).encode())]
            await send({"type": "http.response.start", "status": 403, "headers": headers})
            await send({"type": "http.response.body", "body": body})
            return
        await self._app(scope, receive, send)


def _from_here(scope: dict[str, Any]) -> bool:
    """Whether the peer is this machine. A forwarded header is never believed: anybody can write one."""
    client, server = scope.get("client"), scope.get("server")
    if not client:
        return False
    try:
        return ipaddress.ip_address(client[0]).is_loopback or (server is not None and client[0] == server[0])
    except ValueError:
        return False


def command(deployment: Deployment, *, host: str, secret: Path) -> list[str]:
    """Flower's command line for this deployment, listening on ``host``; ``secret`` is known to its worker too."""
    files = deployment.superlink
    return [
        "flower-superlink",
        *("--ssl-ca-certfile", str((files / "ca.crt").absolute())),
        *("--ssl-certfile", str((files / "server.pem").absolute())),
        *("--ssl-keyfile", str((files / "server.key").absolute())),
        "--enable-supernode-auth",
        "--disable-runtime-dependency-installation",
        *("--isolation", "process"),
        *("--superexec-auth-secret-file", str(secret)),
        *("--host", host),
        *("--port", str(deployment.port)),
        *("--database", str((files / "state.db").absolute())),
    ]


def serve(deployment: Deployment, *, host: str) -> None:
    """Run the SuperLink and its worker until stopped; either is started again if it dies."""
    # Imported before the forks, so that they share it.
    from federated import job
    from federated.deploy.server_worker import serve_run
    from federated.server_app import app

    logger.debug("loaded %s", job.__name__)
    shorten_pulls()
    os.umask(0o077)  # the database and the log say which device took part when
    authority = deployment.superlink / "ca.crt"
    certificate = authority.read_bytes()
    here = f"127.0.0.1:{deployment.port}"
    tasks = {TaskType.SERVER_APP: lambda token: serve_run(here, certificate, token, app)}

    def work(known: bytes) -> None:
        stop_the_dead(here, authority)
        server_worker.work(here, certificate, known, tasks)

    with _secret() as secret:
        line, known = command(deployment, host=host, secret=secret), secret.read_bytes()
        supervise(
            [
                Part("the SuperLink", lambda: _superlink(line)),
                Part("its worker", lambda: work(known)),
            ]
        )


def simulate(port: int, cpus: int | None) -> None:
    """Run a SuperLink for Flower's simulation runtime, on loopback, until stopped. ``cpus``: what Ray counts on."""
    here = f"127.0.0.1:{port}"
    with _secret() as secret:
        line = ["flower-superlink", "--insecure", "--simulation", "--disable-runtime-dependency-installation"]
        line += ["--isolation", "process", "--superexec-auth-secret-file", str(secret)]
        line += ["--host", "127.0.0.1", "--port", str(port)]
        known = secret.read_bytes()
        supervise(
            [
                Part("the SuperLink", lambda: _superlink(line)),
                Part("Ray", lambda: simulator.work(here, known, cpus), tries=5),
            ]
        )


@contextlib.contextmanager
def _secret() -> Iterator[Path]:
    """A fresh secret for a SuperLink and its worker, in a file that only they can read."""
    with tempfile.TemporaryDirectory(prefix="mmslm-superlink-") as scratch:
        path = Path(scratch) / "secret"
        path.write_bytes(secrets.token_bytes(32))
        yield path


def _superlink(line: list[str]) -> None:
    import uvicorn
    from flwr.superlink import extensions
    from flwr.superlink.cli.flower_superlink import flower_superlink
    from starlette.middleware import Middleware

    # Flower asks its extensions for middleware; ours is the only one, and stands outermost.
    extensions.get_middleware = lambda: (Middleware(FleetOnlyFromOutside),)
    run = uvicorn.run

    def without_proxies(*arguments: Any, **options: Any) -> None:
        # uvicorn would take a peer's address from a header that the peer wrote.
        run(*arguments, **options | {"proxy_headers": False, "access_log": False})

    uvicorn.run = without_proxies
    # Who finds the database locked waits 5 s and is refused, and the node's reply is lost. On a busy disk that is short.
    constants: Any = importlib.import_module("flwr.supercore.sql_mixin")
    constants.SQLITE_PRAGMAS = (*constants.SQLITE_PRAGMAS, ("busy_timeout", str(LOCK_MILLISECONDS)))
    # A run whose sign of life is a minute late is given up; on a machine whose cores are all taken that happens. What died
    # with its worker is ended by the next one (``called_off``) and need not wait for this.
    tasks: Any = importlib.import_module("flwr.supercore.corestate.sql_corestate")
    tasks.HEARTBEAT_PATIENCE = PATIENCE
    spare_work()
    sys.argv = line
    flower_superlink()
