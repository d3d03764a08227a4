"""MobileNetV2 from dequantised TFLite weights (npz) to a safetensors file that fits timm's `mobilenetv2_100`.

The npz holds, per convolution in network order, `NN.weight` [out, in / groups, kh, kw], `NN.bias` [out] and `NN.meta`
(stride, groups, activation); BatchNorm is folded into them, the 53rd convolution is the classifier of 1001 classes
(class 0 is background). timm's BatchNorms become the identity plus the bias, so nothing is lost:
`timm:mobilenetv2_100` with `vision_weights=FILE` computes the same function, with one difference. TensorFlow pads a
strided 3x3 convolution on the right and the bottom only, timm on all sides, so timm's network sees the picture moved by
up to 31 pixels. With `timm.create_model("mobilenetv2_100", pad_type="same")` there is no difference (tests hold both).
Pixels are x / 127.5 - 1: a mean and a standard deviation of 0.5.

It refuses files that are not this network: another count of convolutions, another shape, pickled arrays.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

NAME = "mobilenetv2_100"
MEAN = STD = (0.5, 0.5, 0.5)
_EPS = 1e-5  # of timm's BatchNorms


def convert_mobilenet(source: str | Path, target: str | Path) -> Path:
    """Write the weights in the npz `source` to the safetensors file `target`; classifier included. Returns `target`.

    Raises FileNotFoundError, or ValueError where the file holds another network.
    """
    state = mobilenet_state(source)
    path = Path(target)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    save_file(state, part, metadata={"architecture": NAME, "mean": "0.5 0.5 0.5", "std": "0.5 0.5 0.5"})
    part.replace(path)
    return path


def mobilenet_state(source: str | Path) -> dict[str, Tensor]:
    """timm's state dict (float32) of the npz `source`, with `classifier` [1001, 1280]. Raises as `convert_mobilenet`."""
    layers = _read(Path(source))
    trunk = _trunk()
    pairs = list(_convolutions(trunk))
    if len(layers) != len(pairs) + 1:
        raise ValueError(
            f"{source} holds {len(layers)} convolutions, but MobileNetV2 has {len(pairs)} and a classifier; "
            "give mobilenet_v2_1.0_224_quant.npz or another file of that layout."
        )
    state: dict[str, Tensor] = {}
    for (convolution, norm, shape), (weight, bias) in zip(pairs, layers, strict=False):
        if weight.shape != shape or bias.shape != shape[:1]:
            raise ValueError(
                f"{source}: the weights for {convolution} have shape {tuple(weight.shape)}, expected {tuple(shape)}: "
                "this is another width of MobileNetV2."
            )
        state[f"{convolution}.weight"] = weight
        state[f"{norm}.weight"] = torch.ones_like(bias)
        state[f"{norm}.bias"] = bias
        state[f"{norm}.running_mean"] = torch.zeros_like(bias)
        state[f"{norm}.running_var"] = torch.full_like(bias, 1.0 - _EPS)  # var + eps = 1: the norm only adds the bias
        state[f"{norm}.num_batches_tracked"] = torch.tensor(0)
    weight, bias = layers[-1]
    state["classifier.weight"], state["classifier.bias"] = weight.flatten(1), bias
    return state


def _trunk() -> nn.Module:
    import timm

    made: nn.Module = timm.create_model(NAME, pretrained=False, num_classes=0)
    return made


def _convolutions(trunk: Any) -> Iterator[tuple[str, str, torch.Size]]:
    """Names of each convolution and the norm behind it, in network order, and the convolution's shape."""
    yield "conv_stem", "bn1", trunk.conv_stem.weight.shape
    for stage, blocks in enumerate(trunk.blocks):
        for place, block in enumerate(blocks):
            # The first block has no expansion; its projection is called conv_pw.
            expands = hasattr(block, "conv_pwl")
            order = ("conv_pw", "conv_dw", "conv_pwl") if expands else ("conv_dw", "conv_pw")
            for number, name in enumerate(order, start=1):
                prefix = f"blocks.{stage}.{place}"
                yield f"{prefix}.{name}", f"{prefix}.bn{number}", getattr(block, name).weight.shape
    yield "conv_head", "bn2", trunk.conv_head.weight.shape


def _read(path: Path) -> list[tuple[Tensor, Tensor]]:
    """Weight and bias of every convolution, float32, in network order."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}; give the npz of a dequantised MobileNetV2.")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            count = sum(name.endswith(".weight") for name in arrays.files)
            return [
                (
                    torch.from_numpy(arrays[f"{number:02d}.weight"].astype(np.float32)),
                    torch.from_numpy(arrays[f"{number:02d}.bias"].astype(np.float32)),
                )
                for number in range(count)
            ]
    except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} is no npz of convolutions NN.weight and NN.bias ({error}); copy it again or give another file."
        ) from error


__all__ = ["MEAN", "NAME", "STD", "convert_mobilenet", "mobilenet_state"]
