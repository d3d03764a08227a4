"""The adapters of a model as one flat float32 vector: what travels, and all that travels.

Order is the sorted order of the parameter names, so that both ends agree without sending names. What it refuses: a
vector of another length or type, a value that is not finite, and a model whose adapters changed shape.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn


class AdapterVector:
    """Reads and writes adapters as a vector ``[d]`` float32 on the CPU.

    ``parameters``: name -> parameter, as ``model.adapter_parameters()`` gives them; at least one, all floating point.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        if not parameters:
            raise ValueError("this model has no adapters to train; add image experts before a federated run.")
        self.parameters = {name: parameters[name] for name in sorted(parameters)}
        for name, parameter in self.parameters.items():
            if not parameter.is_floating_point():
                raise ValueError(
                    f"adapter {name!r} has type {parameter.dtype}; only floating-point adapters can be averaged."
                )
        self.shapes = {name: tuple(parameter.shape) for name, parameter in self.parameters.items()}
        self._sizes = [parameter.numel() for parameter in self.parameters.values()]
        self.dimension = sum(self._sizes)
        text = json.dumps([[name, list(shape)] for name, shape in self.shapes.items()])
        self._layout = hashlib.sha256(text.encode()).hexdigest()

    def layout(self) -> str:
        """SHA-256 of names and shapes: equal at both ends, or the vector would be read into the wrong places."""
        return self._layout

    def read(self) -> Tensor:
        """A copy of the adapters, ``[d]`` float32 on the CPU."""
        parts = [parameter.detach().reshape(-1).to("cpu", torch.float32) for parameter in self.parameters.values()]
        return torch.cat(parts)

    @torch.no_grad()
    def write(self, vector: Tensor) -> None:
        """Load ``vector [d]`` into the model. ValueError for another length, type or a value that is not finite."""
        check_vector(vector, self.dimension)
        parts = torch.split(vector, self._sizes)
        for (name, parameter), part in zip(self.parameters.items(), parts, strict=True):
            if tuple(parameter.shape) != self.shapes[name]:
                raise ValueError(
                    f"adapter {name!r} changed its shape from {self.shapes[name]} to {tuple(parameter.shape)}; "
                    "make a new AdapterVector after changing the model."
                )
            parameter.copy_(part.view(parameter.shape))


def check_vector(vector: Tensor, dimension: int) -> None:
    """Raise ValueError unless ``vector`` is a finite float32 tensor of shape ``[dimension]``."""
    if vector.dtype != torch.float32 or tuple(vector.shape) != (dimension,):
        raise ValueError(
            f"the adapter vector has shape {tuple(vector.shape)} and type {vector.dtype}; "
            f"this model's adapters need ({dimension},) of torch.float32: was it "
            f"made with another rank or other layers?"
        )
    if not all_finite(vector):
        raise ValueError("the adapter vector holds values that are not finite; go back to the last good checkpoint.")


def all_finite(vector: Tensor) -> bool:
    """Whether every number of ``vector [d]`` float32 is finite."""
    # A sum of squares that is finite has finite numbers only, and takes a tenth of the time. Squares of numbers above
    # 1e19 overflow; then the float64 sum decides, which is finite if and only if each float32 number is.
    return math.isfinite(float(torch.dot(vector, vector))) or math.isfinite(float(vector.sum(dtype=torch.float64)))


def norm_quantiles(updates: Iterable[Tensor]) -> tuple[float, ...]:
    """Least, quarter, middle, three quarters and most of the updates' L2 norms; () where there is none.

    Private data: for runs without a claim, and for the operator's eyes.
    """
    norms = torch.tensor([float(torch.linalg.vector_norm(update, dtype=torch.float64)) for update in updates])
    if not len(norms):
        return ()
    return tuple(torch.quantile(norms, torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0])).tolist())
