"""Events: validated when made, strict in JSON, equal after a round trip."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.events import (
    ADJACENCIES,
    UNITS,
    CorrelatedGaussianRelease,
    EventError,
    GaussianRelease,
    Participation,
    PostProcessing,
    Sampling,
    Unaccountable,
    event_from_json,
)

SAMPLINGS = [
    Sampling(),
    Sampling("none"),
    Sampling("poisson", 0.1),
    Sampling("poisson", 1.0, population=10),
    Sampling("truncated_poisson", 0.1, population=100, max_batch=20),
    Sampling("fixed_size_without_replacement", population=100, batch=10),
    Sampling("shuffle", population=100, batch=30),
]
EVENTS = [
    *(GaussianRelease(1.1, sampling, count=3, label="round") for sampling in SAMPLINGS),
    GaussianRelease(0.5, adjacency="replace_one", unit="user", sensitivity=2.0, contributions_per_unit=4),
    CorrelatedGaussianRelease(2.0, 3.5, Participation(10, 3), steps=30, unit="user"),
    PostProcessing("round-to-nearest int8"),
    Unaccountable("the evaluation ran on private photos"),
]


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.kind)
def test_json_gives_an_equal_event_back(event):
    text = json.dumps(event.to_json(), allow_nan=False)
    again = event_from_json(json.loads(text))
    assert again == event and hash(again) == hash(event)
    assert next(iter(event.to_json())) == "kind"


@settings(max_examples=50, deadline=None)
@given(
    noise=st.floats(1e-6, 1e6),
    rate=st.floats(1e-9, 1.0),
    count=st.integers(1, 10**9),
    adjacency=st.sampled_from(ADJACENCIES),
    unit=st.sampled_from(UNITS),
    sensitivity=st.floats(1e-3, 1e3),
    group=st.integers(1, 1000),
    label=st.text(max_size=50),
)
def test_any_valid_release_survives_json(noise, rate, count, adjacency, unit, sensitivity, group, label):
    event = GaussianRelease(noise, Sampling("poisson", rate), count, adjacency, unit, label, sensitivity, group)
    assert event_from_json(json.loads(json.dumps(event.to_json()))) == event


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.kind)
def test_unknown_and_missing_keys_are_refused(event):
    data = event.to_json()
    with pytest.raises(EventError, match="unknown keys"):
        event_from_json({**data, "epsilon": 1.0})
    for key in data:
        if key != "kind":
            with pytest.raises(EventError, match="lacks the keys"):
                event_from_json({name: value for name, value in data.items() if name != key})


@pytest.mark.parametrize(
    "change",
    [
        {"noise_multiplier": 0.0},
        {"noise_multiplier": -1.0},
        {"noise_multiplier": math.nan},
        {"noise_multiplier": math.inf},
        {"noise_multiplier": "1.0"},
        {"noise_multiplier": True},
        {"noise_multiplier": 10**400},
        {"count": 0},
        {"count": 1.0},
        {"count": True},
        {"count": 10**13},
        {"adjacency": "both"},
        {"unit": "household"},
        {"unit": None},
        {"sensitivity": 0.0},
        {"contributions_per_unit": 0},
        {"label": 3},
        {"label": "x" * 5000},
        {"sampling": None},
        {"sampling": {"scheme": "poisson"}},
    ],
    ids=repr,
)
def test_impossible_values_are_refused(change):
    data = GaussianRelease(1.0, Sampling("poisson", 0.1)).to_json()
    with pytest.raises(EventError):
        event_from_json({**data, **change})


@pytest.mark.parametrize(
    "arguments",
    [
        {"scheme": "poison", "rate": 0.1},
        {"scheme": "poisson"},
        {"scheme": "poisson", "rate": 0.0},
        {"scheme": "poisson", "rate": 1.5},
        {"scheme": "poisson", "rate": math.nan},
        {"scheme": "poisson", "rate": 0.1, "max_batch": 5},
        {"scheme": "truncated_poisson", "rate": 0.1, "max_batch": 5},
        {"scheme": "fixed_size_without_replacement", "population": 5, "batch": 6},
        {"scheme": "fixed_size_without_replacement", "population": 10, "batch": 5, "rate": 0.4},
        {"scheme": "shuffle", "batch": 5},
        {"scheme": "full", "rate": 0.5},
        {"scheme": "full", "population": -1},
    ],
    ids=repr,
)
def test_a_sampling_that_states_too_little_or_too_much_is_refused(arguments):
    with pytest.raises(EventError):
        Sampling(**arguments)


def test_something_that_is_no_event_is_refused():
    for data in (None, [], "gaussian", {}, {"kind": "laplace"}, {"kind": ["gaussian"]}, {"kind": None}):
        with pytest.raises(EventError):
            event_from_json(data)


def test_replacing_moves_a_sum_twice_as_far_as_removing():
    assert GaussianRelease(1.0, contributions_per_unit=3, sensitivity=0.5).distance == 1.5
    assert GaussianRelease(1.0, contributions_per_unit=3, sensitivity=0.5, adjacency="replace_one").distance == 3.0


def test_more_participations_than_the_steps_hold_are_refused():
    with pytest.raises(EventError, match="do not fit"):
        CorrelatedGaussianRelease(1.0, 1.0, Participation(10, 4), steps=30)
