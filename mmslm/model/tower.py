"""A frozen pretrained image tower from open_clip or timm as a front end.

The tower runs in evaluation mode without gradients, whatever `train()` is called: its weights never see private data.
Branches are re-parameterised and BatchNorm is folded into the convolution before it; BatchNorm that has none becomes a
constant scale and shift, so nothing in it depends on the batch. Features are the tower's last map before any pooling, or
with `tower_exit` the map after an earlier stage or block, behind which nothing is kept. It refuses names that neither
library knows and feature maps that are not square.
"""

import logging
from collections.abc import Sequence
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
    """The trunk of "open_clip:ARCHITECTURE" or "timm:NAME" with random weights: a timm model, or open_clip's own
    VisionTransformer or ModifiedResNet without what comes after the features. Raises ValueError."""
    import timm

    library, _, wanted = name.partition(":")
    if library == "open_clip":
        import open_clip

        config = open_clip.get_model_config(wanted)
        if config is None:
            raise ValueError(f"open_clip has no architecture {wanted!r}; see open_clip.list_models().")
        timm_name = config["vision_cfg"].get("timm_model_name")
        if not timm_name:
            return _open_clip_trunk(config)
        wanted = timm_name
    elif library != "timm":
        raise ValueError(f'A tower is "open_clip:ARCHITECTURE" or "timm:NAME"; got {name!r}.')
    try:
        trunk: nn.Module = timm.create_model(wanted, pretrained=False, num_classes=0)
    except RuntimeError as error:
        raise ValueError(f"timm has no model {wanted!r}; see timm.list_models().") from error
    return trunk


def _open_clip_trunk(config: dict[str, Any]) -> nn.Module:
    """open_clip's own tower without its text tower, pooling and projection."""
    from open_clip.model import _build_vision_tower

    trunk: Any = _build_vision_tower(config["embed_dim"], config["vision_cfg"], bool(config.get("quick_gelu")))
    if hasattr(trunk, "attnpool"):
        trunk.attnpool = nn.Identity()
        return trunk  # type: ignore[no-any-return]
    trunk.proj = None
    if trunk.attn_pool is not None or trunk.final_ln_after_pool:
        # The norm stands behind the pooling, so the grid is read without it, as open_clip's own tokens are.
        trunk.attn_pool = trunk.attn_pool_contrastive = None
        trunk.ln_post = nn.Identity()
    return trunk  # type: ignore[no-any-return]


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
            follows = previous is not None and _is_pair(previous, (name, child), isinstance(module, nn.Sequential))
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


def cut_trunk(trunk: Any, exit_after: int) -> nn.Module:
    """The trunk without what comes after stage or block `exit_after`, where its library can cut. In place."""
    prune = getattr(trunk, "prune_intermediate_layers", None)
    if prune is not None:
        prune([exit_after], prune_norm=True)
    elif hasattr(trunk, "stem") and hasattr(trunk, "layer4"):  # open_clip's ModifiedResNet: stem, then four layers
        for number in range(exit_after + 1, 5):
            setattr(trunk, f"layer{number}", nn.Identity())
    return trunk  # type: ignore[no-any-return]


def _is_pair(convolution: tuple[str, nn.Module], norm: tuple[str, nn.Module], inside_sequence: bool) -> bool:
    """Whether the names say that the norm directly follows the convolution (conv/bn, conv1/bn1, conv_pw/bn1 do not all
    run in the order of definition, so only pairs that timm always runs in a row are folded)."""
    first, second = convolution[0], norm[0]
    if inside_sequence and convolution[0].isdigit():
        return isinstance(convolution[1], nn.Conv2d) and convolution[1].out_channels == norm[1].num_features
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
        features = (
            trunk.forward_features(pixels) if hasattr(trunk, "forward_features") else _open_clip_map(trunk, pixels)
        )
    else:
        try:
            found = trunk.forward_intermediates(
                pixels, indices=[exit_after], stop_early=True, intermediates_only=True, output_fmt="NCHW"
            )
            features = (found["image_intermediates"] if isinstance(found, dict) else found)[0]
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


