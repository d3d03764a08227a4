"""The product's own private step, seen from outside: audited with canaries, its noise measured, its neighbours compared."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from privacy.accounting import epsilon, profile
from privacy.audit.empirical import audit_step, check_noise, check_sensitivity, claim_is_contradicted, gradients
from privacy.clipping.kinds import FlatClip
from privacy.events import GaussianRelease
from privacy.noise import SeededNoise
from privacy.optimizer import PrivateOptimizer, make_engine
from privacy.sampling import FullSampler

VOCABULARY, WIDTH, LENGTH, CLIP, SIGMA, DIVISOR = 400, 6, 4, 0.5, 1.2, 16.0


class TinyModel(nn.Module):
    """Tokens [B, T] -> logits [B, T, V]."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, tokens):
        return self.head(self.embedding(tokens))


def losses(model, tokens):
    """One loss per example [B]."""
    logits = model(tokens[:, :-1])
    return nn.functional.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none").mean(1)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return TinyModel()


def examples(count: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(1).integers(0, 90, (count, LENGTH)))


def update(model, tokens: torch.Tensor, seed: int, scale: float = 1.0) -> np.ndarray:
    """The noisy mean gradient that one step of plain SGD with rate 1 releases [d]; `scale` multiplies every loss."""
    trained = copy.deepcopy(model)
    private = PrivateOptimizer(
        make_engine(trained, FlatClip(CLIP)),
        torch.optim.SGD(trained.parameters(), lr=1.0),
        noise_multiplier=SIGMA,
        sampler=FullSampler(len(tokens)),
        noise=SeededNoise(seed),
        divisor=DIVISOR,
    )
    rows = private.draw()
    private.backward(scale * losses(trained, tokens[rows]))
    assert isinstance(private.step(), GaussianRelease)
    before, after = (dict(sorted(part.named_parameters())) for part in (model, trained))
    return np.concatenate([(before[name] - after[name]).detach().double().numpy().ravel() for name in before])


def test_its_noise_is_what_its_event_states(model):
    assert check_noise(lambda repeat: update(model, examples(20), repeat), std=SIGMA * CLIP / DIVISOR).passed


def test_no_record_moves_it_further_than_its_event_states(model):
    data = examples(20)
    loud = torch.cat([data, torch.full((1, LENGTH), 350)])
    pairs = [(loud, data), (data, data[:-1]), (loud, loud[1:])]
    for scale in (1.0, 1e4):  # ordinary and exploding gradients
        finding = check_sensitivity(
            lambda tokens, seed, scale=scale: update(model, tokens, seed, scale), pairs, bound=CLIP / DIVISOR
        )
        assert finding.passed, finding.reason


def test_canaries_do_not_contradict_its_claim_and_find_some_of_it(model):
    tokens = torch.arange(95, 395)[:, None].repeat(1, LENGTH)
    directions = gradients(model, lambda net, canary: losses(net, canary[None])[0], list(tokens))

    def step(included):
        return update(model, torch.cat([examples(20), tokens[torch.from_numpy(included)]]), seed=2, scale=1e3)

    audit = audit_step(step, directions, seed=3)
    claim = profile([GaussianRelease(SIGMA)], epsilons=list(np.linspace(0, 10, 50)), accountant="own")
    assert not claim_is_contradicted(audit, claim)
    assert 0.0 < audit.lower_bound < epsilon([GaussianRelease(SIGMA)], audit.delta, "own")
