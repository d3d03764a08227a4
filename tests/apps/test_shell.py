"""The shell lets in what it needs and nothing else, and refuses to be open to the network without a password."""

from __future__ import annotations

import http.client
import json
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import pytest
from apps_support import Client, Speaker, data_url, encoded, picture
from PIL import Image

from apps import shell
from apps.captioner import Captioner
from mmslm.prompts import CAPTION_PROMPTS

SHORT = "A red kettle stands on a stove."


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with shell.serve(
        {"captioner": Captioner(Speaker({CAPTION_PROMPTS["short"]: SHORT}, pause=0.002))}, port=0
    ) as found:
        yield found


def test_a_photo_is_described_over_http(address: str) -> None:
    value = Client(address, "s-1").send(
        "describe", {"id": "a", "level": "short", "image": data_url(encoded(picture(1)))}
    )
    assert value == {
        "id": "a",
        "kind": "describe",
        "held": True,
        "advice": [],
        "level": "short",
        "purpose": "",
        "phase": "done",
        "text": SHORT,
        "tier": "sure",
        "notices": ["heat"],
    }


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/upload",
        "/gradio_api/process_recording",
        "/gradio_api/vibe-edit",
        "/gradio_api/run-history/connect",
        "/gradio_api/call/describe",
    ],
)
def test_every_other_road_in_is_closed(address: str, path: str) -> None:
    status, body = Client(address).post(path, {"x": 1})
    assert status == 403 and b"never stored as files" in body


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/proxy=http://192.0.2.1/",
        "/monitoring",
        "/gradio_api/runs",
        "/file/etc/passwd",
    ],
)
def test_every_road_to_files_and_other_machines_is_closed(address: str, path: str) -> None:
    where = urllib.parse.urlsplit(address)
    connection = http.client.HTTPConnection(where.hostname, where.port, timeout=10)
    connection.request("GET", path)
    assert connection.getresponse().status == 403
    connection.close()


def test_no_event_is_listed_in_the_public_api(address: str) -> None:
    info = json.loads(Client(address).get("/gradio_api/info"))
    assert info["named_endpoints"] == {} and info["unnamed_endpoints"] == {}


def test_another_host_name_is_refused(address: str) -> None:
    where = urllib.parse.urlsplit(address)
    for host, expected in (("evil.example.test", 421), (f"localhost:{where.port}", 200), ("[::1]:80", 200), ("", 421)):
        connection = http.client.HTTPConnection(where.hostname, where.port, timeout=10)
        connection.putrequest("GET", "/config", skip_host=True)
        connection.putheader("Host", host)
        connection.endheaders()
        assert connection.getresponse().status == expected, host
        connection.close()


def test_the_page_may_load_and_send_nothing_elsewhere(address: str) -> None:
    where = urllib.parse.urlsplit(address)
    connection = http.client.HTTPConnection(where.hostname, where.port, timeout=10)
    connection.request("GET", "/")
    answer = connection.getresponse()
    policy = dict(part.strip().split(" ", 1) for part in answer.getheader("content-security-policy").split(";"))
    assert policy["default-src"] == "'none'" and policy["connect-src"] == "'self'" and "http" not in json.dumps(policy)
    assert answer.getheader("referrer-policy") == "no-referrer" and answer.getheader("cache-control") == "no-store"
    text = answer.read().decode()
    connection.close()
    assert "fonts.googleapis" not in text and 'analytics_enabled":false' in text.replace(" ", "")


def test_a_body_larger_than_a_photo_is_refused_declared_or_not(address: str) -> None:
    client = Client(address)
    status, body = client.post("/gradio_api/queue/join", b"x" * (shell.MAX_BODY + 1))
    assert status == 413 and b"smaller photo" in body
    where = urllib.parse.urlsplit(address)
    connection = http.client.HTTPConnection(where.hostname, where.port, timeout=10)
    connection.putrequest("POST", "/gradio_api/queue/join")
    connection.putheader("Content-Length", "minus one")
    connection.endheaders()
    assert connection.getresponse().status in (400, 413)
    connection.close()


class InOrder(Speaker):
    """Notes whose photo it looks at, by its size, and how many it holds at a time."""

    def __init__(self) -> None:
        super().__init__({CAPTION_PROMPTS["short"]: SHORT})
        self.order: list[int] = []

    def look(self, image: Image.Image) -> float:
        self.order.append(image.width - 100)
        return super().look(image)


def test_fifty_people_at_once_are_all_answered_in_the_order_they_came_each_with_their_own_words() -> None:
    """How long that takes and how much memory with the real model: ``benchmarks/apps.py --crowd 50``."""
    narrator = InOrder()
    answers: dict[int, dict[str, object]] = {}

    def one(client: Client, number: int) -> None:
        answers[number] = client.finish()

    with shell.serve({"captioner": Captioner(narrator)}, port=0) as where:
        threads = []
        for number in range(50):
            client = Client(where, f"crowd-{number}")
            image = data_url(encoded(picture(number, size=(100 + number, 100))))
            client.join("describe", {"id": f"id-{number}", "level": "short", "image": image})
            threads.append(threading.Thread(target=one, args=(client, number)))
            threads[-1].start()
        for thread in threads:
            thread.join(timeout=120)
    assert sorted(answers) == list(range(50)) and narrator.order == list(range(50))
    assert all(answers[n]["id"] == f"id-{n}" and answers[n]["text"] == SHORT for n in answers)


def test_a_halted_request_that_still_waits_never_touches_its_photo(address: str) -> None:
    client = Client(address, "halted")
    assert client.now("forget", {"id": "late"}) == 200
    assert client.send("describe", {"id": "late", "level": "short", "image": data_url(encoded(picture(1)))}) == {}
    assert client.send("ask", {"id": "later", "question": "what?"})["error"] == "error.lost"


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "::", "example.test"])
def test_beyond_loopback_a_name_and_a_password_are_demanded(host: str) -> None:
    with pytest.raises(ValueError, match="--auth NAME:PASSWORD"):
        shell.credentials(host, None)
    assert shell.credentials(host, "anna:correct horse") == ("anna", "correct horse")


@pytest.mark.parametrize("auth", ["anna", ":longenough", "anna:short", ""])
def test_a_bad_password_is_refused(auth: str) -> None:
    with pytest.raises(ValueError, match="NAME:PASSWORD"):
        shell.credentials("127.0.0.1", auth)


def test_loopback_needs_no_password() -> None:
    assert [shell.credentials(host, None) for host in ("127.0.0.1", "localhost", "::1", "127.8.8.8")] == [None] * 4


def test_an_unknown_app_and_a_missing_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="choose one of captioner"):
        shell.make_pages("dashboard", None, [])
    with pytest.raises((ValueError, OSError)):
        shell.make_pages("captioner", tmp_path / "nothing", [])
    with pytest.raises(ValueError, match="one or more of"):
        shell.frame({})
