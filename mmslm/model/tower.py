"""A frozen pretrained image tower from open_clip or timm as a front end.

The tower runs in evaluation mode without gradients, whatever `train()` is called: its weights never see private data.
Branches are re-parameterised and BatchNorm is folded into the convolution before it; BatchNorm that has none becomes a
constant scale and shift, so nothing in it depends on the batch. Features are the tower's last map, or with `tower_exit`
the map after an earlier stage or block. It refuses names that neither library knows, towers of open_clip without a timm
trunk, and feature maps that are not square.
"""

import logging
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from mmslm.model.configuration import MMSLMVisionConfig
from mmslm.model.vision import check_pixels

logger = logging.getLogger(__name__)


class FixedNorm(nn.Module):
    """A BatchNorm in evaluation mode as what it is: a scale and a shift per channel of x [B, C, H, W]."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        assert norm.running_var is not None and norm.running_mean is not None
        scale = (norm.running_var + norm.eps).rsqrt()
        if norm.weight is not None:
            scale = scale * norm.weight.detach()
        shift = -norm.running_mean * scale
        if norm.bias is not None:
            shift = shift + norm.bias.detach()
        self.register_buffer("scale", scale.clone())
        self.register_buffer("shift", shift.clone())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.get_buffer("scale")[:, None, None] + self.get_buffer("shift")[:, None, None]


def make_trunk(name: str) -> nn.Module:
    """The timm trunk of "open_clip:ARCHITECTURE" or "timm:NAME" with random weights. Raises ValueError."""
    import timm

    library, _, wanted = name.partition(":")
    if library == "open_clip":
        import open_clip

        config = open_clip.get_model_config(wanted)
        if config is None:
            raise ValueError(f"open_clip has no architecture {wanted!r}; see open_clip.list_models().")
        timm_name = config["vision_cfg"].get("timm_model_name")
        if not timm_name:
            raise ValueError(
                f"open_clip's {wanted} has an image tower without a timm trunk, which mmslm does not convert; "
                "choose a MobileCLIP, SigLIP or other timm tower."
            )
        wanted = timm_name
    elif library != "timm":
        raise ValueError(f'A tower is "open_clip:ARCHITECTURE" or "timm:NAME"; got {name!r}.')
    try:
        trunk: nn.Module = timm.create_model(wanted, pretrained=False, num_classes=0)
    except RuntimeError as error:
        raise ValueError(f"timm has no model {wanted!r}; see timm.list_models().") from error
    return trunk


def freeze_trunk(trunk: nn.Module) -> nn.Module:
    """Evaluation mode, no gradients, branches merged, BatchNorm folded or made constant. In place; returns the trunk."""
    from timm.utils.model import reparameterize_model

    trunk = reparameterize_model(trunk.eval(), inplace=True)
    _fold_norms(trunk)
    return trunk.requires_grad_(False)


def _fold_norms(module: nn.Module) -> None:
    children = list(module.named_children())
    previous: tuple[str, nn.Module] | None = None
    for name, child in children:
        if isinstance(child, nn.BatchNorm2d):
            follows = previous is not None and _is_pair(previous, (name, child))
            if follows and previous is not None and isinstance(previous[1], nn.Conv2d):
                setattr(module, previous[0], fuse_conv_bn_eval(previous[1], child))
                fixed: nn.Module = nn.Identity()
            else:
                fixed = FixedNorm(child)
            # timm's BatchNormAct2d carries a dropout and an activation behind the norm.
            after = [
                getattr(child, part) for part in ("drop", "act") if isinstance(getattr(child, part, None), nn.Module)
            ]
            setattr(module, name, nn.Sequential(fixed, *after) if after else fixed)
        else:
            _fold_norms(child)
        previous = (name, child)


def _is_pair(convolution: tuple[str, nn.Module], norm: tuple[str, nn.Module]) -> bool:
    """Whether the names say that the norm directly follows the convolution (conv/bn, conv1/bn1, conv_pw/bn1 do not all
    run in the order of definition, so only pairs that timm always runs in a row are folded)."""
    first, second = convolution[0], norm[0]
    if not isinstance(convolution[1], nn.Conv2d) or convolution[1].out_channels != norm[1].num_features:
        return False
    return (first, second) in {
        ("conv", "bn"),
        ("conv1", "bn1"),
        ("conv2", "bn2"),
        ("conv3", "bn3"),
        ("conv_stem", "bn1"),
    }


def read_features(trunk: Any, pixels: Tensor, exit_after: int | None) -> Tensor:
    """The feature map [n, P, d] of pixels [n, 3, H, W], class tokens left out. Raises ValueError for an early exit that
    the tower does not have, or a map that is not square."""
    if exit_after is None:
        features = trunk.forward_features(pixels)
    else:
        try:
            features = trunk.forward_intermediates(
                pixels, indices=[exit_after], stop_early=True, intermediates_only=True, output_fmt="NCHW"
            )[0]
        except (AssertionError, IndexError, AttributeError) as error:
            raise ValueError(f"The tower has no stage {exit_after} to stop after ({error}); choose another.") from error
    if features.dim() == 4:
        if features.shape[2] != features.shape[3]:
            raise ValueError(f"The tower gives a map of shape {tuple(features.shape)}; only square maps are supported.")
        return features.flatten(2).transpose(1, 2)
    tokens: Tensor = features[:, int(getattr(trunk, "num_prefix_tokens", 0)) :]
    if round(tokens.shape[1] ** 0.5) ** 2 != tokens.shape[1]:
        raise ValueError(f"The tower gives {tokens.shape[1]} tokens, which are not a square; choose another tower.")
    return tokens


class FrozenTower(nn.Module):
    """pixel_values [B, N, 3, H, W] in [-1, 1] -> features [B, N*P, d] of a frozen tower, P = tower_grid^2.

    Nothing in it is trained, so pictures may share the batch axis here.
    """

    def __init__(self, config: MMSLMVisionConfig) -> None:
        super().__init__()
        self.config = config
        self.trunk = freeze_trunk(make_trunk(str(config.tower)))
        self.train(False)

    def train(self, mode: bool = True) -> "FrozenTower":
        """A frozen tower stays in evaluation mode."""
        return super().train(False)

    def freeze_fixed(self) -> None:
        """Freeze the whole tower."""
        self.trunk.requires_grad_(False)

    def forward(self, pixel_values: Tensor) -> Tensor:
        check_pixels(pixel_values, self.config)
        batch, count = pixel_values.shape[:2]
        mean = pixel_values.new_tensor(list(self.config.tower_mean))[:, None, None]
        std = pixel_values.new_tensor(list(self.config.tower_std))[:, None, None]
        with torch.no_grad():
            pixels = ((pixel_values.flatten(0, 1) + 1.0) / 2.0 - mean) / std
            features = read_features(self.trunk, pixels, self.config.tower_exit)
        return features.reshape(batch, count * features.shape[1], features.shape[2])


__all__ = ["FixedNorm", "FrozenTower", "freeze_trunk", "make_trunk", "read_features"]
