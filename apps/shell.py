"""The shell around the apps: one page with its header, served from this machine with every privacy switch on.

What it refuses: binding beyond loopback without a name and a password; requests for another host name (so that a web
page elsewhere cannot reach us by renaming itself); uploads as files, and every other road by which Gradio would put
something on the disk or fetch something; bodies larger than a photo needs. A content security policy forbids the
page itself to load or send anything elsewhere. What Gradio must write goes into a scratch folder (``apps.scratch``).
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import logging
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from apps import theme
from apps.i18n import LANGUAGES, words
from apps.loading import Loading
from apps.models import find_model
from apps.scratch import scratch

if TYPE_CHECKING:
    import gradio as gr

    from apps.captioner import Narrating

log = logging.getLogger(__name__)

PAGES = ("captioner", "assistant", "privacy")
MAX_BODY = 15 * 1024 * 1024
DRAIN = 128 * 1024 * 1024
MAX_WAITING = 128
POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; media-src 'self' blob:; manifest-src 'self'; "
    "worker-src 'self' blob:; frame-ancestors 'none'; form-action 'self'; base-uri 'self'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
    "permissions-policy": "camera=(self), microphone=(), geolocation=(), interest-cohort=()",
}
# The only roads in; all else that Gradio offers (upload, file, proxy, recordings, ...) is closed.
_POSTS = (
    "/gradio_api/queue/join",
    "/gradio_api/run/",
    "/gradio_api/api/",
    "/gradio_api/cancel",
    "/gradio_api/reset",
    "/login",
)
_CLOSED = ("/gradio_api/file", "/gradio_api/proxy", "/gradio_api/stream", "/monitoring", "/gradio_api/runs", "/file")


class Page(Protocol):
    """A page of the shell: it mounts its component, and may hold sessions to be forgotten."""

    def mount(self) -> gr.HTML: ...


def frame(pages: Mapping[str, Page]) -> gr.Blocks:
    """The pages under one header, as ``gr.Blocks``; each is shown by the script of the header."""
    import gradio as gr

    unknown = sorted(set(pages) - set(PAGES))
    if unknown or not pages:
        raise ValueError(f"The pages {unknown or list(pages)} were given: give one or more of {', '.join(PAGES)}.")
    english = words()["en"]
    links = "".join(
        f'<a href="#{name}" data-page="{name}" data-i18n="page.{name}">{english["page." + name]}</a>' for name in pages
    )
    languages = "".join(f'<option value="{code}" lang="{code}">{name}</option>' for code, name in LANGUAGES.items())
    with gr.Blocks(analytics_enabled=False, title=english["app.title"], fill_width=True) as demo:
        gr.HTML(
            value={},
            html_template=theme.markup("header.html", links=links, languages=languages),
            js_on_load="window.mmslm.header(element);",
            apply_default_css=False,
        )
        for name, page in pages.items():
            with gr.Column(elem_id=f"page-{name}"):
                page.mount()

        def closed(request: gr.Request) -> None:
            for page in pages.values():
                sessions = getattr(page, "sessions", None)
                if sessions is not None:
                    sessions.forget(request.session_hash)

        closed.__annotations__ = {"request": gr.Request}
        demo.unload(closed)
    demo.queue(max_size=MAX_WAITING, default_concurrency_limit=1, api_open=False)
    return demo


class Guard:
    """ASGI middleware: closed roads answer 403, foreign host names 421, bodies over ``limit`` bytes 413; headers on all."""

    def __init__(self, app: Any, *, hosts: Sequence[str] | None, limit: int = MAX_BODY) -> None:
        self.app, self.hosts, self.limit = app, hosts, limit

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]}
        path, method = scope["path"], scope["method"]
        if self.hosts is not None and _host(headers.get("host", "")) not in self.hosts:
            await _refuse(send, 421, "This page answers only under its own address: open it as 127.0.0.1.")
            return
        closed = method not in ("GET", "HEAD") and not path.startswith(_POSTS)
        if closed or path.startswith(_CLOSED):
            await _refuse(
                send, 403, "This road is closed: photos travel inside requests and are never stored as files."
            )
            return
        declared = headers.get("content-length", "0")
        if not declared.isdigit() or int(declared) > self.limit:
            # Read and dropped, so that the sender is still listening when the sentence comes; but not without end.
            left = DRAIN
            while left > 0:
                message = await receive()
                left -= len(message.get("body", b""))
                if message["type"] != "http.request" or not message.get("more_body"):
                    break
            await _refuse(send, 413, f"The request is larger than {self.limit // 2**20} MB: send a smaller photo.")
            return
        seen = 0

        async def counted() -> Any:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.limit:
                # A body without a declared length: end the connection rather than fill the memory.
                return {"type": "http.disconnect"}
            return message

        async def headed(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                own = [
                    (k.encode(), v.encode()) for k, v in HEADERS.items() if not (k == "cache-control" and _static(path))
                ]
                taken = {key for key, _ in own}
                message["headers"] = [pair for pair in message.get("headers", []) if pair[0].lower() not in taken] + own
            await send(message)

        await self.app(scope, counted, headed)


def _static(path: str) -> bool:
    return path.startswith(("/assets/", "/static/"))


def _host(value: str) -> str:
    """The host name of a Host header, without its port."""
    if value.startswith("["):
        return value[1:].partition("]")[0].lower()
    return value.rpartition(":")[0].lower() if ":" in value else value.lower()


async def _refuse(send: Any, status: int, sentence: str) -> None:
    body = json.dumps({"detail": sentence}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def is_loopback(host: str) -> bool:
    """Whether a host to bind to can be reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def credentials(host: str, auth: str | None) -> tuple[str, str] | None:
    """``NAME:PASSWORD`` as a pair; ValueError for a bad one, and for none where others can reach the host."""
    if auth is None:
        if not is_loopback(host):
            raise ValueError(
                f"--host {host} would let others on the network in: add --auth NAME:PASSWORD, or leave --host at 127.0.0.1."
            )
        return None
    name, colon, password = auth.partition(":")
    if not colon or not name or len(password) < 8:
        raise ValueError("--auth is not of the form NAME:PASSWORD with at least 8 characters of password: give both.")
    return name, password


