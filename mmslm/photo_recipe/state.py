"""The checkpoint of a training phase: weights, the optimiser's numbers, the running average, the step.

Written beside and renamed, so a crash leaves the checkpoint before. It refuses a checkpoint of other parameters.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


class Average:
    """An exponential average of the trainable weights, the early steps weighted evenly. Its input is what training
    releases, so under privacy it is post-processing."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.names = [name for name, p in model.named_parameters() if p.requires_grad]
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.kept = [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After step `step` (from 0)."""
        decay = min(self.decay, step / (step + 3.0))
        torch._foreach_lerp_(self.kept, [p.detach() for p in self.parameters], 1.0 - decay)

    @torch.no_grad()
    def apply(self) -> None:
        """The model takes the average."""
        for parameter, kept in zip(self.parameters, self.kept, strict=True):
            parameter.copy_(kept)


def save_state(path: Path, step: int, model: nn.Module, optimiser: torch.optim.Optimizer, average: Average) -> None:
    """Write the phase's state after `step` steps."""
    state: dict[str, Tensor] = {"step": torch.tensor(step)}
    state |= {f"average/{name}": kept for name, kept in zip(average.names, average.kept, strict=True)}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        state[f"weight/{name}"] = parameter.detach()
        for key, value in optimiser.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                state[f"tensor/{key}/{name}"] = value
            else:
                state[f"number/{key}/{name}"] = torch.tensor(float(value), dtype=torch.float64)
    part = path.with_suffix(".part")
    save_file({name: value.contiguous() for name, value in state.items()}, part)
    part.replace(path)


@torch.no_grad()
def load_state(path: Path, model: nn.Module, optimiser: torch.optim.Optimizer, average: Average) -> int:
    """Restore what `save_state` wrote; returns the steps done. Raises ValueError for a damaged or foreign file."""
    try:
        saved = load_file(path)
        for name, kept in zip(average.names, average.kept, strict=True):
            kept.copy_(saved[f"average/{name}"])
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            parameter.copy_(saved[f"weight/{name}"])
            found: dict[str, Any] = {}
            for key, value in saved.items():
                kind, _, rest = key.partition("/")
                field, _, owner = rest.partition("/")
                if owner != name or kind not in ("tensor", "number"):
                    continue
                number = float(value) if kind == "number" else 0.0
                found[field] = value if kind == "tensor" else int(number) if field == "step" else number
            if found:
                optimiser.state[parameter] = found
        return int(saved["step"])
    except (SafetensorError, KeyError, RuntimeError, OSError) as error:
        raise ValueError(f"{path} is no checkpoint of this run ({error}); remove it and start again.") from None


__all__ = ["Average", "load_state", "save_state"]
