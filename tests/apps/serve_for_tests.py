"""Serves the apps in a process of its own for the privacy tests: records every connection out, every log line, every
signal.

Run as ``python serve_for_tests.py NOTES [PAGE]``; writes the address and then, at the end, what it saw into the file NOTES.
"""

from __future__ import annotations

import ipaddress
import json
import logging
import sys
from pathlib import Path

notes = Path(sys.argv[1])
which = sys.argv[2] if len(sys.argv) > 2 else "captioner"
foreign: list[str] = []


def hook(event: str, arguments: tuple[object, ...]) -> None:
    if event == "socket.connect":
        address = arguments[1]
        host = str(address[0]) if isinstance(address, tuple) else "unix"
        try:
            local = host in ("unix", "localhost") or ipaddress.ip_address(host).is_loopback
        except ValueError:
            local = False
        if not local:
            foreign.append(f"connect {host}")
    elif event in ("socket.getaddrinfo", "socket.gethostbyname") and arguments[0] not in (
        None,
        "127.0.0.1",
        "localhost",
        "::1",
        b"127.0.0.1",
        b"localhost",
    ):
        foreign.append(f"{event} {arguments[0]!r}")


sys.addaudithook(hook)
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
logging.basicConfig(level=logging.DEBUG, stream=sys.stderr)

from apps_support import Speaker  # noqa: E402

from apps import shell  # noqa: E402
from apps.assistant import Assistant  # noqa: E402
from apps.captioner import Captioner  # noqa: E402
from apps.history import History, default_path  # noqa: E402


def pages(*_: object, **__: object) -> dict[str, shell.Page]:
    narrator = Speaker({}, confidence=0.9)
    if which == "assistant":
        return {"assistant": Assistant(narrator, history=History(default_path(), cost=2**12))}
    return {"captioner": Captioner(narrator)}


shell.make_pages = pages
shell.launch(
    port=shell._free_port("127.0.0.1"),
    tell=lambda line: notes.write_text(json.dumps({"line": line})) if " at http" in line else None,
)
notes.write_text(json.dumps({"foreign": foreign, "ended": True}))
