"""One private training step: draw, clip, account, noise, divide, update. And AdamW with the noise's bias taken out.

    engine = make_engine(model, FlatClip(1.0))
    private = PrivateOptimizer(engine, DPAdamW(model.parameters(), lr=1e-3), noise_multiplier=1.1,
                               sampler=PoissonSampler(n, q),
                               before_release=ledger.append)
    for _ in range(steps):
        rows = private.draw()
        for chunk in micro_batches(rows):
            private.backward(per_sample_losses(model, data[chunk]))
        private.step()

The sampler that drew is the sampler in the event, and a step is refused unless exactly as many examples went through
the engine as were drawn. An empty draw is a step like any other: pure noise, counted. The event is handed out before
any noise is drawn: if the ledger or the budget refuses it, nothing is released.

With `noise=CorrelatedNoise(...)` the whole run is one event, handed out in step 0, and a draw is refused where somebody
takes part more often or sooner than the noise was sized for.

Schedules: noise_multiplier and learning_rate may be functions of the step (public ones); both reach the ledger.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from privacy.clipping.engine import BatchCounts, ClippingEngine, OneBackward
from privacy.clipping.kinds import ClipKind
from privacy.correlated import CorrelatedNoise, ParticipationGuard
from privacy.events import Adjacency, CorrelatedGaussianRelease, GaussianRelease, Unaccountable, Unit
from privacy.noise import Noise, SecureNoise
from privacy.sampling import Sampler

_CACHED = 1 << 15  # entries of each of DPAdamW's tensors that are updated together on a CPU: five pieces fit its cache

MICRO_BATCH = 8  # measured: docs/privacy-engine.md, Cost

Schedule = float | Callable[[int], float]
StepEvent = GaussianRelease | CorrelatedGaussianRelease | Unaccountable


class BeforeRelease(Protocol):
    """Called with the event before noise is drawn, such as a ledger's `append`; what it raises stops the step."""

    def __call__(self, event: StepEvent, *, step: int, learning_rate: float) -> object:
        """Writes the event down, or raises."""
        ...


def make_engine(
    model: nn.Module, clip: ClipKind, mode: Literal["one_backward", "hooks"] = "one_backward", **options: Any
) -> ClippingEngine:
    """The engine by name: "one_backward" (options as in `OneBackward`) or Opacus' "hooks", the slow reference."""
    if mode == "one_backward":
        return OneBackward(model, clip, **options)
    if mode == "hooks":
        from privacy.clipping.reference import HooksEngine  # imports opacus, which takes seconds

        return HooksEngine(model, clip, **options)
    raise ValueError(f"the clipping engine is {mode!r}; expected 'one_backward' or 'hooks'.")


def micro_batches(rows: NDArray[np.int64], size: int = MICRO_BATCH) -> Iterator[NDArray[np.int64]]:
    """`rows` in pieces of at most `size`; none for an empty draw.

    The size changes memory and time, never the result. The default keeps what one piece needs in a CPU's cache for
    sequences of some hundred tokens, which is faster than a whole batch at once; a GPU wants larger pieces.
    """
    if size < 1:
        raise ValueError(f"the micro-batch is {size}; expected at least 1.")
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


