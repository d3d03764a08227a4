"""White-box canaries: random directions of norm C that no honest record points to, and the audit of a training step
with them.

A canary is one contribution that the clipping lets through whole: a vector of norm C in a direction of its own.
Included, it moves the released sum by exactly C along that direction, the most that one record may. Its score is the
product of the update with the direction. On the Gaussian mechanism this is the strongest attack there is: scores N(1,
sigma^2) against N(0, sigma^2) in units of C (Nasr et al. 2302.07956; Andrew et al. 2302.03098 for federated clients).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from privacy.audit.empirical.one_run import Method, one_run_audit
from privacy.audit.empirical.result import EmpiricalAudit

if TYPE_CHECKING:
    from torch import Tensor, nn

Array = NDArray[np.float64]


def fair_coins(m: int, seed: int | None = None) -> NDArray[np.bool_]:
    """Which of m canaries are in: independent fair coins [m], from the operating system's entropy where no seed is
    given.
    """
    if m < 2:
        raise ValueError(f"{m} canaries were asked for; expected at least 2.")
    return np.random.default_rng(seed).random(m) < 0.5


def directions(m: int, dimension: int, norm: float, seed: int) -> Array:
    """m random directions of the given norm [m, dimension]: orthogonal where the dimension allows, else independent."""
    if m < 1 or dimension < 1 or not norm > 0.0:
        raise ValueError(
            f"{m} directions of norm {norm} in dimension {dimension} were asked for; expected positive numbers."
        )
    drawn = np.random.default_rng(seed).standard_normal((m, dimension))
    if m <= dimension:
        drawn = np.linalg.qr(drawn.T)[0].T
    return norm * drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def as_vector(update: Any) -> Array:
    """A tensor, an array, or a mapping of named tensors (in the order of names) as one float64 vector [d]."""
    if hasattr(update, "items"):
        return np.concatenate([as_vector(value) for _, value in sorted(update.items())])
    if hasattr(update, "detach"):
        update = update.detach().cpu().double().numpy()
    return np.asarray(update, dtype=np.float64).ravel()


def gradients(model: nn.Module, loss: Callable[[nn.Module, Any], Tensor], canaries: Sequence[Any]) -> Array:
    """The gradient of every canary example by itself, at the model's present weights [m, d]; parameters sorted by name.

    loss(model, canary) -> scalar. Only parameters that require a gradient count. For canaries that are examples, not
    vectors: ids nobody uses, a random caption on a noise image.
    """
    import torch

    named = sorted((name, value) for name, value in model.named_parameters() if value.requires_grad)
    rows = []
    for canary in canaries:
        found = torch.autograd.grad(loss(model, canary), [value for _, value in named], allow_unused=True)
        parts = [
            (torch.zeros_like(value) if grad is None else grad).detach().double().flatten()
            for grad, (_, value) in zip(found, named, strict=True)
        ]
        rows.append(torch.cat(parts).cpu().numpy())
    return np.stack(rows)


def audit_step(
    step: Callable[[NDArray[np.bool_]], Any],
    canary_directions: Array,
    *,
    delta: float = 1e-5,
    confidence: float = 0.95,
    method: Method = "f-dp",
    seed: int | None = None,
) -> EmpiricalAudit:
    """Audits a training step (or a whole run) in one call of it.

    Args:
        step: step(included [m]) -> the update that is released: sum or mean of clipped gradients plus noise, in the
            direction of the gradients (not of the descent), as a vector or a mapping of tensors. It runs on the usual
            data and on the canaries whose coin is True. It is called once.
        canary_directions: [m, d] what each canary contributes, up to scale; d is the update's.
        delta, confidence, method: see `one_run_audit`. seed: of the coins; leave it out in an audit that counts.

    The score of a canary is the product of its unit direction with the update. Raises ValueError where shapes differ.
    """
    canary_directions = np.asarray(canary_directions, dtype=np.float64)
    lengths = np.linalg.norm(canary_directions, axis=1)
    if not (lengths > 0).all():
        raise ValueError("a canary's direction is zero; it would contribute nothing, so draw another.")
    included = fair_coins(len(canary_directions), seed)
    update = as_vector(step(included))
    if update.shape != canary_directions.shape[1:]:
        raise ValueError(
            f"the update has {update.size} numbers, a canary {canary_directions.shape[1]}; expected as many."
        )
    scores = (canary_directions / lengths[:, None]) @ update
    return one_run_audit(scores[included], scores[~included], delta=delta, confidence=confidence, method=method, seed=0)
