"""The dashboard states what the ledger bears out, the same number in sentence, drawing and table; and opens only
what it may.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from apps_reports import DELTA, NOISE, ROUNDS, begin, make_run
from scipy.optimize import brentq
from scipy.stats import norm

from apps.dashboard import Dashboard
from apps.dashboard_page import outcome, render, rest, summary
from apps.dashboard_view import look_at
from apps.sessions import Trouble
from privacy.audit import audit_paths
from privacy.report import Pricer


@pytest.fixture(scope="module")
def pricer() -> Pricer:
    return Pricer()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, pricer: Pricer) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    make_run(folder / "first", pricer, name='first <b>"x"')
    make_run(folder / "second", pricer, data=b"other homes")
    forged = make_run(folder / "forged", pricer, data=b"third")
    forged["claim"]["epsilon"] = 0.5
    (folder / "forged" / "report.json").write_text(json.dumps(forged))
    begin(folder / "going", rounds=4)
    return folder


def open_path(path: Path, **more: Any) -> dict[str, Any]:
    return list(Dashboard([path.parent]).open({"id": "r", "where": str(path), **more}, None))[-1]


def exact_epsilon(noise: float) -> float:
    """The closed form for Gaussian releases in a row (Balle and Wang 2018): mu = sqrt(rounds) / noise."""
    mu = math.sqrt(ROUNDS) / noise

    def delta(epsilon: float) -> float:
        return norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu)

    return float(brentq(lambda epsilon: delta(epsilon) - DELTA, 0.0, 60.0))


def test_the_budget_spent_and_left_are_those_of_an_outside_accountant(runs: Path) -> None:
    value = open_path(runs / "first")
    spent = exact_epsilon(NOISE)
    assert value["phase"] == "done" and value["single"]
    assert f"Of a budget of epsilon 8.00, {spent:.2f} are spent and {8 - spent:.2f} are left." in value["html"]


def test_how_often_a_participant_takes_part_is_said(runs: Path, pricer: Pricer) -> None:
    view = look_at(runs / "first", pricer)
    one = view.opened[0]
    assert "takes part in about" not in render(view, "en")
    sampling = one.report.sampling.model_copy(update={"scheme": "poisson", "rate": 0.05, "steps": 40})
    sampled = replace(one, report=one.report.model_copy(update={"sampling": sampling}))
    assert "each takes part in about 2.0 of 40 rounds." in render(replace(view, opened=(sampled,)), "en")


def test_sentence_drawing_and_table_state_one_number(runs: Path, pricer: Pricer) -> None:
    view = look_at(runs / "first", pricer)
    last = view.opened[0].trajectory[-1]
    assert last.releases == ROUNDS and last.epsilon == pytest.approx(exact_epsilon(NOISE), rel=5e-3)
    page = render(view, "en")
    sentence = f"After {ROUNDS} releases, epsilon is {last.epsilon:.2f} at delta 0.0001."
    described = re.search(r'<desc id="t1-desc">(.*?)</desc>', page)
    assert sentence in page and described and described.group(1) == sentence
    assert f'<td class="n">{ROUNDS}</td><td class="n">{ROUNDS - 1}</td><td class="n">{last.epsilon:.2f}</td>' in page


def test_epsilon_is_recomputed_and_a_forged_claim_is_not_believed(runs: Path, pricer: Pricer) -> None:
    view = look_at(runs / "forged", pricer)
    assert outcome(view.opened[0]) == "fail"
    assert view.opened[0].spent == pytest.approx(exact_epsilon(NOISE), rel=1e-3)
    assert summary(view, "en").startswith("Not proven")


def test_all_thirteen_verdicts_and_everything_outside_are_shown(runs: Path) -> None:
    page = open_path(runs / "first")["html"]
    assert page.count('class="badge') == 13
    assert "Scored on households &lt;outside&gt; the training." in page and "<outside>" not in page
    assert "What it bought" in page and "CIDEr" in page


def test_what_a_report_says_cannot_become_markup(runs: Path) -> None:
    page = open_path(runs / "first")["html"]
    assert "<b>" not in page and "first &lt;b&gt;" in page

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: Any) -> None:
            assert tag not in ("script", "img", "iframe", "a", "b")
            assert not any(name.startswith("on") for name, _ in attrs)

    Reader().feed(page)


def test_a_folder_is_compared(runs: Path) -> None:
    value = open_path(runs)
    assert "3 reports were checked; not proven: 1." in value["summary"] and not value["single"]
    assert value["html"].count('class="badge') == 3 and "second" in value["html"]


def test_runs_are_compared_by_privacy_quality_bytes_and_rounds_and_the_sentence_states_the_tables_numbers(
    runs: Path, tmp_path: Path, pricer: Pricer
) -> None:
    import torch
    from safetensors.torch import save_file

    make_run(tmp_path / "loud", pricer, noise=2.0)
    make_run(tmp_path / "still", pricer, noise=8.0)
    save_file({"vector": torch.zeros(12_288)}, tmp_path / "still" / "adapters.safetensors")
    (tmp_path / "loud" / "adapters.safetensors").write_bytes(b"no weights")
    page = open_path(tmp_path)["html"]
    low, high = exact_epsilon(8.0), exact_epsilon(2.0)
    assert f"still spent least, epsilon {low:.2f}; loud spent most, epsilon {high:.2f}." in page
    assert f'<td class="n">{low:.2f} / 8.00</td>' in page and f'<td class="n">{high:.2f} / ' in page
    # 12,288 numbers of four bytes.
    assert page.count("49.2 kB") == 1 and page.count("CIDEr") == 1 and "how long its rounds took" in page


def test_runs_of_one_name_are_told_apart_by_their_folders_and_equal_ones_are_said_to_be_equal(
    tmp_path: Path, pricer: Pricer
) -> None:
    make_run(tmp_path / "first", pricer)
    shutil.copytree(tmp_path / "first", tmp_path / "copied")
    page = open_path(tmp_path)["html"]
    assert ">first</th>" in page and ">first (copied)</th>" in page
    assert re.search(r"Each spent the same, epsilon \d\.\d\d\.", page) and "spent most" not in page


@pytest.mark.parametrize(("left", "shown"), [(3.8e-5, "< 0.01"), (0.0, "0.00"), (0.01, "0.01"), (5.123, "5.12")])
def test_a_rest_of_nearly_nothing_is_no_row_of_digits(left: float, shown: str) -> None:
    assert rest(left) == shown


def test_what_each_participant_and_each_data_set_has_left_is_a_table(tmp_path: Path, pricer: Pricer) -> None:
    make_run(tmp_path / "one", pricer)
    make_run(tmp_path / "two", pricer, noise=3.0)
    page = open_path(tmp_path)["html"]
    alone, both = exact_epsilon(NOISE), exact_epsilon((NOISE**-2 + 3.0**-2) ** -0.5)
    cell = r'<td class="n">([\d.]+)</td>'
    row = rf'<th scope="row">Each participant of one</th>{cell}<td class="n">8.00</td>{cell}'
    spent, left = map(float, re.search(row, page).groups())  # type: ignore[union-attr]
    assert spent == pytest.approx(alone, abs=0.01) and left == pytest.approx(8 - alone, abs=0.01)
    together = re.search(r'all its runs here: 2</th><td class="n">([\d.]+)</td>', page)
    assert together and float(together.group(1)) == pytest.approx(both, rel=5e-3)


def test_a_run_that_is_still_going_is_followed(runs: Path, pricer: Pricer) -> None:
    value = open_path(runs / "going")
    assert value["running"] and f"4 of {ROUNDS} releases so far" in value["summary"]
    from privacy.events import GaussianRelease
    from privacy.ledger import Ledger

    ledger = Ledger.open(runs / "going" / "ledger.jsonl")
    ledger.append(GaussianRelease(noise_multiplier=NOISE, sampling=ledger.events()[0].sampling, unit="user"), step=4)
    assert f"5 of {ROUNDS} releases so far" in open_path(runs / "going")["summary"]


def test_a_dropped_file_is_read_and_leaves_nothing_behind(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    text = (runs / "first" / "report.json").read_text()
    value = list(Dashboard([]).open({"id": "r", "name": "report.json", "text": text}, None))[-1]
    assert value["phase"] == "done" and value["single"]
    bad = list(Dashboard([]).open({"id": "r", "name": "mine.json", "text": '{"a": 1}'}, None))[-1]
    assert bad["phase"] == "error" and str(tmp_path) not in bad["sentence"] and "mine.json" in bad["sentence"]
    assert list(tmp_path.iterdir()) == []


def test_a_dropped_folder_is_opened_as_one_run_or_as_several_and_leaves_nothing_behind(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))

    def drop(*names: str) -> dict[str, Any]:
        files = [
            {"place": f"runs/{name}/{file.name}", "text": file.read_text()}
            for name in names
            for file in (runs / name).iterdir()
            if file.suffix != ".safetensors"
        ]
        return list(Dashboard([]).open({"id": "r", "files": files}, None))[-1]

    one = drop("first")
    assert one["single"] and "What it bought" in one["html"] and "first &lt;b&gt;" in one["html"]
    assert "3 reports were checked; not proven: 1." in drop("first", "second", "forged")["summary"]
    assert drop("going")["running"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "files",
    [
        [],
        7,
        [7],
        [{"place": "x/weights.bin", "text": "x"}],
        [{"place": 3, "text": "x"}],
        [{"place": "../../report.json", "text": "{}"}],
        [{"place": "/etc/report.json", "text": "{}"}],
        [{"place": f"{n}/report.json", "text": "{}"} for n in range(100)],
        [{"place": "a/report.json", "text": "x" * (11 * 2**20)}],
    ],
)
def test_a_hostile_folder_is_one_sentence_and_writes_nowhere_else(
    files: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scratch").mkdir()
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "scratch"))
    value = list(Dashboard([]).open({"id": "r", "files": files}, None))[-1]
    assert value["phase"] == "error" and value["sentence"] and str(tmp_path) not in value["sentence"]
    assert [path.name for path in tmp_path.rglob("*")] == ["scratch"]


@pytest.mark.parametrize(
    "text", ["", "[]", "{", "[" * 5000, '{"schema_version": 1e999}', "\x00", 7, "x" * (11 * 2**20)]
)
def test_hostile_files_are_one_sentence(text: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    value = list(Dashboard([]).open({"id": "r", "name": "x", "text": text}, None))[-1]
    assert value["phase"] == "error" and value["sentence"]


def test_what_is_not_there_or_no_report_is_said(runs: Path, tmp_path: Path) -> None:
    assert open_path(tmp_path / "nothing")["error"] == "privacy.nothing"
    assert open_path(tmp_path)["error"] == "privacy.unreadable"
    assert list(Dashboard([]).open({"id": "r", "where": " "}, None))[-1]["error"] == "privacy.no_path"
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "ledger.jsonl").write_text("no ledger\n")
    assert open_path(tmp_path / "broken")["error"] == "privacy.unreadable"


def test_from_another_computer_only_the_listed_runs_can_be_opened(runs: Path, tmp_path: Path) -> None:
    closed = Dashboard([runs], anywhere=False)

    def opened(path: Path) -> dict[str, Any]:
        return list(closed.open({"id": "r", "where": str(path)}, None))[-1]

    assert opened(runs / "first")["phase"] == "done"
    for path in (tmp_path, Path("/etc"), runs / ".." / "..", runs.parent):
        assert opened(path)["error"] == "privacy.not_allowed"
    (runs / "link").symlink_to(tmp_path)
    assert opened(runs / "link")["error"] == "privacy.not_allowed"
    (runs / "link").unlink()
    with pytest.raises(Trouble):
        closed._allowed("~root")


def test_runs_are_listed_newest_first_with_the_folder_last(runs: Path) -> None:
    found = list(Dashboard([runs]).list({}, None))[-1]["found"]
    assert set(found) == {str(runs), *(str(runs / name) for name in ("first", "second", "forged", "going"))}
    assert found[-1] == str(runs)
    assert list(Dashboard([runs / "none"]).list({}, None))[-1]["found"] == []


def test_one_report_is_exported_as_a_page_that_loads_nothing(runs: Path) -> None:
    value = list(Dashboard([runs]).export({"id": "r", "where": str(runs / "first")}, None))[-1]
    assert value["phase"] == "export" and value["name"].endswith(".html")
    assert "default-src 'none'" in value["page"] and "<script" not in value["page"]
    assert list(Dashboard([runs]).export({"id": "r", "where": str(runs)}, None))[-1]["error"] == "privacy.not_one"


def test_a_page_prices_nothing_that_the_audit_did_not_and_nothing_twice(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[object, ...]] = []
    compute = Pricer._compute

    def counted(self: Pricer, *question: Any) -> float:
        # Another test's accountants may still be loading, in a thread of their own.
        if threading.current_thread() is threading.main_thread():
            asked.append(question)
        return compute(self, *question)

    monkeypatch.setattr(Pricer, "_compute", counted)
    audit_paths([runs / "first"], pricer=Pricer())
    audited = len(asked)
    assert audited > 5
    dashboard = Dashboard([runs])
    asked.clear()
    list(dashboard.open({"id": "1", "where": str(runs / "first")}, None))
    assert len(asked) == audited
    asked.clear()
    page = list(dashboard.open({"id": "2", "where": str(runs / "first"), "language": "de"}, None))[-1]
    assert page["phase"] == "done" and asked == []


def test_the_accountants_are_loaded_once_while_the_person_still_chooses(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []
    monkeypatch.setattr("apps.dashboard.warm", lambda: loaded.append(threading.current_thread().name))
    dashboard = Dashboard([runs])
    for _ in range(2):
        found = list(dashboard.list({}, None))[-1]
        assert found["phase"] == "found"
    for thread in threading.enumerate():
        if thread.name == "mmslm-accountants":
            thread.join(10)
    assert loaded == ["mmslm-accountants"]


@pytest.mark.slow
def test_most_of_the_first_reports_time_is_loading_that_warming_takes_away() -> None:
    """In processes of their own: what a first price costs, in CPU seconds, cold and after `warm`."""
    price = (
        "import time; from privacy.events import GaussianRelease as G, Sampling as S; from privacy.report import Pricer\n"
        "{warm}began = time.process_time()\n"
        "event = G(noise_multiplier=1.1, unit='user', sampling=S('poisson', rate=0.09), count=60)\n"
        "assert len(Pricer().all_epsilons([(event,)], 1e-4)[0]) == 4; print(time.process_time() - began)"
    )
    cold, warmed = (
        float(subprocess.run([sys.executable, "-c", price.format(warm=line)], check=True, capture_output=True).stdout)
        for line in ("", "from apps.dashboard import warm; warm()\n")
    )
    assert warmed < cold / 2
