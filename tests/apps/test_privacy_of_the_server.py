"""No connection leaves the machine, no byte of a photo stays on it, and no word of a request reaches a log."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from apps_support import Client, data_url, encoded, picture

from apps.scratch import SCRATCH_PREFIX, scratch, scratch_parent, sweep

CANARY = "canary-7f3a91-question"
HERE = Path(__file__).parent


class Server:
    """One page of the apps in a process of its own."""

    def __init__(self, folder: Path, page: str) -> None:
        self.notes, self.log = folder / "notes.json", folder / "server.log"
        self.home = folder / "home"
        self.home.mkdir()
        environment = {**os.environ, "HOME": str(self.home), "TMPDIR": str(self.home)}
        environment |= {"OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(self.home), "XDG_DATA_HOME": str(self.home)}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(HERE / "serve_for_tests.py"), str(self.notes), page],
                stdout=log,
                stderr=log,
                env=environment,
                cwd=folder,
            )
        for _ in range(600):
            if self.notes.is_file() and "http" in self.notes.read_text():
                break
            if self.process.poll() is not None:
                raise RuntimeError(self.log.read_text())
            time.sleep(0.1)
        self.address = re.search(r"http://[\d.:]+", self.notes.read_text()).group(0)

    def end(self, how: signal.Signals) -> None:
        self.process.send_signal(how)
        self.process.wait(timeout=20)


@pytest.fixture()
def server(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Server]:
    running = Server(tmp_path, getattr(request, "param", "captioner"))
    yield running
    if running.process.poll() is None:
        running.end(signal.SIGKILL)


def residue(folders: list[Path], needles: list[bytes]) -> list[str]:
    """Files under the folders that hold one of the needles."""
    found = []
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file() and not path.is_symlink():
                content = path.read_bytes()
                found += [str(path) for needle in needles if needle in content]
    return found


def use(address: str) -> tuple[list[Any], list[bytes]]:
    """Describes a photo, asks about it; returns the answers and the bytes that must not be found anywhere."""
    photo = encoded(picture(21))
    client = Client(address)
    described = client.send("describe", {"id": "r1", "level": "short", "image": data_url(photo)})
    answered = client.send("ask", {"id": "r2", "question": f"what is {CANARY}?"})
    broken = client.send("describe", {"id": "r3", "level": "short", "image": data_url(photo[:700])})
    needles = [photo[400:464], data_url(photo)[600:664].encode(), CANARY.encode(), b"red kettle stands"]
    assert client.now("forget", {"id": "r2"}) == 200
    lost = client.send("ask", {"id": "r4", "question": "and now?"})
    return [described, answered, broken, lost], needles


def scratch_folders(pid: int) -> list[Path]:
    return list(scratch_parent().glob(f"{SCRATCH_PREFIX}{pid}-*"))


def test_zero_egress_zero_residue_and_zero_content_in_logs(server: Server, tmp_path: Path) -> None:
    answers, needles = use(server.address)
    described, answered, broken, lost = answers
    assert described["phase"] == "done" and "red kettle" in described["text"] and described["held"]
    assert answered["phase"] == "done" and answered["text"]
    assert broken["error"] == "error.damaged" and lost["error"] == "error.lost"
    folders = scratch_folders(server.process.pid)
    assert len(folders) == 1 and folders[0].stat().st_mode & 0o077 == 0
    assert residue([tmp_path, *folders], needles) == []
    server.end(signal.SIGTERM)
    assert server.process.returncode == 0
    assert json.loads(server.notes.read_text()) == {"foreign": [], "ended": True}
    assert scratch_folders(server.process.pid) == []
    assert residue([tmp_path], needles) == []
    # The control: the search does find a needle where there is one.
    (tmp_path / "control.bin").write_bytes(b"xx" + needles[0] + b"yy")
    assert residue([tmp_path], needles) == [str(tmp_path / "control.bin")]


def talk(client: Client, *, photo: bytes, question: str) -> list[Any]:
    """Gives the assistant a photo and asks about it."""
    return [
        client.send("photo", {"id": "p1", "photo": "a", "image": data_url(photo)}),
        client.send("ask", {"id": "q1", "question": question, "photos": ["a"]}),
    ]


@pytest.mark.parametrize("server", ["assistant"], indirect=True)
def test_the_assistant_leaves_nothing_until_it_is_asked_to_keep_and_then_only_what_is_encrypted(
    server: Server, tmp_path: Path
) -> None:
    photo = encoded(picture(22))
    needles = [
        photo[400:464],
        data_url(photo)[600:664].encode(),
        CANARY.encode(),
        b"red kettle stands",
        b"correct horse",
    ]
    client = Client(server.address)
    added, answered = talk(client, photo=photo, question=f"what is {CANARY}?")
    assert added["phase"] == "done" and "red kettle" in answered["parts"][0]["text"]
    picked = client.send("pick", {"id": "t1", "text": f"Dear Anna, {CANARY} is on 3 March. Please answer. Regards, Jo"})
    assert picked["phase"] == "done"
    folders = scratch_folders(server.process.pid)
    files = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert len(folders) == 1 and residue([tmp_path, *folders], needles) == []
    # Asked to keep: one more file, and still no word of it can be read.
    assert client.send("unlock", {"id": "u1", "passphrase": "correct horse"})["phase"] == "done"
    assert client.send("ask", {"id": "q2", "question": f"where is {CANARY}?", "photos": ["a"]})["phase"] == "done"
    grown = {path for path in tmp_path.rglob("*") if path.is_file()} - files
    assert len(grown) == 1 and grown.pop().stat().st_mode & 0o077 == 0
    assert residue([tmp_path, *folders], needles) == []
    server.end(signal.SIGTERM)
    assert json.loads(server.notes.read_text()) == {"foreign": [], "ended": True}
    assert scratch_folders(server.process.pid) == [] and residue([tmp_path], needles) == []


def test_what_a_killed_server_left_is_gone_after_the_next_start(server: Server, tmp_path: Path) -> None:
    _, needles = use(server.address)
    server.end(signal.SIGKILL)
    left = scratch_folders(server.process.pid)
    assert residue([tmp_path, *left], needles) == []
    with scratch():
        assert scratch_folders(server.process.pid) == []


def test_a_living_process_keeps_its_scratch_folder(tmp_path: Path) -> None:
    with scratch(tmp_path) as mine:
        dead = tmp_path / f"{SCRATCH_PREFIX}99999999-abc"
        dead.mkdir()
        (dead / "photo").write_bytes(b"x")
        assert sweep(tmp_path) == 1
        assert mine.is_dir() and not dead.exists()
        assert os.environ["GRADIO_TEMP_DIR"] == str(mine) and os.environ["HF_HUB_OFFLINE"] == "1"
    assert not mine.exists()
