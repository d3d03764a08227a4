"""Metrics files: what is private is in none of them, a resumed run writes on, and TensorBoard reads what was written."""

from __future__ import annotations

import copy
import csv
import json

import pytest

from federated.clock import ClockFacts
from federated.clock_run import simulate_on_clock
from federated.fleet import DeviceProfile, FleetConfig
from federated.simulation import simulate
from federated.strategy import Interrupted
from federated.tracking import BOARD, PUBLIC, ROWS, TABLE, Tracker, TrackingError


@pytest.fixture
def run(tiny_model, tiny_feeder, tiny_settings, tmp_path):
    def start(name="run", also=lambda facts: None, tensorboard=False, **changes):
        settings = type(tiny_settings).model_validate(tiny_settings.model_dump() | changes)
        tracker = Tracker(tmp_path / name, settings, device_bytes=(128, 128), tensorboard=tensorboard)

        def progress(facts):
            tracker(facts)
            also(facts)

        simulate(
            settings,
            model=copy.deepcopy(tiny_model),
            feeder=tiny_feeder,
            run_dir=tmp_path / name,
            progress=progress,
        )
        tracker.close()
        return [json.loads(line) for line in (tmp_path / name / ROWS).read_text().splitlines()]

    return start


def test_a_private_run_writes_public_figures_only(run, tmp_path):
    rows = run(tensorboard=True)
    assert [row["round"] for row in rows] == [1, 2, 3, 4, 5]
    assert all(set(row) == set(PUBLIC) for row in rows)
    assert rows[-1]["epsilon_spent"] + rows[-1]["epsilon_left"] == pytest.approx(50.0)
    table = list(csv.DictReader((tmp_path / "run" / TABLE).open()))
    assert [float(row["update_norm"]) for row in table] == [row["update_norm"] for row in rows]
    written = b"".join(path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file())
    for word in (b"cohort", b"answered", b"loss", b"norm_middle", b"seconds", b"dropped"):
        assert word not in written


def test_a_run_without_a_claim_writes_the_rest_too(run):
    row = run(private=False)[0]
    assert row["epsilon_spent"] is None and row["loss"] > 0 and row["answered"] == row["cohort"] > 0
    norms = [row[f"norm_{name}"] for name in ("least", "quarter", "middle", "three_quarters", "most")]
    assert norms == sorted(norms) and norms[0] > 0


def test_tensorboard_reads_back_what_was_written(run, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    rows = run(private=False, tensorboard=True)
    board = EventAccumulator(str(tmp_path / "run" / BOARD)).Reload()
    assert [event.step for event in board.Scalars("round/loss")] == [1, 2, 3, 4, 5]
    assert [event.value for event in board.Scalars("round/loss")] == pytest.approx([row["loss"] for row in rows])


def test_a_stopped_run_writes_on_and_rows_done_again_are_replaced(run, tmp_path):
    whole = run("whole", tensorboard=True)

    def stop(facts):
        if facts.round == 3:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        run("cut", stop, tensorboard=True)
    with (tmp_path / "cut" / ROWS).open("a") as file:  # a round that was written and not finished, and half a line
        file.write(json.dumps({"round": 4, "update_norm": -1.0}) + '\n{"rou')
    assert run("cut", tensorboard=True) == whole
    assert (tmp_path / "cut" / TABLE).read_text() == (tmp_path / "whole" / TABLE).read_text()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(tmp_path / "cut" / BOARD)).Reload()
    assert [event.step for event in board.Scalars("privacy/epsilon_spent")] == [1, 2, 3, 4, 5]


def test_the_clock_is_written_too(tiny_model, tiny_feeder, tiny_settings, tmp_path):
    from federated.clock import SimulatorConfig

    equal = FleetConfig(name="equal", kinds={"one": DeviceProfile(share=1, samples_per_second=10.0)})
    tracker = Tracker(tmp_path, tiny_settings)
    done = simulate_on_clock(
        tiny_settings,
        SimulatorConfig(),
        equal,
        model=tiny_model,
        feeder=tiny_feeder,
        run_dir=tmp_path,
        progress=tracker,
    )
    assert isinstance(done.rounds[0], ClockFacts)
    assert [row["clock_seconds"] for row in tracker.rows.values()] == [facts.seconds for facts in done.rounds]


def test_a_missing_package_is_one_sentence_and_nothing_is_lost(monkeypatch, tiny_settings, tmp_path):
    import builtins

    original = builtins.__import__

    def without(name, *rest):
        if name.startswith("torch.utils.tensorboard"):
            raise ImportError(name)
        return original(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(TrackingError, match=r"mmslm\[tracking\]"):
        Tracker(tmp_path, tiny_settings, tensorboard=True)
    assert Tracker(tmp_path, tiny_settings).rows == {}
