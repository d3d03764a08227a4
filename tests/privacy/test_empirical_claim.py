"""Attacks on a run's own events: never above the truth, strong enough to see a bug, and honest about how often they tried."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from privacy.audit.empirical.claim import (
    F_DP,
    _profile,
    attack_entries,
    own_curve_bound,
    participation_scores,
    significance_left,
)
from privacy.audit.empirical.one_run import curve_rejects, profile_shrink
from privacy.audit.empirical.replay import MOST_STEPS, replay_scores
from privacy.events import CorrelatedGaussianRelease, GaussianRelease, Participation, PostProcessing, Sampling
from privacy.report import Pricer
from privacy.report.recompute import merge

DELTA = 1e-5


@pytest.fixture(scope="module")
def pricer() -> Pricer:
    return Pricer()


def test_the_score_is_the_log_likelihood_ratio() -> None:
    rng = np.random.default_rng(0)
    z, sigma, chance = rng.normal(size=(3, 50)), np.array([0.5, 1.0, 2.0]), np.array([0.1, 0.5, 1.0])
    out = stats.norm.pdf(z, 0, sigma[:, None])
    inside = (1 - chance[:, None]) * out + chance[:, None] * stats.norm.pdf(z, 1, sigma[:, None])
    opposite = (1 - chance[:, None]) * out + chance[:, None] * stats.norm.pdf(z, -1, sigma[:, None])
    found = participation_scores(z, sigma, chance)
    assert np.allclose(found, np.log(inside / out).sum(axis=0))
    assert np.allclose(participation_scores(z, sigma, chance, replaced=True), np.log(inside / opposite).sum(axis=0))


def test_a_canary_known_to_be_absent_scores_nothing() -> None:
    assert np.array_equal(participation_scores(np.ones((1, 4)), [1.0], np.zeros((1, 4))), np.zeros(4))


def test_the_runs_own_curve_is_refuted_in_at_most_five_percent_of_honest_runs(pricer: Pricer) -> None:
    # The bound exceeds the truth exactly where the curve of the events as they are is refuted.
    run = (GaussianRelease(1.0, Sampling("full"), unit="user"),)
    curve = profile_shrink(_profile(run, DELTA, pricer))
    rng = np.random.default_rng(3)
    refuted = 0
    for _ in range(200):
        coins = rng.random(1000) < 0.5
        order = np.argsort(rng.standard_normal(1000) + coins)
        v = int(coins[order[-63:]].sum() + (~coins[order[:63]]).sum())
        refuted += curve_rejects(1000, 126, v, curve, 0.05)
    assert refuted <= 10


def test_more_right_guesses_give_a_larger_bound_on_the_own_curve(pricer: Pricer) -> None:
    run = (GaussianRelease(1.0, Sampling("full"), unit="user"),)
    truth = pricer.curve_epsilon([run], DELTA)
    none, some, more = (
        own_curve_bound(1000, [(126, v)], run, delta=DELTA, significance=0.05, pricer=pricer)[0] for v in (66, 95, 115)
    )
    assert none == 0.0 and some is not None and more is not None
    assert 0.1 * truth < some < more < truth


def test_each_further_attack_spends_half_of_what_the_one_before_did() -> None:
    spent = [significance_left(0.95, earlier) for earlier in range(20)]
    assert spent[0] == pytest.approx(0.05) and sum(spent) < 0.1
    run = (GaussianRelease(3.0, Sampling("full"), unit="user"),)
    rng = np.random.default_rng(0)
    entries = attack_entries(rng.normal(size=200), rng.random(200) < 0.5, run, delta=DELTA, earlier=2)
    assert [entry.confidence for entry in entries] == [pytest.approx(1 - 0.05 / 8)] * 2
    assert all("attack 3" in entry.correction for entry in entries)


SCHEMES = {
    "poisson": Sampling("poisson", rate=0.3, population=500),
    "truncated": Sampling("truncated_poisson", rate=0.3, population=500, max_batch=170),
    "fixed size": Sampling("fixed_size_without_replacement", population=500, batch=150),
    "shuffle": Sampling("shuffle", population=500, batch=100),
    "fixed batches": Sampling("none", population=500, batch=100),
    "full": Sampling("full"),
}


@pytest.mark.parametrize("name", SCHEMES)
def test_replayed_events_leak_what_they_say_and_no_more(name: str, pricer: Pricer) -> None:
    adjacency = "replace_one" if name == "fixed size" else "zero_out" if name in ("shuffle", "fixed batches") else None
    event = GaussianRelease(
        1.5, SCHEMES[name], count=10, unit="user", **({"adjacency": adjacency} if adjacency else {})
    )
    scores, coins = replay_scores([event, PostProcessing("averaged")], canaries=400, clip_norm=0.3, seed=5)
    assert scores[coins].mean() > scores[~coins].mean()  # something is found ...
    order = np.argsort(scores)
    v = int(coins[order[-40:]].sum() + (~coins[order[:40]]).sum())
    curve = profile_shrink(_profile(merge([event]), DELTA, pricer))
    assert not curve_rejects(400, 80, v, curve, 0.01)  # ... and no more than there is


def test_a_replay_is_repeatable_with_a_seed_and_not_without() -> None:
    event = GaussianRelease(1.0, Sampling("poisson", rate=0.5, population=50), count=3, unit="user")
    first, again = (replay_scores([event], canaries=50, seed=1) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(replay_scores([event], canaries=50)[0], replay_scores([event], canaries=50)[0])


def test_a_tenth_of_the_noise_contradicts_the_claim(pricer: Pricer) -> None:
    # The events claim sigma 4; what ran had 0.4. The curve of the claimed events refutes it.
    claimed = GaussianRelease(4.0, Sampling("full"), count=4, unit="user")
    ran = GaussianRelease(0.4, Sampling("full"), count=4, unit="user")
    scores, coins = replay_scores([ran], canaries=1000, seed=2)
    found = {item.method: item for item in attack_entries(scores, coins, merge([claimed]), delta=DELTA, pricer=pricer)}
    assert found[F_DP].lower_bound > pricer.curve_epsilon([merge([claimed])], DELTA)
    assert found[F_DP].details["noise_factor"] < 1


def test_what_cannot_be_made_again_is_refused() -> None:
    correlated = CorrelatedGaussianRelease(1.0, 2.0, Participation(4, 2), steps=8)
    with pytest.raises(ValueError, match="correlated gaussian event cannot be made again"):
        replay_scores([correlated], canaries=50)
    with pytest.raises(ValueError, match="no release"):
        replay_scores([PostProcessing("nothing ran")], canaries=50)
    with pytest.raises(ValueError, match="too many to draw from"):
        huge = Sampling("fixed_size_without_replacement", population=10**9, batch=10)
        replay_scores([GaussianRelease(1.0, huge, adjacency="replace_one")], canaries=50)
    with pytest.raises(ValueError, match="sensitivity 2 C"):
        replay_scores([GaussianRelease(1.0, Sampling("full"), sensitivity=2.0)], canaries=50)


def test_a_very_long_run_is_attacked_over_its_first_steps() -> None:
    from privacy.audit.empirical.replay import _steps

    event = GaussianRelease(1.0, Sampling("full"), count=MOST_STEPS * 3)
    assert sum(1 for _ in _steps([event, event])) == MOST_STEPS