@contextlib.contextmanager
def serve(
    pages: Mapping[str, Page], *, host: str = "127.0.0.1", port: int = 7860, auth: tuple[str, str] | None = None
) -> Iterator[str]:
    """Serves the pages inside the ``with`` block and yields their address; port 0 takes a free one."""
    with scratch():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            demo = frame(pages)
        from starlette.middleware import Middleware

        local = is_loopback(host)
        hosts = ("127.0.0.1", "localhost", "::1", host.lower()) if local else None
        head = theme.head() + ("" if local else "\n<script>window.mmslmRemote = true;</script>")
        try:
            address = _launched(
                demo,
                host,
                port,
                auth=auth,
                prevent_thread_lock=True,
                quiet=True,
                show_error=False,
                share=False,
                inbrowser=False,
                run_history=False,
                enable_monitoring=False,
                footer_links=[],
                max_file_size="10mb",
                ssr_mode=False,
                pwa=False,
                mcp_server=False,
                strict_cors=True,
                state_session_capacity=256,
                theme=theme.theme(),
                css=theme.css(),
                head=head,
                app_kwargs={
                    "middleware": [Middleware(Guard, hosts=hosts)],
                    "docs_url": None,
                    "redoc_url": None,
                    "openapi_url": None,
                },
            )
            yield address
        finally:
            demo.close(verbose=False)
            for page in pages.values():
                sessions = getattr(page, "sessions", None)
                if sessions is not None:
                    sessions.forget_all()


def _launched(demo: gr.Blocks, host: str, port: int, **settings: Any) -> str:
    """The address of the started server. A free port can be taken by somebody else before we have it: then another one."""
    for attempt in range(5):
        try:
            _, address, _ = demo.launch(server_name=host, server_port=port or _free_port(host), **settings)
            return address
        except OSError:
            if port or attempt == 4:
                raise
    raise OSError(f"No free port was found at {host}: name one with --port.")


def _free_port(host: str) -> int:
    import socket

    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def make_pages(
    which: str | None, model_dir: str | Path | None, reports: Sequence[str | Path], *, local: bool = True
) -> dict[str, Page]:
    """The pages asked for (all when ``which`` is None), with one model for those that need it, which is still to be loaded.

    ``local``: whether only people at this machine can reach the pages.
    """
    if which is not None and which not in PAGES:
        raise ValueError(f"There is no app {which!r}: choose one of {', '.join(PAGES)}.")
    wanted = PAGES if which is None else (which,)
    pages: dict[str, Page] = {}
    if {"captioner", "assistant"} & set(wanted):
        folder = find_model(model_dir)

        def load() -> Narrating:
            from mmslm.generation import Narrator

            return Narrator.load(folder)

        narrator = Loading(load)
        if "captioner" in wanted:
            from apps.captioner import Captioner

            pages["captioner"] = Captioner(narrator)
        if "assistant" in wanted:
            from apps.assistant import Assistant
            from apps.history import History, default_path

            # Who comes over the network must not leave anything on this computer's disk.
            pages["assistant"] = Assistant(narrator, history=History(default_path()) if local else None)
    if "privacy" in wanted:
        from apps.dashboard import Dashboard

        pages["privacy"] = Dashboard(reports, anywhere=local)
    return pages


def models_of(pages: Mapping[str, Page]) -> list[Loading]:
    """The models behind the pages that are still to be loaded, each once."""
    found = [getattr(page, "narrator", None) for page in pages.values()]
    return list({id(model): model for model in found if isinstance(model, Loading)}.values())


def launch(
    which: str | None = None,
    model_dir: str | Path | None = None,
    host: str = "127.0.0.1",
    port: int = 7860,
    auth: str | None = None,
    open_browser: bool = False,
    reports: Sequence[str | Path] = ("runs",),
    tell: Callable[[str], object] | None = None,
) -> None:
    """Serves the apps until Ctrl-C or SIGTERM. ``tell`` receives the lines for the person (default: standard output).

    Raises ValueError for a host beyond loopback without ``auth`` ("NAME:PASSWORD"), FileNotFoundError where there is
    no model, and OSError when the port is taken.
    """
    tell = tell or (lambda line: sys.stdout.write(line + "\n") and sys.stdout.flush())
    pair = credentials(host, auth)
    ended = threading.Event()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: ended.set())
    tell("mmslm is starting.")
    pages = make_pages(which, model_dir, reports, local=is_loopback(host))
    with serve(pages, host=host, port=port, auth=pair) as address:
        tell(f"mmslm is at {address} (Ctrl-C ends it). It works offline and keeps photos in memory only.")
        if not is_loopback(host):
            tell(
                "Others on the network can open it with the name and password. Their photos then travel over the network "
                "unencrypted to this computer: put it behind HTTPS, or use it on a network you trust."
            )
        if open_browser:
            import webbrowser

            webbrowser.open(address)
        with contextlib.suppress(KeyboardInterrupt):
            for model in models_of(pages):
                # The page is there first: loading takes about as long as choosing a photo does.
                model.start()
                while not ended.is_set() and not model.wait(0.2):
                    pass
                if not ended.is_set():
                    tell("The model is loaded.")
            ended.wait()
    tell("mmslm has ended; everything it held is forgotten.")
