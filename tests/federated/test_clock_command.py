"""``mmslm devices`` end to end on a tiny real model: what it says, what it writes, and that it goes on where it was."""

from __future__ import annotations

import json

import pytest

from apps.devices import run_devices

SMALL = {
    "federated.households": 8,
    "federated.rounds": 2,
    "federated.sampling_rate": 0.4,
    "federated.delta": 1e-2,
    "federated.epsilon": 60.0,
    "federated.accountant": "rdp",
    "federated.noise_multiplier": 1.5,
    "federated.photos_per_household": 2,
    "federated.autocast": False,
    "federated.workers": 1,
    "federated.adapters.rank": 2,
    "simulator.start_hour": 3,
    "evaluation.households": 3,
    "holdings": {"ranks": {1: 0.5, 2: 0.5}},
    "personal": {"kind": "ditto"},
}


@pytest.mark.parametrize("config", ["clock", "clock_fedbuff"])
def test_a_run_on_the_clock_says_what_it_took_and_goes_on_where_it_was(tiny_base, tmp_path, config):
    given = SMALL | {"base": str(tiny_base)}
    if config == "clock_fedbuff":
        given |= {"simulator.buffer": 2, "simulator.concurrency": 3}
    told = []
    lines = run_devices(config, given, out=tmp_path / "run", tell=told.append)
    assert len(told) == 2 and "J (model)" in told[-1] and "epsilon" in told[-1]
    assert "simulated time" in lines[0] and "not a measurement" in lines[0] and "worst tenth" in lines[1]
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["round"] for row in rows] == [1, 2] and rows[-1]["clock_seconds"] > 0
    assert list((tmp_path / "run-devices").glob("*/personal-*.safetensors"))  # beside the run, not in it
    told.clear()
    assert run_devices(config, given, out=tmp_path / "run", tell=told.append) == lines and told == []
    with pytest.raises(ValueError, match="another fleet or simulator"):
        run_devices(config, given | {"simulator.start_hour": 4}, out=tmp_path / "run")