class PrivateOptimizer:
    """Wraps an optimiser whose parameters are exactly those of the engine.

    noise_multiplier: sigma >= 0 or a schedule of it (0 only for a ceiling without privacy: its event is Unaccountable).
    noise: where noise comes from; a CSPRNG by default, `SeededNoise` for tests and simulations, `CorrelatedNoise`.
    divisor: what the noisy sum is divided by, a public constant (default: the sampler's expected batch).
    learning_rate: a schedule; None leaves the optimiser's own. Raises ValueError for numbers out of range and for
    parameters that the optimiser and the engine do not share.
    """

    def __init__(
        self,
        engine: ClippingEngine,
        optimizer: torch.optim.Optimizer,
        *,
        noise_multiplier: Schedule,
        sampler: Sampler,
        noise: Noise | CorrelatedNoise | None = None,
        divisor: float | None = None,
        learning_rate: Callable[[int], float] | None = None,
        before_release: BeforeRelease | None = None,
        unit: Unit = "example",
        adjacency: Adjacency = "add_or_remove_one",
        contributions_per_unit: int = 1,
        label: str = "training step",
    ) -> None:
        noise = SecureNoise() if noise is None else noise
        self.engine, self.optimizer, self.sampler, self.noise = engine, optimizer, sampler, noise
        self.divisor = sampler.expected_batch if divisor is None else float(divisor)
        if not (math.isfinite(self.divisor) and self.divisor > 0):
            raise ValueError(f"the divisor is {self.divisor}; expected a finite number above 0.")
        optimised = {p for group in optimizer.param_groups for p in group["params"]}
        strangers = [name for p, name in engine.names.items() if p not in optimised]
        unclipped = sum(p.requires_grad and p not in engine.names for p in optimised)
        if strangers or unclipped:
            raise ValueError(
                f"the optimiser lacks {strangers} of the engine's parameters and holds {unclipped} that are not "
                "clipped; give it exactly the model's trainable parameters."
            )
        self._sigma, self._rate, self._before = noise_multiplier, learning_rate, before_release
        self.unit, self.adjacency, self.label = unit, adjacency, label
        self.contributions_per_unit = contributions_per_unit
        self.next_step = 0
        if isinstance(noise, CorrelatedNoise):
            if callable(noise_multiplier):
                raise ValueError("the noise multiplier is a schedule; correlated noise has one for the whole run.")
            if adjacency == "add_or_remove_one":
                raise ValueError(
                    "adjacency is add_or_remove_one; fixed participation without sampling protects under zero_out (or "
                    "replace_one), so say adjacency='zero_out'."
                )
            if contributions_per_unit != 1:
                raise ValueError(
                    f"contributions_per_unit is {contributions_per_unit}; with correlated noise let a unit's records "
                    "share one row, and bound its participation instead."
                )
            self._guard: ParticipationGuard | None = ParticipationGuard(noise.participation)
        else:
            self._guard = None
        self._drawn: int | None = None
        self._counts = BatchCounts()
        self.last_counts = BatchCounts()  # of the last step; depends on the data, so only for the private annex

    def noise_multiplier(self, step: int) -> float:
        """sigma of a step."""
        sigma = float(self._sigma(step)) if callable(self._sigma) else float(self._sigma)
        if not (math.isfinite(sigma) and sigma >= 0):
            raise ValueError(f"the noise multiplier of step {step} is {sigma}; expected a finite number, at least 0.")
        return sigma

    def event(self) -> StepEvent:
        """What the coming step costs; with correlated noise, the whole run."""
        sigma = self.noise_multiplier(self.next_step)
        label = f"{self.label} ({self.engine.clip.kind} clipping)"
        if sigma == 0:
            return Unaccountable(f"{self.label} {self.next_step} was released without noise.")
        if isinstance(self.noise, CorrelatedNoise):
            return self.noise.event(
                sigma,
                unit=self.unit,
                adjacency=self.adjacency,
                contribution=self.engine.clip.sensitivity,
                label=label,
            )
        return GaussianRelease(
            noise_multiplier=sigma,
            sampling=self.sampler.sampling,
            adjacency=self.adjacency,
            unit=self.unit,
            label=label,
            sensitivity=self.engine.clip.sensitivity,
            contributions_per_unit=self.contributions_per_unit,
        )

    def draw(self) -> NDArray[np.int64]:
        """The rows of the coming step, possibly none; all of them must go through `backward`."""
        rows = self.sampler.draw(self.next_step)
        if self._guard is not None and self._drawn is None:
            self._guard.admit(rows.tolist(), self.next_step)
        self._drawn = len(rows)
        return rows

    def backward(self, losses: Tensor, sample_mask: Tensor | None = None) -> BatchCounts:
        """Clips and adds the gradients of losses [B]; call it once per micro-batch."""
        if self._drawn is None:
            raise ValueError("backward was called before draw; the rows of a step come from draw().")
        counts = self.engine.backward(losses, sample_mask)
        self._counts += counts
        return counts

    def step(self) -> StepEvent:
        """Accounts, adds noise, divides, updates; returns the event.

        Raises ValueError where other than the drawn number of examples went through `backward`, and whatever
        `before_release` raises: then nothing was released, and the sums are gone.
        """
        step, counts, drawn = self.next_step, self._counts, self._drawn
        sums = self.engine.take()
        self._counts, self._drawn = BatchCounts(), None
        if drawn is None:
            raise ValueError("step was called before draw; the rows of a step come from draw().")
        if counts.examples != drawn:
            raise ValueError(
                f"step {step} drew {drawn} examples, but {counts.examples} went through backward; the sampler that is "
                "accounted must be the one that ran, so pass exactly the drawn rows."
            )
        if self._rate is not None:
            for group in self.optimizer.param_groups:
                group["lr"] = float(self._rate(step))
        event = self.event()
        if self._before is not None and (step == 0 or not isinstance(event, CorrelatedGaussianRelease)):
            self._before(event, step=step, learning_rate=float(self.optimizer.param_groups[0]["lr"]))
        std = self.noise_multiplier(step) * self.engine.clip.clip_norm
        for stream, (parameter, total) in enumerate(sums.items()):
            self.noise.add_(total, std, step=step, stream=stream)
            parameter.grad = total.div_(self.divisor).to(parameter.dtype)
        if isinstance(self.optimizer, DPAdamW):
            self.optimizer.noise_std = std / self.divisor
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.last_counts, self.next_step = counts, step + 1
        return event

    def __call__(self, losses: Tensor, step: int) -> None:
        """A whole step from the losses of its whole draw: what a training loop that knows nothing of privacy calls."""
        if step != self.next_step:
            raise ValueError(
                f"the loop is at step {step}, the private optimiser at {self.next_step}; resume both alike."
            )
        self.backward(losses)
        self.step()

    def state_dict(self) -> dict[str, Any]:
        """The step, the optimiser's state and that of correlated noise (a secret): tensors and numbers."""
        state = {"next_step": self.next_step, "optimizer": self.optimizer.state_dict()}
        return {**state, "noise": self.noise.state_dict()} if isinstance(self.noise, CorrelatedNoise) else state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.next_step = int(state["next_step"])
        self.optimizer.load_state_dict(state["optimizer"])
        if isinstance(self.noise, CorrelatedNoise):
            self.noise.load_state_dict(state["noise"])
            self._guard = ParticipationGuard(self.noise.participation)
            for step in range(self.next_step):  # draws are functions of the step: who took part is known again
                self._guard.admit(self.sampler.draw(step).tolist(), step)
        self.engine.take()
        self._counts, self._drawn = BatchCounts(), None


