"""The server's optimiser: turns a round's mean update into a step of the adapter vector.

It sees only what the mechanism released, so it is post-processing and costs no privacy. Plain tensors and no
``torch.optim``, whose first use in a process imports a compiler; its whole state is a dict of vectors, so that a
checkpoint holds it.

Reddi et al., 2021, "Adaptive Federated Optimization" (FedAdam, FedAvgM); Hsu et al., 2019 (server momentum).
"""

from __future__ import annotations

import torch
from torch import Tensor

from federated.settings import ServerOptimiserConfig


class ServerOptimiser:
    """One of sgd, momentum or adam over vectors ``[d]`` float32.

    The mean update plays the part of the negative gradient: the model moves along it.
    """

    def __init__(self, config: ServerOptimiserConfig, dimension: int) -> None:
        self.config = config
        self.dimension = dimension
        self.steps = 0
        names = {"sgd": (), "momentum": ("momentum",), "adam": ("first_moment", "second_moment")}[config.name]
        self._state = {name: torch.zeros(dimension) for name in names}

    def step(self, vector: Tensor, update: Tensor) -> Tensor:
        """The next vector; ``vector`` and ``update`` are ``[d]`` float32 and stay untouched."""
        config = self.config
        rate = self.rate()
        self.steps += 1
        if config.name == "sgd":
            return vector + rate * update
        if config.name == "momentum":
            momentum = self._state["momentum"].mul_(config.beta1).add_(update)
            return vector + rate * momentum
        first = self._state["first_moment"].mul_(config.beta1).add_(update, alpha=1 - config.beta1)
        second = self._state["second_moment"].mul_(config.beta2).addcmul_(update, update, value=1 - config.beta2)
        # Bias correction as in Kingma & Ba: without it the first rounds hardly move.
        corrected_first = first / (1 - config.beta1**self.steps)
        corrected_second = second / (1 - config.beta2**self.steps)
        return vector + rate * corrected_first / (corrected_second.sqrt() + config.tau)

    def rate(self) -> float:
        """The next step's rate. Late steps are small, so that the noise of early ones is averaged and not repeated."""
        config = self.config
        if not config.decay_rounds:
            return config.learning_rate
        return config.learning_rate * (1 - 0.9 * min(1.0, self.steps / config.decay_rounds))

    def state(self) -> dict[str, Tensor]:
        """Copies of the state vectors, for a checkpoint."""
        return {name: value.clone() for name, value in self._state.items()}

    def load(self, state: dict[str, Tensor], steps: int) -> None:
        """Take up a checkpointed state. ValueError when it belongs to another optimiser or another dimension."""
        if set(state) != set(self._state):
            raise ValueError(
                f"the checkpoint holds optimiser state {sorted(state)}, and "
                f"{self.config.name!r} needs {sorted(self._state)}; "
                "resume with the optimiser that the run began with."
            )
        for name, value in state.items():
            if tuple(value.shape) != (self.dimension,):
                raise ValueError(
                    f"the checkpoint's {name} has {value.numel()} numbers, and this "
                    f"model's adapters have {self.dimension}."
                )
            self._state[name] = value.to(torch.float32).clone()
        self.steps = steps
