"""Every privacy bug that we know of, planted into a small real training step, is caught by at least one check.

The step is real: a torch model with an embedding, per-example gradients by autograd, clipping, Gaussian noise.
`Step(bug)` plants one bug; `Step(None)` is right, and passes every check. docs/empirical-audit.md has the table of
what catches what; the table here (`CATCHES`) is what it is made of, in both directions: a check that is said to catch
a bug does, and the right step passes it.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from privacy.accounting import epsilon, profile
from privacy.audit.empirical import (
    audit_step,
    check_isolation,
    check_noise,
    check_sampler,
    check_sensitivity,
    check_unit,
    claim_is_contradicted,
    gradients,
)
from privacy.clipping.vector import clip_vector
from privacy.events import GaussianRelease, Sampling
from privacy.mechanism import GaussianSum
from privacy.noise import SeededNoise

VOCABULARY, WIDTH, LENGTH = 300, 6, 4
CLIP, SIGMA, EXPECTED = 0.7, 1.5, 16.0  # C, noise multiplier, expected batch: the public divisor
POPULATION, RATE = 160, 0.1
HOUSEHOLD = 5
CANARIES = 200

BUGS = [
    "no noise",
    "half the noise",
    "noise scaled by the batch size twice",
    "no clipping",
    "clipping the batch instead of the sample",
    "per-token clipping",
    "a sampler of fixed batches",
    "one household counted as many",
    "EMA statistics",
    "a validation set that trains",
]

# bug -> the checks that catch it. "one run" is the canary audit of a single step against the step's own claim.
CATCHES = {
    "no noise": {"noise", "one run"},
    "half the noise": {"noise"},
    "noise scaled by the batch size twice": {"noise", "one run"},
    "no clipping": {"sensitivity", "unit"},
    "clipping the batch instead of the sample": {"sensitivity", "unit"},
    "per-token clipping": {"sensitivity", "unit"},
    "a sampler of fixed batches": {"sampler"},
    "one household counted as many": {"unit"},
    "EMA statistics": {"isolation"},
    "a validation set that trains": {"isolation"},
}
CHECKS = ["noise", "sensitivity", "unit", "sampler", "isolation", "one run"]


class TinyModel(nn.Module):
    """Tokens [T] -> logits [T, V], with a running mean of its activations, as an EMA codebook or a BatchNorm keeps."""

    def __init__(self, keeps_statistics: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.keeps_statistics = keeps_statistics
        self.register_buffer("running_mean", torch.zeros(WIDTH))

    def forward(self, tokens):
        hidden = self.embedding(tokens)
        if self.keeps_statistics and self.training:
            with torch.no_grad():
                self.running_mean.mul_(0.9).add_(0.1 * hidden.mean(0))
        return self.head(hidden - self.running_mean)


def token_losses(model, tokens):
    """Next-token losses [T - 1]."""
    return nn.functional.cross_entropy(model(tokens[:-1]), tokens[1:], reduction="none")


def example_loss(model, tokens):
    return token_losses(model, tokens).mean()


def household_of(record: int) -> int:
    return record // HOUSEHOLD


class Step:
    """One training step on examples (tokens [T], household), with at most one bug."""

    def __init__(self, bug: str | None, *, clip: float = CLIP, sigma: float = SIGMA, divisor: float = EXPECTED) -> None:
        self.bug, self.clip, self.sigma, self.divisor = bug, clip, sigma, divisor
        torch.manual_seed(0)
        self.model = TinyModel(keeps_statistics=bug == "EMA statistics").double()

    @property
    def std(self) -> float:
        """What the event states: the noise of each released number."""
        return self.sigma * self.clip / self.divisor

    def contribution(self, model, tokens) -> torch.Tensor:
        """What one example adds before the household's clipping [d]."""
        parameters = list(model.parameters())
        if self.bug == "per-token clipping":
            losses = token_losses(model, tokens)
            parts = [self.flat(loss, parameters, retain=True) for loss in losses]
            return sum(clip_vector(part, self.clip)[0] for part in parts)
        return self.flat(example_loss(model, tokens), parameters)

    @staticmethod
    def flat(loss, parameters, retain: bool = False) -> torch.Tensor:
        found = torch.autograd.grad(loss, parameters, retain_graph=retain)
        return torch.cat([grad.flatten() for grad in found])

    def release(self, data, seed: int, *, user_level: bool = False, model=None) -> torch.Tensor:
        """The noisy mean gradient [d] of `data`: examples (tokens, household)."""
        model = copy.deepcopy(self.model) if model is None else model
        model.train()
        dimension = sum(parameter.numel() for parameter in model.parameters())
        vectors = [self.contribution(model, tokens) for tokens, _ in data]
        if user_level and self.bug != "one household counted as many":
            households: dict[int, torch.Tensor] = {}
            for vector, (_, household) in zip(vectors, data, strict=True):
                households[household] = households.get(household, torch.zeros(dimension)) + vector
            vectors = list(households.values())
        if self.bug is None or self.bug in ("one household counted as many", "EMA statistics"):
            sampling = Sampling("poisson", RATE)
            mechanism = GaussianSum(self.clip, self.sigma, sampling, self.divisor, SeededNoise(seed), unit="example")
            return mechanism.release(vectors, step=0, dimension=dimension).double()
        total = torch.zeros(dimension, dtype=torch.float64)
        for vector in vectors:
            clips = self.bug not in (
                "no clipping",
                "clipping the batch instead of the sample",
                "per-token clipping",
            )
            total += clip_vector(vector, self.clip)[0] if clips else vector
        if self.bug == "clipping the batch instead of the sample":
            total = clip_vector(total / self.divisor, self.clip)[0] * self.divisor
        scale = {
            "no noise": 0.0,
            "half the noise": 0.5,
            "noise scaled by the batch size twice": 1.0 / self.divisor,
        }.get(self.bug, 1.0)
        noise = torch.from_numpy(np.random.default_rng(seed).standard_normal(dimension))
        return (total + scale * self.sigma * self.clip * noise) / self.divisor

    def draw(self, step: int) -> np.ndarray:
        """The records of a step."""
        if self.bug == "a sampler of fixed batches":
            per_epoch = round(1 / RATE)
            return np.arange(POPULATION).reshape(per_epoch, -1)[step % per_epoch]
        return np.flatnonzero(np.random.default_rng((1, step)).random(POPULATION) < RATE)

    def run(self, data, validation) -> dict[str, torch.Tensor]:
        """A whole step: everything that survives it."""
        model = copy.deepcopy(self.model)
        update = self.release(data, seed=3, model=model)
        rate = 0.5
        if self.bug == "a validation set that trains":  # the learning rate follows the validation loss
            with torch.no_grad():
                rate = 0.5 * float(sum(example_loss(model, tokens) for tokens, _ in validation))
        start = 0
        with torch.no_grad():
            for parameter in model.parameters():
                part = update[start : start + parameter.numel()]
                parameter -= rate * part.view_as(parameter)
                start += parameter.numel()
        return {name: value.clone() for name, value in model.state_dict().items()}


