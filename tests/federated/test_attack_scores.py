"""Scores of canaries are log-likelihood ratios: held against the densities, written out."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import multivariate_normal, norm

from federated.attack_scores import BoundedScores, PoissonScores
from privacy.correlated import Encoder

NOISE, ROUNDS, CANARIES = 1.7, 5, 4


def products():
    return np.random.default_rng(3).normal(size=(ROUNDS, CANARIES)) * 2


@pytest.mark.parametrize("bands", [1, 3])
def test_bounded_scores_are_the_likelihood_ratio_of_all_rounds_together(bands):
    band = Encoder(ROUNDS, bands).band
    asked = [{0, 1}, {2}, {0}, {1, 2, 99}, {0}]
    scores, seen = BoundedScores(CANARIES, NOISE, band), products()
    for row, came in zip(seen, asked, strict=True):
        scores.add(row, came)
    mixing = sum(np.diag(np.full(ROUNDS - k, value), -k) for k, value in enumerate(band[:ROUNDS]))
    noise = multivariate_normal(np.zeros(ROUNDS), NOISE**2 * mixing @ mixing.T)
    for canary, score in enumerate(scores.total()):
        present = np.array([float(canary in came) for came in asked])
        ratio = noise.logpdf(seen[:, canary] - present) - noise.logpdf(seen[:, canary])
        assert score == pytest.approx(ratio, rel=1e-9, abs=1e-12)
    assert scores.total()[3] == 0  # never asked: nothing can be known


def test_poisson_scores_are_the_likelihood_ratio_with_the_chance_of_being_drawn():
    scores, seen, rate = PoissonScores(CANARIES, NOISE, 0.3), products(), 0.3
    for row in seen:
        scores.add(row, ())
    inside = rate * norm.pdf(seen, 1, NOISE) + (1 - rate) * norm.pdf(seen, 0, NOISE)
    assert scores.total() == pytest.approx(np.log(inside / norm.pdf(seen, 0, NOISE)).sum(axis=0), rel=1e-9)
