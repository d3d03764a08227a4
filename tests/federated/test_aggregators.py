"""Robust means: each equals an outside or brute-force computation, withstands liars, and is refused beside a claim."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.stats import trim_mean

from federated.aggregators import aggregate, krum_scores
from federated.settings import FederatedConfig

NAMES = ["mean", "clipped_mean", "trimmed_mean", "median", "krum", "multi_krum"]
ROBUST = NAMES[1:]


def cloud(count=11, width=6, seed=0):
    table = torch.randn(count, width, generator=torch.Generator().manual_seed(seed)) * 0.1 + 1
    return dict(enumerate(table))


def table_of(updates):
    return torch.stack([updates[device] for device in sorted(updates)]).double().numpy()


def test_mean_median_and_trimmed_mean_are_numpys_and_scipys():
    for count in (1, 2, 7, 10):
        updates = cloud(count)
        table = table_of(updates)
        got = {name: aggregate(updates, 6, name=name, hostile_share=0.2).numpy() for name in NAMES}
        np.testing.assert_allclose(got["mean"], table.mean(0), rtol=1e-6)
        np.testing.assert_allclose(got["median"], np.median(table, axis=0), rtol=1e-6)
        np.testing.assert_allclose(got["trimmed_mean"], trim_mean(table, 0.2, axis=0), rtol=1e-6)


def test_clipped_mean_bounds_what_one_device_moves():
    updates = cloud()
    before = aggregate(updates, 6, name="clipped_mean", clip_norm=0.5)
    after = aggregate(updates | {3: updates[3] * -1e6}, 6, name="clipped_mean", clip_norm=0.5)
    assert float((after - before).norm()) <= 2 * 0.5 / 11 * 1.001


def test_krum_chooses_what_a_loop_over_all_pairs_chooses():
    updates = cloud(9, seed=3)
    table, liars = table_of(updates), 2
    scores = []
    for i in range(9):
        distances = sorted(((table[i] - table[j]) ** 2).sum() for j in range(9) if j != i)
        scores.append(sum(distances[: 9 - liars - 2]))
    np.testing.assert_allclose(krum_scores(torch.from_numpy(table), liars).numpy(), scores, rtol=1e-9)
    chosen = aggregate(updates, 6, name="krum", hostile_share=0.2)  # ceil(0.2 * 9) = 2 liars
    np.testing.assert_allclose(chosen.numpy(), table[int(np.argmin(scores))], rtol=1e-6)
    several = aggregate(updates, 6, name="multi_krum", hostile_share=0.2)
    np.testing.assert_allclose(several.numpy(), table[np.argsort(scores)[:7]].mean(0), rtol=1e-6)


@pytest.mark.parametrize("name", ["trimmed_mean", "median", "krum", "multi_krum"])
@pytest.mark.parametrize("lie", [lambda u: u * 1e6, lambda u: -10 * u, lambda u: torch.full_like(u, 3e38)])
def test_a_fifth_of_liars_moves_a_robust_mean_no_further_than_honest_devices_lie(name, lie):
    honest = cloud(8)
    updates = honest | {8: lie(honest[0]), 9: lie(honest[1])}
    table = table_of(honest)
    got = aggregate(updates, 6, name=name, hostile_share=0.2).numpy()
    assert (got >= table.min(0) - 1e-6).all() and (got <= table.max(0) + 1e-6).all()
    assert not np.allclose(aggregate(updates, 6).numpy(), table.mean(0), atol=0.5)  # the plain mean is taken over


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity_are_left_out_whole(name, poison):
    honest = cloud(7)
    spoilt = honest[0].clone()
    spoilt[2] = poison
    assert torch.equal(aggregate(honest | {7: spoilt}, 6, name=name), aggregate(honest, 6, name=name))
    assert torch.equal(aggregate({0: spoilt}, 6, name=name), torch.zeros(6))
    assert torch.equal(aggregate({}, 6, name=name), torch.zeros(6))


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(ROBUST),
    st.lists(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=3, max_size=3), min_size=1, max_size=9),
    st.floats(0, 0.49),
)
def test_any_cohort_gives_a_finite_result_within_its_range(name, rows, share):
    updates = {device: torch.tensor(row) for device, row in enumerate(rows)}
    got = aggregate(updates, 3, name=name, hostile_share=share, clip_norm=1e32)
    table = torch.tensor(rows)
    slack = 1e-5 * table.abs().max()
    assert torch.isfinite(got).all()
    assert (got >= table.min(0).values - slack).all() and (got <= table.max(0).values + slack).all()


@pytest.mark.parametrize("name", ROBUST)
def test_a_robust_mean_beside_a_privacy_claim_is_refused(name):
    given = {"households": 100, "rounds": 5, "sampling_rate": 0.1, "delta": 1e-3}
    with pytest.raises(ValidationError, match="sized for a clipped sum"):
        FederatedConfig(**given, aggregator=name)
    assert FederatedConfig(**given, aggregator=name, private=False).aggregator == name