def example(seed: int, household: int | None = None):
    tokens = torch.from_numpy(np.random.default_rng(seed).integers(0, 90, LENGTH))
    return tokens, seed if household is None else household


DATA = [example(seed, household_of(seed)) for seed in range(15)]


def loud(step: Step, sign: float) -> tuple[torch.Tensor, int]:
    """The example whose gradient is largest along (sign 1) or against (sign -1) the batch's: the hard neighbour."""
    total = sum(step.contribution(step.model, tokens) for tokens, _ in DATA)
    rare = [(torch.tensor([token] * LENGTH), 99) for token in range(0, 300, 20)]
    return max(rare, key=lambda item: sign * float(step.contribution(step.model, item[0]) @ total))


def verdict(step: Step, check: str) -> bool:
    """True where the step passes the check."""
    if check == "noise":
        return check_noise(lambda repeat: step.release(DATA, repeat), std=step.std).passed
    if check == "sensitivity":
        pairs = [([*DATA, loud(step, sign)], DATA) for sign in (1.0, -1.0)]
        pairs += [([loud(step, 1.0)], []), (DATA, DATA[:-1])]
        return check_sensitivity(step.release, pairs, bound=step.clip / step.divisor).passed
    if check == "unit":
        pairs = [([item for item in DATA if item[1] != household], DATA) for household in range(3)]
        pairs.append(([], [(loud(step, 1.0)[0], 7) for _ in range(HOUSEHOLD)]))
        return check_unit(
            lambda data, seed: step.release(data, seed, user_level=True), pairs, bound=step.clip / step.divisor
        ).passed
    if check == "sampler":
        return check_sampler(step.draw, rate=RATE, population=POPULATION).passed
    if check == "isolation":
        trained = [name for name, _ in step.model.named_parameters()]
        other = [example(seed) for seed in range(500, 510)]
        by_training = check_isolation(lambda data: step.run(data, other), [(DATA, DATA[:-1])], noisy=trained)
        by_validation = check_isolation(lambda held: step.run(DATA, held), [(other, other[:-1])])
        return by_training.passed and by_validation.passed
    # One run: canaries are examples of a rare token each, all in the batch of one step without sampling.
    canaries = [torch.full((LENGTH,), 95 + i) for i in range(CANARIES)]
    vectors = gradients(step.model, example_loss, canaries)  # sorted by name, which is the model's own order here

    def released(included):
        chosen = [(canaries[i], 1000 + i) for i in np.flatnonzero(included)]
        return step.release([*DATA, *chosen], seed=8)

    audit = audit_step(released, vectors, seed=9)
    claim = profile([GaussianRelease(step.sigma)], epsilons=list(np.linspace(0.0, 8.0, 50)), accountant="own")
    return not claim_is_contradicted(audit, claim)


@pytest.mark.parametrize("check", CHECKS)
def test_the_right_step_passes_every_check(check):
    assert verdict(Step(None), check)


@pytest.mark.parametrize(("bug", "check"), [(bug, check) for bug in BUGS for check in sorted(CATCHES[bug])])
def test_a_planted_bug_is_caught(bug, check):
    assert not verdict(Step(bug), check)


def test_every_bug_is_caught_by_some_check():
    assert set(CATCHES) == set(BUGS) and all(CATCHES.values())
    assert {check for found in CATCHES.values() for check in found} == set(CHECKS)


def test_the_documentation_has_this_table():
    page = (Path(__file__).parents[2] / "docs" / "empirical-audit.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("|")]
    header = next([cell.strip() for cell in row.strip("|").split("|")] for row in rows if "one run" in row)
    for bug in BUGS:
        row = next(row for row in rows if row.strip("| ").startswith(bug))
        cells = dict(zip(header, (cell.strip() for cell in row.strip("|").split("|")), strict=True))
        assert {check for check in CHECKS if cells[check] == "caught"} == CATCHES[bug], bug


def test_a_step_with_little_noise_cannot_claim_a_small_epsilon():
    step = Step("no noise", sigma=4.0)
    assert epsilon([GaussianRelease(step.sigma)], 1e-5, "own") < 1.1
    assert not verdict(step, "one run")
    assert math.isclose(step.std, 4.0 * CLIP / EXPECTED)