class DPAdamW(torch.optim.Optimizer):
    """AdamW that subtracts the noise's variance from the second moment (Tang et al. 2312.14334).

    Noise of variance s^2 in each gradient entry adds s^2 to v, which drowns the signal where gradients are small and
    turns Adam into momentum SGD. Here u, the same running mean of s^2, is kept beside v (so schedules of the noise are
    followed), and the update divides by sqrt(max(v - u, floor * u)) + eps in bias-corrected terms. `noise_std` s is set
    by PrivateOptimizer before each step; with s = 0 this is AdamW (Loshchilov & Hutter 1711.05101).

    lr > 0; betas in [0, 1); eps > 0; weight_decay >= 0, decoupled; floor in (0, 1]: the share of the noise's variance
    below which the estimate v - u is not trusted.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        floor: float = 0.1,
    ) -> None:
        for name, value, low, high in (
            ("learning rate", lr, 0.0, math.inf),
            ("weight decay", weight_decay, 0.0, math.inf),
            ("first beta", betas[0], 0.0, 1.0),
            ("second beta", betas[1], 0.0, 1.0),
        ):
            if not (low <= value < high):
                raise ValueError(f"the {name} is {value}; expected at least {low} and below {high}.")
        if not (eps > 0 and 0 < floor <= 1):
            raise ValueError(f"eps is {eps} and floor {floor}; expected eps above 0 and floor in (0, 1].")
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "floor": floor})
        self.noise_std = 0.0

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update from the noisy gradients."""
        if closure is not None:
            raise ValueError("DPAdamW takes no closure: the gradients are noised once.")
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            first, second = group["betas"]
            for p in parameters:
                if not self.state[p]:
                    self.state[p].update(step=0, m=torch.zeros_like(p), v=torch.zeros_like(p), u=0.0)
            states = [self.state[p] for p in parameters]
            for state in states:
                state["step"] += 1
                state["u"] = second * state["u"] + (1 - second) * self.noise_std**2
            corrections = [1 - second ** state["step"] for state in states]
            scalars = [
                _AdamScalars(
                    first=first,
                    second=second,
                    decay=1 - group["lr"] * group["weight_decay"],
                    correction=correction,
                    noise=state["u"] / correction,
                    floor=group["floor"],
                    eps=group["eps"],
                    size=-group["lr"] / (1 - first ** state["step"]),
                )
                for state, correction in zip(states, corrections, strict=True)
            ]
            for p, state, numbers in zip(parameters, states, scalars, strict=True):
                assert p.grad is not None
                tensors = (p.detach(), p.grad, state["m"], state["v"])
                if p.device.type == "cpu" and all(x.is_contiguous() for x in tensors):
                    for pieces in zip(*(x.view(-1).split(_CACHED) for x in tensors), strict=True):
                        numbers.update_(*pieces)
                else:
                    numbers.update_(*tensors)


@dataclass(frozen=True)
class _AdamScalars:
    """The numbers of one tensor's step in DPAdamW."""

    first: float
    second: float
    decay: float
    correction: float
    noise: float
    floor: float
    eps: float
    size: float

    def update_(self, p: Tensor, grad: Tensor, mean: Tensor, square: Tensor) -> None:
        """One step of p, its first and its second moment, all of one shape, in place."""
        mean.lerp_(grad, 1 - self.first)
        square.mul_(self.second).addcmul_(grad, grad, value=1 - self.second)
        scale = square / self.correction
        scale.sub_(self.noise).clamp_(min=self.floor * self.noise).sqrt_().add_(self.eps)
        p.mul_(self.decay).addcdiv_(mean, scale, value=self.size)