def _open_clip_map(trunk: Any, pixels: Tensor) -> Tensor:
    """The grid before pooling of open_clip's ModifiedResNet [n, d, h, w] or VisionTransformer [n, d, h, w]."""
    if not hasattr(trunk, "transformer"):
        return trunk(pixels)  # type: ignore[no-any-return]
    tokens = trunk.ln_post(trunk.transformer(trunk._embeds(pixels)))[:, 1:]
    rows, columns = trunk.grid_size
    return tokens.transpose(1, 2).reshape(len(tokens), -1, rows, columns)  # type: ignore[no-any-return]


def read_cells(trunk: Any, pixels: Tensor, exit_after: int | None, levels: Sequence[int], grid: int) -> Tensor:
    """The features [n, grid^2, d] of pixels [n, 3, H, W]: the last map, before it in each cell those of `levels`.

    Maps are averaged to grid x grid cells. Raises ValueError as `read_features` does.
    """
    if not levels:
        maps = [_square(read_features(trunk, pixels, exit_after))]
    else:
        early = exit_after is not None
        order = sorted({*levels, *([exit_after] if exit_after is not None else [])})
        try:
            found = trunk.forward_intermediates(
                pixels, indices=order, stop_early=early, intermediates_only=early, output_fmt="NCHW"
            )
        except (AssertionError, IndexError, AttributeError) as error:
            raise ValueError(f"The tower has not all of the stages {order} ({error}); choose others.") from error
        last: Any
        last, between = (None, found) if early else found
        maps = [between[order.index(level)] for level in levels]
        if exit_after is not None:
            maps.append(between[order.index(exit_after)])
        elif last.dim() == 4:
            maps.append(last)
        else:
            maps.append(_square(last[:, int(getattr(trunk, "num_prefix_tokens", 0)) :]))
    if any(one.shape[2] != one.shape[3] for one in maps):
        raise ValueError(f"The tower gives maps of shapes {[tuple(one.shape) for one in maps]}; only squares are read.")
    if maps[-1].shape[2] < grid:
        raise ValueError(
            f"The tower gives a map of {maps[-1].shape[2]} x {maps[-1].shape[2]} cells, but tower_grid is {grid}; give a "
            "larger picture or a smaller grid."
        )
    cells = [one if one.shape[2] == grid else nn.functional.adaptive_avg_pool2d(one, grid) for one in maps]
    return torch.cat([one.flatten(2) for one in cells], dim=1).transpose(1, 2)


def _square(tokens: Tensor) -> Tensor:
    """tokens [n, s^2, d] as a map [n, d, s, s]."""
    side = round(tokens.shape[1] ** 0.5)
    return tokens.transpose(1, 2).unflatten(2, (side, side))


class FrozenTower(nn.Module):
    """pixel_values [B, N, 3, H, W] in [-1, 1] -> features [B, N*P, d] of a frozen tower, P = tower_grid^2.

    Nothing in it is trained, so pictures may share the batch axis here.
    """

    def __init__(self, config: MMSLMVisionConfig) -> None:
        super().__init__()
        self.config = config
        self.use(make_trunk(str(config.tower)))

    def use(self, trunk: nn.Module) -> None:
        """Take this trunk: frozen, folded, and cut where the tower is left early."""
        self.trunk = freeze_trunk(trunk)
        if self.config.tower_exit is not None:
            cut_trunk(self.trunk, self.config.tower_exit)
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
            features = read_cells(
                self.trunk, pixels, self.config.tower_exit, self.config.tower_levels, self.config.grid_size
            )
        return features.reshape(batch, count * features.shape[1], features.shape[2])


__all__ = ["FixedNorm", "FrozenTower", "cut_trunk", "freeze_trunk", "make_trunk", "read_cells", "read_features"]
